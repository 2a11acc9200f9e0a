"""Values of masks that smoothing, compression or a slip of the brush left beside true ones.

Axes: n value, in order.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from plantseg_next.data.formats.mask_statistics import ValueStats
from plantseg_next.errors import count_of, shorten

FAR_APART = 64
"""Distance of two plateaus of 8 bits, at least."""
_NEAR = 0.15  # of the distance between two plateaus
SMALLEST_MASK_PX = 1024
"""Pixels of a mask below which nothing is concluded from areas and fractions."""
NOISE_VALUES = 8
"""Values near the two of a mask from which they are taken as left by compression."""


@dataclass(frozen=True)
class Plateaus:
    """Two values between which all others lie by smoothing or compression.

    Args:
        low: Most frequent value of the lower half.
        high: Most frequent value of the upper half.
        first: The smallest value that is nearer to ``high``.
        between: The values that are neither.
        px: Their pixels.
        masks: Most masks in which one of them occurs.
    """

    low: int
    high: int
    first: int
    between: tuple[int, ...]
    px: int
    masks: int

    def __str__(self) -> str:
        """Return what the values are, with counts."""
        values = [str(value) for value in self.between]
        return (
            f"the values {self.low} and {self.high}, and between or near them "
            f"{shorten(values, 6)} on {count_of(self.px, 'pixel')}, as smoothing or "
            f"compression leaves them; {self.first} and above is taken as {self.high}"
        )


def find_plateaus(stats: ValueStats) -> Plateaus | None:
    """Return the two values from which all others were made, or ``None``.

    Smoothing leaves values that have a lower and a higher neighbor, and hardly any area of
    one value. Compression leaves many values near both. Three true values do neither.
    """
    values, px = stats.values, stats.px
    if len(values) < 3:
        return None
    upper = values > (values[0] + values[-1]) / 2
    low = int(values[~upper][px[~upper].argmax()])
    high = int(values[upper][px[upper].argmax()])
    peak = np.isin(values, (low, high))
    solid = is_solid(stats)
    far_apart = high - low >= FAR_APART * (1 if stats.top == 255 else 257)
    reach = _NEAR * (high - low) if far_apart else 0
    near = np.minimum(abs(values - low), abs(values - high)) <= reach
    beside = near & ~peak
    noisy = int(beside.sum()) >= NOISE_VALUES
    # Of a plateau made of noise, no value has an area of its own.
    rough = int(px.sum()) >= SMALLEST_MASK_PX and bool((beside & ~solid).any())
    if not noisy and not rough and not solid[peak].all():
        return None
    if not _are_edges(stats, ~near, upper, far_apart=far_apart):
        return None
    if not noisy and beside.any() and not _are_slips(stats, beside, near, upper):
        return None
    others = ~peak
    return Plateaus(
        low,
        high,
        (low + high) // 2 + 1,
        tuple(values[others].tolist()),
        int(px[others].sum()),
        int(stats.masks[others].max()),
    )


def _are_edges(
    stats: ValueStats,
    middle: Bool[np.ndarray, " n"],
    upper: Bool[np.ndarray, " n"],
    *,
    far_apart: bool,
) -> bool:
    """Return whether the values between two plateaus lie on their edges only."""
    n_middle, total = int(stats.px[middle].sum()), int(stats.px.sum())
    if not far_apart and middle.sum() < 2:
        return False  # 0, 1 and 2 may be three classes
    if not n_middle:
        return True
    if stats.px[middle & is_solid(stats)].sum() > 0.1 * n_middle:
        return False
    of_high = int(stats.px[upper & ~middle].sum())
    return (
        n_middle <= 0.2 * total
        and n_middle <= 4 * of_high
        and int(stats.between_px[middle].sum()) >= 0.3 * n_middle
    )


def _are_slips(
    stats: ValueStats,
    beside: Bool[np.ndarray, " n"],
    near: Bool[np.ndarray, " n"],
    upper: Bool[np.ndarray, " n"],
) -> bool:
    """Return whether values beside two plateaus stand for them, and are no class ids."""
    values = stats.values
    if (near & upper).sum() >= 2 and values[-1] - values[near & upper][0] <= 3:
        low_side = values[near & ~upper]
        if low_side[-1] - low_side[0] <= 3:
            return True  # 0 and 254, 255; 0, 1 and 254, 255
    if (beside & is_solid(stats)).any():
        return False
    # 0, 1 and 255 are a class and "ignore", unless 1 is next to nothing.
    few = stats.px[beside].sum() <= 0.01 * stats.px[upper].sum()
    rough_ground = not is_solid(stats)[0] and int(stats.px.sum()) >= SMALLEST_MASK_PX
    return bool(few) or rough_ground or not near.all()


def is_solid(stats: ValueStats) -> Bool[np.ndarray, " n"]:
    """Return which values cover areas, and not only lines and points."""
    solid: np.ndarray = stats.solid_px >= np.maximum(1, 0.1 * stats.px)
    return solid


def find_strays(stats: ValueStats) -> Bool[np.ndarray, " n"]:
    """Return which values are on very few pixels of very few masks, beside clear ones."""
    solid = is_solid(stats)
    if not (solid & (stats.values > 0)).any():
        return np.zeros_like(solid)
    few_px = (stats.most_px <= 4) | (stats.most <= 1e-4)
    few_masks = stats.masks <= max(2, 0.05 * len(stats.in_mask))
    strays: np.ndarray = few_px & few_masks & (stats.solid_px == 0)
    return strays
