"""The bootstrap: compared with scipy's, and its degenerate cases."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from plantseg_next.evaluation.intervals import bootstrap_interval, bootstrap_rows


def fraction(total):
    return float(total[0] / total[1]) if total[1] else math.nan


def counts_of(n_groups):
    rng = np.random.default_rng(5)
    n = rng.integers(50, 200, n_groups)
    return np.stack([rng.binomial(n, 0.7), n], axis=1)


def test_bootstrap_interval_agrees_with_scipy():
    counts = counts_of(40)
    interval = bootstrap_interval(counts, fraction, n_resamples=4000)
    expected = bootstrap(
        (counts[:, 0], counts[:, 1]),
        lambda hit, n, axis: hit.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        random_state=np.random.default_rng(1),
    ).confidence_interval
    assert interval.low == pytest.approx(expected.low, abs=0.002)
    assert interval.high == pytest.approx(expected.high, abs=0.002)
    assert interval.n_groups == 40


def test_bootstrap_rows_of_single_row_groups_equals_counts():
    counts = counts_of(30)
    names = [f"group {i:02d}" for i in range(30)]
    a = bootstrap_interval(counts, fraction, seed=3)
    b = bootstrap_rows(counts, names, lambda rows: fraction(rows.sum(axis=0)), seed=3)
    assert (a.low, a.high) == pytest.approx((b.low, b.high))


def test_bootstrap_rows_draws_whole_groups():
    rows = np.arange(12).reshape(12, 1)
    groups = [f"{i // 3}" for i in range(12)]

    def whole_groups(drawn):
        numbers, times = np.unique(drawn, return_counts=True)
        assert len(drawn) == 12
        assert (times.reshape(-1, 3) == times.reshape(-1, 3)[:, :1]).all()
        assert (numbers.reshape(-1, 3)[:, 0] % 3 == 0).all()
        return 1.0

    assert bootstrap_rows(rows, groups, whole_groups, n_resamples=50).n_groups == 4


def test_bootstrap_interval_of_groups_is_wider():
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(size=10), 20)[:, None]

    def mean(rows):
        return float(rows.mean())

    alone = bootstrap_rows(values, [f"{i}" for i in range(200)], mean)
    grouped = bootstrap_rows(values, [f"{i // 20}" for i in range(200)], mean)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_bootstrap_interval_depends_on_the_seed_only():
    counts = counts_of(15)
    assert bootstrap_interval(counts, fraction) == bootstrap_interval(counts, fraction)
    assert bootstrap_interval(counts, fraction) != bootstrap_interval(
        counts, fraction, seed=1
    )


@pytest.mark.parametrize("n_groups", [0, 1])
def test_bootstrap_interval_of_fewer_than_two_groups_is_undefined(n_groups):
    interval = bootstrap_interval(counts_of(2)[:n_groups], fraction)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.n_groups == n_groups
    rows = bootstrap_rows(np.ones((n_groups, 1)), ["a"] * n_groups, lambda _: 1.0)
    assert math.isnan(rows.low)


def test_bootstrap_interval_excludes_a_minority_of_undefined_resamples():
    some = np.array([[0, 0], [1, 2], [2, 2]])
    assert bootstrap_interval(some, fraction).low == 0.5
    assert math.isnan(bootstrap_interval(np.zeros((9, 2)), fraction).low)


def test_bootstrap_statistic_gets_counts_in_their_shape():
    seen = []
    counts = np.ones((3, 2, 4), np.int64)
    bootstrap_interval(counts, lambda m: seen.append(m.shape) or m.sum(), n_resamples=250)
    assert seen == [(2, 4)] * 250


def test_bootstrap_rows_with_missing_groups_is_refused():
    with pytest.raises(AssertionError, match="a group for every row"):
        bootstrap_rows(np.ones((3, 1)), ["a", "b"], lambda _: 1.0)
