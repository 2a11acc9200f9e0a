"""Metrics as objects: what is joined equals what was added one by one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plantseg_next.evaluation.boundary import Boundary
from plantseg_next.evaluation.grouped import GroupedMetrics, estimates
from plantseg_next.evaluation.intervals import bootstrap_interval
from plantseg_next.evaluation.metrics import (
    Confusion,
    DiseaseAccuracy,
    LeafOverlap,
    Overlap,
    dice,
    mean_defined,
    recall,
)
from plantseg_next.evaluation.report import report_metrics
from plantseg_next.evaluation.severity_agreement import SeverityAgreement
from plantseg_next.structures import Prediction, Sample

K = 3


def image_of(seed):
    """Return truth and prediction of a small image; some parts are unknown."""
    rng = np.random.default_rng(seed)
    shape = (6, 5)
    truth = rng.choice(np.array([0, 1, 2, 255], np.uint8), shape)
    leaf = rng.choice(np.array([0, 1, 255], np.uint8), shape)
    unknown = np.full(shape, 255, np.uint8)
    return (
        Sample(
            "a",
            np.zeros((*shape, 3), np.uint8),
            truth if seed % 5 else unknown,
            leaf if seed % 7 else unknown,
            disease=seed % 2 if seed % 3 else 255,
        ),
        Prediction(
            rng.integers(0, K, shape, dtype=np.uint8),
            np.zeros(shape, np.float16),
            rng.random(shape).astype(np.float16) if seed % 4 else None,
            (0.3, 0.7),
        ),
    )


def mean_lesion(lesion, leaf):
    known = (lesion < 255) & (leaf == 1)
    return 100.0 * (lesion[known] > 0).mean() if known.any() else None


MAKERS = {
    "confusion": lambda: Confusion(K),
    "overlap": lambda: Overlap(K),
    "leaf": LeafOverlap,
    "lesion boundary": lambda: Boundary("lesion"),
    "leaf boundary": lambda: Boundary("leaf"),
    "disease": DiseaseAccuracy,
    "severity": lambda: SeverityAgreement(mean_lesion),
}


def state_of(metric):
    if isinstance(metric, SeverityAgreement):
        return sorted(map(repr, metric.pairs))  # repr: NaN equals NaN
    return metric.counts.tolist(), getattr(metric, "n_images", None)


def filled(make, seeds):
    metric = make()
    for seed in seeds:
        metric.update(*image_of(seed))
    return metric


def joined(make, *metrics):
    total = make()
    for metric in metrics:
        total.merge(metric)
    return total


seeds = st.lists(st.integers(0, 500), max_size=4)


@pytest.mark.parametrize("name", MAKERS)
@given(seeds, seeds, seeds)
@settings(max_examples=20)
def test_merge_is_associative_commutative_and_equals_update(name, a, b, c):
    make = MAKERS[name]
    parts = [filled(make, part) for part in (a, b, c)]
    expected = state_of(filled(make, [*a, *b, *c]))
    left = joined(make, joined(make, *parts[:2]), parts[2])
    right = joined(make, parts[0], joined(make, *parts[1:]))
    assert state_of(left) == state_of(right) == expected
    assert state_of(joined(make, *reversed(parts))) == expected
    assert state_of(parts[0]) == state_of(filled(make, a))  # what was added is unchanged


@given(seeds, seeds)
@settings(max_examples=20)
def test_grouped_merge_equals_update(a, b):
    def grouped(seeds):
        metrics = GroupedMetrics(lambda: report_metrics(K))
        for seed in seeds:
            metrics.update(f"leaf {seed % 3}", *image_of(seed))
        return metrics

    first, both = grouped(a), grouped([*a, *b])
    first.merge(grouped(b))
    assert repr(first.compute(n_resamples=20)) == repr(both.compute(n_resamples=20))
    for name, metric in both.total().items():
        assert state_of(first.total()[name]) == state_of(metric)


def test_estimates_equal_the_bootstrap_of_each_score():
    groups = [filled(lambda: Overlap(K), [5 * i + 1, 5 * i + 2]) for i in range(11)]
    stacked = np.stack([group.counts for group in groups])
    found = estimates(groups, n_resamples=150, seed=4)
    for name, score in (
        ("lesion_dice", lambda counts: float(dice(counts[:, -1]))),
        ("mean_accuracy", lambda counts: float(mean_defined(recall(counts[:, :-1])))),
    ):
        expected = bootstrap_interval(stacked, score, n_resamples=150, seed=4)
        assert found[name].value == pytest.approx(score(stacked.sum(axis=0)))
        assert found[name].low == pytest.approx(expected.low)
        assert found[name].high == pytest.approx(expected.high)
        assert found[name].n_groups == 11


def test_estimates_leave_out_groups_without_known_images():
    groups = [filled(LeafOverlap, seeds) for seeds in ([1], [7], [2], [4])]
    found = estimates(groups)["leaf_iou"]
    assert found.n_groups == 2  # the leaf of 7 is unknown, that of 4 was not predicted
    nothing = estimates([LeafOverlap()])["leaf_iou"]
    assert nothing.n_groups == 0
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)


def test_grouped_metrics_of_no_image_are_undefined():
    found = GroupedMetrics(lambda: report_metrics(K)).compute()
    assert set(found) >= {"lesion_dice", "leaf_iou", "disease_accuracy"}
    assert all(math.isnan(estimate.value) for estimate in found.values())
