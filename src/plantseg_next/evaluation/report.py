"""Evaluate predictions of any model, one image at a time, and return a report.

Of an image only its counts, added to those of its group, and a few values for its row
are kept. Intervals are over groups, because near-duplicates and tiles of one leaf are
not independent.

Axes: h row, w column, k class (0 is "no lesion"), g group, n image.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float64, Int64, Real, UInt8

from plantseg_next.errors import DataError
from plantseg_next.evaluation.boundary import boundary_counts, boundary_f1
from plantseg_next.evaluation.intervals import bootstrap_interval, bootstrap_rows
from plantseg_next.evaluation.metrics import (
    ClassScores,
    class_counts,
    confusion_matrix,
    dice,
    foreground_counts,
    iou,
    mean_defined,
    precision,
    recall,
)
from plantseg_next.evaluation.report_tables import (
    ClassRow,
    Estimate,
    ImageRow,
    Report,
    SeverityScores,
    SubsetRow,
)
from plantseg_next.evaluation.severity_agreement import concordance, severity_agreement
from plantseg_next.structures import IGNORE, NO_LESION, ClassMap, Prediction, Sample

Severity = Callable[
    [UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"] | None], float | None
]
"""Computes severity in % of the leaf from lesion and leaf masks; ``None`` if undefined."""


@dataclass(frozen=True)
class EvalItem:
    """One image with its truth and its prediction.

    Args:
        sample: Image and truth.
        prediction: Masks of the same size.
        source: Name of its data set.
        group: Resampled as a whole; unique over sources.
        disease: Name of its image-level label, or ``None``.
    """

    sample: Sample
    prediction: Prediction
    source: str
    group: str
    disease: str | None = None


@dataclass
class _Counts:
    """Counts of one or many images; each array is additive."""

    images: Int64[np.ndarray, " 2"]  # with lesions known, with the leaf known
    classes: Int64[np.ndarray, "3 k"]
    lesion: Int64[np.ndarray, " 3"]
    leaf: Int64[np.ndarray, " 3"]
    lesion_boundary: Int64[np.ndarray, " 4"]
    leaf_boundary: Int64[np.ndarray, " 4"]
    disease: Int64[np.ndarray, " 2"]  # images with the correct label, images evaluated

    @classmethod
    def none(cls, n_classes: int) -> "_Counts":
        shapes = ((2,), (3, n_classes), (3,), (3,), (4,), (4,), (2,))
        return cls(*(np.zeros(shape, np.int64) for shape in shapes))

    def add(self, other: "_Counts") -> None:
        for column in fields(self):
            getattr(self, column.name)[...] += getattr(other, column.name)


_Groups = defaultdict[str, _Counts]


def evaluate(
    items: Iterable[EvalItem],
    classes: ClassMap,
    *,
    severity: Severity,
    source_domain: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Return the report of a stream of images and predictions.

    Lesion scores exclude images whose lesions are unknown everywhere; leaf scores exclude
    images whose leaf is unknown or was not predicted. Pixels that are unknown in the
    truth are excluded from the predicted severity too.

    Args:
        items: Read once, in order; images are not kept.
        classes: The classes of both truth and prediction.
        severity: Computes severity; used for both truth and prediction.
        source_domain: Data sets whose masks the model was trained on.
        seed: Seed of the intervals.

    Raises:
        DataError: If a mask has an unknown class; the message states the image.
        ValueError: If a prediction and its image differ in size.
    """
    n_classes = classes.n_lesion_logits
    confusion = np.zeros((n_classes, n_classes), np.int64)
    by_source, by_disease = (
        defaultdict[str, _Groups](lambda: defaultdict(lambda: _Counts.none(n_classes)))
        for _ in range(2)
    )
    rows: list[ImageRow] = []
    for item in items:
        truth, prediction = item.sample, item.prediction
        pixels = _confusion(truth.key, truth.lesion, prediction.lesion, n_classes)
        counts = _count(item, pixels)
        confusion += pixels
        by_source[item.source][item.group].add(counts)
        if item.disease is not None:
            by_disease[item.disease][item.group].add(counts)
        rows.append(_row(item, counts, classes, severity))

    groups = [group for source in by_source.values() for group in source.values()]
    of_lesion = [group for group in groups if group.images[0]]
    of_leaf = [group for group in groups if group.images[1]]
    of_disease = [group for group in groups if group.disease[1]]

    def lesion(score: Callable[..., Real[np.ndarray, ""]]) -> Estimate:
        return _estimate([group.lesion for group in of_lesion], score, seed)

    def per_class(score: Callable[..., float]) -> Estimate:
        return _estimate([group.classes for group in of_lesion], score, seed)

    def leaf(score: Callable[..., Real[np.ndarray, ""]]) -> Estimate:
        return _estimate([group.leaf for group in of_leaf], score, seed)

    return Report(
        n_images=len(rows),
        n_lesion_images=sum(int(group.images[0]) for group in groups),
        n_leaf_images=sum(int(group.images[1]) for group in groups),
        n_groups=len(groups),
        mean_iou=per_class(lambda counts: mean_defined(iou(counts))),
        mean_accuracy=per_class(lambda counts: mean_defined(recall(counts))),
        disease_miou=per_class(lambda counts: mean_defined(iou(counts)[1:])),
        lesion_dice=lesion(dice),
        lesion_iou=lesion(iou),
        lesion_precision=lesion(precision),
        lesion_recall=lesion(recall),
        lesion_boundary_f1=_estimate(
            [group.lesion_boundary for group in of_lesion], boundary_f1, seed
        ),
        leaf_iou=leaf(iou),
        leaf_dice=leaf(dice),
        leaf_boundary_f1=_estimate(
            [group.leaf_boundary for group in of_leaf], boundary_f1, seed
        ),
        disease_accuracy=_estimate(
            [group.disease for group in of_disease], lambda n: n[0] / n[1], seed
        ),
        severity=_severity_scores(rows, seed),
        classes=_class_rows(confusion, classes),
        target_domain=_target_domain(by_source, source_domain, seed),
        sources=_subset_rows(by_source, seed),
        diseases=_subset_rows(by_disease, seed),
        images=tuple(rows),
        confusion=confusion,
    )


