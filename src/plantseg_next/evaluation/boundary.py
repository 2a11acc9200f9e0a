"""Boundary F1: agreement of outlines, independent of the area inside.

Overlap hardly changes with a ragged margin of a large lesion, but strongly with a
one-pixel shift of a small one. The boundary score is based on the fraction of each
outline that lies within a small distance of the other.

Axes: h row, w column.
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64, Real, UInt8

from plantseg_next.evaluation.grouped import Metric
from plantseg_next.evaluation.metrics import refuse_other_size
from plantseg_next.structures import IGNORE, Prediction, Sample

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def boundary_tolerance(height: int, width: int) -> float:
    """Return 0.75 % of the image's diagonal, at least one pixel."""
    return max(1.0, 0.0075 * math.hypot(height, width))


def boundary_counts(
    truth: UInt8[np.ndarray, "h w"],
    predicted: UInt8[np.ndarray, "h w"],
    *,
    tolerance_px: float | None = None,
) -> Int64[np.ndarray, " 4"]:
    """Return how many outline pixels of two masks lie close to the other's outline.

    An outline pixel is in the mask and has a 4-neighbor that is known to be outside
    it. The image's border and the border of ignored pixels are no outlines, because
    the mask may continue there.

    Args:
        truth: Non-zero in the mask, 0 off it, ``IGNORE`` where unknown.
        predicted: Non-zero in the mask, 0 off it.
        tolerance_px: Largest distance that counts as close; ``None`` for 0.75 % of the
            diagonal, at least one pixel.

    Returns:
        ``matched_predicted, n_predicted, matched_truth, n_truth`` in pixels, for
        ``boundary_f1``; they can be summed over images. All zero for two empty masks.

    Raises:
        ValueError: If the two masks differ in size.

    Source:
        Csurka et al. 2013, BMVC, "What is a good evaluation measure for semantic
        segmentation?", which adapts Martin et al. 2004 (PAMI 26:530); the tolerance of
        0.75 % is theirs. As in Csurka, each pixel is matched to its nearest, not one to
        one. Our departure: counts are summed over images before dividing.

    Example:
        >>> mask = np.zeros((9, 9), np.uint8)
        >>> mask[2:5, 2:5] = 1
        >>> boundary_counts(mask, np.roll(mask, 1, axis=1)).tolist()
        [8, 8, 8, 8]
    """
    refuse_other_size(truth, predicted)
    if tolerance_px is None:
        tolerance_px = boundary_tolerance(*truth.shape)
    known = truth != IGNORE
    of_truth = _outline((truth > 0) & known, known)
    of_predicted = _outline((predicted > 0) & known, known)
    return np.array(
        [
            _n_close(of_predicted, of_truth, tolerance_px),
            np.count_nonzero(of_predicted),
            _n_close(of_truth, of_predicted, tolerance_px),
            np.count_nonzero(of_truth),
        ]
    )


def boundary_f1(counts: Real[np.ndarray, "4 ..."]) -> Float64[np.ndarray, "..."]:
    """Return the harmonic mean of boundary precision and recall.

    Args:
        counts: A result of ``boundary_counts``, or a sum of such results.

    Returns:
        F1 in [0, 1]; NaN (undefined) if there is no outline at all, 0 if only one of
        the two masks has an outline.
    """
    matched_predicted, n_predicted, matched_truth, n_truth = counts
    precision = matched_predicted / np.maximum(n_predicted, 1)
    recall = matched_truth / np.maximum(n_truth, 1)
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)
    return np.where((n_predicted == 0) & (n_truth == 0), np.nan, f1)


@dataclass(eq=False)
class Boundary(Metric):
    """Boundary F1 of the lesions or of the leaf, over the images where it is known.

    Args:
        head: What is outlined; the leaf must be predicted too.
    """

    head: Literal["lesion", "leaf"]

    def __post_init__(self) -> None:
        self.counts = np.zeros(4, np.int64)  # as ``boundary_counts`` returns them

    def update(self, truth: Sample, prediction: Prediction) -> None:
        """Add an image.

        Raises:
            ValueError: If the prediction and the image differ in size.
        """
        of_truth, predicted = (
            (truth.lesion, prediction.lesion)
            if self.head == "lesion"
            else (truth.leaf, prediction.leaf)
        )
        if predicted is None or (of_truth == IGNORE).all():
            return
        self.n_images += 1
        self.counts += boundary_counts(of_truth, predicted)

    def compute(self) -> dict[str, Float64[np.ndarray, "..."]]:
        """Return F1, as ``boundary_f1`` does."""
        return {f"{self.head}_boundary_f1": boundary_f1(self.counts)}


def _outline(
    mask: Bool[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    inside = cv2.erode((mask | ~known).view(np.uint8), _CROSS).view(np.bool_)
    outline: Bool[np.ndarray, "h w"] = mask & ~inside
    return outline


def _n_close(
    pixels: Bool[np.ndarray, "h w"],
    others: Bool[np.ndarray, "h w"],
    tolerance_px: float,
) -> int:
    if not (pixels.any() and others.any()):  # the distance to nothing is undefined
        return 0
    distance = cv2.distanceTransform(
        (~others).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return int(np.count_nonzero(distance[pixels] <= tolerance_px))
