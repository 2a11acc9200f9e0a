"""Sizes of lesions: connected components of a mask, and how large training sees them.

Axes: h row, w column, n value, a component.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Int, Integer

KEPT_AREAS = 32
"""Areas kept of one value in one mask: all, or so many evenly spaced in their order."""
MAX_VALUES = 64
"""Values of a mask whose components are found, rarest first; others count as one each."""
MIN_ACROSS_PX = 3.0
"""Diameter below which a lesion is hardly a pixel at the finest stride of the network."""


@dataclass(frozen=True)
class Components:
    """The connected components of one value, or of one class.

    Args:
        n: Their number.
        areas: Their areas in pixels, sorted; at most ``KEPT_AREAS``.
    """

    n: int
    areas: tuple[int, ...]


def components_of(
    ids: Integer[np.ndarray, "h w"], values: Sequence[int], counts: Int[np.ndarray, " n"]
) -> tuple[Components, ...]:
    """Return the 8-connected components of every value.

    The most frequent value, which is background in nearly every mask, counts as one
    component.

    Args:
        ids: The mask, or its colors as numbers.
        values: The values that occur.
        counts: Pixels of each of them.
    """
    rarest = np.argsort(counts, kind="stable")[:-1][:MAX_VALUES]
    found = [Components(1, (int(count),)) for count in counts]
    for i in rarest.tolist():
        where = ids == values[i]
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        window = where[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        _, _, stats, _ = cv2.connectedComponentsWithStats(
            np.ascontiguousarray(window).view(np.uint8), connectivity=8, ltype=cv2.CV_32S
        )
        found[i] = _components(np.sort(stats[1:, cv2.CC_STAT_AREA]))
    return tuple(found)


def _components(areas: Int[np.ndarray, " a"]) -> Components:
    n = len(areas)
    if n > KEPT_AREAS:
        areas = areas[np.linspace(0, n - 1, KEPT_AREAS).round().astype(int)]
    return Components(n, tuple(areas.tolist()))


def merged(parts: Sequence[Components]) -> Components:
    """Return the components of several values as those of one class."""
    if len(parts) == 1:
        return parts[0]
    areas = np.sort(np.concatenate([np.array(part.areas, int) for part in parts]))
    return Components(sum(part.n for part in parts), _components(areas).areas)


@dataclass(frozen=True)
class LesionClass:
    """What the masks of a data set show of one class.

    Args:
        name: Of the class.
        images: Number of images that show it.
        pixels: Its pixels.
        lesions: Number of connected lesions.
        median_across_px: Median diameter of a lesion at the training scale: of a circle of
            its area.
        too_small: Fraction of the lesions that are less than ``MIN_ACROSS_PX`` across.
        shrunk: Whether images that show it are reduced for training.
    """

    name: str
    images: int
    pixels: int
    lesions: int
    median_across_px: float
    too_small: float
    shrunk: bool


def lesion_class(
    name: str,
    masks: Sequence[tuple[int, Components, float]],
) -> LesionClass:
    """Return the sizes of a class over all masks that show it.

    Args:
        name: Of the class.
        masks: Of each: its pixels, its components, and the factor by which training
            reduces the image.
    """
    across = [2 * np.sqrt(np.array(c.areas) / np.pi) * scale for _, c, scale in masks]
    weights = [np.full(len(c.areas), c.n / len(c.areas)) for _, c, _ in masks]
    sizes, weight = np.concatenate(across), np.concatenate(weights)
    order = np.argsort(sizes)
    below = np.cumsum(weight[order])
    middle = order[np.searchsorted(below, below[-1] / 2)]
    return LesionClass(
        name,
        len(masks),
        sum(pixels for pixels, *_ in masks),
        sum(c.n for _, c, _ in masks),
        float(sizes[middle]),
        float(weight[sizes < MIN_ACROSS_PX].sum() / below[-1]),
        any(scale < 1 for *_, scale in masks),
    )


def lesion_classes(
    masks: Mapping[str, Sequence[tuple[int, Components, float]]],
) -> tuple[LesionClass, ...]:
    """Return the sizes of all classes, those with the most pixels first."""
    classes = [lesion_class(name, of_class) for name, of_class in masks.items()]
    return tuple(sorted(classes, key=lambda c: (-c.pixels, c.name)))
