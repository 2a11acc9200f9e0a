"""Which image a draw shows: streams in a stated mix, data sets and diseases balanced.

However many data sets there are, one table is drawn from: neither memory nor the time of
a draw grows with their number.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from plantseg_next.data.manifest import Row
from plantseg_next.errors import unknown_name
from plantseg_next.settings import DataSettings, Weight

SPARSE_FRACTION = 0.25
"""Most of the draws that show a mask of points or scribbles, where there are whole ones:
a tile in which a hundred pixels are known must not take the place of one that is all
known."""


class MixtureSampler:
    """Choose rows by draw number and chance.

    Of the rows of a stream, one of a data set and disease with ``n`` images is drawn in
    proportion to ``n`` to the power of ``1 - balance``, times the weight of its data set.

    Args:
        rows: At least one.
        settings: Balance and weights.
        named_fraction: Part of the draws that show a row with an image-level label, where
            there are rows with and without; ``None``: labels do not count, but a mask of
            points does, see ``SPARSE_SHARE``.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        settings: DataSettings,
        *,
        named_fraction: float | None = None,
    ) -> None:
        if named_fraction is None:
            apart = [row.sparse for row in rows]
            share = min(SPARSE_FRACTION, sum(apart) / len(rows))
        else:
            apart = [row.disease is not None for row in rows]
            share = named_fraction
        streams = [
            [i for i, is_ in enumerate(apart) if is_ == which] for which in (False, True)
        ]
        if not all(streams):
            share, streams = 0.0, [list(range(len(rows)))]
        self._share = share
        self._streams = [_Stream(rows, these, settings) for these in streams]

    def index(self, step: int, uniform: float) -> int:
        """Return the row of a draw.

        Args:
            step: Its number. Of any so many draws in a row, the stated part is named (or
                sparse), to the nearest one.
            uniform: In [0, 1).
        """
        before, after = int(step * self._share), int((step + 1) * self._share)
        return self._streams[after > before].index(step, uniform)


class _Stream:
    """Rows that are drawn from together."""

    def __init__(
        self, rows: Sequence[Row], these: Sequence[int], settings: DataSettings
    ) -> None:
        size = Counter((rows[i].source, rows[i].disease) for i in these)
        sources: dict[str, list[int]] = defaultdict(list)
        for i in these:
            sources[rows[i].source].append(i)
        self._rows = [np.array(found) for found in sources.values()]
        self._cumulative = [
            np.cumsum(
                [size[rows[i].source, rows[i].disease] ** -settings.balance for i in found]
            )
            for found in sources.values()
        ]
        weights = dict(settings.weights)
        self._weights = [weights.get(source, 1.0) for source in sources]

    def index(self, draw: int, chance: float) -> int:
        weight = np.array(
            [
                weight_at(weight, draw) * cumulative[-1]
                for weight, cumulative in zip(self._weights, self._cumulative, strict=True)
            ]
        )
        if not weight.any():  # all of them are switched off: none is preferred
            weight = np.array([cumulative[-1] for cumulative in self._cumulative])
        until = np.cumsum(weight)
        place = chance * until[-1]
        source = min(int(np.searchsorted(until, place, side="right")), len(until) - 1)
        inside = (place - (until[source] - weight[source])) / weight[source]
        cumulative = self._cumulative[source]
        found = int(np.searchsorted(cumulative, inside * cumulative[-1], side="right"))
        return int(self._rows[source][min(found, len(cumulative) - 1)])


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
    """Refuse weights of data sets that there are not.

    Raises:
        UsageError: If there is one; it names the nearest.
    """
    for name, _ in settings.weights:
        if name not in sources:
            came = f"data.weights has `{name}`; no data set is called so."
            raise unknown_name(came, name, sources)
