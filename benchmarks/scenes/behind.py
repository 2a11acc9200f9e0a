"""What lies behind a leaf in drawn scenes: far and out of focus, or undergrowth close by.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1].
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float32

from plantseg_next.synthetic.leaf_shapes import log_uniform, smooth_noise
from scenes.canvas import Canvas
from scenes.light import Light
from scenes.plants import (
    any_species,
    draw_leaves,
    fill_with_leaves,
    grow_branches,
    grow_grass,
    grow_undergrowth,
    hang_fruit,
    scatter_litter,
)
from scenes.surfaces import draw_sky, draw_soil, lay_straw

Rgb = Float32[np.ndarray, "h w 3"]


def draw_behind(
    rng: np.random.Generator, size_hw: tuple[int, int], light: Light
) -> tuple[Rgb, Bool[np.ndarray, "h w"]]:
    """Return what is behind a leaf, and where it shows foliage."""
    draw = draw_undergrowth if rng.random() < 0.45 else _out_of_focus
    return draw(rng, size_hw, light)


def _out_of_focus(
    rng: np.random.Generator, size_hw: tuple[int, int], light: Light
) -> tuple[Rgb, Bool[np.ndarray, "h w"]]:
    """Return what is far behind a leaf, and where it shows foliage."""
    small_hw = (size_hw[0] // 2, size_hw[1] // 2)
    side = min(small_hw)
    kind = rng.random()
    if kind < 0.45:
        ground = draw_soil(rng, small_hw, light) * np.float32(rng.uniform(0.3, 1.1))
    elif kind < 0.6:
        ground = draw_sky(rng, small_hw)
    else:
        dark = rng.uniform(0.03, 0.3)
        ground = np.full((*small_hw, 3), dark, np.float32) * np.array(
            [0.9, 1.1, 0.7], np.float32
        )
    canvas = Canvas(ground, light)
    if rng.random() < 0.5:
        scatter_litter(rng, canvas, int(rng.integers(2, 10)))
    if rng.random() < 0.85:
        size = side * log_uniform(rng, 0.2, 1.0)
        leaves = draw_leaves(rng, any_species(rng), int(size), "healthy", 2)
        fill_with_leaves(rng, canvas, leaves, size, rng.uniform(0.3, 2.5))
    if rng.random() < 0.4:
        wide = side * log_uniform(rng, 0.01, 0.06)
        grow_grass(rng, canvas, "healthy", int(rng.integers(6, 40)), wide, rows=False)
    if rng.random() < 0.3:
        grow_branches(rng, canvas, int(rng.integers(1, 4)))
    if rng.random() < 0.15:
        hang_fruit(rng, canvas, int(rng.integers(1, 9)))
    if rng.random() < 0.35:
        lay_straw(rng, canvas.image, light, int(rng.integers(3, 20)))
    blur = side * log_uniform(rng, 0.004, 0.09)
    if rng.random() < 0.25:
        _bokeh(rng, canvas.image, blur)
    image, foliage = _blurred(canvas, blur)
    image = cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_CUBIC)
    foliage = cv2.resize(foliage, size_hw[::-1])
    grain = 1 + rng.uniform(0, 0.02) * smooth_noise(rng, size_hw, 1.0)
    tone = np.float32(rng.uniform(0.5, 1.2))
    return np.clip(image, 0, None) * tone * grain[..., None], foliage > 0.05


def draw_undergrowth(
    rng: np.random.Generator, size_hw: tuple[int, int], light: Light
) -> tuple[Rgb, Bool[np.ndarray, "h w"]]:
    """Return undergrowth, nearly in focus, and where it shows foliage."""
    ground = draw_soil(rng, size_hw, light) * np.float32(log_uniform(rng, 0.1, 0.9))
    canvas = Canvas(ground, light)
    grow_undergrowth(rng, canvas)
    blur = min(size_hw) * log_uniform(rng, 0.001, 0.008)
    image, foliage = _blurred(canvas, blur)
    return np.clip(image, 0, None) * np.float32(rng.uniform(0.6, 1.2)), foliage > 0.05


def _bokeh(rng: np.random.Generator, image: Rgb, blur_px: float) -> None:
    """Add bright discs where light comes through the foliage, in place."""
    h, w = image.shape[:2]
    for _ in range(int(rng.integers(3, 30))):
        radius = max(1, int(blur_px * rng.uniform(1.0, 3.0)))
        at = (int(rng.uniform(0, w)), int(rng.uniform(0, h)))
        disc = np.zeros((h, w), np.float32)
        cv2.circle(disc, at, radius, 1.0, -1)
        color = np.array([0.9, 1.0, 0.75], np.float32) * np.float32(rng.uniform(0.2, 0.8))
        image += disc[..., None] * color


def _blurred(canvas: Canvas, blur_px: float) -> tuple[Rgb, Float32[np.ndarray, "h w"]]:
    """Return the image out of focus, and how much of each pixel is foliage."""
    foliage = canvas.leaf.astype(np.float32)
    return (
        cv2.GaussianBlur(canvas.image, (0, 0), blur_px),
        cv2.GaussianBlur(foliage, (0, 0), blur_px),
    )
