"""What was measured, written down: tables, masks and overlays of a run.

    severity.csv     a row an image        masks/      lesion class ids, palette PNG
    lesions.csv      a row a lesion         leaves/     leaf masks, where known
    records.json     both, and the classes  overlays/   what was found, for the eye

A run may last for days, so nothing is kept in memory and every row is on disk as soon
as its image is done. Until the run is over the tables carry ``.partial`` in their
names; they are whole tables of the images done so far, and a killed run leaves them
behind beside the complete tables of an earlier run.
"""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, TextIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from plantseg_next.errors import OutputError, UsageError
from plantseg_next.files import explained, write_atomically
from plantseg_next.inference.overlay import class_colors, draw_overlay
from plantseg_next.inference.severity import Assessment, Lesion
from plantseg_next.structures import IGNORE, ClassMap

FORMAT = 1
Value = str | int | float | bool | None


@dataclass(frozen=True)
class PredictionTable:
    """What became of a folder of images.

    Args:
        rows: A row of the table an image.
        skipped: Images that could not be read, each with the reason.
    """

    rows: tuple[dict[str, Value], ...]
    skipped: tuple[tuple[str, str], ...]


IMAGE_COLUMNS = (
    "image", "disease", "disease_probability", "width", "height", "scale", "leaf_px",
    "lesion_px", "severity_pct", "affected_pct_of_image", "denominator", "n_lesions",
    "n_lesions_off_leaf", "min_lesion_px", "mean_lesion_px", "median_lesion_px",
    "max_lesion_px", "mean_confidence", "mask", "leaf_mask", "overlay", "model",
    "notes",
)  # fmt: skip
"""Columns of ``severity.csv``; ``px_<class>`` follows, a column a lesion class."""

LEAST_NAMED = 0.5
"""Probability below which a disease is not named: others together are likelier."""

LESION_COLUMNS = ("image", "class", *(field.name for field in fields(Lesion)))


def image_row(name: str, assessment: Assessment, classes: ClassMap) -> dict[str, Value]:
    """Return the measures of one image, by column of ``severity.csv``.

    Areas, counts and confidence are of the lesions that severity rests on: those on the
    leaf if there is one. ``mean_confidence`` is their mean probability, weighted by
    area. ``None`` stands for what does not exist: no leaf, no lesion, no disease head.
    """
    prediction, measure = assessment.prediction, assessment.measure
    counted = assessment.counted
    areas = [one.area_px for one in counted]
    probabilities = prediction.disease_probability
    surest = max(probabilities, default=None)
    named = None
    if surest is not None and surest >= LEAST_NAMED:
        named = classes.diseases[probabilities.index(surest)]
    weighted = sum(one.area_px * one.confidence for one in counted)
    height, width = prediction.lesion.shape
    row: dict[str, Value] = {
        "image": name,
        "disease": named,
        "disease_probability": surest,
        "width": width,
        "height": height,
        **asdict(measure),
        "n_lesions": len(counted),
        "n_lesions_off_leaf": (
            None if measure.leaf_px is None else len(assessment.lesions) - len(counted)
        ),
        "min_lesion_px": assessment.min_lesion_px,
        "mean_lesion_px": statistics.fmean(areas) if areas else None,
        "median_lesion_px": statistics.median(areas) if areas else None,
        "max_lesion_px": max(areas, default=None),
        "mean_confidence": weighted / sum(areas) if areas else None,
    }
    for class_id, class_name in enumerate(classes.lesions, start=1):
        of_class = (one.area_px for one in counted if one.class_id == class_id)
        row[f"px_{class_name}"] = sum(of_class)
    return row


