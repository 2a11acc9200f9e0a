"""Healthy drawn leaves: the shape of their blades, their veins, relief and skin.

A blade is described in pixels and evaluated a pixel, so that it can be drawn whole or
magnified beyond the frame without loss.

Axes: h row, w column, s sample along a blade. Lengths are pixels, colors in [0, 1].
"""

from dataclasses import dataclass, replace
from math import cos, pi, sin

import cv2
import numpy as np
from jaxtyping import Float32

FAR = 1e4
"""Depth, negated, of pixels that nothing comes near."""

_SAMPLES = 2048  # of the half width along a blade
_PETIOLE = 0.2  # length of the petiole over that of the blade
FORMS = ("ovate", "lance", "grass", "lobed", "compound")
"""Forms of leaves, as ``grow_blades`` names them."""

_SHARES = (0.46, 0.2, 0.12, 0.12, 0.10)  # how often each form is drawn
_SLENDERNESS = ((0.3, 0.75), (0.14, 0.34), (0.03, 0.14), (0.5, 0.85), (0.4, 0.7))
_GREENS = bytes.fromhex(
    "5c701a 455712 667d2e 85942b 3d6629 59784f 3d6354 579926 75b31f 999e33"
)
_YELLOW = (0.66, 0.63, 0.18)
_BROWN = (0.38, 0.25, 0.13)


