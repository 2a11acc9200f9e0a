"""Overlap metrics and label accuracy, computed from counts that are summed over images.

Every image gives a confusion matrix, its pixels are summed over the data set, and ratios
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
from plantseg_next.evaluation.grouped import Metric
from plantseg_next.structures import IGNORE, NO_LESION, Prediction, Sample

_BLOCK_PX = 1 << 20
"""Pixels counted at once: temporary arrays take 10 MB at any image size."""


def confusion_matrix(
    truth: UInt8[np.ndarray, "h w"],
    predicted: UInt8[np.ndarray, "h w"],
    n_classes: int,
    *,
    key: str = "",
) -> Int64[np.ndarray, "k k"]:
    """Return how many pixels of each true class were predicted as each class.

    Args:
        truth: Class ids below ``n_classes``, or ``IGNORE``: such pixels are left out,
            whatever is predicted there.
        predicted: Class ids below ``n_classes`` wherever ``truth`` is known.
        n_classes: Number of classes, "no lesion" included; at most 255.
        key: Of the image, which errors state.

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
    refuse_other_size(truth, predicted)
    flat_truth, flat_predicted = truth.reshape(-1), predicted.reshape(-1)
    pairs = np.zeros(1 << 16, np.int64)
    for start in range(0, flat_truth.size, _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        pair = flat_truth[block].astype(np.uint16) << 8 | flat_predicted[block]
        pairs += np.bincount(pair, minlength=pairs.size)
    table = pairs.reshape(256, 256)
    table[IGNORE] = 0
    where = f"`{key}`: " if key else ""
    _refuse_unknown_ids(f"{where}The true mask", table.sum(axis=1), n_classes)
    _refuse_unknown_ids(f"{where}The prediction", table.sum(axis=0), n_classes)
    return table[:n_classes, :n_classes].copy()


def refuse_other_size(truth: np.ndarray, predicted: np.ndarray) -> None:
    """Refuse masks of different sizes.

    Raises:
        ValueError: If they differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"`predicted` has shape {predicted.shape}, but `truth` has {truth.shape}. "
            "Resize the prediction to the image; never resize the truth."
        )


def _refuse_unknown_ids(
    what: str, pixels: Int64[np.ndarray, " 256"], n_classes: int
) -> None:
    if pixels[n_classes:].any():
        unknown = [n_classes + int(i) for i in np.flatnonzero(pixels[n_classes:])]
        raise DataError(
            f"{what} holds the class ids {unknown[:5]}.",
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
    lesion = slice(NO_LESION + 1, None)
    parts = confusion[lesion, lesion], confusion[lesion], confusion[:, lesion]
    return np.array([part.sum() for part in parts])


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


def mean_defined(values: Float64[np.ndarray, "k ..."]) -> Float64[np.ndarray, "..."]:
    """Return the mean over classes of the values that are not NaN; NaN if there is none."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def _if_any(
    pixels: Real[np.ndarray, "..."] | np.number, value: Float64[np.ndarray, "..."]
) -> Float64[np.ndarray, "..."]:
    """Return the value where there are pixels; NaN elsewhere."""
    return np.where(np.asarray(pixels) > 0, value, np.nan)


def _ratio(
    part: Real[np.ndarray, "..."] | np.number,
    whole: Real[np.ndarray, "..."] | np.number,
) -> Float64[np.ndarray, "..."]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


class Confusion:
    """Pixels of each true class by predicted class, and the scores of each class.

    ``Overlap`` needs less memory for many classes, and is what groups are counted with.

    Args:
        n_classes: Number of classes, "no lesion" included.
    """

    def __init__(self, n_classes: int) -> None:
        self.counts: Int64[np.ndarray, "k k"] = np.zeros((n_classes, n_classes), np.int64)

    def update(self, truth: Sample, prediction: Prediction) -> None:
        """Add an image.

        Raises:
            DataError: If a mask has an unknown class; the message states the image.
            ValueError: If the prediction and the image differ in size.
        """
        self.counts += confusion_matrix(
            truth.lesion, prediction.lesion, len(self.counts), key=truth.key
        )

    def merge(self, other: "Confusion") -> None:
        """Add the pixels of another object."""
        self.counts += other.counts

    def compute(self) -> dict[str, Float64[np.ndarray, " k"]]:
        """Return IoU, Dice, precision and recall of each class."""
        counts = class_counts(self.counts)
        return {
            "iou": iou(counts),
            "dice": dice(counts),
            "precision": precision(counts),
            "recall": recall(counts),
        }


