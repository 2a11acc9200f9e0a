"""The evaluation report: its values, and their output as JSON, CSV and plain text.

``report.evaluate`` computes the values; this module only formats them.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from plantseg_next.evaluation.intervals import Estimate
from plantseg_next.evaluation.severity_agreement import Agreement
from plantseg_next.files import explained, write_atomically
from plantseg_next.names import csv_line, escaped
from plantseg_next.structures import SkippedImage

FEW_GROUPS = 10
FOOTNOTES = """\
How to read this
  Scores are of pixels summed over all images, then divided; never means of images.
  IoU, Dice   `-` (undefined) for a class in neither truth nor prediction, and left out
              of means; 0 for a class that is predicted but absent from the truth.
  precision   `-` where nothing was predicted; recall `-` where nothing is in the truth.
  mean IoU    over all classes, "no lesion" included; disease mIoU without it.
  boundary    F1 of outlines within 0.75 % of the diagonal, at least one pixel; outlines
              of the image's border and of ignored pixels do not count.
  95 %        percentile bootstrap over groups, which are never split; `-` for fewer
              than two groups. With fewer than about 20 groups it is too narrow.
  severity    % of the leaf, only where the leaf is marked and predicted. rho_c is Lin's
              concordance (1989), C_b its bias factor; `-` below three images or where
              the true severity does not vary. Limits: mean difference +- 1.96 SD.
  Pixels and images without an annotation are left out of the scores that need it."""
SECTIONS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "Any lesion against none",
        {
            "lesion_dice": "Dice",
            "lesion_iou": "IoU",
            "lesion_precision": "precision",
            "lesion_recall": "recall",
            "lesion_boundary_f1": "boundary F1",
        },
    ),
    (
        "Classes",
        {
            "mean_iou": "mean IoU",
            "disease_miou": "disease mIoU",
            "mean_accuracy": "mean accuracy",
            "disease_accuracy": "image-level label accuracy",
        },
    ),
    (
        "Leaf",
        {"leaf_iou": "IoU", "leaf_dice": "Dice", "leaf_boundary_f1": "boundary F1"},
    ),
)
"""Scores in the order of the text, with their labels; others follow under their names."""


@dataclass(frozen=True)
class ClassRow:
    """Scores of one lesion class, or of "no lesion"; areas in pixels."""

    name: str
    iou: float
    dice: float
    precision: float
    recall: float
    truth_px: int
    predicted_px: int

    @property
    def seen(self) -> bool:
        """Whether the class is in the truth or in a prediction."""
        return self.truth_px > 0 or self.predicted_px > 0


@dataclass(frozen=True)
class SubsetRow:
    """Any-lesion scores of one data set, or of the images of one disease."""

    name: str
    n_images: int
    lesion_dice: Estimate
    lesion_iou: Estimate


@dataclass(frozen=True)
class ImageRow:
    """One image: any-lesion Dice, and severity in % of the leaf; NaN where unknown."""

    key: str
    source: str
    group: str
    disease: str
    predicted_disease: str
    lesion_dice: float
    severity_truth: float
    severity_predicted: float


@dataclass(frozen=True)
class SeverityScores:
    """Agreement of severity over the images whose leaf is marked.

    Args:
        agreement: Over the images with both values.
        rho_c: Lin's concordance with its interval.
        n_without: Images with a true severity but no predicted one.
    """

    agreement: Agreement
    rho_c: Estimate
    n_without: int


@dataclass(frozen=True)
class Report:
    """The evaluation of a model on one set of images.

    Args:
        n_images: Images evaluated; ``n_lesion_images`` of them have known lesions,
            ``n_leaf_images`` a known leaf that was also predicted.
        n_groups: Groups of these images.
        estimates: Every score by its name, each also an attribute: ``lesion_dice`` and
            whatever ``report.report_metrics`` computes. ``target_domain`` is lesion Dice
            on data sets whose masks the model was not trained on, over that on data sets
            whose masks it was trained on; NaN unless there are both.
        skipped: Images that could not be read; they are in no score.
        confusion: Pixels, rows by true class, columns by predicted class.
        notes: Sentences on which images were evaluated.
    """

    n_images: int
    n_lesion_images: int
    n_leaf_images: int
    n_groups: int
    estimates: Mapping[str, Estimate]
    severity: SeverityScores
    classes: tuple[ClassRow, ...]
    sources: tuple[SubsetRow, ...]
    diseases: tuple[SubsetRow, ...]
    images: tuple[ImageRow, ...]
    confusion: Int64[np.ndarray, "k k"]
    skipped: tuple[SkippedImage, ...] = ()
    notes: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Estimate:
        """Return a score by its name."""
        try:
            return self.__dict__["estimates"][name]
        except KeyError:
            raise AttributeError(f"a report has no {name!r}", name=name, obj=self) from None

    def to_json(self) -> str:
        """Return the report as JSON; undefined scores are ``null``."""
        tree = asdict(self)
        tree |= tree.pop("estimates")
        tree["skipped"] = [image._asdict() for image in self.skipped]
        return json.dumps(_plain(tree), indent=1, ensure_ascii=False)

    def to_text(self) -> str:
        """Return the report as aligned plain text, followed by explanations."""
        return "\n\n".join([*self._sections(), FOOTNOTES]) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``report.json``, ``report.txt`` and ``images.csv``.

        Raises:
            OutputError: If the folder cannot be written.
        """
        columns = [column.name for column in fields(ImageRow)]
        rows = [[asdict(row)[name] for name in columns] for row in self.images]
        table = "".join(map(csv_line, [columns, *rows]))
        with explained(folder):
            write_atomically(folder / "report.json", self.to_json().encode())
            write_atomically(folder / "report.txt", self.to_text().encode())
            write_atomically(folder / "images.csv", table.encode())

    def _sections(self) -> Iterable[str]:
        yield (
            f"{self.n_images} images in {self.n_groups} groups; "
            f"lesions known in {self.n_lesion_images}, leaf in {self.n_leaf_images}"
        )
        yield from self.notes
        if self.n_groups < FEW_GROUPS:
            yield (
                "Too few groups for conclusions about other images: evaluate at least "
                f"{FEW_GROUPS}, better more."
            )
        for title, labels in (*SECTIONS, ("Further scores", self._further())):
            shown = [
                (label, self.estimates[name])
                for name, label in labels.items()
                # With one lesion class it equals the lesion IoU.
                if name != "disease_miou" or len(self.classes) > 2
            ]
            if shown and (title != "Leaf" or self.n_leaf_images):
                yield _estimates(title, *shown)
        if self.severity.agreement.n or self.severity.n_without:
            yield self._severity()
        yield _aligned(
            ["Class", "IoU", "Dice", "precision", "recall", "true px", "predicted px"],
            [_class_cells(row) for row in self.classes if row.seen],
        )
        if unseen := [row.name for row in self.classes if not row.seen]:
            yield f"In neither truth nor prediction: {', '.join(unseen)}"
        for title, rows in (("Source", self.sources), ("Disease", self.diseases)):
            if rows:
                yield _aligned(
                    [title, "images", "lesion Dice", "95 % interval", "lesion IoU"],
                    [_subset_cells(row) for row in rows],
                )
        if self.target_domain.n_groups:
            yield _estimates(
                "Data sets without learned masks",
                ("Dice over source Dice", self.target_domain),
            )
        if self.skipped:
            names = ", ".join(image.key for image in self.skipped)
            yield f"In no score, because unreadable ({len(self.skipped)}): {names}"

    def _further(self) -> dict[str, str]:
        """Return the scores without a label of their own, by name."""
        named = {"target_domain"}.union(*(labels for _, labels in SECTIONS))
        return {n: n.replace("_", " ") for n in self.estimates if n not in named}

    def _severity(self) -> str:
        agreement = self.severity.agreement
        limits = f"{_points(agreement.limit_low)} to {_points(agreement.limit_high)}"
        lines = [
            _estimates("Severity", ("concordance rho_c", self.severity.rho_c)),
            f"  correlation r {_score(agreement.r)}, "
            f"bias factor C_b {_score(agreement.c_b)}",
            f"  RMSE {_points(agreement.rmse)} points of severity",
            f"  predicted minus true {_points(agreement.mean_difference)} points, "
            f"95 % limits {limits}",
            f"  {agreement.n} images; {self.severity.n_without} more have a true severity "
            "but no predicted one",
        ]
        return "\n".join(lines)