class RecordWriter:
    """Write the tables, masks and overlays of a run, an image at a time.

    Used as a context: the tables take their final names when it ends well.

    Args:
        folder: Where to write; made if it is not there.
        classes: Names of the lesion classes and image-level labels.
        model: Digest of the model, written in every row.
        masks: Whether to write lesion and leaf masks.
        overlays: Whether to write overlays (JPEG).

    Raises:
        OutputError: If the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        classes: ClassMap,
        *,
        model: str = "",
        masks: bool = True,
        overlays: bool = True,
    ) -> None:
        self.folder = folder
        self.classes = classes
        self.model = model
        self.masks = masks
        self.overlays = overlays
        self._names: set[str] = set()
        self._owner: dict[str, str] = {}  # from a file written, case folded, to a name
        self._tables: tuple[TextIO, TextIO, TextIO]

    def __enter__(self) -> "RecordWriter":
        """Start the tables."""
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._tables = (
                self._partial("severity.csv").open("w", encoding="utf-8", newline="\n"),
                self._partial("lesions.csv").open("w", encoding="utf-8", newline="\n"),
                self._partial("records.jsonl").open("w", encoding="utf-8", newline="\n"),
            )
            self._append(self._tables[0], csv_line(self._columns))
            self._append(self._tables[1], csv_line(LESION_COLUMNS))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the tables their names, or leave them partial after an error."""
        try:
            with explained(self.folder), ExitStack() as tables:
                for table in self._tables:
                    tables.callback(table.close)  # a full disk may show only then
        except OutputError:
            if kind is None:
                raise  # otherwise the first error says it
        if kind is not None:
            return
        with explained(self.folder):
            self._write_json()
            for name in ("severity.csv", "lesions.csv"):
                self._partial(name).replace(self.folder / name)

    def add(
        self,
        name: str,
        image: UInt8[np.ndarray, "h w 3"],
        assessment: Assessment,
        *,
        scale: float = 1.0,
        notes: Sequence[str] = (),
    ) -> dict[str, Value]:
        """Write one image's rows and images.

        Args:
            name: Path of the image relative to the folder that was read, with ``/``.
                It names the row and the files, so images of one name in different
                folders stay apart.
            image: RGB, of the size of the masks.
            assessment: What was found.
            scale: Factor by which the image was shrunk before the model saw it.
            notes: What is wrong with the image, for people.

        Returns:
            The row of ``severity.csv``, with paths relative to the folder written.

        Raises:
            UsageError: If ``name`` is absolute, leads outside, or was added before.
            OutputError: If the folder cannot be written.
        """
        self._refuse_name(name)
        row = image_row(name, assessment, self.classes)
        row |= {"scale": scale, "model": self.model, "notes": "; ".join(notes)}
        prediction = assessment.prediction
        with explained(self.folder):
            if self.masks:
                row["mask"] = path = self._path("masks", name, ".png")
                write_mask(self.folder / path, prediction.lesion, self.classes.lesions)
            if self.masks and prediction.leaf is not None:
                row["leaf_mask"] = path = self._path("leaves", name, ".png")
                write_mask(self.folder / path, prediction.leaf, ("leaf",))
            if self.overlays:
                row["overlay"] = path = self._path("overlays", name, ".jpg")
                drawn = Image.fromarray(draw_overlay(image, assessment, self.classes))
                write_atomically(
                    self.folder / path,
                    lambda file: drawn.save(file, "JPEG", quality=90),
                )
            self._append_rows(row, assessment.lesions)
        return row

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*IMAGE_COLUMNS, *(f"px_{name}" for name in self.classes.lesions))

    def _append_rows(self, row: Mapping[str, Value], lesions: Sequence[Lesion]) -> None:
        records: list[dict[str, Value]] = [
            {"class": self.classes.lesion_name(one.class_id), **asdict(one)}
            for one in lesions
        ]
        images, lesion_table, lines = self._tables
        image = row["image"]
        rows = ([{"image": image, **one}[c] for c in LESION_COLUMNS] for one in records)
        self._append(lesion_table, "".join(map(csv_line, rows)))
        self._append(images, csv_line(row.get(c) for c in self._columns))
        whole = {column: row.get(column) for column in self._columns}
        text = json.dumps({**whole, "lesions": records}, ensure_ascii=False)
        self._append(lines, text + "\n")

    def _write_json(self) -> None:
        head = {"format": FORMAT, "model": self.model, "classes": asdict(self.classes)}
        partial = self._partial("records.jsonl")

        def write(file: BinaryIO) -> None:
            start = json.dumps(head, ensure_ascii=False)[:-1]
            file.write(f'{start}, "images": ['.encode())
            with partial.open("rb") as lines:
                for number, line in enumerate(lines):
                    file.write((b",\n" if number else b"\n") + line.rstrip(b"\n"))
            file.write(b"\n]}\n")

        write_atomically(self.folder / "records.json", write)
        partial.unlink()

    def _partial(self, name: str) -> Path:
        path = self.folder / name
        return path.with_name(f"{path.stem}.partial{path.suffix}")

    def _append(self, table: TextIO, text: str) -> None:
        table.write(text)
        table.flush()

    def _refuse_name(self, name: str) -> None:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise UsageError(
                f"`{name}` is not the name of an image within a folder.",
                needed="a relative path without `..`, such as plot_1/leaf.jpg",
                fix="name images relative to the folder that holds them all",
            )
        if name in self._names:
            raise UsageError(
                f"`{name}` was recorded twice.",
                needed="one row an image",
                fix="list every image once",
            )
        self._names.add(name)

    def _path(self, kind: str, name: str, suffix: str) -> str:
        """Return a file's place; of leaf.jpg and leaf.tif, the second gets a number."""
        stem = f"{kind}/{PurePosixPath(name).with_suffix('')}"
        path, number = f"{stem}{suffix}", 1
        while self._owner.setdefault(path.casefold(), name) != name:
            number += 1
            path = f"{stem}-{number}{suffix}"
        return path


def write_mask(path: Path, ids: UInt8[np.ndarray, "h w"], names: Sequence[str]) -> None:
    """Write class ids as a palette PNG that any viewer shows in color.

    The stored values are the ids: 0 is black, ``IGNORE`` is gray, ``names[i]`` has the
    id ``i + 1``. The names are kept in the file, under the text key ``classes``.

    Raises:
        OSError: If the file cannot be written.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[1 : len(names) + 1] = class_colors(len(names))
    palette[IGNORE] = 128
    image = Image.fromarray(ids)
    image.putpalette(palette.tobytes())
    legend = PngInfo()
    legend.add_itxt("classes", json.dumps(list(names), ensure_ascii=False))
    write_atomically(path, lambda file: image.save(file, "PNG", pnginfo=legend))


def csv_line(values: Iterable[Value]) -> str:
    r"""Return one line of a table; floats to eight digits, ``None`` as an empty cell.

    Example:
        >>> csv_line(["leaf, left.jpg", 12.3456789012, None])
        '"leaf, left.jpg",12.345679,\n'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(
        f"{value:.8g}" if isinstance(value, float) else value for value in values
    )
    return line.getvalue()
