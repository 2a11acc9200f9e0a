"""Overlap metrics, all computed from counts that are summed over images.

Every image gives a confusion matrix, matrices are summed over the data set, and ratios
are computed from the sum. With a mean of ratios per image, an image with five lesion
pixels would have the same weight as one with a million.

The ratios are computed from an array of three rows, ``overlap, truth, predicted`` in
pixels, for one class or for many at once.

Axes: h row, w column, k class (0 is "no lesion").
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Real, UInt8

from plantseg_next.errors import DataError
from plantseg_next.structures import IGNORE, NO_LESION

_BLOCK_PX = 1 << 20
"""Pixels counted at once: temporary arrays take 10 MB at any image size."""


def confusion_matrix(
    truth: UInt8[np.ndarray, "h w"],
    predicted: UInt8[np.ndarray, "h w"],
    n_classes: int,
) -> Int64[np.ndarray, "k k"]:
    """Return how many pixels of each true class were predicted as each class.

    Args:
        truth: Class ids below ``n_classes``, or ``IGNORE``: such pixels are left out,
            whatever is predicted there.
        predicted: Class ids below ``n_classes`` wherever ``truth`` is known.
        n_classes: Number of classes, "no lesion" included; at most 255.

    Returns:
        Pixels, rows by truth, columns by prediction; all zero if all is ignored.

    Raises:
        ValueError: If the two maps differ in size.
        DataError: If either holds an id that is not below ``n_classes``.

    Example:
        >>> truth = np.array([[0, 1, 1, 255]], np.uint8)
        >>> confusion_matrix(truth, np.array([[0, 1, 0, 1]], np.uint8), 2).tolist()
        [[1, 0], [1, 1]]
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"`predicted` has shape {predicted.shape}, but `truth` has {truth.shape}. "
            "Resize the prediction to the image; never resize the truth."
        )
    flat_truth, flat_predicted = truth.reshape(-1), predicted.reshape(-1)
    pairs = np.zeros(1 << 16, np.int64)
    for start in range(0, flat_truth.size, _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        pair = flat_truth[block].astype(np.uint16) << 8 | flat_predicted[block]
        pairs += np.bincount(pair, minlength=pairs.size)
    table = pairs.reshape(256, 256)
    table[IGNORE] = 0
    _refuse_unknown_ids("true mask", table.sum(axis=1), n_classes)
    _refuse_unknown_ids("prediction", table.sum(axis=0), n_classes)
    return table[:n_classes, :n_classes].copy()


def _refuse_unknown_ids(
    what: str, pixels: Int64[np.ndarray, " 256"], n_classes: int
) -> None:
    if pixels[n_classes:].any():
        unknown = [n_classes + int(i) for i in np.flatnonzero(pixels[n_classes:])]
        raise DataError(
            f"The {what} holds the class ids {unknown[:5]}.",
            needed=f"ids from 0 to {n_classes - 1}, or {IGNORE} for unknown truth",
            fix="evaluate a model on the classes that it was trained for",
        )


def class_counts(confusion: Int64[np.ndarray, "k k"]) -> Int64[np.ndarray, "3 k"]:
    """Return overlap, truth and predicted pixels of each class."""
    return np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])


def foreground_counts(confusion: Int64[np.ndarray, "k k"]) -> Int64[np.ndarray, " 3"]:
    """Return overlap, truth and predicted pixels of any class but 0 against 0.

    Lesion pixels that are predicted as another lesion class count as overlap.
    """
    overlap = np.delete(np.delete(confusion, NO_LESION, axis=0), NO_LESION, axis=1).sum()
    rows, columns = confusion.sum(axis=1), confusion.sum(axis=0)
    return np.array(
        [overlap, rows.sum() - rows[NO_LESION], columns.sum() - columns[NO_LESION]]
    )


def iou(counts: Real[np.ndarray, "3 ..."]) -> Float64[np.ndarray, "..."]:
    """Return overlap over union, in [0, 1].

    NaN (undefined) where a class is in neither truth nor prediction; 0 where it is
    predicted but absent from the truth. MMSegmentation has the same rule.
    """
    overlap, truth, predicted = counts
    return _ratio(overlap, truth + predicted - overlap)


def dice(counts: Real[np.ndarray, "3 ..."]) -> Float64[np.ndarray, "..."]:
    """Return twice the overlap over the sum of both areas; undefined as ``iou`` is."""
    overlap, truth, predicted = counts
    return _ratio(2 * overlap, truth + predicted)


def precision(counts: Real[np.ndarray, "3 ..."]) -> Float64[np.ndarray, "..."]:
    """Return overlap over predicted area; NaN where nothing was predicted."""
    return _ratio(counts[0], counts[2])


def recall(counts: Real[np.ndarray, "3 ..."]) -> Float64[np.ndarray, "..."]:
    """Return overlap over true area; NaN where the class is absent from the truth."""
    return _ratio(counts[0], counts[1])


def mean_defined(values: Float64[np.ndarray, " k"]) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _ratio(
    part: Real[np.ndarray, "..."] | np.number,
    whole: Real[np.ndarray, "..."] | np.number,
) -> Float64[np.ndarray, "..."]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


@dataclass(frozen=True)
class ClassScores:
    """Scores of a whole data set, from its summed confusion matrix.

    "No lesion" covers most pixels and is easy, so it raises every mean that includes it.
    Means with and without it are therefore both given.

    Args:
        confusion: Sum of ``confusion_matrix`` over the data set, in pixels.

    Source:
        mean IoU and mean accuracy as in MMSegmentation's ``IoUMetric``, without its
        ``nan_to_num``; the PlantSeg benchmark (Wei et al. 2026, Sci. Data 13:205) uses
        them. The disease mean is our addition.

    Example:
        >>> scores = ClassScores(np.array([[90, 0], [5, 5]]))
        >>> round(scores.mean_iou, 3), scores.disease_miou
        (0.724, 0.5)
    """

    confusion: Int64[np.ndarray, "k k"]

    @property
    def counts(self) -> Int64[np.ndarray, "3 k"]:
        """Overlap, truth and predicted pixels of each class."""
        return class_counts(self.confusion)

    @property
    def iou(self) -> Float64[np.ndarray, " k"]:
        """Intersection over union of each class."""
        return iou(self.counts)

    @property
    def dice(self) -> Float64[np.ndarray, " k"]:
        """Dice overlap of each class."""
        return dice(self.counts)

    @property
    def precision(self) -> Float64[np.ndarray, " k"]:
        """Fraction of each class's predicted pixels that are correct."""
        return precision(self.counts)

    @property
    def recall(self) -> Float64[np.ndarray, " k"]:
        """Fraction of each class's true pixels that are predicted."""
        return recall(self.counts)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over all classes that are defined, "no lesion" included."""
        return mean_defined(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean recall over all classes present in the truth."""
        return mean_defined(self.recall)

    @property
    def disease_miou(self) -> float:
        """Mean IoU over the lesion classes that are defined."""
        return mean_defined(self.iou[NO_LESION + 1 :])

    @property
    def lesion_iou(self) -> float:
        """IoU of any lesion against none."""
        return float(iou(foreground_counts(self.confusion)))

    @property
    def lesion_dice(self) -> float:
        """Dice of any lesion against none."""
        return float(dice(foreground_counts(self.confusion)))

    @property
    def lesion_precision(self) -> float:
        """Precision of any lesion against none."""
        return float(precision(foreground_counts(self.confusion)))

    @property
    def lesion_recall(self) -> float:
        """Recall of any lesion against none."""
        return float(recall(foreground_counts(self.confusion)))