def _plain(value: object) -> object:
    """Return a value with types that JSON supports; NaN becomes ``None``."""
    match value:
        case str():
            return escaped(value)
        case float():
            return None if math.isnan(value) else value
        case np.ndarray():
            return value.tolist()
        case dict():
            return {name: _plain(entry) for name, entry in value.items()}
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case _:
            return value


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _points(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _class_cells(row: ClassRow) -> list[str]:
    scores = map(_score, (row.iou, row.dice, row.precision, row.recall))
    return [row.name, *scores, str(row.truth_px), str(row.predicted_px)]


def _subset_cells(row: SubsetRow) -> list[str]:
    lesion = row.lesion_dice
    scores = (_score(lesion.value), _interval(lesion), _score(row.lesion_iou.value))
    return [row.name, str(row.n_images), *scores]


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return "-"
    return f"{_score(estimate.low)} to {_score(estimate.high)}"


def _estimates(title: str, *rows: tuple[str, Estimate]) -> str:
    return _aligned(
        [title, "", "95 % interval", "groups"],
        [
            [
                f"  {name}",
                _score(estimate.value),
                _interval(estimate),
                str(estimate.n_groups),
            ]
            for name, estimate in rows
        ],
    )


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, its first column left-aligned and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    widths[0] = max(widths[0], 26)
    lines = (
        row[0].ljust(widths[0])
        + "".join(
            f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)
        )
        for row in (header, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)