def _confusion(
    key: str,
    truth: UInt8[np.ndarray, "h w"],
    predicted: UInt8[np.ndarray, "h w"],
    n_classes: int,
) -> Int64[np.ndarray, "k k"]:
    try:
        return confusion_matrix(truth, predicted, n_classes)
    except DataError as error:
        raise DataError(
            f"`{key}`: {error.came}", needed=error.needed, fix=error.fix
        ) from error


def _count(item: EvalItem, pixels: Int64[np.ndarray, "k k"]) -> _Counts:
    truth, prediction = item.sample, item.prediction
    counts = _Counts.none(len(pixels))
    if pixels.any():
        counts.images[0] = 1
        counts.classes = class_counts(pixels)
        counts.lesion = foreground_counts(pixels)
        counts.lesion_boundary = boundary_counts(truth.lesion, prediction.lesion)
    leaf = prediction.leaf
    if leaf is not None and (truth.leaf != IGNORE).any():
        counts.images[1] = 1
        counts.leaf = foreground_counts(_confusion(truth.key, truth.leaf, leaf, 2))
        counts.leaf_boundary = boundary_counts(truth.leaf, leaf)
    if truth.disease != IGNORE and prediction.disease_probability:
        predicted = int(np.argmax(prediction.disease_probability))
        counts.disease = np.array([predicted == truth.disease, 1], np.int64)
    return counts


def _row(
    item: EvalItem, counts: _Counts, classes: ClassMap, severity: Severity
) -> ImageRow:
    probabilities = item.prediction.disease_probability
    true_severity, predicted_severity = _severities(item, severity)
    return ImageRow(
        key=item.sample.key,
        source=item.source,
        group=item.group,
        disease=item.disease or "",
        predicted_disease=(
            classes.diseases[int(np.argmax(probabilities))] if probabilities else ""
        ),
        lesion_dice=float(dice(counts.lesion)),
        severity_truth=true_severity,
        severity_predicted=predicted_severity,
    )


