"""Evaluate a model: choose images and class names, and pair masks with predictions.

``inference`` and ``evaluation`` do not import each other; this module uses both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from plantseg_next.data.formats import read_folders
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest, Row, Split
from plantseg_next.data.quality.inspect import with_digests
from plantseg_next.data.splits import labeled_rows
from plantseg_next.errors import UsageError
from plantseg_next.evaluation import report
from plantseg_next.evaluation.report import EvalItem
from plantseg_next.evaluation.report_tables import Report
from plantseg_next.files import AnyPath
from plantseg_next.inference.pipeline import Pipeline, load_pipeline
from plantseg_next.inference.predictor import Predictor
from plantseg_next.inference.severity import measure_severity
from plantseg_next.models.bundle import RunImage, RunImages, read_card, read_images
from plantseg_next.models.start import STARTERS, find_model
from plantseg_next.names import escaped
from plantseg_next.structures import (
    IGNORE,
    ClassMap,
    Prediction,
    Sample,
    SkippedImage,
    is_lesion,
)
from plantseg_next.workflows.images import read_each, refuse_unreadable
from plantseg_next.workflows.progress import Progress, progress_for

ANY_LESION = ("any lesion",)
"""The lesion classes of a report on a data set whose classes are not those of the model."""


def evaluate(
    model: AnyPath,
    data: AnyPath | None = None,
    *,
    split: Split | Literal["all"] = "test",
    classes: AnyPath | None = None,
    exif: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Evaluate a model on images with masks that it has not learned from.

    Images that are in the model's run keep their split there; images are identified by
    their content, not by their name. Other images have the split that their data set
    states, or else that of their group in the run, or else count as test images. The
    report notes how many images the run leaves out.

    Args:
        model: A run, or one of its models.
        data: Images with masks; by default the data set of the run.
        split: Split to evaluate on; "all" is for data sets that had no part in training.
        classes: File of what mask values mean, if the folder has none.
        exif: Which way images with an EXIF orientation were annotated: "as-stored" or
            "upright".
        progress: Called after every image.

    Raises:
        UsageError: If no image has a mask, or training images are among them.
    """
    folder = find_model(model)
    rows, notes = images_to_evaluate(
        folder,
        None if data is None else Path(data),
        split,
        classes=None if classes is None else Path(classes),
        exif=exif,
    )
    pipeline = load_pipeline(folder)
    eval_classes = pipeline.card.classes
    if eval_classes.lesions != rows.classes.lesions:
        eval_classes = replace(eval_classes, lesions=ANY_LESION)
    evaluated = report_on(pipeline, rows, eval_classes, progress=progress)
    return replace(evaluated, notes=notes)


def report_on(
    pipeline: Pipeline,
    rows: Manifest,
    eval_classes: ClassMap,
    *,
    progress: Progress | None = None,
) -> Report:
    """Return the report of a model on images with masks; see ``eval_items``."""
    card = pipeline.card
    items = eval_items(
        pipeline.predictor,
        card.classes,
        rows,
        eval_classes,
        progress_for(progress, "evaluating"),
    )
    return report.evaluate(
        items, eval_classes, severity=severity_pct, source_domain=card.sources
    )


def images_to_evaluate(
    model: Path,
    data: Path | None,
    split: Split | Literal["all"],
    *,
    classes: Path | None = None,
    exif: Sequence[str] = (),
) -> tuple[Manifest, tuple[str, ...]]:
    """Return the images with masks that a model is evaluated on, and notes for the report.

    Args:
        model: Folder of the model. It lists the images of its run by their digests; a
            model of format 3 does not, and must be in its run.
        data: Images with masks; by default the data set of the run, one folder up.
        split: Split to evaluate on; "all" is for data sets that had no part in training.
        classes: File of what mask values mean, if the folder has none.
        exif: Which way its images were annotated, as for ``read_folders``.

    Raises:
        UsageError: If no image has a mask, or training images are among them.
    """
    run = _images_of_model(model)
    notes: tuple[str, ...] = ()
    if data is not None:
        stated = read_folders([data], classes=classes, exif=exif)
        _refuse_own_data(model, run, stated, split)
        manifest = _in_splits_of_run(stated, run)
        if split != "all":
            notes = tuple(_left_out(stated, manifest, run or (), split))
    elif (own := _manifest_of_run(model)) is not None:
        manifest = own
    else:
        raise UsageError(
            f"`{model}` is not in its run, and does not state where its images are.",
            needed="images with masks to evaluate it with",
            fix="name a folder: plantseg-next evaluate MODEL DATA",
        )
    if split != "all":
        return labeled_rows(manifest, split, data or model), notes
    if run is not None:
        _refuse_learned(run, manifest)
    if not len(manifest.labeled):
        raise UsageError(
            f"`{data}` has no image with a mask.",
            needed="masks to evaluate the model with",
            fix="run `plantseg-next check` on it: it reports how the folder was read",
        )
    return manifest.labeled, notes


def images_of_run(manifest: Manifest) -> RunImages:
    """Return the images of a run as its models list them."""
    return tuple(
        RunImage(
            _digest(row), row.split, row.source, row.group, has_mask=row.mask is not None
        )
        for row in manifest.rows
    )


