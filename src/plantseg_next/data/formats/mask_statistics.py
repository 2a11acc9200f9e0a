"""Statistics over the masks of a data set, from which their coding is inferred.

In one mask, the level of a smoothed edge may look like a class; in the whole set it
does not.

Axes: h row, w column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from plantseg_next.data.file_formats import LOSSY_FORMATS
from plantseg_next.data.image_io import read_header, read_image, read_mask, read_mask_of
from plantseg_next.data.manifest import Channel, MaskCoding
from plantseg_next.errors import PlantSegError

GRAY_CHROMA = 40
"""Largest difference of two channels that compression adds to a gray mask."""
COLORED_FRACTION = 0.001
"""Fraction of pixels above ``GRAY_CHROMA`` from which masks are colored, not gray."""
SIDE_PX = 1024
"""Long side to which masks are thinned out before areas are counted."""

_OPAQUE = 250
_SHADES = 8  # of 255, by which colors may differ that were one
_MIN_SATURATION = 0.15


@dataclass(frozen=True)
class ValueStats:
    """Every value of the masks of one channel, and where it lies.

    Args:
        values: The values that occur, sorted.
        px: Pixels of each.
        masks: Masks in which each occurs.
        solid_px: Its pixels whose eight neighbors have the same value.
        between_px: Its pixels that have a lower and a higher neighbor, as on an edge
            that was smoothed.
        most: The largest fraction of a mask that each covers.
        most_px: The same, in pixels.
        example: The mask in which this is.
        in_mask: The values of every mask, sorted, with their fraction of it.
        sizes: Pixels of every mask.
        paths: The masks.
    """

    values: Int[np.ndarray, " n"]
    px: Int[np.ndarray, " n"]
    masks: Int[np.ndarray, " n"]
    solid_px: Int[np.ndarray, " n"]
    between_px: Int[np.ndarray, " n"]
    most: Float[np.ndarray, " n"]
    most_px: Int[np.ndarray, " n"]
    example: tuple[Path, ...]
    in_mask: tuple[Mapping[int, float], ...]
    sizes: tuple[int, ...]
    paths: tuple[Path, ...]

    @property
    def top(self) -> int:
        """The largest value that such masks can hold."""
        return 255 if self.values.max(initial=0) < 256 else 65535


@dataclass(frozen=True)
class ColorStats:
    """The colors of masks.

    Args:
        counts: Pixels of each color ``0xrrggbb``.
        masks: Number of colored masks.
        example: The one with most colors.
        colored: Fraction of their pixels that are not gray, compression considered.
    """

    counts: Mapping[int, int]
    masks: int
    example: Path
    colored: float


def find_channel(masks: Sequence[Path]) -> Channel:
    """Return where the values of masks are, by the statistics of all of them.

    "alpha" if their opaque pixels have one color and others are transparent; "painted"
    if the opaque ones have several; "gray" if a file was compressed with loss; else
    "stored". Unreadable masks are skipped.
    """
    headers = {}
    for path in masks:
        try:
            headers[path] = read_header(path)
        except PlantSegError:
            continue
    if any(h.lossy and h.file_format not in LOSSY_FORMATS for h in headers.values()):
        return "gray"  # those that are always lossy are never read
    opaque, levels = set[int](), set[int]()
    for path, header in headers.items():
        if not header.has_alpha:
            continue
        try:
            alpha = read_mask(path, channel="alpha")
            colors = _packed(read_mask(path, as_colors=True))
        except PlantSegError:
            continue
        levels.update(np.unique(alpha).tolist())
        opaque.update(np.unique(colors[alpha >= _OPAQUE]).tolist())
    if len(levels) < 2:
        return "stored"
    return "alpha" if _are_one_color(opaque) else "painted"


def _are_one_color(colors: set[int]) -> bool:
    """Return whether colors are one, or shades of a bright one, as at smoothed edges."""
    if len(colors) < 2:
        return True
    packed = np.array(sorted(colors))
    channels = np.stack([packed >> 16, packed >> 8 & 255, packed & 255])
    is_bright = channels.max(axis=0).min() >= 128
    return bool(is_bright and np.ptp(channels, axis=1).max() <= _SHADES)


def count_colors(masks: Sequence[Path], channel: Channel) -> ColorStats | None:
    """Return the colors of masks, or ``None`` if all of them are gray."""
    if not any(_may_be_colored(path) for path in masks):
        return None  # without decoding them
    counts: dict[int, int] = {}
    most, example, colored_px, n_colored = 0, None, 0, 0
    for path in masks:
        try:
            mask = read_mask(path, channel=channel, as_colors=channel == "gray")
        except PlantSegError:
            continue
        if mask.ndim == 3 and channel == "gray" and not np.ptp(mask, axis=2).any():
            mask = mask[..., 0]
        if mask.dtype != np.uint8:
            continue
        packed = _packed(mask) if mask.ndim == 3 else mask.astype(np.int32) * 0x010101
        colors, px = np.unique(packed, return_counts=True)
        for color, n in zip(colors.tolist(), px.tolist(), strict=True):
            counts[color] = counts.get(color, 0) + n
        if mask.ndim == 3:
            n_colored += 1
            colored_px += int((np.ptp(mask, axis=2) > GRAY_CHROMA).sum())
            if len(colors) > most:
                most, example = len(colors), path
    if example is None:
        return None
    return ColorStats(counts, n_colored, example, colored_px / sum(counts.values()))


def _may_be_colored(path: Path) -> bool:
    try:
        mode = read_header(path).mode
    except PlantSegError:
        return False
    return mode not in {"1", "L", "LA", "P", "F"} and not mode.startswith("I")


def count_values(masks: Sequence[Path], channel: Channel) -> ValueStats:
    """Return the values of masks that are not colored; unreadable ones are skipped."""
    n = 1 << 16
    px, n_masks = np.zeros(n, np.int64), np.zeros(n, np.int64)
    solid_px, between_px = np.zeros(n, np.int64), np.zeros(n, np.int64)
    most, most_px = np.zeros(n), np.zeros(n, np.int64)
    example, in_mask = np.zeros(n, np.int64), []
    paths: list[Path] = []
    sizes: list[int] = []
    for path in masks:
        try:
            mask = read_mask(path, channel=channel)
        except PlantSegError:
            continue
        if mask.ndim == 3:
            continue
        counts = np.bincount(mask.ravel(), minlength=n)
        (present,) = counts.nonzero()
        px += counts
        n_masks[present] += 1
        example[present[counts[present] > most_px[present]]] = len(paths)
        most = np.maximum(most, counts / mask.size)
        most_px = np.maximum(most_px, counts)
        lowest, highest = (
            cv2.erode(mask, np.ones((3, 3))),
            cv2.dilate(mask, np.ones((3, 3))),
        )
        solid_px += np.bincount(mask[lowest == highest], minlength=n)
        between = (lowest < mask) & (mask < highest)
        between_px += np.bincount(mask[between], minlength=n)
        fractions = counts[present] / mask.size
        in_mask.append(dict(zip(present.tolist(), fractions.tolist(), strict=True)))
        sizes.append(mask.size)
        paths.append(path)
    (values,) = px.nonzero()
    return ValueStats(
        values,
        px[values],
        n_masks[values],
        solid_px[values],
        between_px[values],
        most[values],
        most_px[values],
        tuple(paths[i] for i in example[values]),
        tuple(in_mask),
        tuple(sizes),
        tuple(paths),
    )


def areas_of_values(path: Path, channel: Channel) -> dict[int, int]:
    """Return the number of connected areas of each value of a mask but 0.

    Of large masks, every few rows and columns are counted.
    """
    mask = read_mask(path, channel=channel)
    step = max(1, max(mask.shape) // SIDE_PX)
    mask = np.ascontiguousarray(mask[::step, ::step])
    areas = {}
    for value in np.unique(mask[mask > 0]).tolist():
        rows = np.flatnonzero((mask == value).any(axis=1))
        part = mask[rows[0] : rows[-1] + 1] == value
        areas[value] = cv2.connectedComponents(part.astype(np.uint8))[0] - 1
    return areas


@dataclass(frozen=True)
class Look:
    """What one image shows inside and outside the marked areas of its mask.

    Args:
        green: Fraction of green pixels of each value; absent below 16 pixels.
        elsewhere: The same of all pixels of other values.
        sides: From a pair of values to the number of neighboring pixels of both.
    """

    green: Mapping[int, float]
    elsewhere: Mapping[int, float]
    sides: Mapping[tuple[int, int], int]


def look_at(
    image: Path, mask: Path, channel: Channel, lesion_from: int | None
) -> Look | None:
    """Return what an image shows where its mask marks it; ``None`` if unreadable.

    Args:
        image: The image.
        mask: Its mask.
        channel: Where the values are.
        lesion_from: Values from this one on are counted as 1, others as 0.
    """
    try:
        pixels = read_image(image)
        coding = MaskCoding({0: "background"}, False, "", channel)
        values = read_mask_of(image, mask, pixels.shape[:2], coding)
    except PlantSegError:
        return None
    if values.ndim == 3:
        return None
    if lesion_from is not None:
        values = (values >= lesion_from).astype(np.uint8)
    sides: dict[tuple[int, int], int] = {}
    for first, second in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        differ = first != second
        pairs = np.stack([first[differ], second[differ]]).astype(np.int64)
        keys, counts = np.unique(np.sort(pairs, axis=0), axis=1, return_counts=True)
        for (a, b), count in zip(keys.T.tolist(), counts.tolist(), strict=True):
            sides[a, b] = sides.get((a, b), 0) + count
    step = max(1, max(values.shape) // SIDE_PX)
    values, green = values[::step, ::step], is_green(pixels[::step, ::step])
    of_value, elsewhere = {}, {}
    for value in np.unique(values).tolist():
        where = values == value
        if 16 <= where.sum() <= where.size - 16:
            of_value[value] = float(green[where].mean())
            elsewhere[value] = float(green[~where].mean())
    return Look(of_value, elsewhere, sides)


def is_green(image: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Return which pixels are green, as ``inspect.green_fraction`` counts them."""
    pixels = image.astype(np.int16)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    saturated = green - pixels.min(axis=2) > _MIN_SATURATION * green
    is_green: np.ndarray = (green >= red) & (green > blue) & saturated
    return is_green


def _packed(colors: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    packed: np.ndarray = colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    return packed