def smooth_noise(
    rng: np.random.Generator, size_hw: tuple[int, int], cell_px: float, octaves: int = 1
) -> Float32[np.ndarray, "h w"]:
    """Return noise with mean near 0, spread near 1 and knots of about ``cell_px``.

    Args:
        rng: Source of the noise.
        size_hw: Rows and columns.
        cell_px: Distance over which values are alike, at least 1.
        octaves: Layers, each at half the distance and half the strength of the last.
    """
    h, w = size_hw
    total = np.zeros(size_hw, np.float32)
    strength = 1.0
    for octave in range(octaves):
        cell = max(1.0, cell_px / 2**octave)
        if cell < 1.5:
            total += strength * rng.standard_normal(size_hw, dtype=np.float32)
            strength /= 2
            continue
        rows, columns = int(h / cell) + 3, int(w / cell) + 3
        coarse = rng.standard_normal((rows, columns), dtype=np.float32)
        # A random origin, or every image would have its knots at the same pixels.
        top, left = rng.uniform(0, 1, 2)
        matrix = np.array([[1 / cell, 0, left], [0, 1 / cell, top]])
        total += strength * cv2.warpAffine(
            coarse,
            matrix,
            (w, h),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        strength /= 2
    return total


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a positive number whose logarithm is uniform between those of the ends."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def pick_color(
    rng: np.random.Generator, colors: bytes, shares: tuple[float, ...] | None = None
) -> tuple[float, float, float]:
    """Return one of the colors, RGB in [0, 1]; ``shares`` are their probabilities."""
    k = 3 * int(rng.choice(len(colors) // 3, p=shares))
    return colors[k] / 255, colors[k + 1] / 255, colors[k + 2] / 255


@dataclass(frozen=True)
class LeafShape:
    """Shape of one blade; ``u`` runs from its base (0) to its tip (1).

    Args:
        base_xy: Column and row of the base.
        angle: Direction of the tip, radians.
        length_px: Base to tip.
        widest_px: Greatest width.
        fullness: Exponents of ``u`` and ``1 - u`` in the half width; small is blunt.
        bend: Sideways bow of the midrib over the length.
        waves: Size, number and phase of waves along the margin.
        teeth: Size and number of teeth along the margin.
        lobes: Size and number of the gaps between lobes.
        petiole: Half width of the petiole over the length; 0 for none.
        veins: Side veins a side; 0 for parallel veins.
        vein_slant: Way forward of a side vein over its way outward.
    """

    base_xy: tuple[float, float]
    angle: float
    length_px: float
    widest_px: float
    fullness: tuple[float, float]
    bend: float = 0.0
    waves: tuple[float, float, float] = (0.0, 0.0, 0.0)
    teeth: tuple[float, float] = (0.0, 0.0)
    lobes: tuple[float, float] = (0.0, 0.0)
    petiole: float = 0.0
    veins: float = 9.0
    vein_slant: float = 0.6

    @property
    def size_px(self) -> float:
        """Square root of length times width: the scale of what sits on the blade."""
        return float(np.sqrt(self.length_px * self.widest_px))

    def half_width_px(self, side: int) -> Float32[np.ndarray, " s"]:
        """Return the half width from petiole to tip, left (-1) or right (1)."""
        u = np.linspace(-_PETIOLE, 1.0, _SAMPLES, dtype=np.float32)
        inside = np.clip(u, 0.0, 1.0)
        p, q = self.fullness
        peak = p / (p + q)
        profile = inside**p * (1 - inside) ** q / (peak**p * (1 - peak) ** q)
        size, number, phase = self.waves
        profile *= 1 + size * np.sin(2 * pi * number * u + phase + 1.3 * side)
        size, number = self.lobes
        profile *= 1 - size * np.abs(np.cos(pi * number * u + 0.3 * side)) ** 3
        size, number = self.teeth
        profile *= 1 - size * (number * u % 1.0)
        stalk = self.petiole * self.length_px * (u > -0.8 * _PETIOLE) * (u < 0.5)
        half: Float32[np.ndarray, " s"] = np.maximum(
            profile * self.widest_px / 2, stalk
        ).astype(np.float32)
        return half


@dataclass(frozen=True)
class LeafFields:
    """What a leaf is at each pixel of an image.

    Args:
        depth_px: Distance inside the margin, negative outside.
        along: Place from base (0) to tip (1), below 0 on the petiole.
        across: Place from midrib (0) to margin (-1 and 1).
        vein: Strength of midrib and veins, in [0, 1].
        height_px: Relief.
    """

    depth_px: Float32[np.ndarray, "h w"]
    along: Float32[np.ndarray, "h w"]
    across: Float32[np.ndarray, "h w"]
    vein: Float32[np.ndarray, "h w"]
    height_px: Float32[np.ndarray, "h w"]


def grow_leaf_shapes(
    rng: np.random.Generator, size_hw: tuple[int, int], form: str | None = None
) -> tuple[LeafShape, ...]:
    """Return the blades of one leaf, set in the frame whole or magnified.

    Args:
        rng: Source of shape and place.
        size_hw: Rows and columns of the frame.
        form: One of ``FORMS``; ``None`` draws it.
    """
    drawn = FORMS[int(rng.choice(5, p=_SHARES))]
    return _grow(rng, size_hw, FORMS.index(form or drawn))


def _grow(
    rng: np.random.Generator, size_hw: tuple[int, int], form: int
) -> tuple[LeafShape, ...]:
    grass, lobed, compound = form == 2, form == 3, form == 4
    least, most = _SLENDERNESS[form]
    side = float(min(size_hw))
    whole = rng.random() < (0.8 if compound else 0.0 if grass else 0.45)
    length = side * (rng.uniform(0.7, 1.15) if whole else log_uniform(rng, 1.2, 4.5))
    length = side * rng.uniform(2.5, 6.0) if grass else length
    fullness = (rng.uniform(0.45, 1.1), rng.uniform(0.6, 1.2))
    wavy, toothed = rng.random() < 0.5, rng.random() < 0.3
    leaf_shape = LeafShape(
        base_xy=(0.0, 0.0),
        angle=rng.uniform(0, 2 * pi),
        length_px=length,
        widest_px=length * rng.uniform(least, most),
        fullness=(0.12, 0.12) if grass else fullness,
        bend=rng.normal(0, 0.04),
        waves=(rng.uniform(0.02, 0.12) * wavy, rng.uniform(4, 9), rng.uniform(0, 6)),
        teeth=(rng.uniform(0.02, 0.1) * toothed, rng.uniform(14, 40)),
        lobes=(rng.uniform(0.3, 0.65) * lobed, float(rng.integers(2, 5))),
        petiole=0.0 if grass else rng.uniform(0.006, 0.014),
        veins=0.0 if grass else rng.uniform(5, 14),
        vein_slant=rng.uniform(0.2, 0.9),
    )
    u = 0.5 if whole else rng.uniform(0.1, 0.9)
    half_px = float(leaf_shape.half_width_px(1)[int(_SAMPLES * (u + _PETIOLE) / 1.2)])
    v = 0.0 if whole else half_px * rng.uniform(-1.0, 1.0)
    h, w = size_hw
    middle = np.array([w, h]) / 2 + rng.normal(0, 0.05 * side, 2)
    tangent = np.array([cos(leaf_shape.angle), sin(leaf_shape.angle)])
    normal = np.array([-sin(leaf_shape.angle), cos(leaf_shape.angle)])
    v += 4 * leaf_shape.bend * length * u * (1 - u)
    base = middle - u * length * tangent - v * normal
    leaf_shape = replace(leaf_shape, base_xy=(float(base[0]), float(base[1])))
    return _leaflets(rng, leaf_shape) if compound else (leaf_shape,)


def _leaflets(rng: np.random.Generator, whole: LeafShape) -> tuple[LeafShape, ...]:
    """Return a bare rachis with leaflets in pairs and one at its end."""
    pairs = int(rng.integers(1, 4))
    scale = rng.uniform(0.35, 0.5)
    spread = rng.uniform(0.7, 1.2)
    base = np.array(whole.base_xy)
    tangent = np.array([cos(whole.angle), sin(whole.angle)])
    leaflets = []
    for k in range(pairs + 1):
        foot = base + tangent * whole.length_px * (0.25 + 0.4 * k / pairs)
        for turn in (-spread, spread) if k < pairs else (0.0,):
            size = scale * rng.uniform(0.8, 1.1)
            leaflets.append(
                replace(
                    whole,
                    base_xy=(float(foot[0]), float(foot[1])),
                    angle=whole.angle + turn * rng.uniform(0.8, 1.2),
                    length_px=whole.length_px * size,
                    widest_px=whole.widest_px * size,
                    bend=0.0,
                )
            )
    thin = whole.length_px * 0.012
    rachis = replace(
        whole,
        length_px=0.7 * whole.length_px,
        widest_px=thin,
        fullness=(0.1, 0.1),
        bend=0.0,
        lobes=(0.0, 0.0),
        veins=0.0,
    )
    return (*leaflets, rachis)


def trace_leaf_shapes(
    rng: np.random.Generator, leaf_shapes: tuple[LeafShape, ...], size_hw: tuple[int, int]
) -> LeafFields:
    """Return the fields of one leaf; later blades lie on earlier ones."""
    warp = leaf_shapes[0].size_px * rng.uniform(0.0, 0.03)
    cell = max(8.0, 0.3 * leaf_shapes[0].size_px)
    shift_x = warp * smooth_noise(rng, size_hw, cell)
    shift_y = warp * smooth_noise(rng, size_hw, cell)
    fold = rng.uniform(-0.1, 0.35)
    ripple = rng.uniform(0.0, 0.3)
    empty = np.zeros(size_hw, np.float32)
    result = LeafFields(empty - FAR, *(empty.copy() for _ in range(4)))
    for leaf_shape in leaf_shapes:
        box = _box(leaf_shape, size_hw)
        if box[0].start >= box[0].stop or box[1].start >= box[1].stop:
            continue
        x = np.arange(box[1].start, box[1].stop, dtype=np.float32) + shift_x[box]
        y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None]
        blade = _trace(leaf_shape, x, y + shift_y[box], fold=fold, ripple=ripple)
        # Also a strip beside the blade, so that the relief has no step at its margin.
        behind = (blade.depth_px > -4) & (blade.depth_px > result.depth_px[box])
        on = (blade.depth_px > 0) | behind
        for old, new in zip(
            (result.along, result.across, result.vein, result.height_px),
            (blade.along, blade.across, blade.vein, blade.height_px),
            strict=True,
        ):
            np.copyto(old[box], new, where=on)
        np.maximum(result.depth_px[box], blade.depth_px, out=result.depth_px[box])
    size = leaf_shapes[0].size_px
    height = result.height_px - rng.uniform(0.0, 0.8) * result.vein
    swell = size * rng.uniform(0.006, 0.03)
    height += swell * smooth_noise(rng, size_hw, 0.25 * size)
    crumple = max(2.0, size * rng.uniform(0.01, 0.035))
    strength = crumple * log_uniform(rng, 0.004, 0.14)
    height += strength * smooth_noise(rng, size_hw, crumple, 2)
    return replace(result, height_px=height)


def _box(leaf_shape: LeafShape, size_hw: tuple[int, int]) -> tuple[slice, slice]:
    reach = 0.75 * leaf_shape.widest_px + 0.2 * leaf_shape.length_px + 8
    (x0, y0), length = leaf_shape.base_xy, leaf_shape.length_px
    x1, y1 = x0 + length * cos(leaf_shape.angle), y0 + length * sin(leaf_shape.angle)
    h, w = size_hw
    return (
        slice(max(0, int(min(y0, y1) - reach)), min(h, int(max(y0, y1) + reach))),
        slice(max(0, int(min(x0, x1) - reach)), min(w, int(max(x0, x1) + reach))),
    )


def _trace(
    leaf_shape: LeafShape,
    x: Float32[np.ndarray, "h w"],
    y: Float32[np.ndarray, "h w"],
    *,
    fold: float,
    ripple: float,
) -> LeafFields:
    dx, dy = x - leaf_shape.base_xy[0], y - leaf_shape.base_xy[1]
    length = leaf_shape.length_px
    u = (cos(leaf_shape.angle) * dx + sin(leaf_shape.angle) * dy) / length
    v = cos(leaf_shape.angle) * dy - sin(leaf_shape.angle) * dx
    v -= 4 * leaf_shape.bend * length * u * (1 - u) * (u > -_PETIOLE)
    beside = np.abs(v)
    sweep = 0.3 * beside / length if leaf_shape.lobes[0] > 0 else 0.0
    place = (u - sweep + _PETIOLE) * ((_SAMPLES - 1) / (1 + _PETIOLE))
    index = np.clip(place, 0, _SAMPLES - 1).astype(np.int32)
    step_px = length * (1 + _PETIOLE) / (_SAMPLES - 1)
    tables = [leaf_shape.half_width_px(side) for side in (-1, 1)]
    # The margin runs aslant where the width changes: the way to it is shorter there.
    slopes = [1 / np.sqrt(1 + (np.gradient(t) / step_px) ** 2) for t in tables]
    right = v > 0
    half = np.where(right, tables[1][index], tables[0][index])
    slope = np.where(right, slopes[1][index], slopes[0][index])
    beyond = np.maximum(np.maximum(-_PETIOLE - u, u - 1), 0) * length
    depth = (half - beside) * slope - beyond
    across = v / np.maximum(half, 1.0)

    rib_px = max(0.9, 0.006 * length) * (1.15 - np.clip(u, 0, 1))
    vein = _bump(v, rib_px)
    if leaf_shape.veins == 0:
        wave = np.cos(across * (pi * max(3.0, leaf_shape.widest_px / 14)))
        vein = np.maximum(0.6 * vein, 0.35 * (1 + wave) / 2)
        height = ripple * wave - fold * beside
        return LeafFields(depth, u, across, vein, height)
    forward = leaf_shape.vein_slant * beside / length
    phase = leaf_shape.veins * (u - forward * (1 + 0.5 * np.abs(across)))
    phase[right] += 0.5  # side veins of the two sides take turns
    off = phase - np.floor(phase) - 0.5
    spacing = length / leaf_shape.veins
    thin = max(0.7, 0.0022 * length)
    side_veins = _bump(off * spacing, thin) * np.clip(1.05 - np.abs(across), 0, 0.8)
    vein = np.maximum(vein, side_veins)
    swell = (ripple * spacing / 6) * np.minimum(np.abs(across), 1)
    height = swell * np.cos(2 * pi * off) - fold * beside
    return LeafFields(depth, u, across, vein, height)


def _bump(
    distance: Float32[np.ndarray, "h w"], width: Float32[np.ndarray, "h w"] | float
) -> Float32[np.ndarray, "h w"]:
    """Return 1 on a line and near 0 two widths off it."""
    square = (distance / width) ** 2
    return (1 / (1 + square * square)).astype(np.float32)


def bite_leaf_shapes(
    rng: np.random.Generator, fields: LeafFields, size_px: float
) -> LeafFields:
    """Return the fields with holes and bites, for one leaf in three."""
    h, w = fields.depth_px.shape
    rough = 1 + 0.25 * smooth_noise(rng, (h, w), max(3.0, 0.02 * size_px), 2)
    depth = fields.depth_px.copy()
    for _ in range(int(rng.integers(1, 6)) if rng.random() < 0.35 else 0):
        radius = size_px * log_uniform(rng, 0.006, 0.05)
        x = np.arange(w, dtype=np.float32) - rng.uniform(0, w)
        y = np.arange(h, dtype=np.float32)[:, None] - rng.uniform(0, h)
        hole = cv2.magnitude(*np.broadcast_arrays(x, y)) * rough - radius
        np.minimum(depth, hole, out=depth)
    return replace(fields, depth_px=depth)


def render_surface(
    rng: np.random.Generator, fields: LeafFields, leaf_shape: LeafShape
) -> Float32[np.ndarray, "h w 3"]:
    """Return the color of the healthy leaf before any light falls on it.

    Yellowing, brown margins, brown petioles and specks are drawn here: they are signs
    of age and handling, and no part of a lesion.
    """
    size_hw, size = fields.depth_px.shape, leaf_shape.size_px
    mix = rng.random()
    green = mix * np.array(pick_color(rng, _GREENS))
    green += (1 - mix) * np.array(pick_color(rng, _GREENS))
    green *= rng.normal(1, 0.12) * rng.normal(1, 0.05, 3)
    broad = smooth_noise(rng, size_hw, 0.3 * size, 2)
    fine = smooth_noise(rng, size_hw, max(1.5, 0.012 * size), 2)
    tone = 1 + rng.uniform(0.02, 0.12) * broad + rng.uniform(0.01, 0.08) * fine
    albedo = tone[..., None] * green.astype(np.float32)

    veins = rng.uniform(-0.35, 0.9) * fields.vein
    _tint(albedo, np.clip(veins, 0, 1), np.clip(green * 1.3 + 0.12, 0, 1))
    _tint(albedo, np.clip(-veins, 0, 1), 0.5 * green)
    yellowing = max(0.0, rng.uniform(-0.6, 0.6))
    towards_margin = rng.uniform(-0.2, 0.9) * np.abs(fields.across)
    weight = np.clip(0.6 * broad + towards_margin - 0.3, 0, 1) * (1 - fields.vein)
    _tint(albedo, yellowing * weight, np.array(_YELLOW) * rng.normal(1, 0.1))

    brown = np.array(_BROWN) * rng.uniform(0.6, 1.3)
    margin_px = max(1.0, rng.uniform(0, 0.008) * size) * (rng.random() < 0.4)
    edge = np.clip(margin_px * (0.6 + 0.5 * fine) - fields.depth_px + 0.5, 0, 1)
    _tint(albedo, edge * (margin_px > 0), brown)
    _tint(albedo, np.clip((-0.1 - fields.along) * 40 + fine, 0, 1), brown)
    speck = smooth_noise(rng, size_hw, rng.uniform(1.2, 3))
    dark = np.clip((speck - rng.uniform(2.6, 5.5)) * 3, 0, 0.7)
    _tint(albedo, dark, 0.4 * green)
    return albedo


def _tint(
    albedo: Float32[np.ndarray, "h w 3"],
    weight: Float32[np.ndarray, "h w"],
    color: np.ndarray,
) -> None:
    for channel in range(3):
        plane = albedo[..., channel]
        plane += weight * (float(color[channel]) - plane)
