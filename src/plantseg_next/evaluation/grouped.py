"""Metrics as objects, kept apart by group of images, and the intervals that follow.

A metric is added to the lists of ``report.report_metrics`` or ``workflows.evaluate``.

Axes: g group, d resample.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Real

from plantseg_next.evaluation.intervals import Estimate, draw_groups, percentiles
from plantseg_next.structures import Prediction, Sample


@dataclass(eq=False)
class Metric(ABC):
    """Scores of a set of images, computed from counts that add up over images.

    ``compute`` accepts counts with a further last axis, for many resamples at once.
    """

    n_images: int = field(default=0, init=False)
    """Images that count: their truth is known, and it was predicted."""
    counts: Real[np.ndarray, "..."] = field(init=False, repr=False)

    @abstractmethod
    def update(self, truth: Sample, prediction: Prediction) -> None:
        """Add an image."""

    def merge(self, other: "Metric") -> None:
        """Add the images of another object."""
        self.n_images += other.n_images
        self.counts += other.counts

    @abstractmethod
    def compute(self) -> dict[str, Float64[np.ndarray, "..."]]:
        """Return the scores by name; NaN where undefined."""


class GroupedMetrics:
    """Metrics of every group of images.

    Objects that different workers or data sets filled are joined with ``merge``.

    Args:
        make: Returns the metrics of no image, by name.
    """

    def __init__(self, make: Callable[[], Mapping[str, Metric]]) -> None:
        self._make = make
        self.groups: dict[str, Mapping[str, Metric]] = {}

    def update(self, group: str, truth: Sample, prediction: Prediction) -> None:
        """Add an image to its group; errors are those of the metrics."""
        for metric in self._metrics_of(group).values():
            metric.update(truth, prediction)

    def merge(self, other: "GroupedMetrics") -> None:
        """Add the images of another object, which may have further metrics."""
        for group, metrics in other.groups.items():
            for name, metric in self._metrics_of(group).items():
                metric.merge(metrics[name])

    def total(self) -> Mapping[str, Metric]:
        """Return the metrics of all groups together."""
        total = self._make()
        for metrics in self.groups.values():
            for name, metric in total.items():
                metric.merge(metrics[name])
        return total

    def compute(self, *, n_resamples: int = 1000) -> dict[str, Estimate]:
        """Return every score with its 95 % interval; see ``estimates``."""
        groups = [*self.groups.values()] or [self._make()]
        return {
            name: estimate
            for metric in groups[0]
            for name, estimate in estimates(
                [group[metric] for group in groups], n_resamples=n_resamples
            ).items()
        }

    def _metrics_of(self, group: str) -> Mapping[str, Metric]:
        if group not in self.groups:
            self.groups[group] = self._make()
        return self.groups[group]


def estimates(
    groups: Sequence[Metric], *, n_resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Return the scores of a metric over all groups, with their percentile intervals.

    As ``intervals.bootstrap_interval``, for all scores and resamples of a metric at once.

    Args:
        groups: The metric of each group, at least one. Groups without an image that counts
            are left out.
        n_resamples: Times that groups are drawn with replacement.
        seed: The same seed draws the same groups.

    Returns:
        NaN where undefined; the bounds are NaN too for fewer than two groups.
    """
    known = np.array([group.counts for group in groups if group.n_images], np.float64)
    total = known.sum(axis=0) if len(known) else groups[0].counts
    resampled: dict[str, list[float]] = {}
    for weights in draw_groups(len(known), n_resamples, seed):
        drawn = np.tensordot(known, weights, (0, 1))
        for name, scores in _computed(groups[0], drawn).items():
            resampled.setdefault(name, []).extend(scores.tolist())
    return {
        name: Estimate(float(score), *percentiles(resampled.get(name, []), len(known)))
        for name, score in _computed(groups[0], total).items()
    }


def _computed(
    metric: Metric, counts: Real[np.ndarray, "..."]
) -> dict[str, Float64[np.ndarray, "..."]]:
    """Return the scores of a metric from other counts."""
    other = copy(metric)
    other.counts = counts
    return other.compute()