@dataclass(eq=False)
class Overlap(Metric):
    """Overlap of lesions: of any lesion against none, and means over classes.

    "No lesion" covers most pixels and is easy, so it raises every mean that includes it.
    Means with and without it are therefore both given. On images without any lesion in
    truth and prediction, a mean of "no lesion" alone would be 1: it is undefined there.

    An image counts if its lesions are known somewhere.

    Args:
        n_classes: Number of classes, "no lesion" included.

    Source:
        mean IoU and mean accuracy as in MMSegmentation's ``IoUMetric``, without its
        ``nan_to_num``, and undefined where no lesion is; the PlantSeg benchmark (Wei et
        al. 2026, Sci. Data 13:205) uses them. The disease mean is our addition.
    """

    n_classes: int

    def __post_init__(self) -> None:
        # Overlap, truth and predicted pixels of each class, and of any lesion at the end.
        self.counts = np.zeros((3, self.n_classes + 1), np.int64)

    def update(self, truth: Sample, prediction: Prediction) -> None:
        """Add an image; see ``Confusion.update`` for the errors."""
        pixels = confusion_matrix(
            truth.lesion, prediction.lesion, self.n_classes, key=truth.key
        )
        self.n_images += bool(pixels.any())
        self.counts[:, :-1] += class_counts(pixels)
        self.counts[:, -1] += foreground_counts(pixels)

    def compute(self) -> dict[str, Float64[np.ndarray, "..."]]:
        """Return the scores; NaN where undefined."""
        classes, lesion = self.counts[:, :-1], self.counts[:, -1]
        of_class, accuracy = iou(classes), recall(classes)
        return {
            "mean_iou": _if_any(lesion[1] + lesion[2], mean_defined(of_class)),
            "mean_accuracy": _if_any(lesion[1], mean_defined(accuracy)),
            "disease_miou": mean_defined(of_class[NO_LESION + 1 :]),
            "lesion_dice": dice(lesion),
            "lesion_iou": iou(lesion),
            "lesion_precision": precision(lesion),
            "lesion_recall": recall(lesion),
        }


@dataclass(eq=False)
class LeafOverlap(Metric):
    """Overlap of the leaf, over the images whose leaf is marked and predicted."""

    def __post_init__(self) -> None:
        self.counts = np.zeros(3, np.int64)  # overlap, truth and predicted pixels

    def update(self, truth: Sample, prediction: Prediction) -> None:
        """Add an image; see ``Confusion.update`` for the errors."""
        leaf = prediction.leaf
        if leaf is None or (truth.leaf == IGNORE).all():
            return
        self.n_images += 1
        pixels = confusion_matrix(truth.leaf, leaf, 2, key=truth.key)
        self.counts += foreground_counts(pixels)

    def compute(self) -> dict[str, Float64[np.ndarray, "..."]]:
        """Return IoU and Dice; NaN where undefined."""
        return {"leaf_iou": iou(self.counts), "leaf_dice": dice(self.counts)}


@dataclass(eq=False)
class DiseaseAccuracy(Metric):
    """Accuracy of image-level labels, where the label is known and was predicted."""

    def __post_init__(self) -> None:
        self.counts = np.zeros(2, np.int64)  # images with the right label, and all

    def update(self, truth: Sample, prediction: Prediction) -> None:
        """Add an image."""
        if truth.disease == IGNORE or not prediction.disease_probability:
            return
        self.n_images += 1
        predicted = int(np.argmax(prediction.disease_probability))
        self.counts += [predicted == truth.disease, 1]

    def compute(self) -> dict[str, Float64[np.ndarray, "..."]]:
        """Return the accuracy; NaN without images."""
        return {"disease_accuracy": _ratio(self.counts[0], self.counts[1])}
