"""Drawing of annotations: from named outlines, masks and scribbles to one mask.

Areas are drawn as the annotation tools show them: what has a higher ``z`` later, then the
leaf before lesions and large areas before small ones, so that a small area on a large one
stays visible. Polygons are filled by the rule of the COCO tools, which preserves their
area; a rim of half a pixel would enlarge small lesions.

Axes: h row, w column; points are (x, y) in pixels, from the upper left corner of the
upper left pixel.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from pycocotools import mask as run_lengths

from plantseg_next.data.manifest import ROLES

STROKE_PX = 3
"""Width of a drawn scribble or point."""
FAR_SIZES = 10
FAR = f"outlines that extend {FAR_SIZES} times the size of their image beyond it, not used"
BEYOND_PX = 1.0
"""Outlines up to this far beyond their image are not reported: rounding."""
SPECK_PX = 1.5
"""Extent of an outline up to which it is a lesion smaller than a pixel, not a mistake."""
INSIDE = 0.98
"""Fraction of an area that is within another one if it counts as inside."""
ISLAND_ON_LEAF = 0.5
"""Fraction of a lesion on another leaf outline, for leaf in the lesion to be an island."""

Polygon = Float[np.ndarray, "n 2"]
Bitmap = Callable[[tuple[int, int]], Bool[np.ndarray, "h w"]]
"""Returns a mask of the given rows and columns, or raises ``ValueError`` in words."""


class Annotation(NamedTuple):
    """One annotation.

    Args:
        name: Name in the file.
        polygons: Outlines; the area is their union, without holes: outlines inside another
            one of the same annotation.
        bitmap: The area as a mask of the whole image; decoded when it is drawn.
        scribbles: Points and lines on it; pixels around them are not annotated.
        z: Areas of higher ``z`` are drawn over those of lower ones.
        place: Place in the file, if the tool draws later areas over earlier ones. By
            default small areas are drawn over large ones.
    """

    name: str
    polygons: tuple[Polygon, ...] = ()
    bitmap: Bitmap | None = None
    scribbles: tuple[Polygon, ...] = ()
    z: int = 0
    place: int | None = None


@dataclass
class Doubts:
    """What was found wrong with annotations, each with its count.

    Args:
        unusable: What could not be drawn. The image then has a lesion that is not in the
            mask, so the mask must not be used.
        noticed: What was drawn, but is worth a look.
    """

    unusable: Counter[str] = field(default_factory=Counter)
    noticed: Counter[str] = field(default_factory=Counter)


def rectangle(
    left: float, top: float, right: float, bottom: float, degrees: float = 0.0
) -> Polygon:
    """Return the outline of a rectangle, rotated clockwise about its center."""
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    return rotated(corners, degrees)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> Polygon:
    """Return the outline of an ellipse with 64 corners, rotated clockwise."""
    angle = np.arange(64) * (2 * np.pi / 64)
    points = np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)
    return rotated(points, degrees)


def rotated(points: Polygon, degrees: float) -> Polygon:
    """Return points rotated about the center of their extent, clockwise on the screen."""
    if not degrees:
        return points
    turn = np.deg2rad(degrees)
    center = (points.min(0) + points.max(0)) / 2
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return (points - center) @ matrix + center


def is_box(area: Annotation) -> bool:
    """Return whether an area is one upright rectangle."""
    return len(area.polygons) == 1 and (
        len(area.polygons[0]) == 4
        and all(len(np.unique(column)) == 2 for column in area.polygons[0].T)
    )


def rasterize(
    areas: Sequence[Annotation],
    size_hw: tuple[int, int],
    values: Mapping[str, int],
    meaning: Mapping[str, str],
    ground: int = 0,
) -> tuple[UInt8[np.ndarray, "h w"], Doubts]:
    """Return the mask of an image, and what is wrong with its annotations.

    Args:
        areas: What to draw.
        size_hw: Rows and columns.
        values: Mask value of every name, 0 to 255.
        meaning: Meaning of every name: a ``Role`` or a lesion class.
        ground: Mask value outside all areas.
    """
    doubts = Doubts()
    mask = np.full(size_hw, ground, np.uint8)
    drawn = [
        (area, runs)
        for area in areas
        if (area.polygons or area.bitmap) and (runs := _runs(area, size_hw, doubts))
    ]
    order = _order(drawn, meaning)
    for name, same in groupby((drawn[i] for i in order), key=lambda item: item[0].name):
        inside = run_lengths.decode(run_lengths.merge([runs for _, runs in same]))
        mask[inside.astype(bool)] = values[name]
    strokes = sum(bool(area.scribbles) for area in areas)
    if 0 < strokes < len(areas):
        what = f"points and lines beside outlines, drawn {STROKE_PX} pixels wide"
        doubts.noticed[what] += strokes
    for area in areas:
        near = _near(area.scribbles, size_hw)
        if len(near) < len(area.scribbles):
            doubts.unusable[FAR] += 1
        for stroke in near:
            points = np.floor(stroke).astype(np.int32)
            line = np.concatenate([points, points[-1:]])  # a single point is a short line
            cv2.polylines(mask, [line], False, values[area.name], STROKE_PX)
    return mask, doubts


def _order(
    drawn: Sequence[tuple[Annotation, Any]], meaning: Mapping[str, str]
) -> list[int]:
    """Return the order of drawing.

    Of one ``z``: leaves; lesions, by their places in the file or large ones first, and
    after them holes ("background") and islands of leaf within them; then "ignore".
    """
    size = [int(run_lengths.area(runs)) for _, runs in drawn]
    inside = _within_lesions(drawn, size, meaning)

    def place(i: int) -> float:
        annotation, _ = drawn[i]
        own = -size[i] if annotation.place is None else annotation.place
        return float(max([own, *(place(lesion) + 0.5 for lesion in inside.get(i, ()))]))

    def key(i: int) -> tuple[int, int, float]:
        annotation, _ = drawn[i]
        meant = meaning[annotation.name]
        late = 2 if meant == "ignore" else 0 if meant == "leaf" and i not in inside else 1
        return annotation.z, late, place(i)

    return sorted(range(len(drawn)), key=key)


def _within_lesions(
    drawn: Sequence[tuple[Annotation, Any]], size: Sequence[int], meaning: Mapping[str, str]
) -> dict[int, list[int]]:
    """Return the lesions around every hole, and around every island of leaf.

    Leaf within a lesion is an island if the lesion is itself on another leaf area: a
    single leaf area within a lesion is a leaf that is diseased all over.
    """
    meant = [meaning[annotation.name] for annotation, _ in drawn]
    leaves = [i for i, m in enumerate(meant) if m == "leaf"]
    holes = [i for i, m in enumerate(meant) if m == "background"]
    lesions = [i for i, m in enumerate(meant) if m not in ROLES]

    def common(i: int, j: int) -> int:
        return _common(drawn[i][1], drawn[j][1])

    def is_on_leaf(lesion: int, but: int) -> bool:
        return any(
            size[leaf] > size[but] and common(leaf, lesion) >= ISLAND_ON_LEAF * size[lesion]
            for leaf in leaves
            if leaf != but
        )

    within: dict[int, list[int]] = {}
    for i in [*holes, *(leaves if len(leaves) > 1 else ())]:
        for lesion in (other for other in lesions if size[other] > size[i]):
            if common(i, lesion) >= INSIDE * size[i] and (
                meant[i] == "background" or is_on_leaf(lesion, i)
            ):
                within.setdefault(i, []).append(lesion)
    return within


def _near(lines: Sequence[Polygon], size_hw: tuple[int, int]) -> list[Polygon]:
    """Return the lines without points so far outside that drawing exhausts memory."""
    reach = FAR_SIZES * np.array(size_hw[::-1])
    return [line for line in lines if ((line >= -reach) & (line <= reach)).all()]


def _why_unusable(outlines: Sequence[Polygon], size_hw: tuple[int, int]) -> str:
    """Return why outlines cannot be drawn; empty if they can."""
    if len(_near(outlines, size_hw)) < len(outlines):
        return FAR
    if any(len(line) < 3 for line in outlines):
        return "outlines of fewer than three points, not used"
    in_parts = all(line.min() >= 0 and line.max() <= 1 for line in outlines)
    if outlines and in_parts and min(size_hw) > 2:
        return "outlines from 0 to 1, which are no pixels, not used"
    return ""


def _runs(
    area: Annotation, size_hw: tuple[int, int], doubts: Doubts
) -> Mapping[str, Any] | None:
    """Return an area as COCO run lengths; ``None`` if it cannot be drawn."""
    parts: list[Mapping[str, Any]] = []
    if area.bitmap is not None:
        try:
            parts.append(_encoded(area.bitmap(size_hw)))
        except ValueError:
            doubts.unusable["masks or run lengths that cannot be decoded, not used"] += 1
            return None
    outlines = area.polygons
    if why := _why_unusable(outlines, size_hw):
        doubts.unusable[why] += 1
        return None
    if outlines:
        h, w = size_hw
        corners = np.concatenate(outlines)
        if (corners < -BEYOND_PX).any() or (corners > (w + BEYOND_PX, h + BEYOND_PX)).any():
            doubts.noticed["outlines that extend beyond their image, clipped"] += 1
        parts += _filled(outlines, size_hw)
    merged: Mapping[str, Any] = run_lengths.merge(parts)
    if run_lengths.area(merged):
        return merged
    if outlines and _is_speck(corners, size_hw):
        doubts.noticed["outlines smaller than a pixel, drawn as one pixel"] += 1
        speck = np.zeros(size_hw, bool)
        x, y = corners.mean(0)
        speck[int(y), int(x)] = True
        return _encoded(speck)
    doubts.unusable["annotations without a pixel in their image, not used"] += 1
    return None


def _encoded(mask: Bool[np.ndarray, "h w"]) -> Mapping[str, Any]:
    encoded: Mapping[str, Any] = run_lengths.encode(mask.astype(np.uint8, order="F"))
    return encoded


def _filled(
    outlines: Sequence[Polygon], size_hw: tuple[int, int]
) -> list[Mapping[str, Any]]:
    """Return run lengths whose union is the outlines without holes.

    A hole is an outline within another one; an outline within a hole is filled again.
    """
    rings: list[Mapping[str, Any]] = run_lengths.frPyObjects(
        [points.ravel().tolist() for points in outlines], *size_hw
    )
    if len(rings) == 1:
        return rings
    # One by one: of 256 or more at once, pycocotools counts in eight bits.
    size = [int(run_lengths.area(ring)) for ring in rings]
    low = np.array([points.min(0) for points in outlines])
    high = np.array([points.max(0) for points in outlines])
    order = sorted(range(len(rings)), key=lambda i: -size[i])
    depth = [
        sum(
            size[i] < INSIDE * size[j] and _common(rings[i], rings[j]) >= INSIDE * size[i]
            for j in order[:n]
            if (low[j] <= low[i]).all() and (high[j] >= high[i]).all()
        )
        for n, i in enumerate(order)
    ]
    if not any(depth):
        return rings
    mask = np.zeros(size_hw, bool)
    for i, level in zip(order, depth, strict=True):
        mask[run_lengths.decode(rings[i]).astype(bool)] = level % 2 == 0
    return [_encoded(mask)]


def _common(first: Mapping[str, Any], second: Mapping[str, Any]) -> int:
    """Return the number of pixels that two areas have in common."""
    return int(run_lengths.area(run_lengths.merge([first, second], True)))


def _is_speck(corners: Polygon, size_hw: tuple[int, int]) -> bool:
    """Return whether an outline without a pixel is a lesion smaller than one."""
    x, y = corners.mean(0)
    within = 0 <= x < size_hw[1] and 0 <= y < size_hw[0]
    return bool(within and np.ptp(corners, axis=0).max() <= SPECK_PX)
