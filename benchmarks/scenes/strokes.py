"""Long thin things of a drawn scene: stems, straw, twigs, and blades of grass.

They are drawn as polygons at twice the rows and columns, then averaged.

Axes: h row, w column, p point. Lengths are pixels, colors are in [0, 1].
"""

from math import cos, pi, sin

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from plantseg_next.synthetic.leaf_shapes import log_uniform

_FINE = 2  # sub-pixels a pixel, each way
_SHIFT = 3  # fractional bits of the coordinates that OpenCV is given

Points = Float[np.ndarray, "p 2"]
Color = tuple[float, float, float]


class StrokeLayer:
    """Strokes that lie in one layer of a scene.

    Args:
        size_hw: Rows and columns of the scene.
    """

    def __init__(self, size_hw: tuple[int, int]) -> None:
        h, w = size_hw
        self._size_hw = size_hw
        self._color = np.zeros((h * _FINE, w * _FINE, 3), np.uint8)
        self._alpha = np.zeros((h * _FINE, w * _FINE), np.uint8)
        self._lesion = np.zeros((h * _FINE, w * _FINE), np.uint8)

    def ribbon(
        self,
        points: Points,
        half_px: Float[np.ndarray, " p"],
        color: Color,
        *,
        relief: float = 0.2,
        lesion: int = 0,
    ) -> None:
        """Draw a band along a line, one side of it lighter than the other.

        Args:
            points: Columns and rows of the middle line, at least 2.
            half_px: Half the width at each point.
            color: Color before the sides differ.
            relief: By how much the sides differ.
            lesion: Lesion class of all of it, 0 for none.
        """
        middle, left, right = _sides(points, half_px)
        self._polygon(np.concatenate([left, middle[::-1]]), _times(color, 1 - relief))
        self._polygon(np.concatenate([right, middle[::-1]]), _times(color, 1 + relief))
        outline = _fixed(np.concatenate([left, right[::-1]]))
        cv2.fillPoly(self._alpha, [outline], 255, cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self._lesion, [outline], lesion, cv2.LINE_8, _SHIFT)

    def line(self, points: Points, width_px: float, color: Color) -> None:
        """Draw a line onto what is there: a vein. It covers nothing new."""
        cv2.polylines(
            self._color,
            [_fixed(points)],
            isClosed=False,
            color=_levels(color),
            thickness=max(1, round(_FINE * width_px)),
            lineType=cv2.LINE_AA,
            shift=_SHIFT,
        )

    def spots(
        self,
        centers: Points,
        radii_px: Float[np.ndarray, " p"],
        color: Color,
        angle: float,
        lesion: int,
    ) -> None:
        """Draw spots that are stretched along an angle; none lies off the strokes."""
        for (x, y), radius in zip(centers.tolist(), radii_px.tolist(), strict=True):
            center = (round(x * _FINE), round(y * _FINE))
            axes = (max(1, round(2 * radius * _FINE)), max(1, round(radius * _FINE)))
            shape = (center, axes, float(np.degrees(angle)), 0.0, 360.0)
            cv2.ellipse(self._color, *shape, _levels(color), -1)
            cv2.ellipse(self._lesion, *shape, lesion, -1)

    def finish(
        self,
    ) -> tuple[
        Float32[np.ndarray, "h w 3"],
        Float32[np.ndarray, "h w"],
        UInt8[np.ndarray, "h w"],
    ]:
        """Return colors, coverage in [0, 1], and lesion classes (0 off the strokes)."""
        size = self._size_hw[::-1]
        # Colors are spread outwards, or the edges would be mixed with black.
        empty = self._alpha == 0
        grown = cv2.dilate(self._color, np.ones((3, 3), np.uint8))
        self._color[empty] = grown[empty]
        color = cv2.resize(self._color, size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(self._alpha, size, interpolation=cv2.INTER_AREA)
        lesion = self._lesion[::_FINE, ::_FINE] * (alpha > 127)
        scale = np.float32(1 / 255)
        return color * scale, alpha * scale, lesion.astype(np.uint8)

    def _polygon(self, points: Points, color: Color) -> None:
        cv2.fillPoly(self._color, [_fixed(points)], _levels(color), cv2.LINE_8, _SHIFT)


def bowed_line(
    rng: np.random.Generator,
    start_xy: tuple[float, float],
    angle: float,
    length_px: float,
    bow: float = 0.1,
    n: int = 14,
) -> Points:
    """Return points of a line that bends to one side."""
    t = np.linspace(0, 1, n)[:, None]
    forward = np.array([cos(angle), sin(angle)])
    sideways = np.array([-sin(angle), cos(angle)])
    off = bow * rng.standard_normal() * length_px
    line: Points = np.array(start_xy) + t * length_px * forward + t**2 * off * sideways
    return line


def draw_blade(
    rng: np.random.Generator,
    layer: StrokeLayer,
    points: Points,
    width_px: float,
    color: Color,
) -> Float[np.ndarray, " p"]:
    """Draw a healthy blade of grass and return its half widths."""
    t = np.linspace(0, 1, len(points))
    half = 0.5 * width_px * np.minimum(1, 3 * t + 0.5) * (1 - t**3) ** 0.7 + 0.3
    layer.ribbon(points, half, color, relief=rng.uniform(0.03, 0.2))
    if width_px > 3:
        rib = max(0.5, 0.08 * width_px)
        layer.line(points[:-2], rib, _times(color, rng.uniform(1.05, 1.4)))
    if width_px > 9:
        side = _normals(points)
        for k in np.linspace(-0.75, 0.75, 5).tolist():
            shifted = points + k * half[:, None] * side
            layer.line(shifted, 0.5, _times(color, rng.uniform(0.85, 0.97)))
    return half


def scatter_straw(
    rng: np.random.Generator, size_hw: tuple[int, int], colors: list[Color], n: int
) -> StrokeLayer:
    """Return a layer of straw, twigs and dry grass."""
    h, w = size_hw
    layer = StrokeLayer(size_hw)
    side = float(min(h, w))
    typical = side * log_uniform(rng, 0.0012, 0.006)
    for _ in range(n):
        color = _times(colors[int(rng.integers(len(colors)))], rng.normal(1, 0.15))
        width = max(0.4, typical * rng.lognormal(0, 0.4))
        length = max(side * log_uniform(rng, 0.03, 0.5), 14 * width)
        start = (rng.uniform(-0.1, 1.1) * w, rng.uniform(-0.1, 1.1) * h)
        points = bowed_line(rng, start, rng.uniform(0, 2 * pi), length, 0.12)
        half = width * np.linspace(1.0, rng.uniform(0.3, 1.0), len(points))
        layer.ribbon(points, half, color, relief=rng.uniform(0.05, 0.3))
    return layer


def _normals(points: Points) -> Points:
    along = np.gradient(points, axis=0)
    along = along / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
    normals: Points = np.stack([-along[:, 1], along[:, 0]], axis=1)
    return normals


def _sides(
    points: Points, half_px: Float[np.ndarray, " p"]
) -> tuple[Points, Points, Points]:
    normals = _normals(points)
    return points, points - half_px[:, None] * normals, points + half_px[:, None] * normals


def _fixed(points: Points) -> np.ndarray:
    return np.round(points * (_FINE << _SHIFT)).astype(np.int32)


def _levels(color: Color) -> tuple[int, int, int]:
    r, g, b = (int(np.clip(255 * c, 0, 255)) for c in color)
    return r, g, b


def _times(color: Color, factor: float) -> Color:
    r, g, b = (max(0.0, c * factor) for c in color)
    return r, g, b
