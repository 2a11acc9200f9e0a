"""Drawn grounds of a scene: soil, mud, stones, paper, cloth, boards, walls, sky.

None of them is leaf, and none is a lesion.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1].
"""

from math import cos, pi, sin

import cv2
import numpy as np
from jaxtyping import Float32

from plantseg_next.synthetic.leaf_shapes import log_uniform, pick_color, smooth_noise
from scenes.light import (
    Light,
    darken,
    distance_px,
    drop_shadow,
    relief_shadow,
    shade_relief,
)
from scenes.strokes import Color, scatter_straw

Plane = Float32[np.ndarray, "h w"]
Rgb = Float32[np.ndarray, "h w 3"]

_SOILS = bytes.fromhex(
    "7a6148 5c4632 94795a 44362c 8a6b4e a89274 6b5a4c 94593c b9a68c 3a322c 8d8377"
)
_STONES = bytes.fromhex("a39a8e 7d756b cdc4b6 70604f 555250 b8a084 e4ded2")
_STRAW = bytes.fromhex("c4aa78 9c7c50 77603f dcc9a2 54422f ab9a80 8a4a2a")
_WOODS = bytes.fromhex("a67c52 c8a273 7a5433 d9c2a0 5b3f29 8f8273 b5653a")
_PAPERS = bytes.fromhex("f0efec e2dcdc c9c4bd a9a6a4 8a8f96 e9e2cf")
_CLOTHS = bytes.fromhex("14161c 2b2f3d 0b0b0c 1f3a66 4a2f55 6d1f24 26432e 7c7f86 d8d2c6")
_WALLS = bytes.fromhex("b7b2aa 8c8a86 d9d4c8 a98f7a 5e5d5c c7b299")
_OBJECTS = bytes.fromhex("e8e6e0 d03a30 2a5ac0 e0b020 303030 c0c4c8 b87838 308050 d88aa0")
_SKIES = bytes.fromhex("a8c4e6 dfe6ec f4f5f5 7fa8da c9d6dd")


def sample_color(rng: np.random.Generator, colors: bytes, spread: float = 0.1) -> Color:
    """Return one of the colors, made a little lighter, darker and of another hue."""
    base = np.array(pick_color(rng, colors))
    r, g, b = np.clip(base * rng.normal(1, spread) * rng.normal(1, 0.04, 3), 0.02, 1)
    return float(r), float(g), float(b)


