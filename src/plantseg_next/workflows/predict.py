"""Measure images with a model: masks, overlays and the tables of severity."""

from collections.abc import Callable
from pathlib import Path

from plantseg_next.data.image_io import read_image
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.errors import PlantSegError
from plantseg_next.files import prepare_output
from plantseg_next.inference.pipeline import MIN_LESION_PX, Pipeline
from plantseg_next.inference.predictor import Predictor
from plantseg_next.inference.records import PredictionTable, RecordWriter
from plantseg_next.models.bundle import ModelCard


def write_measures(
    predictor: Predictor,
    card: ModelCard,
    manifest: Manifest,
    out: Path,
    *,
    name: Callable[[Row], str],
    min_lesion_px: int = MIN_LESION_PX,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> PredictionTable:
    """Measure every image and write the results.

    Args:
        predictor: Predictor of the model.
        card: Card of the model.
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
    rows, skipped = [], []
    prepare_output(out)
    pipeline = Pipeline(predictor, card)
    with RecordWriter(out, card.classes, model=card.model_id) as writer:
        for i, row in enumerate(manifest.rows):
            try:
                image = read_image(row.image) if only_image is None else only_image
            except PlantSegError as error:
                skipped.append((name(row), error.came))
            else:
                leaf = pipeline.predict(image, name=name(row), min_lesion_px=min_lesion_px)
                rows.append(
                    writer.add(
                        leaf.name,
                        leaf.image,
                        leaf.assessment,
                        scale=leaf.scale,
                        notes=leaf.notes,
                    )
                )
            on_progress(i + 1, len(manifest))
    return PredictionTable(tuple(rows), tuple(skipped))
