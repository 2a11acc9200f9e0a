"""Drawn surfaces that leaves lie on or are held by: soil, litter, wood, skin.

None of them is leaf, and none is a lesion: models that have only seen leaves on paper take
brown soil for dead tissue.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1].
"""

from math import cos, pi, sin

import cv2
import numpy as np
from jaxtyping import Float, Float32

from plantseg_next.data.blades import log_uniform, pick_colour, smooth_noise

_SOILS = bytes.fromhex("6b5238 4d3826 8c734d 3a2c22 7a5a40 9b8467 5f4a3f 8a5a3c b8a58a")
_LITTER = bytes.fromhex("b59a6a 8f6f45 6e5236 d0bd93 4a3626 a08a70")
_WOODS = bytes.fromhex("a67c52 c8a273 7a5433 d9c2a0 5b3f29")
_SKINS = bytes.fromhex("f0c8a8 e0ac88 c68a62 a56a45 7d4e33 55352a")

Image = Float32[np.ndarray, "h w 3"]


def lit_relief(
    rng: np.random.Generator, height: Float32[np.ndarray, "h w"], strength: float
) -> Float32[np.ndarray, "h w"]:
    """Return the shading of a relief under a light from one side; 1 where it is flat."""
    towards = rng.uniform(0, 2 * pi)
    slope = cos(towards) * cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    slope += sin(towards) * cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    shade: Float32[np.ndarray, "h w"] = np.clip(1 + strength * slope, 0.15, 1.8)
    return shade


def draw_soil(rng: np.random.Generator, size_hw: tuple[int, int]) -> Image:
    """Return soil in focus: clods, cracks, stones, straw, dead leaves, wet patches."""
    side = min(size_hw)
    color = np.array(pick_colour(rng, _SOILS), np.float32) * rng.normal(1, 0.12)
    clod = side * log_uniform(rng, 0.015, 0.12)
    height = clod * 0.5 * smooth_noise(rng, size_hw, clod, 4)
    height = np.abs(height) if rng.random() < 0.5 else height  # ridges, or heaps
    tone = lit_relief(rng, height, log_uniform(rng, 0.3, 1.6))
    tone = tone * (1 + 0.12 * smooth_noise(rng, size_hw, 0.4 * side, 2))
    tone += 0.06 * smooth_noise(rng, size_hw, 1.0)
    if rng.random() < 0.3:  # wet patches are darker, and shine
        wet = np.clip(2 * smooth_noise(rng, size_hw, 0.4 * side, 2), 0, 1)
        tone *= 1 - rng.uniform(0.2, 0.5) * wet
        tone += wet * np.clip(smooth_noise(rng, size_hw, 6.0) - 1.4, 0, 1)
    soil = np.clip(tone, 0.03, None)[..., None] * color
    for _ in range(int(rng.integers(0, 3))):
        _lay_pebbles(rng, soil)
    if rng.random() < 0.6:
        _lay_straw(rng, soil, int(rng.integers(3, 60)))
    return soil.astype(np.float32)


