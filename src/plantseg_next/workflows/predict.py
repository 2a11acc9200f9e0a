"""Measure images with a model: masks, overlays and the tables of severity.

A prediction that was stopped or killed is resumed by the same call: images whose rows are
in the partial tables are not measured again.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import read_image
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.errors import OutputError, StoppedError, refuse_fewer
from plantseg_next.files import (
    AnyPath,
    explained,
    prepare_output,
    refuse_unwritable,
    write_atomically,
)
from plantseg_next.inference.pipeline import LeafAnalysis, Pipeline, load_pipeline
from plantseg_next.inference.records import PredictionTable, RecordWriter
from plantseg_next.inference.severity import MIN_LESION_PX
from plantseg_next.models.start import STARTER_FOLDER
from plantseg_next.names import escaped
from plantseg_next.structures import SkippedImage
from plantseg_next.training.signals import StopSignal
from plantseg_next.workflows.images import name_within, read_each, without_results
from plantseg_next.workflows.progress import Progress, progress_for

CALL = ".predict.json"
"""File of an unfinished prediction that states what it measures."""


def predict(
    model: AnyPath | None,
    images: AnyPath,
    out: AnyPath,
    *,
    min_lesion_px: int = MIN_LESION_PX,
    progress: Progress | None = None,
) -> PredictionTable:
    """Measure every image of a folder: masks, overlays, and the tables of severity.

    Args:
        model: A run, or one of its models; ``None`` for the starter model of the package.
        images: An image, or a folder of images in any layout.
        out: New folder for the results, or that of the same call, stopped earlier.
        min_lesion_px: Smaller lesions are not counted, in pixels at the scale at which the
            model sees the image; every row states the value in pixels of the image itself.
        progress: Called after every image.

    Raises:
        UsageError: If ``min_lesion_px`` is not a whole number of at least 1.
        OutputError: If ``out`` holds other results or cannot be written.
        StoppedError: If SIGINT or SIGTERM came; the same call resumes the prediction.
        DataError: If ``images`` is one image that cannot be read; of a folder, unreadable
            images are listed and the rest is measured.
    """
    refuse_fewer("min_lesion_px", min_lesion_px, 1)
    images, out = Path(images), Path(out)
    manifest = without_results(read_folder(images), out)
    return write_measures(
        load_pipeline(STARTER_FOLDER if model is None else model),
        manifest,
        out,
        name=name_within(images),
        min_lesion_px=min_lesion_px,
        on_progress=progress_for(progress, "measuring"),
    )


def write_measures(
    pipeline: Pipeline,
    manifest: Manifest,
    out: Path,
    *,
    name: Callable[[Row], str],
    min_lesion_px: int = MIN_LESION_PX,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> PredictionTable:
    """Measure every image and write the results.

    Args:
        pipeline: The model.
        manifest: The images; masks are not read.
        out: New folder.
        name: Returns the name of an image in the tables.
        min_lesion_px: Smaller lesions are not counted, in pixels at the scale at which the
            model sees the image; every row states the value in pixels of the image itself.
        on_progress: Called after every image, with the number done and the total.

    Raises:
        OutputError: If ``out`` holds other results or cannot be written.
        StoppedError: If SIGINT or SIGTERM came; the same call resumes the prediction.
        DataError: If the only image cannot be read; of several, unreadable ones are
            listed and the rest is measured.
    """
    # A single image is read before the folder is made: if it is broken, no folder is left.
    only_image = read_image(manifest.rows[0].image) if len(manifest) == 1 else None
    card = pipeline.card
    call = _call(pipeline, manifest, min_lesion_px)
    resume = _begins_or_resumes(out, call)
    skipped: list[SkippedImage] = []

    def measure(row: Row) -> LeafAnalysis:
        image = read_image(row.image) if only_image is None else only_image
        return pipeline.predict(image, name=name(row), min_lesion_px=min_lesion_px)

    with (
        StopSignal() as stop,
        RecordWriter(out, card.classes, model=card.model_id, resume=resume) as writer,
    ):
        rows = list(writer.resumed)
        done = {row["image"] for row in rows}
        left = manifest.only(row for row in manifest.rows if name(row) not in done)
        images = read_each(
            left, measure, skipped=skipped, name=name, on_progress=on_progress
        )
        for _, leaf in images:
            rows.append(
                writer.add(
                    leaf.name,
                    leaf.image,
                    leaf.assessment,
                    scale=leaf.scale,
                    notes=leaf.notes,
                )
            )
            if stop.by is not None and len(rows) + len(skipped) < len(manifest):
                n_done = len(rows) + len(skipped)
                raise StoppedError(n_done, len(manifest), stop.by, what="image")
    (out / CALL).unlink(missing_ok=True)
    return PredictionTable(tuple(rows), tuple(skipped))


def _call(pipeline: Pipeline, manifest: Manifest, min_lesion_px: int) -> dict[str, object]:
    """Return what must be the same if a prediction is resumed."""
    folders = {row.image.parent.absolute() for row in manifest.rows}
    return {
        "model": pipeline.card.sha256,
        "images": escaped(os.path.commonpath(folders) if folders else ""),
        "min_lesion_px": min_lesion_px,
    }


def _begins_or_resumes(out: Path, call: Mapping[str, object]) -> bool:
    """Prepare the folder of results; return whether an earlier call is resumed in it.

    Raises:
        OutputError: If ``out`` holds other results or cannot be written.
    """
    started = False
    with suppress(OSError):  # `prepare_output` explains it
        started = (out / CALL).is_file()
    if not started:
        prepare_output(out)
        with explained(out):
            try:
                write_atomically(out / CALL, json.dumps(call).encode())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(out)) from error
        return False
    try:
        earlier = json.loads((out / CALL).read_bytes())
    except (OSError, ValueError, RecursionError):
        earlier = None
    if earlier != call:
        raise OutputError(
            f"`{out}` holds a prediction that did not end, with another model, other "
            "images or another --min-lesion-px.",
            needed="the same command, which resumes it, or a new folder",
            fix="choose another --out",
        )
    refuse_unwritable(out)
    return True
