"""Measure images with a model: masks, overlays and the tables of severity."""

from collections.abc import Callable
from pathlib import Path

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import read_image
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.errors import refuse_fewer
from plantseg_next.files import AnyPath, prepare_output
from plantseg_next.inference.pipeline import LeafAnalysis, Pipeline, load_pipeline
from plantseg_next.inference.records import PredictionTable, RecordWriter
from plantseg_next.inference.severity import MIN_LESION_PX
from plantseg_next.models.start import STARTER_FOLDER
from plantseg_next.structures import SkippedImage
from plantseg_next.workflows.images import name_within, read_each
from plantseg_next.workflows.progress import Progress, progress_for


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
        out: New folder for the results.
        min_lesion_px: Smaller lesions are not counted, in pixels at the scale at which the
            model sees the image; every row states the value in pixels of the image itself.
        progress: Called after every image.

    Raises:
        UsageError: If ``min_lesion_px`` is not a whole number of at least 1.
        OutputError: If ``out`` holds results already or cannot be written.
        DataError: If ``images`` is one image that cannot be read; of a folder, unreadable
            images are listed and the rest is measured.
    """
    refuse_fewer("min_lesion_px", min_lesion_px, 1)
    images, out = Path(images), Path(out)
    manifest = read_folder(images)
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
        OutputError: If ``out`` holds results already or cannot be written.
        DataError: If the only image cannot be read; of several, unreadable ones are
            listed and the rest is measured.
    """
    # A single image is read before the folder is made: if it is broken, no folder is left.
    only_image = read_image(manifest.rows[0].image) if len(manifest) == 1 else None
    prepare_output(out)
    card = pipeline.card
    rows = []
    skipped: list[SkippedImage] = []

    def measure(row: Row) -> LeafAnalysis:
        image = read_image(row.image) if only_image is None else only_image
        return pipeline.predict(image, name=name(row), min_lesion_px=min_lesion_px)

    images = read_each(
        manifest, measure, skipped=skipped, name=name, on_progress=on_progress
    )
    with RecordWriter(out, card.classes, model=card.model_id) as writer:
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
    return PredictionTable(tuple(rows), tuple(skipped))