def eval_items(
    predictor: Predictor,
    model_classes: ClassMap,
    manifest: Manifest,
    eval_classes: ClassMap,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[EvalItem | SkippedImage]:
    """Yield every row with its prediction, merged to "any lesion" if the names differ.

    Images that cannot be read follow at the end.

    Raises:
        DataError: If no image can be read.
    """
    merge = eval_classes.lesions != model_classes.lesions
    names = {name: i for i, name in enumerate(eval_classes.diseases)}
    skipped: list[SkippedImage] = []

    def read(row: Row) -> tuple[Sample, Prediction]:
        sample = load_sample(row, manifest)
        return sample, predictor(sample.image)

    for row, (read_sample, predicted) in read_each(
        manifest,
        read,
        skipped=skipped,
        name=lambda row: escaped(row.key),
        on_progress=on_progress,
    ):
        sample = replace(read_sample, disease=names.get(row.disease or "", IGNORE))
        if merge:
            sample = replace(sample, lesion=_any_lesion(sample.lesion))
            predicted = replace(predicted, lesion=_any_lesion(predicted.lesion))  # noqa: PLW2901
        yield EvalItem(sample, predicted, row.source, row.group_key, row.disease)
    refuse_unreadable(manifest, skipped)
    yield from skipped


def severity_pct(lesion: np.ndarray, leaf: np.ndarray | None) -> float | None:
    """Return lesion over leaf area in percent; ``None`` without a leaf."""
    return measure_severity(lesion, leaf).severity_pct


def _in_splits_of_run(manifest: Manifest, run: RunImages | None) -> Manifest:
    """Return images in the splits and groups of the run of a model; see ``evaluate``."""
    if run is None:
        return manifest.only(replace(r, split=r.split or "test") for r in manifest.rows)
    # Test images first: an image with a copy in another split was learned from.
    images = sorted(run, key=lambda image: image.split != "test")
    known = {image.digest: image for image in images}
    groups = {(i.source, i.group): i.split for i in images if i.group}
    rows = []
    for row in with_digests(manifest).rows:
        image = known.get(_digest(row))
        if image is not None:
            rows.append(replace(row, split=image.split, group=image.group or row.group))
        else:
            of_group = groups.get((row.source, row.group))
            rows.append(replace(row, split=row.split or of_group or "test"))
    return manifest.only(rows)


def _left_out(
    stated: Manifest, manifest: Manifest, run: RunImages, split: Split
) -> Iterator[str]:
    """Yield how many images are in another split because of the run, and why."""
    contents = {image.digest for image in run}
    pairs = [
        (before, row)
        for before, row in zip(stated.rows, manifest.rows, strict=True)
        if row.mask is not None and row.split not in (split, before.split)
    ]
    n_known = sum(_digest(row) in contents for _, row in pairs)
    n_groups = len(pairs) - n_known
    total = len(manifest.labeled)
    if n_known:
        yield (
            f"{n_known} of {total} images with masks are left out: they are images of the "
            f"model's run, which are not in its {split} split."
        )
    if n_groups:
        yield (
            f"{n_groups} of {total} images with masks are left out: the model's run has a "
            "data set and a group of the same names in another split. If these are other "
            "plants, rename the folder, or state the `split` of each image in index.csv."
        )


def _refuse_own_data(
    model: Path, run: RunImages | None, manifest: Manifest, split: Split | Literal["all"]
) -> None:
    """Refuse images of which it is unknown whether they are test images.

    These are images of a data set that the model, or the model it was started from, learned
    from, where neither the model nor the manifest of its run lists the training images.
    """
    known = {image.source for image in run or ()}
    unlisted = set(read_card(model).sources) - known
    rows = [row for row in manifest.labeled.rows if row.source in unlisted]
    if all(row.split == "test" or (row.split and split != "all") for row in rows):
        return
    names = ", ".join(sorted({row.source for row in rows}))
    if run is not None or model in STARTERS.values():
        came = (
            f"`{model}`, or a model that it was started from, learned from a data set "
            f"called {names}, and the images it learned from are not listed here."
        )
        fix = (
            "rename the folder if its images are different; if not, state their published "
            "`split` in index.csv and evaluate with --split test"
        )
    else:
        came = (
            f"`{model}` learned from a data set called {names}, and has been moved away "
            "from its run, whose manifest.json lists those images."
        )
        fix = "move the model back beside manifest.json of its run, or rename the data"
    raise UsageError(
        came,
        needed="the model in its run, or images that it cannot have learned from",
        fix=fix,
    )


def _images_of_model(model: Path) -> RunImages | None:
    """Return the images of a model's run; ``None`` if neither of them lists them."""
    images = read_images(model)
    if images is None and (manifest := _manifest_of_run(model)) is not None:
        return images_of_run(manifest)
    return images


def _manifest_of_run(model: Path) -> Manifest | None:
    path = model.resolve().parent / MANIFEST_FILE
    return Manifest.read(path) if path.is_file() else None


def _refuse_learned(run: RunImages, manifest: Manifest) -> None:
    seen = {
        image.digest
        for image in run
        if image.split in ("train", "unlabeled")
        or (image.split == "val" and image.has_mask)
    }
    shared = sum(_digest(row) in seen for row in manifest.labeled.rows)
    if shared:
        raise UsageError(
            f"{shared} of these images were used to train or to select the model.",
            needed="images that had no part in its training",
            fix="leave out --split all to evaluate on the test images of the run",
        )


def _digest(row: Row) -> str:
    return row.sha256[:16]


def _any_lesion(lesion: np.ndarray) -> np.ndarray:
    """Return the map with every lesion class as 1."""
    return np.where(lesion == IGNORE, IGNORE, is_lesion(lesion)).astype(np.uint8)
