"""Confidence intervals of scores: percentile bootstrap over groups.

Pixels of an image, and images of a leaf, are correlated; resampling them one by one
gives intervals that are far too narrow. Whole groups are drawn instead.

Axes: g group, n image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Real, Shaped

_DRAWS_AT_ONCE = 100
"""Resamples summed in one matrix product: few enough to need little memory."""

_TAIL = (1.0 - 0.95) / 2.0
"""Fraction of the resamples below the lower bound, and above the upper one."""


class Interval(NamedTuple):
    """A confidence interval of a score on other images of the same kind.

    Args:
        low: Lower bound; NaN if undefined.
        high: Upper bound; NaN if undefined.
        n_groups: Groups resampled. With fewer than about 20 it is too narrow.
    """

    low: float
    high: float
    n_groups: int


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval; NaN where undefined.

    Args:
        value: The score over all images.
        low: Lower bound.
        high: Upper bound.
        n_groups: Groups resampled.
    """

    value: float
    low: float
    high: float
    n_groups: int


def bootstrap_interval(
    counts: Real[np.ndarray, "g ..."],
    statistic: Callable[[Float64[np.ndarray, "..."]], float],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the 95 % percentile interval of a statistic of additive counts.

    Args:
        counts: Counts of each group, summed over its images.
        statistic: Computes a score from counts summed over groups; may return NaN.
        n_resamples: Times that ``g`` groups are drawn with replacement.
        seed: The same seed gives the same interval.

    Returns:
        Bounds in the unit of the statistic. They are NaN for fewer than two groups, and
        where the statistic is undefined in more than half of the resamples; otherwise
        undefined resamples are left out.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13; groups as
        units: Davison and Hinkley 1997, Bootstrap Methods and their Application,
        section 3.8. Drawing multinomial weights is equivalent to drawing groups.

    Example:
        >>> hits = np.array([[9, 10], [7, 10], [8, 10]])
        >>> bootstrap_interval(hits, lambda total: float(total[0] / total[1]))
        Interval(low=0.7, high=0.9, n_groups=3)
    """
    values = [
        statistic(total)
        for weights in draw_groups(len(counts), n_resamples, seed)
        for total in np.tensordot(weights, counts.astype(np.float64), 1)
    ]
    return percentiles(values, len(counts))


def bootstrap_rows(
    rows: Shaped[np.ndarray, "n ..."],
    groups: Sequence[str],
    statistic: Callable[[Shaped[np.ndarray, "drawn ..."]], float],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the 95 % percentile interval of a statistic that needs one row per image.

    As ``bootstrap_interval``, for statistics that additive counts cannot give, such as
    a correlation. All rows of a drawn group are included together.

    Args:
        rows: One row per image.
        groups: Group of each row.
        statistic: Computes a score from resampled rows, about as many as ``rows``.
        n_resamples: Times that groups are drawn with replacement.
        seed: The same seed gives the same interval.
    """
    assert len(groups) == len(rows), "a group for every row"  # noqa: S101
    names, group_of_row = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    values = [
        statistic(rows.repeat(weight[group_of_row], axis=0))
        for weights in draw_groups(len(names), n_resamples, seed)
        for weight in weights
    ]
    return percentiles(values, len(names))


def draw_groups(
    n_groups: int, n_resamples: int, seed: int
) -> Iterator[Int64[np.ndarray, "d g"]]:
    """Yield how often each group is drawn in each resample, some resamples at a time.

    Nothing is drawn from fewer than two groups.
    """
    if n_groups < 2:
        return
    rng = np.random.default_rng(seed)
    evenly = np.full(n_groups, 1.0 / n_groups)
    for start in range(0, n_resamples, _DRAWS_AT_ONCE):
        n_draws = min(_DRAWS_AT_ONCE, n_resamples - start)
        yield rng.multinomial(n_groups, evenly, size=n_draws)


def percentiles(values: list[float], n_groups: int) -> Interval:
    """Return the interval of resampled values; see ``bootstrap_interval``."""
    scores = np.array(values, np.float64)
    defined = scores[~np.isnan(scores)]
    if 2 * defined.size < scores.size or defined.size == 0:
        return Interval(float("nan"), float("nan"), n_groups)
    low, high = np.quantile(defined, [_TAIL, 1.0 - _TAIL])
    return Interval(float(low), float(high), n_groups)