def _severities(item: EvalItem, severity: Severity) -> tuple[float, float]:
    """Return true and predicted severity; NaN where undefined."""
    truth, leaf = item.sample, item.prediction.leaf
    if (truth.lesion == IGNORE).all() or (truth.leaf == IGNORE).all():
        return math.nan, math.nan
    of_truth = severity(truth.lesion, truth.leaf)
    of_prediction = None
    if leaf is not None:
        lesion = np.where(truth.lesion == IGNORE, truth.lesion, item.prediction.lesion)
        leaf = np.where(truth.leaf == IGNORE, truth.leaf, leaf)
        of_prediction = severity(lesion, leaf)
    return (
        math.nan if of_truth is None else of_truth,
        math.nan if of_prediction is None else of_prediction,
    )


def _estimate(
    counts: Sequence[Int64[np.ndarray, "..."]],
    score: Callable[..., float | Real[np.ndarray, ""]],
    seed: int,
) -> Estimate:
    if not counts:
        return Estimate(math.nan, math.nan, math.nan, 0)
    stacked = np.stack(counts)
    interval = bootstrap_interval(stacked, lambda total: float(score(total)), seed=seed)
    value = float(score(stacked.sum(axis=0)))
    return Estimate(value, interval.low, interval.high, interval.n_groups)


def _severity_scores(rows: Sequence[ImageRow], seed: int) -> SeverityScores:
    pairs = [(row.severity_truth, row.severity_predicted) for row in rows]
    both = np.array(pairs, np.float64).reshape(-1, 2)
    defined = ~np.isnan(both)
    usable = defined[:, 0] & defined[:, 1]

    def rho_c(resampled: Float64[np.ndarray, "n 2"]) -> float:
        return concordance(resampled[:, 0], resampled[:, 1])

    groups = [rows[i].group for i in np.flatnonzero(usable).tolist()]
    interval = bootstrap_rows(both[usable], groups, rho_c, seed=seed)
    agreement = severity_agreement(both[:, 0], both[:, 1])
    return SeverityScores(
        agreement=agreement,
        rho_c=Estimate(agreement.rho_c, interval.low, interval.high, interval.n_groups),
        n_without=int((defined[:, 0] & ~defined[:, 1]).sum()),
    )


def _class_rows(
    confusion: Int64[np.ndarray, "k k"], classes: ClassMap
) -> tuple[ClassRow, ...]:
    scores = ClassScores(confusion)
    truth_px, predicted_px = confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        ClassRow(
            name=classes.lesion_name(class_id),
            iou=float(scores.iou[class_id]),
            dice=float(scores.dice[class_id]),
            precision=float(scores.precision[class_id]),
            recall=float(scores.recall[class_id]),
            truth_px=int(truth_px[class_id]),
            predicted_px=int(predicted_px[class_id]),
        )
        for class_id in range(NO_LESION, len(confusion))
    )


def _subset_rows(subsets: Mapping[str, _Groups], seed: int) -> tuple[SubsetRow, ...]:
    rows = []
    for name, groups in sorted(subsets.items()):
        known = [group.lesion for group in groups.values() if group.images[0]]
        rows.append(
            SubsetRow(
                name=name,
                n_images=sum(int(group.images[0]) for group in groups.values()),
                lesion_dice=_estimate(known, dice, seed),
                lesion_iou=_estimate(known, iou, seed),
            )
        )
    return tuple(rows)


def _target_domain(
    by_source: Mapping[str, _Groups], source_domain: Collection[str], seed: int
) -> Estimate:
    """Return lesion Dice of target domains over source domains, each a mean of data sets.

    It may exceed 1. NaN without data sets of both kinds.
    """
    names = [n for n in by_source if any(c.images[0] for c in by_source[n].values())]
    is_source = np.array([name in source_domain for name in names], bool)
    if not is_source.any() or is_source.all():
        return _estimate([], dice, seed)
    counts = []
    for i, name in enumerate(names):
        for group in by_source[name].values():
            if group.images[0]:
                by_name = np.zeros((len(names), 3), np.int64)
                by_name[i] = group.lesion
                counts.append(by_name)

    def ratio(total: Real[np.ndarray, "s 3"]) -> float:
        scores = np.array([float(dice(of_source)) for of_source in total])
        source = float(np.mean(scores[is_source]))
        return float(np.mean(scores[~is_source])) / source if source > 0 else math.nan

    return _estimate(counts, ratio, seed)
