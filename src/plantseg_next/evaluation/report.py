"""Evaluate predictions of any model, one image at a time, and return a report.

Of an image only its counts, added to those of its group, and a few values for its row
are kept. Intervals are over groups, because near-duplicates and tiles of one leaf are
not independent.

Axes: k class (0 is "no lesion"), s data set.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Real

from plantseg_next.evaluation.boundary import Boundary
from plantseg_next.evaluation.grouped import GroupedMetrics, Metric
from plantseg_next.evaluation.intervals import Estimate, bootstrap_interval
from plantseg_next.evaluation.metrics import (
    Confusion,
    DiseaseAccuracy,
    LeafOverlap,
    Overlap,
    dice,
)
from plantseg_next.evaluation.report_tables import (
    ClassRow,
    ImageRow,
    Report,
    SeverityScores,
    SubsetRow,
)
from plantseg_next.evaluation.severity_agreement import Severity, SeverityAgreement
from plantseg_next.structures import ClassMap, Prediction, Sample, SkippedImage


def report_metrics(n_classes: int) -> dict[str, Metric]:
    """Return the metrics of a report, of no image; every score of theirs is in it."""
    return {
        "lesion": Overlap(n_classes),
        "leaf": LeafOverlap(),
        "lesion_boundary": Boundary("lesion"),
        "leaf_boundary": Boundary("leaf"),
        "disease": DiseaseAccuracy(),
    }


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


def evaluate(
    items: Iterable[EvalItem | SkippedImage],
    classes: ClassMap,
    *,
    severity: Severity,
    source_domain: Collection[str] = (),
) -> Report:
    """Return the report of a stream of images and predictions.

    Lesion scores exclude images whose lesions are unknown everywhere; leaf scores exclude
    images whose leaf is unknown or was not predicted. Pixels that are unknown in the
    truth are excluded from the predicted severity too.

    Args:
        items: Read once, in order; images are not kept. Images that could not be read are
            listed in the report.
        classes: The classes of both truth and prediction.
        severity: Computes severity; used for both truth and prediction.
        source_domain: Data sets whose masks the model was trained on.

    Raises:
        DataError: If a mask has an unknown class; the message states the image.
        ValueError: If a prediction and its image differ in size.
    """
    n_classes = classes.n_lesion_logits

    def all_metrics() -> GroupedMetrics:
        return GroupedMetrics(lambda: report_metrics(n_classes))

    def lesion_only() -> GroupedMetrics:
        return GroupedMetrics(lambda: {"lesion": Overlap(n_classes)})

    confusion, agreement = Confusion(n_classes), SeverityAgreement(severity)
    sources = defaultdict[str, GroupedMetrics](all_metrics)
    diseases = defaultdict[str, GroupedMetrics](lesion_only)
    rows: list[ImageRow] = []
    skipped: list[SkippedImage] = []
    for item in items:
        if isinstance(item, SkippedImage):
            skipped.append(item)
            continue
        image = all_metrics()
        image.update(item.group, item.sample, item.prediction)
        sources[item.source].merge(image)
        if item.disease is not None:
            diseases[item.disease].merge(image)
        confusion.update(item.sample, item.prediction)
        agreement.update(item.sample, item.prediction)
        rows.append(_row(item, image, agreement.pairs[-1], classes))

    everything = all_metrics()
    for source in sources.values():
        everything.merge(source)
    total = everything.total()
    return Report(
        n_images=len(rows),
        n_lesion_images=total["lesion"].n_images,
        n_leaf_images=total["leaf"].n_images,
        n_groups=len(everything.groups),
        estimates={
            **everything.compute(),
            "target_domain": _target_domain(sources, source_domain),
        },
        severity=SeverityScores(
            agreement=agreement.compute(),
            rho_c=agreement.rho_c([row.group for row in rows]),
            n_without=agreement.n_without,
        ),
        classes=_class_rows(confusion, classes),
        sources=_subset_rows(sources),
        diseases=_subset_rows(diseases),
        images=tuple(rows),
        skipped=tuple(skipped),
        confusion=confusion.counts,
    )


def _row(
    item: EvalItem, image: GroupedMetrics, severity: tuple[float, float], classes: ClassMap
) -> ImageRow:
    probabilities = item.prediction.disease_probability
    return ImageRow(
        key=item.sample.key,
        source=item.source,
        group=item.group,
        disease=item.disease or "",
        predicted_disease=(
            classes.diseases[int(np.argmax(probabilities))] if probabilities else ""
        ),
        lesion_dice=float(image.total()["lesion"].compute()["lesion_dice"]),
        severity_truth=severity[0],
        severity_predicted=severity[1],
    )


def _class_rows(confusion: Confusion, classes: ClassMap) -> tuple[ClassRow, ...]:
    scores = confusion.compute()
    truth_px, predicted_px = confusion.counts.sum(axis=1), confusion.counts.sum(axis=0)
    return tuple(
        ClassRow(
            name=classes.lesion_name(k),
            iou=float(scores["iou"][k]),
            dice=float(scores["dice"][k]),
            precision=float(scores["precision"][k]),
            recall=float(scores["recall"][k]),
            truth_px=int(truth_px[k]),
            predicted_px=int(predicted_px[k]),
        )
        for k in range(len(confusion.counts))
    )


def _subset_rows(subsets: Mapping[str, GroupedMetrics]) -> tuple[SubsetRow, ...]:
    rows = []
    for name, subset in sorted(subsets.items()):
        scores = subset.compute()
        n_images = subset.total()["lesion"].n_images
        rows.append(SubsetRow(name, n_images, scores["lesion_dice"], scores["lesion_iou"]))
    return tuple(rows)


def _target_domain(
    sources: Mapping[str, GroupedMetrics], source_domain: Collection[str]
) -> Estimate:
    """Return lesion Dice of target domains over source domains, each a mean of data sets.

    It may exceed 1. NaN without data sets of both kinds.
    """
    names = [name for name, of in sources.items() if of.total()["lesion"].n_images]
    is_source = np.array([name in source_domain for name in names], bool)
    if not is_source.any() or is_source.all():
        return Estimate(math.nan, math.nan, math.nan, 0)
    counts = []
    for i, name in enumerate(names):
        for group in sources[name].groups.values():
            if group["lesion"].n_images:
                by_name = np.zeros((len(names), 3), np.int64)
                by_name[i] = group["lesion"].counts[:, -1]
                counts.append(by_name)

    def ratio(total: Real[np.ndarray, "s 3"]) -> float:
        scores = dice(total.T)
        source = float(np.mean(scores[is_source]))
        return float(np.mean(scores[~is_source])) / source if source > 0 else math.nan

    stacked = np.stack(counts)
    return Estimate(ratio(stacked.sum(axis=0)), *bootstrap_interval(stacked, ratio))
