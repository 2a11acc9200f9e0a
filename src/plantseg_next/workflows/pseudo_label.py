"""Where a model labels images for the next run.

    OUT/masks/           what the model is sure of; 255 where it is not
    OUT/confidence/      how sure it is of each pixel, 0 to 255
    OUT/pseudo_labels.csv  a row an image: what was labeled, and how much of it
    OUT/manifest.json    what ``train --pseudo-labels OUT`` reads

A person may correct any mask, or delete its row: files are read again by the next run.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from plantseg_next.data.image_io import read_image
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest, MaskCoding, Row
from plantseg_next.errors import PlantSegError
from plantseg_next.files import explained, prepare_output, write_atomically
from plantseg_next.inference.predictor import Predictor
from plantseg_next.inference.records import PredictionTable, Value, csv_line, write_mask
from plantseg_next.structures import IGNORE, ClassMap, Prediction

TABLE = "pseudo_labels.csv"
COLUMNS = (
    "image", "mask", "mask_pct", "lesion_pct", "mean_confidence", "threshold",
)  # fmt: skip


def coding_of(classes: ClassMap) -> MaskCoding:
    """Return what the values of pseudo-label masks mean: leaf first, where it is known."""
    marks = ("background", "leaf") if classes.has_leaf else ("background",)
    meaning: dict[int | str, str] = dict(enumerate((*marks, *classes.lesions)))
    meaning[IGNORE] = "ignore"
    return MaskCoding(meaning, classes.has_leaf, "written by pseudo-label")


def sure_mask(
    found: Prediction, *, threshold: float, has_leaf: bool
) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Return what a prediction is sure of, and how sure it is.

    Args:
        found: A prediction.
        threshold: Least probability believed, in (0.5, 1).
        has_leaf: Whether the mask tells leaf from ground, as ``coding_of`` has it.

    Returns:
        Mask values, ``IGNORE`` where lesion or leaf is in doubt; and the probability of
        what is said, in [0.5, 1], the less sure of the two heads.
    """
    lesion = found.lesion_probability.astype(np.float32)
    is_lesion = lesion >= 0.5
    certainty = np.maximum(lesion, 1 - lesion)
    first = 1 + has_leaf  # value of the first lesion class
    mask = np.where(is_lesion, found.lesion + np.uint8(first - 1), np.uint8(0))
    if found.leaf_probability is not None and has_leaf:
        leaf = found.leaf_probability.astype(np.float32)
        mask = np.where(~is_lesion & (leaf >= 0.5), np.uint8(1), mask)
        doubt = np.minimum(certainty, np.maximum(leaf, 1 - leaf))
        certainty = np.where(is_lesion, certainty, doubt)  # a lesion lies on a leaf
    return np.where(certainty >= threshold, mask, IGNORE).astype(np.uint8), certainty


def write_pseudo_labels(
    predictor: Predictor,
    manifest: Manifest,
    out: Path,
    *,
    name: Callable[[Row], str],
    threshold: float,
    told: Callable[[int, int], None] = lambda *_: None,
) -> PredictionTable:
    """Write masks, confidence, table and manifest of every image.

    Args:
        predictor: Of the model that labels.
        manifest: The images.
        out: New folder.
        name: Path of an image within the folder; its mask is called so too, and .png.
        threshold: Least probability believed, in (0.5, 1).
        told: Hears of every image.

    Raises:
        OutputError: If ``out`` holds something already or cannot be written.
    """
    classes = predictor.classes
    coding = coding_of(classes)
    names = [coding.meaning[value] for value in sorted(map(int, coding.meaning))[1:-1]]
    prepare_output(out)
    rows: list[dict[str, Value]] = []
    kept: list[Row] = []
    skipped: list[tuple[str, str]] = []
    for i, row in enumerate(manifest.rows):
        try:
            found = predictor(read_image(row.image))
        except PlantSegError as error:
            skipped.append((name(row), error.came))
            continue
        finally:
            told(i + 1, len(manifest))
        mask, certainty = sure_mask(found, threshold=threshold, has_leaf=classes.has_leaf)
        place = out / "masks" / f"{name(row)}.png"
        with explained(out):
            write_mask(place, mask, names)
            _write_gray(out / "confidence" / f"{name(row)}.png", certainty)
        trusted = mask != IGNORE
        is_lesion = trusted & (mask > classes.has_leaf)
        rows.append(
            {
                "image": str(row.image),
                "mask": place.relative_to(out).as_posix(),
                "mask_pct": 100 * float(trusted.mean()),
                "lesion_pct": 100 * float(is_lesion.mean()),
                "mean_confidence": float(certainty.mean()),
                "threshold": threshold,
            }
        )
        kept.append(replace(row, mask=place, mask_sha256="", split="train", disease=None))
    codings = dict.fromkeys({row.source for row in kept}, coding)
    table = csv_line(COLUMNS) + "".join(csv_line(r[c] for c in COLUMNS) for r in rows)
    with explained(out):
        write_atomically(out / TABLE, table.encode())
        Manifest(tuple(kept), replace(classes, diseases=()), codings).write(
            out / MANIFEST_FILE
        )
    return PredictionTable(tuple(rows), tuple(skipped))


def _write_gray(path: Path, certainty: Float32[np.ndarray, "h w"]) -> None:
    gray = Image.fromarray(np.rint(255 * certainty).astype(np.uint8))
    write_atomically(path, lambda file: gray.save(file, "PNG"))
