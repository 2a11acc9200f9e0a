"""Where a model measures images: masks, overlays and the tables of severity."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from plantseg_next.data.image_io import read_image
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.quality.inspect import HARDLY_GREEN, green_fraction
from plantseg_next.errors import PlantSegError
from plantseg_next.files import prepare_output
from plantseg_next.inference.predictor import Predictor
from plantseg_next.inference.records import PredictionTable, RecordWriter
from plantseg_next.inference.severity import Assessment, assess
from plantseg_next.models.bundle import ModelCard


def write_measures(
    predictor: Predictor,
    card: ModelCard,
    manifest: Manifest,
    out: Path,
    *,
    name: Callable[[Row], str],
    min_lesion_px: int = 20,
    told: Callable[[int, int], None] = lambda *_: None,
) -> PredictionTable:
    """Measure every image and write what was found.

    Args:
        predictor: Of the model that measures.
        card: What is known of that model.
        manifest: The images; masks are not looked at.
        out: New folder.
        name: What an image is called in the tables.
        min_lesion_px: Smaller lesions are not counted, at the scale at which the model
            sees the image; what that is in the image's own pixels stands in every row.
        told: Hears of every image.

    Raises:
        OutputError: If ``out`` holds results already or cannot be written.
        DataError: If the only image cannot be read; of several, unreadable ones are
            listed and the rest is measured.
    """
    # A lone image is read before the folder is made: if it is broken, nothing is left.
    only_image = read_image(manifest.rows[0].image) if len(manifest) == 1 else None
    rows, skipped = [], []
    prepare_output(out)
    with RecordWriter(out, card.classes, model=card.sha256[:12]) as writer:
        for i, row in enumerate(manifest.rows):
            try:
                image = read_image(row.image) if only_image is None else only_image
            except PlantSegError as error:
                skipped.append((name(row), error.came))
            else:
                scale = predictor.scale(image.shape[:2])
                # What is too small to count is so at the scale that the model sees.
                least_px = round(min_lesion_px / scale**2)
                found = assess(predictor(image), min_lesion_px=least_px)
                notes = _notes(image, found, card)
                rows.append(writer.add(name(row), image, found, scale=scale, notes=notes))
            told(i + 1, len(manifest))
    return PredictionTable(tuple(rows), tuple(skipped))


def _notes(image: np.ndarray, found: Assessment, card: ModelCard) -> list[str]:
    """Return what a reader of the table should know about one image."""
    notes = []
    if card.classes.has_leaf and found.measure.denominator == "image":
        notes.append("no leaf found")
    if green_fraction(image) < HARDLY_GREEN:
        notes.append("hardly any green: a plant?")
    return notes
