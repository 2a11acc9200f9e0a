"""Label images with a model, as training data of the next run.

    OUT/masks/           predicted class where the model is confident; 255 elsewhere
    OUT/confidence/      confidence of each pixel, 0 to 255
    OUT/pseudo_labels.csv  one row per image: its mask, and the fraction that is labeled
    OUT/manifest.json    read by ``train --pseudo-labels OUT``

A person may correct any mask, or delete its row: the next run reads the files again.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import read_image
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest, MaskCoding, Row
from plantseg_next.errors import UsageError
from plantseg_next.files import (
    AnyPath,
    explained,
    prepare_output,
    write_atomically,
)
from plantseg_next.inference.pipeline import load_pipeline
from plantseg_next.inference.records import PredictionTable, write_mask
from plantseg_next.names import OutputPaths, Value, csv_line
from plantseg_next.settings import SemiSettings
from plantseg_next.structures import IGNORE, ClassMap, Prediction, is_lesion
from plantseg_next.workflows.images import (
    left_out_names,
    name_within,
    read_each,
    without_unstatable_names,
)
from plantseg_next.workflows.progress import Progress, progress_for

THRESHOLD = SemiSettings().threshold
TABLE = "pseudo_labels.csv"
COLUMNS = (
    "image", "mask", "mask_pct", "lesion_pct", "mean_confidence", "threshold",
)  # fmt: skip


def pseudo_label(
    model: AnyPath,
    images: AnyPath,
    out: AnyPath,
    *,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
) -> PredictionTable:
    """Label images where a model is confident, as training data of the next run.

    Args:
        model: A run, or one of its models.
        images: An image, or a folder of images in any layout; of a data set or a run,
            the images without a mask, or with a mask hidden from the run.
        out: New folder; see ``workflows.pseudo_label``. Masks have the names of their
            images + .png, see ``safe_path``.
        threshold: Smallest probability accepted.
        progress: Called after every image.

    Raises:
        OutputError: If ``out`` holds results already or cannot be written.
        UsageError: If the threshold is not above 0.5 and below 1, or every image has
            a mask.
    """
    refuse_threshold(threshold)
    images, out = Path(images), Path(out)
    manifest, name = _images_without_masks(images), name_within(images)
    predictor = load_pipeline(model).predictor
    classes = predictor.classes
    coding = coding_of(classes)
    names = list(coding.meaning.values())[1:-1]  # without background and ignore
    prepare_output(out)
    rows: list[dict[str, Value]] = []
    kept: list[Row] = []
    skipped = left_out_names(manifest)
    paths = OutputPaths()
    for row, (mask, confidence) in read_each(
        manifest,
        lambda row: sure_mask(
            predictor(read_image(row.image)),
            threshold=threshold,
            has_leaf=classes.has_leaf,
        ),
        skipped=skipped,
        name=name,
        on_progress=progress_for(progress, "labeling"),
    ):
        file_name = paths.path("", name(row), ".png")
        mask_path = out / "masks" / file_name
        with explained(out):
            write_mask(mask_path, mask, names)
            _write_gray(out / "confidence" / file_name, confidence)
        trusted = mask != IGNORE
        rows.append(
            {
                "image": str(row.image),
                "mask": f"masks/{file_name}",
                "mask_pct": 100 * float(trusted.mean()),
                "lesion_pct": 100 * float((trusted & (mask > classes.has_leaf)).mean()),
                "mean_confidence": float(confidence.mean()),
                "threshold": threshold,
            }
        )
        kept.append(
            replace(row, mask=mask_path, mask_sha256="", split="train", disease=None)
        )
    codings = dict.fromkeys({row.source for row in kept}, coding)
    table = csv_line(COLUMNS) + "".join(csv_line(r[c] for c in COLUMNS) for r in rows)
    with explained(out):
        write_atomically(out / TABLE, table.encode())
        Manifest(tuple(kept), replace(classes, diseases=()), codings).write(
            out / MANIFEST_FILE
        )
    return PredictionTable(tuple(rows), tuple(skipped))


def refuse_threshold(threshold: float) -> None:
    """Refuse a threshold that is not above 0.5 and below 1.

    Raises:
        UsageError: If it is not.
    """
    if not 0.5 < threshold < 1:
        raise UsageError(
            f"The threshold is {threshold:g}.",
            needed="a probability above 0.5 and below 1",
            fix=f"for example {THRESHOLD}",
        )


def coding_of(classes: ClassMap) -> MaskCoding:
    """Return the coding of pseudo-label masks; the leaf comes first, if it was learned."""
    marks = ("background", "leaf") if classes.has_leaf else ("background",)
    meaning: dict[int | str, str] = dict(enumerate((*marks, *classes.lesions)))
    meaning[IGNORE] = "ignore"
    return MaskCoding(meaning, classes.has_leaf, "written by pseudo-label", exif="upright")


def sure_mask(
    prediction: Prediction, *, threshold: float, has_leaf: bool
) -> tuple[UInt8[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Return the confident part of a prediction as a mask, and its confidence.

    Args:
        prediction: A prediction.
        threshold: Smallest probability accepted, in (0.5, 1).
        has_leaf: Whether the mask separates leaf from background, as in ``coding_of``.

    Returns:
        Mask values, ``IGNORE`` where lesion or leaf is below the threshold; and the
        probability of what is predicted, in [0, 1], the smaller one of the two heads.
    """
    lesion = prediction.lesion_probability.astype(np.float32)
    on_lesion = is_lesion(prediction.lesion)
    confidence = np.where(on_lesion, lesion, 1 - lesion)
    # With a leaf, the values of the lesion classes are one higher.
    mask = np.where(on_lesion, prediction.lesion + np.uint8(has_leaf), np.uint8(0))
    if prediction.leaf_probability is not None and has_leaf:
        leaf = prediction.leaf_probability.astype(np.float32)
        mask = np.where(~on_lesion & (leaf >= 0.5), np.uint8(1), mask)
        lower = np.minimum(confidence, np.maximum(leaf, 1 - leaf))
        confidence = np.where(on_lesion, confidence, lower)  # a lesion is on a leaf
    return np.where(confidence >= threshold, mask, IGNORE).astype(np.uint8), confidence


def _images_without_masks(images: Path) -> Manifest:
    """Return the images without a mask, or with a mask hidden from a run.

    Raises:
        UsageError: If there are none.
    """
    manifest = without_unstatable_names(read_folder(images))
    without_masks = manifest.only(
        row for row in manifest.rows if row.split == "unlabeled" or row.mask is None
    )
    if not len(without_masks):
        raise UsageError(
            f"Every image of `{images}` has a mask.",
            needed="images without masks",
            fix="name a folder that holds images only",
        )
    return without_masks


def _write_gray(path: Path, confidence: Float32[np.ndarray, "h w"]) -> None:
    gray = Image.fromarray(np.rint(255 * confidence).astype(np.uint8))
    write_atomically(path, lambda file: gray.save(file, "PNG"))
