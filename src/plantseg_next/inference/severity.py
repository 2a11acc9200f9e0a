"""Severity and measures of every lesion, from the masks of one image.

Severity is lesion area over leaf area of the same leaf, in percent. Without a leaf
severity is undefined; ``affected_pct_of_image`` is the affected fraction of the image.

Axes: h row, w column, l label of a connected component (0 is none).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float16, Float64, Int32, UInt8

from plantseg_next.structures import IGNORE, NO_LESION, Prediction, is_lesion

Denominator = Literal["leaf", "image"]

MIN_LESION_PX = 20
"""Smallest lesion that is counted, in pixels at the scale at which the model sees the
image."""
_ROWS_AT_ONCE = 1024
"""Rows measured at once: limits temporary arrays for images of 100 megapixels."""


@dataclass(frozen=True)
class SeverityMeasure:
    """The diseased fraction of the leaf, or of the image if there is no leaf.

    Args:
        leaf_px: Pixels of the leaf, its lesions included; ``None`` without a leaf.
        lesion_px: Lesion pixels on the leaf; in the whole image without a leaf.
        severity_pct: Lesion over leaf area, in [0, 100]; ``None`` without a leaf.
        affected_pct_of_image: ``lesion_px`` over the known pixels of the image, in
            [0, 100]; 0 if none is known. It depends on how the image was framed.
        denominator: Area that the lesion area is divided by.
    """

    leaf_px: int | None
    lesion_px: int
    severity_pct: float | None
    affected_pct_of_image: float
    denominator: Denominator


@dataclass(frozen=True)
class Lesion:
    """One connected lesion of one class. Lengths in pixels, origin at the top left.

    Args:
        id: Number within the image, from 1, largest lesion first.
        class_id: Lesion class, from 1.
        area_px: Pixels.
        perimeter_px: Length of the margin, holes included (Crofton's formula).
        eccentricity: Of the ellipse with the same second moments: 0 for a disc, 1 for
            a line.
        x: Column of the centroid.
        y: Row of the centroid.
        box_x: First column of the bounding box.
        box_y: First row of the bounding box.
        box_width: Columns of the bounding box.
        box_height: Rows of the bounding box.
        confidence: Mean probability of lesion over its pixels, in [0, 1].
        on_leaf: Whether it counts towards severity; ``None`` if no leaf is known.
    """

    id: int
    class_id: int
    area_px: int
    perimeter_px: float
    eccentricity: float
    x: float
    y: float
    box_x: int
    box_y: int
    box_width: int
    box_height: int
    confidence: float
    on_leaf: bool | None


@dataclass(frozen=True)
class Assessment:
    """Severity and lesions of one image, for the table, the masks and the overlay.

    Args:
        prediction: The masks after small lesions were removed.
        measure: Severity.
        lesions: All lesions, those off the leaf included, largest first.
        min_lesion_px: Smallest lesion kept; lesion counts depend on it.
    """

    prediction: Prediction
    measure: SeverityMeasure
    lesions: tuple[Lesion, ...]
    min_lesion_px: int

    @property
    def counted(self) -> tuple[Lesion, ...]:
        """The lesions that severity is computed from: on the leaf, if there is one."""
        if self.measure.denominator == "image":
            return self.lesions
        return tuple(lesion for lesion in self.lesions if lesion.on_leaf)


def assess(prediction: Prediction, *, min_lesion_px: int = MIN_LESION_PX) -> Assessment:
    """Return severity and lesions of a prediction, small lesions removed first.

    Args:
        prediction: Masks at the size of the image.
        min_lesion_px: Smallest lesion kept, in pixels of this image.
    """
    lesion = remove_small_lesions(prediction.lesion, min_lesion_px)
    leaf = prediction.leaf
    return Assessment(
        prediction=replace(prediction, lesion=lesion),
        measure=measure_severity(lesion, leaf),
        lesions=tuple(find_lesions(lesion, prediction.lesion_probability, leaf=leaf)),
        min_lesion_px=min_lesion_px,
    )


def measure_severity(
    lesion: UInt8[np.ndarray, "h w"],
    leaf: UInt8[np.ndarray, "h w"] | None,
    *,
    min_leaf_fraction: float = 0.01,
) -> SeverityMeasure:
    """Return lesion area over leaf area, the leaf being ``whole_leaf``.

    Args:
        lesion: Class ids, 0 for none, ``IGNORE`` where unknown.
        leaf: 1 on the leaf, 0 off it, ``IGNORE`` where unknown; ``None`` if the leaf
            is not known at all.
        min_leaf_fraction: Fraction of the known pixels, in [0, 1], below which ``leaf`` is
            treated as noise and the image as one without a leaf.

    Returns:
        The measure. Pixels unknown in either map are excluded. If lesions are marked as
        part of the leaf, it is lesion area over leaf area.

    Example:
        >>> lesion = np.array([[0, 1, 0, 0]], np.uint8)
        >>> leaf = np.array([[1, 1, 1, 0]], np.uint8)
        >>> round(measure_severity(lesion, leaf).severity_pct, 2)
        33.33
    """
    known = lesion != IGNORE
    if leaf is not None:
        known_in_both = known & (leaf != IGNORE)
        n_known = np.count_nonzero(known_in_both)
        n_leaf = np.count_nonzero((leaf == 1) & known_in_both)
        if n_leaf > 0 and n_leaf >= min_leaf_fraction * n_known:
            on_leaf = (whole_leaf(lesion, leaf) == 1) & known_in_both
            leaf_px = int(np.count_nonzero(on_leaf))
            lesion_px = int(np.count_nonzero(on_leaf & is_lesion(lesion)))
            return SeverityMeasure(
                leaf_px=leaf_px,
                lesion_px=lesion_px,
                severity_pct=100.0 * lesion_px / leaf_px,
                affected_pct_of_image=100.0 * lesion_px / int(n_known),
                denominator="leaf",
            )
    lesion_px = int(np.count_nonzero(is_lesion(lesion)))
    return SeverityMeasure(
        leaf_px=None,
        lesion_px=lesion_px,
        severity_pct=None,
        affected_pct_of_image=100.0 * lesion_px / max(int(known.sum()), 1),
        denominator="image",
    )


def whole_leaf(
    lesion: UInt8[np.ndarray, "h w"], leaf: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w"]:
    """Return the leaf with every lesion that lies on it or touches it.

    Brown tissue at a margin or in a hole looks like ground, so leaf masks often miss it;
    it would then be missing from both areas of the ratio. A connected set (8-connected)
    of lesion pixels of any class that overlaps or touches the leaf is added to the leaf
    as a whole. Other lesions are not added.

    Args:
        lesion: Class ids, 0 for none, ``IGNORE`` where unknown.
        leaf: 1 on the leaf, 0 off it, ``IGNORE`` where unknown.

    Returns:
        The mask, coded as ``leaf``; unknown pixels stay unknown.
    """
    diseased = is_lesion(lesion)
    if not (diseased & (leaf == 0)).any():
        return leaf
    _, labels = cv2.connectedComponents(
        diseased.view(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    near_leaf = cv2.dilate((leaf == 1).view(np.uint8), np.ones((3, 3), np.uint8))
    touches = np.zeros(int(labels.max()) + 1, np.bool_)
    touches[labels[near_leaf.view(np.bool_)]] = True
    touches[0] = False
    grown = leaf.copy()
    grown[touches[labels] & (leaf != IGNORE)] = 1
    return grown


def remove_small_lesions(
    lesion: UInt8[np.ndarray, "h w"], min_area_px: int
) -> UInt8[np.ndarray, "h w"]:
    """Return the map without connected lesions of fewer than ``min_area_px`` pixels.

    A lesion is an 8-connected set of pixels of one class. Removed pixels become
    "no lesion", also inside a lesion of another class; ignored pixels are unchanged.
    """
    kept = lesion.copy()
    if min_area_px > 1:
        for part in _components(lesion):
            small = part.area < min_area_px
            small[0] = False
            kept[part.window][small[part.labels]] = NO_LESION
    return kept


def find_lesions(
    lesion: UInt8[np.ndarray, "h w"],
    lesion_probability: Float16[np.ndarray, "h w"],
    *,
    leaf: UInt8[np.ndarray, "h w"] | None = None,
) -> list[Lesion]:
    """Return every lesion of an image with its measures, largest first.

    A lesion is an 8-connected set of pixels of one class. All are measured in one pass
    over the image, so the time hardly depends on their number.

    Args:
        lesion: Class ids, 0 for none; ignored pixels belong to no lesion.
        lesion_probability: Probability of any lesion, in [0, 1].
        leaf: 1 on the leaf, 0 off it, ``IGNORE`` where unknown; ``None`` if unknown.

    Source:
        Perimeter by Crofton's formula in four directions, as scikit-image's
        ``perimeter_crofton``: unbiased for round spots, whereas a contour through pixel
        centers is too short by about pi pixels. Eccentricity from the second
        central moments, as its ``regionprops``.
    """
    whole = None if leaf is None else whole_leaf(lesion, leaf) == 1
    lesions: list[Lesion] = []
    for part in _components(lesion):
        rows, columns = part.window
        probability = lesion_probability[rows, columns]
        confidence, eccentricity = _moments(part, probability)
        perimeter = _crofton_perimeter(part.labels, len(part.area))
        on_leaf = np.zeros(len(part.area), np.bool_)
        if whole is not None:
            on_leaf[part.labels[whole[rows, columns]]] = True
        for label in range(1, len(part.area)):
            box_x, box_y, box_width, box_height = part.box[label].tolist()
            lesions.append(
                Lesion(
                    id=0,
                    class_id=part.class_id,
                    area_px=int(part.area[label]),
                    perimeter_px=float(perimeter[label]),
                    eccentricity=float(eccentricity[label]),
                    x=float(part.centroid[label, 0]) + columns.start,
                    y=float(part.centroid[label, 1]) + rows.start,
                    box_x=box_x + columns.start,
                    box_y=box_y + rows.start,
                    box_width=box_width,
                    box_height=box_height,
                    confidence=float(confidence[label]),
                    on_leaf=None if whole is None else bool(on_leaf[label]),
                )
            )
    lesions.sort(key=lambda spot: (-spot.area_px, spot.box_y, spot.box_x, spot.class_id))
    return [replace(spot, id=number) for number, spot in enumerate(lesions, start=1)]


@dataclass(frozen=True)
class _Components:
    """The connected lesions of one class, in the bounding box of all of them."""

    class_id: int
    window: tuple[slice, slice]
    labels: Int32[np.ndarray, "h w"]
    area: Int32[np.ndarray, " l"]
    box: Int32[np.ndarray, "l 4"]
    centroid: Float64[np.ndarray, "l 2"]


def _components(lesion: UInt8[np.ndarray, "h w"]) -> Iterator[_Components]:
    pixels = cv2.calcHist([lesion], [0], None, [256], [0, 256])
    for class_id in np.flatnonzero(pixels):
        if class_id in (NO_LESION, IGNORE):
            continue
        mask = (lesion == class_id).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        window = (slice(y, y + height), slice(x, x + width))
        _, labels, stats, centroid = cv2.connectedComponentsWithStats(
            np.ascontiguousarray(mask[window]), connectivity=8, ltype=cv2.CV_32S
        )
        yield _Components(
            class_id=int(class_id),
            window=window,
            labels=labels,
            area=stats[:, cv2.CC_STAT_AREA],
            box=stats[:, : cv2.CC_STAT_AREA],
            centroid=centroid,
        )


def _moments(
    part: _Components, probability: Float16[np.ndarray, "h w"]
) -> tuple[Float64[np.ndarray, " l"], Float64[np.ndarray, " l"]]:
    """Return mean probability and eccentricity of each component."""
    n = len(part.area)
    sums = np.zeros((4, n))  # probability, xx, yy, xy about the centroid
    for start in range(0, part.labels.shape[0], _ROWS_AT_ONCE):
        block = part.labels[start : start + _ROWS_AT_ONCE]
        y, x = np.nonzero(block)
        label = block[y, x]
        dx = x - part.centroid[label, 0]
        dy = y + start - part.centroid[label, 1]
        inside = probability[start : start + _ROWS_AT_ONCE][y, x]
        for row, value in enumerate((inside, dx * dx, dy * dy, dx * dy)):
            sums[row] += np.bincount(label, weights=value, minlength=n)
    mean, xx, yy, xy = sums / np.maximum(part.area, 1)
    middle, radius = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    major, minor = middle + radius, np.maximum(middle - radius, 0.0)
    ratio = np.divide(minor, major, out=np.ones(n), where=major > 0)
    return mean, np.sqrt(1.0 - ratio)


def _crofton_perimeter(
    labels: Int32[np.ndarray, "h w"], n: int
) -> Float64[np.ndarray, " l"]:
    """Return the perimeter of each component, by counting transitions along lines."""
    total = np.zeros(n)
    for start in range(0, labels.shape[0], _ROWS_AT_ONCE):
        block = labels[max(start - 1, 0) : start + _ROWS_AT_ONCE]
        above = 1 if start == 0 else 0
        padded = np.pad(block, ((above, 0), (1, 1)))  # row and columns before the first
        here = padded[1:, 1:-1]
        for before, weight in (
            (padded[1:, :-2], 1.0),
            (padded[:-1, 1:-1], 1.0),
            (padded[:-1, :-2], math.sqrt(0.5)),
            (padded[:-1, 2:], math.sqrt(0.5)),
        ):
            total += weight * np.bincount(here[here != before], minlength=n)
    total[0] = 0.0
    return math.pi / 4 * total