def draw_wood(rng: np.random.Generator, size_hw: tuple[int, int]) -> Image:
    """Return a board: fibers along one direction, sometimes with joints."""
    h, w = size_hw
    color = np.array(pick_colour(rng, _WOODS), np.float32) * rng.normal(1, 0.1)
    long = smooth_noise(rng, (max(8, h // 2), max(8, w // 24)), 2.0, 3)
    tone = 1 + rng.uniform(0.05, 0.2) * cv2.resize(long, (w, h))
    if rng.random() < 0.5:
        width = h * rng.uniform(0.15, 0.5)
        rows = (np.arange(h) + rng.uniform(0, width)) % width
        tone *= np.where(rows < max(1.0, 0.01 * h), 0.4, 1.0)[:, None]
    tone = tone.T if rng.random() < 0.5 and h == w else tone
    return (np.ascontiguousarray(tone)[..., None] * color).astype(np.float32)


def draw_grid(rng: np.random.Generator, size_hw: tuple[int, int]) -> Image:
    """Return white paper with ruled or written lines on it."""
    h, w = size_hw
    paper = np.full((h, w, 3), rng.uniform(0.7, 0.98), np.float32)
    ink = np.array(pick_colour(rng, bytes.fromhex("3050a0 404040 60a0c0 a04040")))
    step = int(min(h, w) * rng.uniform(0.04, 0.15)) + 3
    start = int(rng.integers(step))
    for k in range(start, max(h, w), step):
        cv2.line(paper, (0, k), (w, k), ink.tolist(), 1, cv2.LINE_AA)
        if rng.random() < 0.9:
            cv2.line(paper, (k, 0), (k, h), ink.tolist(), 1, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 4))):  # writing
        points = np.cumsum(rng.normal(0, 0.02 * min(h, w), (30, 2)), 0)
        points += rng.uniform(0, [w, h])
        stroke = [np.round(points).astype(np.int32)]
        cv2.polylines(paper, stroke, isClosed=False, color=(0.1, 0.1, 0.15), thickness=2)
    return paper


def draw_fingers(rng: np.random.Generator, scene: Image) -> Float32[np.ndarray, "h w"]:
    """Draw some fingers into a scene, in place.

    Returns:
        How far each pixel is covered by them, in [0, 1].
    """
    h, w = scene.shape[:2]
    side = min(h, w)
    color = np.array(pick_colour(rng, _SKINS), np.float32) * rng.normal(1, 0.07)
    root = _outside(rng, (h, w))
    towards = np.array([w, h]) * rng.uniform(0.3, 0.7, 2) - root
    along = towards / (np.linalg.norm(towards) + 1e-6)
    beside = np.array([-along[1], along[0]])
    radius = side * rng.uniform(0.05, 0.14)
    depth = np.full((h, w), -1e4, np.float32)
    tips = []
    n = int(rng.integers(1, 5))
    x = np.arange(w, dtype=np.float32)
    y = np.arange(h, dtype=np.float32)[:, None]
    for k in range(n):
        start = root + beside * (k - n / 2) * 2.1 * radius
        length = np.linalg.norm(towards) * rng.uniform(0.45, 1.0)
        own = along + rng.normal(0, 0.12, 2)
        dx, dy = x - start[0], y - start[1]
        t = np.clip((dx * own[0] + dy * own[1]) / (own @ own), 0, length)
        r = radius * rng.uniform(0.8, 1.1)
        gap = np.hypot(dx - t * own[0], dy - t * own[1])
        np.maximum(depth, (r - gap).astype(np.float32), out=depth)
        tips.append((start + own * (length - 0.1 * r), r, own))
    alpha = np.clip(depth + 0.5, 0, 1)
    round_ = np.sqrt(np.clip(depth / radius, 0, 1))
    shade = 0.55 + 0.5 * round_ + 0.04 * smooth_noise(rng, (h, w), 0.05 * side, 3)
    skin = shade[..., None] * color
    skin[..., 0] *= 1 + 0.05 * smooth_noise(rng, (h, w), 0.1 * side)
    for tip, r, own in tips:
        if rng.random() < 0.6:
            _paint_nail(skin, tip, r, own, color)
    shadow = cv2.GaussianBlur(alpha, (0, 0), 0.3 * radius + 1)
    scene *= 1 - rng.uniform(0.1, 0.6) * shadow[..., None]
    scene += alpha[..., None] * (skin - scene)
    return alpha


def _outside(
    rng: np.random.Generator, size_hw: tuple[int, int]
) -> Float[np.ndarray, " xy"]:
    """Return a place just outside one of the four edges."""
    h, w = size_hw
    edge = int(rng.integers(4))
    places = (
        (rng.uniform(0, w), -0.1 * h),
        (rng.uniform(0, w), 1.1 * h),
        (-0.1 * w, rng.uniform(0, h)),
        (1.1 * w, rng.uniform(0, h)),
    )
    return np.array(places[edge])


def _paint_nail(
    skin: Image,
    tip: Float[np.ndarray, " xy"],
    radius: float,
    along: Float[np.ndarray, " xy"],
    color: Float[np.ndarray, " rgb"],
) -> None:
    """Paint the nail of a finger that points along a direction, in place."""
    angle = float(np.degrees(np.arctan2(along[1], along[0])))
    center = (int(tip[0]), int(tip[1]))
    axes = (max(1, int(0.7 * radius)), max(1, int(0.5 * radius)))
    nail = np.clip(color * 1.15 + 0.08, 0, 1).tolist()
    cv2.ellipse(skin, center, axes, angle, 0, 360, nail, -1, cv2.LINE_AA)


def _lay_pebbles(rng: np.random.Generator, soil: Image) -> None:
    """Draw rounded stones, each with its shadow and a lit side, in place."""
    h, w = soil.shape[:2]
    side = min(h, w)
    typical = side * log_uniform(rng, 0.006, 0.06)
    tint = np.array(pick_colour(rng, bytes.fromhex("a09890 78706a c8beb0 6a5a50 4a4644")))
    for _ in range(int(rng.integers(2, 40))):
        r = max(1.0, typical * float(np.exp(0.4 * rng.standard_normal())))
        cx, cy = rng.uniform(0, w), rng.uniform(0, h)
        axes = (max(1, int(r)), max(1, int(r * rng.uniform(0.5, 1))))
        angle = rng.uniform(0, 180)
        color = np.clip(tint * rng.normal(1, 0.15) * rng.normal(1, 0.03, 3), 0, 1)
        below = (int(cx + 0.3 * r), int(cy + 0.3 * r))
        dark = (soil[min(h - 1, int(cy)), min(w - 1, int(cx))] * 0.3).tolist()
        cv2.ellipse(soil, below, axes, angle, 0, 360, dark, -1, cv2.LINE_AA)
        center = (int(cx), int(cy))
        cv2.ellipse(soil, center, axes, angle, 0, 360, color.tolist(), -1, cv2.LINE_AA)
        bright = (int(cx - 0.25 * r), int(cy - 0.25 * r))
        small = (max(1, axes[0] // 2), max(1, axes[1] // 2))
        light = np.clip(color * 1.2, 0, 1).tolist()
        cv2.ellipse(soil, bright, small, angle, 0, 360, light, -1, cv2.LINE_AA)


def _lay_straw(rng: np.random.Generator, soil: Image, n: int) -> None:
    """Draw stalks and twigs, each with its shadow, in place."""
    h, w = soil.shape[:2]
    side = min(h, w)
    for _ in range(n):
        color = np.array(pick_colour(rng, _LITTER)) * rng.normal(1, 0.2)
        start = rng.uniform(0, [w, h])
        angle = rng.uniform(0, 2 * pi)
        length = side * log_uniform(rng, 0.03, 0.5)
        bow = rng.normal(0, 0.1, 2) * length
        t = np.linspace(0, 1, 12)[:, None]
        line = start + t * length * np.array([cos(angle), sin(angle)])
        line = line + 4 * t * (1 - t) * bow
        width = max(1, int(side * log_uniform(rng, 0.002, 0.02)))
        points = [np.round(line).astype(np.int32)]
        under = [np.round(line + 0.6 * width).astype(np.int32)]
        cv2.polylines(
            soil,
            under,
            isClosed=False,
            color=(0.06, 0.05, 0.04),
            thickness=width,
            lineType=cv2.LINE_AA,
        )
        tone = np.clip(color, 0, 1).tolist()
        cv2.polylines(
            soil, points, isClosed=False, color=tone, thickness=width, lineType=cv2.LINE_AA
        )
