"""How well a mask fits its image: borders on edges, and lesions that are not greener.

Axes: h row, w column.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Integer, UInt8

from plantseg_next.data.image_io import (
    apply_orientation,
    read_header,
    read_image,
    read_mask,
)
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.mask_values import decode_mask
from plantseg_next.structures import IGNORE, is_lesion

_SIDE_PX = 320
_REACH = 0.3  # largest shift that is tried, as a fraction of the side
_NEAR = 0.03  # shifts up to this fraction count as none
_MIN_BORDER_PX = 12
_RING_PX = 12


@dataclass(frozen=True)
class Fit:
    """How well a mask fits its image.

    Args:
        edge: How far the edges below the borders of the mask exceed those below the
            shifted mask, in standard deviations over all shifts; ``None`` without borders.
        gain: By how much a shifted mask would exceed that, likewise.
        shift: That shift, down and to the right, as fractions of the long side.
        lesion: Lesion fraction of the known pixels.
        greener: By how much the lesions are greener than the healthy leaf, or than what
            surrounds them if no leaf is marked, in gray levels; ``None`` if either is
            empty.
        off_leaf: Fraction of the lesion pixels in lesions that do not touch the leaf;
            ``None`` if the leaf is not marked.
    """

    edge: float | None
    gain: float
    shift: tuple[float, float]
    lesion: float
    greener: float | None
    off_leaf: float | None


def read_masks(
    row: Row, manifest: Manifest
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
    """Return the image of a row with its lesion and leaf masks, as ``decode_mask``.

    A mask of another size is stretched to that of the image, so that it can be looked at.

    Raises:
        PlantSegError: If a file cannot be read, or a value has no meaning.
    """
    image = read_image(row.image)
    if row.mask is None:
        unknown = np.full(image.shape[:2], IGNORE, np.uint8)
        return image, unknown, unknown
    coding = manifest.codings[row.source]
    values = read_mask(row.mask, as_colors=coding.by_color)
    height, width = image.shape[:2]
    if values.shape[:2] != (height, width):
        orientation = read_header(row.image).exif_orientation
        if orientation >= 5 and values.shape[:2] == (width, height):
            values = apply_orientation(values, orientation)
    lesion, leaf = decode_mask(values, coding, manifest.classes, name=str(row.mask))
    if lesion.shape != (height, width):
        lesion, leaf = (
            cv2.resize(part, (width, height), interpolation=cv2.INTER_NEAREST)
            for part in (lesion, leaf)
        )
    return image, lesion, leaf


def fit_of(
    image: UInt8[np.ndarray, "h w 3"],
    lesion: UInt8[np.ndarray, "h w"],
    leaf: UInt8[np.ndarray, "h w"],
) -> Fit:
    """Return how well a mask fits its image."""
    scale = _SIDE_PX / max(image.shape[:2])
    size = (max(8, round(image.shape[1] * scale)), max(8, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    lesion, leaf = (
        cv2.resize(part, size, interpolation=cv2.INTER_NEAREST) for part in (lesion, leaf)
    )
    diseased, known = is_lesion(lesion), lesion != IGNORE
    regions = np.where(diseased, 2, leaf == 1).astype(np.int16)
    edge, gain, shift = _alignment(_edges(small), _borders(regions, known))
    return Fit(
        edge,
        gain,
        shift,
        float(diseased.sum() / max(1, known.sum())),
        _greener(small, diseased, _beside(diseased, known, leaf)),
        _off_leaf(diseased, leaf),
    )


def _edges(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    """Return the strength of edges, in [0, 1]: gradients in Lab, the strongest clipped."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.0)
    steps = [cv2.Sobel(lab, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
    strength = np.sqrt(sum(step**2 for step in steps).sum(-1))
    strength = cv2.dilate(strength, np.ones((3, 3), np.uint8))  # borders are off by a pixel
    most = max(float(np.quantile(strength, 0.95)), 1e-3)
    return np.sqrt(np.minimum(strength / most, 1)).astype(np.float32)


def _borders(
    regions: Integer[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Return where neighboring known pixels belong to different regions."""
    border = np.zeros(regions.shape, np.bool_)
    border[:, 1:] = (regions[:, 1:] != regions[:, :-1]) & known[:, 1:] & known[:, :-1]
    border[1:] |= (regions[1:] != regions[:-1]) & known[1:] & known[:-1]
    return border


def _alignment(
    edges: Float32[np.ndarray, "h w"], border: Bool[np.ndarray, "h w"]
) -> tuple[float | None, float, tuple[float, float]]:
    """Return ``Fit.edge``, ``Fit.gain`` and ``Fit.shift``."""
    if border.sum() < _MIN_BORDER_PX:
        return None, 0.0, (0.0, 0.0)
    height, width = edges.shape
    shape = (cv2.getOptimalDFTSize(2 * height), cv2.getOptimalDFTSize(2 * width))
    spectrum = np.conj(np.fft.rfft2(border.astype(np.float32), shape))
    below = np.fft.irfft2(spectrum * np.fft.rfft2(edges, shape), shape)
    inside = np.ones(edges.shape, np.float32)
    n_inside = np.fft.irfft2(spectrum * np.fft.rfft2(inside, shape), shape)
    reach = [max(2, round(_REACH * side)) for side in (height, width)]
    rows, columns = (np.arange(-n, n + 1) for n in reach)
    window = np.ix_(rows % shape[0], columns % shape[1])
    counted = n_inside[window] >= 0.5 * border.sum()
    mean = np.where(counted, below[window] / np.maximum(n_inside[window], 1), np.nan)
    distance = np.hypot(rows[:, None], columns[None]) / max(height, width)
    here = float(np.nanmax(np.where(distance <= 2 / max(height, width), mean, np.nan)))
    far = np.where(distance > _NEAR, mean, np.nan)
    spread = float(np.nanstd(far)) + 0.01
    best = np.unravel_index(np.nanargmax(far), far.shape)
    shift = rows[best[0]] / max(height, width), columns[best[1]] / max(height, width)
    return (
        (here - float(np.nanmean(far))) / spread,
        (float(far[best]) - here) / spread,
        (float(shift[0]), float(shift[1])),
    )


def _beside(
    diseased: Bool[np.ndarray, "h w"],
    known: Bool[np.ndarray, "h w"],
    leaf: UInt8[np.ndarray, "h w"],
) -> Bool[np.ndarray, "h w"]:
    """Return the healthy leaf, or what surrounds the lesions if no leaf is marked."""
    healthy = (leaf == 1) & ~diseased
    if healthy.any():
        return healthy
    around = np.ones((2 * _RING_PX + 1, 2 * _RING_PX + 1), np.uint8)
    return cv2.dilate(diseased.view(np.uint8), around).view(np.bool_) & known & ~diseased


def _greener(
    image: UInt8[np.ndarray, "h w 3"],
    marked: Bool[np.ndarray, "h w"],
    rest: Bool[np.ndarray, "h w"],
) -> float | None:
    if not marked.any() or not rest.any():
        return None
    red, green, blue = np.moveaxis(image.astype(np.float32), -1, 0)
    excess = green - np.maximum(red, blue)
    return float(excess[marked].mean() - excess[rest].mean())


def _off_leaf(
    diseased: Bool[np.ndarray, "h w"], leaf: UInt8[np.ndarray, "h w"]
) -> float | None:
    if not diseased.any() or not (leaf != IGNORE).any():
        return None
    healthy = ((leaf == 1) & ~diseased).view(np.uint8)
    _, labels = cv2.connectedComponents(diseased.view(np.uint8), connectivity=8)
    near = cv2.dilate(healthy, np.ones((3, 3), np.uint8)).view(np.bool_)
    touching = np.unique(labels[near & diseased])
    return float((diseased & ~np.isin(labels, touching)).sum() / diseased.sum())
