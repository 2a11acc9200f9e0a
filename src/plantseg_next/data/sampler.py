"""Which row is sampled: balanced over data sets and diseases, streams in a fixed ratio.

All data sets share one table: neither the memory nor the time of a draw grows with their
number.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from plantseg_next.data.manifest import Row
from plantseg_next.errors import unknown_name
from plantseg_next.settings import DataSettings, Weight

SPARSE_FRACTION = 0.25
"""Largest fraction of draws from sparse masks (points, scribbles) if there are dense ones:
a tile with a hundred labeled pixels must not replace a fully labeled one."""


class MixtureSampler:
    """Sample rows by step number and a uniform random number.

    Within a stream, a data set and disease with ``n`` images is sampled in proportion
    to ``n ** (1 - balance)``, times the weight of its data set.

    Args:
        rows: At least one.
        settings: Balance and weights.
        named_fraction: Fraction of draws from rows with an image-level label, if there
            are rows with and without. ``None``: rows are divided by dense and sparse
            masks instead, see ``SPARSE_FRACTION``.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        settings: DataSettings,
        *,
        named_fraction: float | None = None,
    ) -> None:
        if named_fraction is None:
            in_second = [row.sparse for row in rows]
            fraction = min(SPARSE_FRACTION, sum(in_second) / len(rows))
        else:
            in_second = [row.disease is not None for row in rows]
            fraction = named_fraction
        streams = [
            [i for i, second in enumerate(in_second) if second == which]
            for which in (False, True)
        ]
        if not all(streams):
            fraction, streams = 0.0, [list(range(len(rows)))]
        self._fraction = fraction
        self._streams = [_Stream(rows, indices, settings) for indices in streams]

    def index(self, step: int, uniform: float) -> int:
        """Return the index of a sampled row.

        Args:
            step: Number of the draw. Any consecutive draws contain the given fraction
                of labeled (or sparse) rows, to within one.
            uniform: In [0, 1).
        """
        before, after = int(step * self._fraction), int((step + 1) * self._fraction)
        return self._streams[after > before].index(step, uniform)


class _Stream:
    """Rows that are sampled together."""

    def __init__(
        self, rows: Sequence[Row], indices: Sequence[int], settings: DataSettings
    ) -> None:
        size = Counter((rows[i].source, rows[i].disease) for i in indices)
        sources: dict[str, list[int]] = defaultdict(list)
        for i in indices:
            sources[rows[i].source].append(i)
        self._rows = [np.array(members) for members in sources.values()]
        self._cumulative = [
            np.cumsum(
                [
                    size[rows[i].source, rows[i].disease] ** -settings.balance
                    for i in members
                ]
            )
            for members in sources.values()
        ]
        weights = dict(settings.weights)
        self._weights = [weights.get(source, 1.0) for source in sources]

    def index(self, draw: int, uniform: float) -> int:
        weight = np.array(
            [
                weight_at(weight, draw) * cumulative[-1]
                for weight, cumulative in zip(self._weights, self._cumulative, strict=True)
            ]
        )
        if not weight.any():  # all weights are 0: treat the data sets as equal
            weight = np.array([cumulative[-1] for cumulative in self._cumulative])
        until = np.cumsum(weight)
        position = uniform * until[-1]
        source = min(int(np.searchsorted(until, position, side="right")), len(until) - 1)
        inside = (position - (until[source] - weight[source])) / weight[source]
        cumulative = self._cumulative[source]
        member = int(np.searchsorted(cumulative, inside * cumulative[-1], side="right"))
        return int(self._rows[source][min(member, len(cumulative) - 1)])


def weight_at(weight: Weight, draw: int) -> float:
    """Return the weight of a data set at a draw.

    Example:
        >>> [weight_at((1.0, 0.0, 100), draw) for draw in (0, 50, 400)]
        [1.0, 0.5, 0.0]
    """
    if isinstance(weight, float):
        return weight
    first, last, draws = weight
    return first + (last - first) * min(1.0, draw / draws)


def refuse_unknown(settings: DataSettings, sources: Sequence[str]) -> None:
    """Raise an error for weights of unknown data sets.

    Raises:
        UsageError: If there is one; it suggests the nearest name.
    """
    for name, _ in settings.weights:
        if name not in sources:
            came = f"data.weights has `{name}`; there is no such data set."
            raise unknown_name(came, name, sources)
