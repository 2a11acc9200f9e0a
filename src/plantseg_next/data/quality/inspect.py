"""Statistics of every file of a manifest; each file is decoded once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, UInt8

from plantseg_next.data.image_io import (
    LOSSY_FORMATS,
    orient_mask,
    read_header,
    read_image,
    read_mask,
)
from plantseg_next.data.manifest import Manifest, Row, digest
from plantseg_next.data.mask_values import decode_mask
from plantseg_next.data.quality.near_duplicates import Fingerprint, fingerprint
from plantseg_next.errors import PlantSegError
from plantseg_next.structures import IGNORE, NO_LESION

# Decoding releases the GIL; a third thread gains little, because the disk limits.
_THREADS = 2

HARDLY_GREEN = 0.02
"""Fraction of green pixels below which an image may show no plant.

0 to 1.3 % of the images of coffee, potato, rice, cardamom, tomato, soybean and mixed
leaves, diseased ones included, are below it; of non-plant images, 86 %.
"""
_MIN_SATURATION = 0.15
_SAMPLED_PX = 128


@dataclass(frozen=True)
class MaskStats:
    """Statistics of a mask.

    Args:
        mode: Pillow's name of its pixel layout.
        was_rotated: Whether it fits its image only before the EXIF orientation.
        lesion_px: Pixels of each lesion class that occurs, by name.
        annotated_px: Pixels with a known lesion label, "no lesion" included.
        leaf_px: Pixels of leaf without lesions; ``None`` if the leaf is not annotated.
    """

    mode: str
    was_rotated: bool
    lesion_px: dict[str, int]
    annotated_px: int
    leaf_px: int | None


@dataclass(frozen=True)
class Failure:
    """Why a file cannot be used.

    Args:
        code: As in ``Issue.code``.
        error: The exception.
    """

    code: str
    error: PlantSegError


@dataclass(frozen=True)
class ImageStats:
    """Statistics of the files of one row.

    Args:
        row: The row.
        size_hw: Rows and columns of the upright image; ``None`` if unreadable.
        exif_orientation: EXIF orientation, 1 for none.
        green: Fraction of green pixels; ``None`` if unreadable.
        sha256: Digest of the image file; empty if unreadable.
        print_: Fingerprint of the image; ``None`` if unreadable.
        mask: Statistics of the mask; ``None`` without one, or if it failed.
        failures: Why image or mask cannot be used.
    """

    row: Row
    size_hw: tuple[int, int] | None = None
    exif_orientation: int = 1
    green: float | None = None
    sha256: str = ""
    print_: Fingerprint | None = None
    mask: MaskStats | None = None
    failures: list[Failure] = field(default_factory=list)


def inspect(
    manifest: Manifest, on_progress: Callable[[int, int], None] | None = None
) -> list[ImageStats]:
    """Return the statistics of each row, in order.

    Args:
        manifest: The rows.
        on_progress: Called after each row with the number done and the total.
    """
    all_stats = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for stats in pool.map(lambda row: inspect_row(row, manifest), manifest.rows):
            all_stats.append(stats)
            if on_progress is not None:
                on_progress(len(all_stats), len(manifest))
    return all_stats


def inspect_row(row: Row, manifest: Manifest) -> ImageStats:
    """Return the statistics of one row, with the failures of its files."""
    failures: list[Failure] = []
    size_hw, orientation, green, sha256, print_ = None, 1, None, "", None
    try:
        image = read_image(row.image)
        size_hw, orientation = image.shape[:2], read_header(row.image).exif_orientation
        sha256 = digest(row.image)
        print_ = fingerprint(image)
        green = green_fraction(image)
    except PlantSegError as error:
        failures.append(Failure("unreadable-image", error))
    mask = _inspect_mask(row, manifest, size_hw, failures)
    return ImageStats(row, size_hw, orientation, green, sha256, print_, mask, failures)


def green_fraction(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Return the fraction of green pixels of an image.

    Green: no channel is larger, and the smallest channel is at least 15 % smaller.
    """
    step = max(1, max(image.shape[:2]) // _SAMPLED_PX)
    pixels = image[::step, ::step].reshape(-1, 3).astype(np.int64)
    red, green, blue = pixels.T
    is_green = (green >= red) & (green > blue)
    is_green &= green - pixels.min(1) > _MIN_SATURATION * green
    return float(is_green.mean())


def _inspect_mask(
    row: Row,
    manifest: Manifest,
    size_hw: tuple[int, int] | None,
    failures: list[Failure],
) -> MaskStats | None:
    if row.mask is None:
        return None
    coding, classes = manifest.codings[row.source], manifest.classes
    code = "unreadable-mask"
    try:
        header = read_header(row.mask)
        code = "jpeg-mask" if header.file_format in LOSSY_FORMATS else code
        values = read_mask(row.mask, as_colors=coding.by_color)
        code = "size-mismatch"
        was_rotated = size_hw is not None and values.shape[:2] != size_hw
        if size_hw is not None and was_rotated:
            values = orient_mask(values, size_hw, row)
        code = "unknown-mask-value"
        lesion, leaf = decode_mask(values, coding, classes, name=str(row.mask))
    except PlantSegError as error:
        failures.append(Failure(code, error))
        return None
    counts = np.bincount(lesion.ravel(), minlength=256)
    lesion_px = {
        name: int(counts[i + 1]) for i, name in enumerate(classes.lesions) if counts[i + 1]
    }
    return MaskStats(
        mode=header.mode,
        was_rotated=was_rotated,
        lesion_px=lesion_px,
        annotated_px=int(counts[:IGNORE].sum()),
        leaf_px=_leaf_px(lesion == NO_LESION, leaf) if coding.marks_leaf else None,
    )


def _leaf_px(no_lesion: Bool[np.ndarray, "h w"], leaf: UInt8[np.ndarray, "h w"]) -> int:
    return int(np.count_nonzero(no_lesion & (leaf == 1)))