def cells(
    rng: np.random.Generator, size_hw: tuple[int, int], cell_px: float
) -> tuple[Plane, Plane]:
    """Return irregular cells: distance from the middle over the size, and a value each.

    Returns:
        Distance from the nearest of scattered points in units of ``cell_px``; and a
        value of that point, uniform in [0, 1].
    """
    h, w = size_hw
    pad = int(cell_px) + 2
    points = np.full((h + 2 * pad, w + 2 * pad), 255, np.uint8)
    n = max(4, int(points.size / cell_px**2))
    flat = rng.integers(0, points.size, n)
    points.ravel()[flat] = 0
    far, label = cv2.distanceTransformWithLabels(
        points, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    value = rng.random(n + 2, dtype=np.float32)[label]
    # Without the warp the cells would be convex polygons.
    rows, columns = np.indices((h, w), np.float32) + np.float32(pad)
    bend = 0.18 * cell_px
    columns += bend * smooth_noise(rng, size_hw, max(2.0, 0.5 * cell_px), 2)
    rows += bend * smooth_noise(rng, size_hw, max(2.0, 0.5 * cell_px), 2)
    distance = cv2.remap(far, columns, rows, cv2.INTER_LINEAR)
    value = cv2.remap(value, columns, rows, cv2.INTER_NEAREST)
    return (distance / np.float32(cell_px)).astype(np.float32), value.astype(np.float32)


def draw_soil(rng: np.random.Generator, size_hw: tuple[int, int], light: Light) -> Rgb:
    """Return soil in focus: clods or sand, cracks, stones, mud, puddles, straw."""
    side = float(min(size_hw))
    color = np.array(sample_color(rng, _SOILS), np.float32)
    form = rng.random()
    if form < 0.68:
        height, tint = _clods(rng, size_hw, side * log_uniform(rng, 0.03, 0.22))
    elif form < 0.76:
        height, tint = _cracked(rng, size_hw, side * log_uniform(rng, 0.08, 0.3))
    else:
        height, tint = _sand(rng, size_hw, side * log_uniform(rng, 0.02, 0.1))
    tone = 1 + rng.uniform(0.03, 0.16) * tint
    tone *= 1 + rng.uniform(0.03, 0.15) * smooth_noise(rng, size_hw, 0.4 * side, 2)
    soil = np.clip(tone, 0.2, 2)[..., None] * color
    if rng.random() < 0.7:
        _lay_stones(rng, soil, height, side * log_uniform(rng, 0.006, 0.07))
    shade = shade_relief(height, light) * _openness(height, rng.uniform(0.2, 0.6))
    shade += log_uniform(rng, 0.02, 0.1) * smooth_noise(rng, size_hw, 1.0)
    shade += log_uniform(rng, 0.02, 0.12) * smooth_noise(rng, size_hw, 2.2)
    soil *= np.clip(shade, 0.1, 2)[..., None]
    darken(soil, relief_shadow(height, light, 0.1 * side), light)
    if rng.random() < 0.25:
        _wet(rng, soil, height)
    if rng.random() < 0.6:
        lay_straw(rng, soil, light, int(log_uniform(rng, 3.0, 70.0)))
    return soil.astype(np.float32)


def _openness(height: Plane, strength: float) -> Plane:
    """Return the factor by which the sky lights each place: gaps between clods are dark."""
    spread = float(height.std()) + 1e-3
    factor = np.ones(height.shape, np.float32)
    for sigma in (2.0, 7.0):
        above = (height - cv2.GaussianBlur(height, (0, 0), sigma)) / spread
        factor += 0.6 * strength * np.clip(above, -1.5, 0.8)
    return np.clip(factor, 0.15, 1.6)


def _clods(
    rng: np.random.Generator, size_hw: tuple[int, int], largest_px: float
) -> tuple[Plane, Plane]:
    """Return height and tint of crumbs of three sizes, heaped on each other."""
    height = 0.25 * largest_px * smooth_noise(rng, size_hw, 2 * largest_px, 2)
    tint = np.zeros(size_hw, np.float32)
    size = largest_px
    for level in range(3):
        if size < 2.5:
            break
        distance, value = cells(rng, size_hw, size)
        present = value > (0.55, 0.3, 0.0)[level]
        dome = np.sqrt(np.clip(1 - (distance / (0.4 + 0.3 * value)) ** 2, 0, 1))
        height += np.where(present, (0.35 + 0.3 * value) * size * dome, 0)
        tint += np.where(dome > 0, value - 0.5, -0.5 * (level == 2))
        size *= rng.uniform(0.35, 0.5)
    height += rng.uniform(0.3, 0.9) * smooth_noise(rng, size_hw, 3.0, 2)
    return height, tint


def _cracked(
    rng: np.random.Generator, size_hw: tuple[int, int], plate_px: float
) -> tuple[Plane, Plane]:
    """Return height and tint of dried mud: plates with cracks between them."""
    _, value = cells(rng, size_hw, plate_px)
    edges = cv2.morphologyEx(value, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    open_ = cv2.GaussianBlur((edges > 0.0).astype(np.float32), (0, 0), rng.uniform(0.6, 2))
    rough = smooth_noise(rng, size_hw, max(2.0, 0.06 * plate_px), 3)
    rough += 2 * smooth_noise(rng, size_hw, plate_px, 3)
    height = 0.5 * rough - 0.02 * plate_px * np.clip(open_, 0, 1)
    tint = value - 0.5 + 0.5 * rough - rng.uniform(4, 9) * np.clip(open_, 0, 0.8)
    return height.astype(np.float32), tint.astype(np.float32)


def _sand(
    rng: np.random.Generator, size_hw: tuple[int, int], dent_px: float
) -> tuple[Plane, Plane]:
    dents = smooth_noise(rng, size_hw, dent_px, 4)
    grains = smooth_noise(rng, size_hw, 1.6)
    height = 0.12 * dent_px * dents + 0.22 * grains
    return height.astype(np.float32), grains


def _lay_stones(
    rng: np.random.Generator, soil: Rgb, height: Plane, typical_px: float
) -> None:
    """Add stones to the relief and the colors, in place."""
    h, w = height.shape
    color = np.array(sample_color(rng, _STONES))
    for _ in range(int(log_uniform(rng, 1.0, 50.0))):
        radius = max(1.2, typical_px * rng.lognormal(0, 0.45))
        cx, cy = rng.uniform(0, w), rng.uniform(0, h)
        reach = int(1.5 * radius) + 2
        top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
        box = (slice(top, int(cy) + reach), slice(left, int(cx) + reach))
        plane = height[box]
        if plane.size == 0:
            continue
        dx = np.arange(plane.shape[1], dtype=np.float32) + left - cx
        dy = np.arange(plane.shape[0], dtype=np.float32)[:, None] + top - cy
        turn, squash = rng.uniform(0, pi), rng.uniform(0.55, 1)
        a = (cos(turn) * dx + sin(turn) * dy) / radius
        b = (cos(turn) * dy - sin(turn) * dx) / (radius * squash)
        theta = np.arctan2(b, a)
        uneven = 1 + 0.1 * np.cos(3 * theta + rng.uniform(0, 6))
        uneven = uneven + 0.06 * np.cos(5 * theta + rng.uniform(0, 6))
        inside = np.clip(1 - (np.hypot(a, b) / uneven) ** 2, 0, 1).astype(np.float32)
        cover = np.clip(inside * radius, 0, 1)[..., None]
        own = np.clip(color * rng.normal(1, 0.15) * rng.normal(1, 0.03, 3), 0.02, 1)
        speckle = 1 + 0.07 * rng.standard_normal(plane.shape, dtype=np.float32)
        soil[box] += cover * (speckle[..., None] * own.astype(np.float32) - soil[box])
        bottom = float(plane.mean())
        dome = bottom + 0.7 * radius * np.sqrt(inside)
        height[box] += cover[..., 0] * (dome - height[box])


def _wet(rng: np.random.Generator, soil: Rgb, height: Plane) -> None:
    """Darken low ground, and let water stand in the lowest, in place."""
    h, w = height.shape
    side = float(min(h, w))
    low = smooth_noise(rng, (h, w), side * rng.uniform(0.2, 0.6), 2)
    low -= 0.5 * (height - height.mean()) / (height.std() + 1e-6)
    wet = np.clip(1.5 * (low - rng.uniform(-1.5, 0.5)), 0, 1)
    soil *= (1 - rng.uniform(0.2, 0.5) * wet)[..., None]
    if rng.random() < 0.5:
        water = np.clip(4 * (low - rng.uniform(0.6, 1.6)), 0, 1)
        sky = np.array(sample_color(rng, _SKIES), np.float32) * rng.uniform(0.3, 0.8)
        mud = soil.mean(axis=(0, 1))
        sky = mud + np.float32(rng.uniform(0.1, 0.8)) * (sky - mud)
        mirror = np.clip(smooth_noise(rng, (h, w), 0.15 * side, 2), -1, 1)
        weight = (water * np.clip(0.6 + 0.3 * mirror, 0, 1))[..., None]
        soil += weight * (sky - soil)


def lay_straw(rng: np.random.Generator, image: Rgb, light: Light, n: int) -> None:
    """Lay straw, twigs and dry grass on a ground, in place."""
    colors = [sample_color(rng, _STRAW) for _ in range(int(rng.integers(1, 4)))]
    color, alpha, _ = scatter_straw(rng, image.shape[:2], colors, n).finish()
    darken(image, drop_shadow(alpha, light, rng.uniform(0.5, 3)), light)
    image += alpha[..., None] * (color - image)


def draw_sheet(rng: np.random.Generator, size_hw: tuple[int, int], light: Light) -> Rgb:
    """Return what a picked leaf is laid on: paper, cloth, a board, a wall, a table."""
    choice = rng.random()
    if choice < 0.42:
        sheet = _paper(rng, size_hw, light)
    elif choice < 0.62:
        sheet = _cloth(rng, size_hw, light)
    elif choice < 0.78:
        sheet = draw_wood(rng, size_hw, light)
    elif choice < 0.9:
        sheet = draw_wall(rng, size_hw, light)
    else:
        sheet = np.full((*size_hw, 3), sample_color(rng, _CLOTHS + _PAPERS), np.float32)
        if rng.random() < 0.4:  # a leaf that somebody has cut out of its photograph
            return np.full((*size_hw, 3), float(rng.random() < 0.4), np.float32)
    if rng.random() < 0.15:
        lay_objects(rng, sheet, light)
    # Light falls off towards one side, and a lamp may be mirrored.
    far = distance_px(size_hw, *(rng.uniform(-0.2, 1.2, 2) * size_hw[::-1]).tolist())
    far /= max(size_hw)
    sheet *= (1 - rng.uniform(0, 0.35) * far)[..., None]
    if rng.random() < 0.15:
        sheet += (rng.uniform(0.1, 0.6) * np.exp(-((far / 0.25) ** 2)))[..., None]
    return sheet.astype(np.float32)


def lay_objects(rng: np.random.Generator, sheet: Rgb, light: Light) -> None:
    """Lay labels, rulers, coins, dishes and other colored things, in place."""
    h, w = sheet.shape[:2]
    side = min(h, w)
    for _ in range(int(rng.integers(1, 4))):
        mask = np.zeros((h, w), np.uint8)
        center = (rng.uniform(0, w), rng.uniform(0, h))
        size = side * log_uniform(rng, 0.08, 0.4)
        if rng.random() < 0.4:
            at = (round(center[0]), round(center[1]))
            cv2.circle(mask, at, max(2, round(size / 2)), 255, -1, cv2.LINE_AA)
        else:
            flat = size * rng.uniform(0.15, 0.8)
            corners = cv2.boxPoints((center, (size * 1.5, flat), rng.uniform(0, 180)))
            cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 255, cv2.LINE_AA)
        alpha = (mask / np.float32(255)).astype(np.float32)
        darken(sheet, drop_shadow(alpha, light, side * rng.uniform(0.005, 0.03)), light)
        tone = 1 + 0.08 * smooth_noise(rng, (h, w), 0.5 * side)
        color = np.array(sample_color(rng, _OBJECTS), np.float32)
        sheet += alpha[..., None] * (tone[..., None] * color - sheet)


def _paper(rng: np.random.Generator, size_hw: tuple[int, int], light: Light) -> Rgb:
    h, w = size_hw
    side = float(min(h, w))
    fold = side * rng.uniform(0, 0.02) * smooth_noise(rng, size_hw, 0.5 * side, 2)
    fold += 0.05 * smooth_noise(rng, size_hw, 1.0)
    paper = shade_relief(fold, light)[..., None] * np.array(
        sample_color(rng, _PAPERS, 0.05), np.float32
    )
    if rng.random() < 0.35:
        rule(rng, paper)
    if rng.random() < 0.2:
        write(rng, paper)
    return paper


def rule(rng: np.random.Generator, paper: Rgb) -> None:
    """Draw a grid or lines on paper, in place."""
    h, w = paper.shape[:2]
    ink = np.array(sample_color(rng, bytes.fromhex("3050a0 404040 60a0c0 a04040 50a070")))
    step = min(h, w) * rng.uniform(0.03, 0.15) + 3
    lean, strength = rng.normal(0, 0.04), rng.uniform(0.2, 0.9)
    alpha = np.zeros((h, w), np.uint8)
    thick = max(1, round(step * rng.uniform(0.01, 0.06)))
    both = rng.random() < 0.7
    for k in range(-int(0.2 * h / step), int(1.2 * max(h, w) / step)):
        at = k * step
        ends = ((0, int(at)), (w, int(at + lean * w)))
        cv2.line(alpha, *ends, 255, thick, cv2.LINE_AA)
        if both:
            ends = ((int(at), 0), (int(at - lean * h), h))
            cv2.line(alpha, *ends, 255, thick, cv2.LINE_AA)
    weight = (alpha / 255 * strength).astype(np.float32)[..., None]
    paper += weight * (ink.astype(np.float32) - paper)


def write(rng: np.random.Generator, paper: Rgb) -> None:
    """Draw strokes that look like a line or two of writing, in place."""
    h, w = paper.shape[:2]
    side = float(min(h, w))
    alpha = np.zeros((h, w), np.uint8)
    size = side * rng.uniform(0.015, 0.05)
    for _ in range(int(rng.integers(1, 5))):
        x, y = rng.uniform(0, 0.8 * w), rng.uniform(0.05, 0.95) * h
        n = int(rng.integers(20, 120))
        t = np.arange(n) * 0.45
        wobble = rng.uniform(0.4, 1.0, n)
        xs = x + size * (0.25 * t + 0.5 * np.sin(2 * t))
        ys = y + size * wobble * np.sin(1.7 * t + rng.uniform(0, 6))
        points = np.round(np.stack([xs, ys], 1)).astype(np.int32)
        thick = max(1, round(0.12 * size))
        cv2.polylines(
            alpha,
            [points],
            isClosed=False,
            color=255,
            thickness=thick,
            lineType=cv2.LINE_AA,
        )
    ink = np.array(sample_color(rng, bytes.fromhex("1a1a22 20307a 7a2020")), np.float32)
    paper += (0.85 * alpha / 255).astype(np.float32)[..., None] * (ink - paper)


def _cloth(rng: np.random.Generator, size_hw: tuple[int, int], light: Light) -> Rgb:
    h, w = size_hw
    side = float(min(h, w))
    color = np.array(sample_color(rng, _CLOTHS), np.float32)
    folds = side * rng.uniform(0, 0.05) * smooth_noise(rng, size_hw, 0.4 * side, 2)
    tone = shade_relief(folds, light)
    if rng.random() < 0.6:
        period, turn = rng.uniform(2.2, 7), rng.uniform(0, pi)
        x = np.arange(w, dtype=np.float32)
        y = np.arange(h, dtype=np.float32)[:, None]
        a = cos(turn) * x + sin(turn) * y
        b = cos(turn) * y - sin(turn) * x
        weave = np.sin(2 * pi * a / period) * np.sin(2 * pi * b / period)
        tone = tone * (1 + rng.uniform(0.03, 0.2) * weave)
    tone = tone + rng.uniform(0.02, 0.15) * smooth_noise(rng, size_hw, 1.4)
    cloth: Rgb = np.clip(tone, 0, 2).astype(np.float32)[..., None] * color
    return cloth


def draw_wood(rng: np.random.Generator, size_hw: tuple[int, int], light: Light) -> Rgb:
    """Return a board: fibers in one direction, at times joints, knots and dirt."""
    h, w = size_hw
    across = max(h, w)
    color = np.array(sample_color(rng, _WOODS), np.float32)
    x = np.linspace(0, 1, across, dtype=np.float32)
    y = np.linspace(0, 1, across, dtype=np.float32)[:, None]
    drift = smooth_noise(rng, (across, across), 0.5 * across, 2)
    rings = y * rng.uniform(8, 40) + 0.6 * drift + 0.8 * x * rng.normal()
    grain = np.sin(2 * pi * rings) * rng.uniform(0.02, 0.12)
    fibers = smooth_noise(rng, (across, across // 24 + 4), 1.6, 2)
    fibers = cv2.resize(fibers, (across, across), interpolation=cv2.INTER_LINEAR)
    tone = 1 + grain + rng.uniform(0.03, 0.12) * fibers + 0.05 * drift
    if rng.random() < 0.5:
        width = rng.uniform(0.12, 0.5)
        place = (y + rng.uniform(0, 1)) % width
        tone = tone * np.where(place < rng.uniform(0.004, 0.015), 0.3, 1.0)
        plank = rng.normal(1, 0.08, 12)[np.floor((y + 1) / width).astype(int) % 12]
        tone = tone * plank
    tone = np.clip(tone, 0.1, 2).astype(np.float32)
    tone = tone.T if rng.random() < 0.5 else tone
    board: Rgb = np.ascontiguousarray(tone[:h, :w])[..., None] * color
    board *= shade_relief(0.15 * smooth_noise(rng, size_hw, 1.5), light)[..., None]
    return board


def draw_wall(rng: np.random.Generator, size_hw: tuple[int, int], light: Light) -> Rgb:
    """Return concrete, plaster or asphalt: grains, stains, pores."""
    side = float(min(size_hw))
    color = np.array(sample_color(rng, _WALLS), np.float32)
    grain_px = log_uniform(rng, 1.2, 5.0)
    height = rng.uniform(0.05, 0.45) * smooth_noise(rng, size_hw, grain_px, 2)
    speckle = rng.uniform(0.02, 0.15) * smooth_noise(rng, size_hw, rng.uniform(1.0, 2.5))
    stains = smooth_noise(rng, size_hw, side * rng.uniform(0.1, 0.5), 3)
    tone = shade_relief(height, light) * (1 + rng.uniform(0.02, 0.12) * stains + speckle)
    pores = smooth_noise(rng, size_hw, rng.uniform(1.5, 4))
    tone = tone - np.clip(pores - rng.uniform(2, 4), 0, 0.6)
    wall: Rgb = np.clip(tone, 0.05, 2).astype(np.float32)[..., None] * color
    return wall


def draw_sky(rng: np.random.Generator, size_hw: tuple[int, int]) -> Rgb:
    """Return the sky, clear or with clouds."""
    h = size_hw[0]
    low, high = (np.array(sample_color(rng, _SKIES, 0.05), np.float32) for _ in range(2))
    down = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    cloud = np.clip(smooth_noise(rng, size_hw, 0.4 * h, 3) * rng.uniform(0, 0.8), 0, 1)
    sky = high + down * (low - high)
    sky = np.broadcast_to(sky, (*size_hw, 3)).copy()
    sky += cloud[..., None] * (np.float32(0.95) - sky)
    return sky.astype(np.float32)
