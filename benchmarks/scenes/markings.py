"""Markings of drawn leaves that are no lesion: colors, dust, soil and water.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1].
"""

import numpy as np
from jaxtyping import Float32

from plantseg_next.synthetic.leaf_shapes import LeafFields, log_uniform, smooth_noise
from scenes.surfaces import sample_color

Plane = Float32[np.ndarray, "h w"]
Rgb = Float32[np.ndarray, "h w 3"]

_VEIN_COLORS = bytes.fromhex("7a2038 8a3a4a 6a2a50 d8d8a0 e8e8d0 c8c060 a83a30")
_MARGIN_COLORS = bytes.fromhex("7a2a3a 8a3030 d8d0a0 5a2a40 c0b050 e0e0c0")
_FRESH = bytes.fromhex("3f9a2a 2f7d33 55b03a 6fae3f 88b84a 2d6a4a 4f8f5f 1f5a2a 9ac04a")


def mark_healthy(
    rng: np.random.Generator, albedo: Rgb, fields: LeafFields, size: float
) -> None:
    """Draw what healthy leaves show and is no lesion, in place.

    Another green, colored veins and margins, variegation, a paler under side.
    """
    shape = fields.depth_px.shape
    if rng.random() < 0.45:  # greens of young and of dark, bluish leaves
        fresh = np.array(sample_color(rng, _FRESH, 0.12), np.float32)
        gray = albedo.mean(axis=2, keepdims=True)
        albedo += np.float32(rng.uniform(0.4, 1)) * (gray / gray.mean() * fresh - albedo)
    choice = rng.random()
    if choice < 0.1:
        color = np.array(sample_color(rng, _VEIN_COLORS), np.float32)
        weight = rng.uniform(0.4, 1.0) * fields.vein
        _blend(albedo, weight, color)
    elif choice < 0.2:
        color = np.array(sample_color(rng, _MARGIN_COLORS), np.float32)
        wide = size * rng.uniform(0.01, 0.08)
        weight = rng.uniform(0.3, 0.9) * np.exp(-np.maximum(fields.depth_px, 0) / wide)
        _blend(albedo, weight, color)
    elif choice < 0.27:  # variegation follows the side veins
        color = np.array(
            sample_color(rng, bytes.fromhex("e6e6c4 d8dca0 c8d090")), np.float32
        )
        field = smooth_noise(rng, shape, size * rng.uniform(0.05, 0.25), 2)
        field += rng.uniform(-1, 1) * np.abs(fields.across)
        weight = rng.uniform(0.4, 0.9) * np.clip(3 * (field - rng.uniform(-0.3, 1)), 0, 1)
        _blend(albedo, weight, color)
    elif choice < 0.4:  # yellow between green veins, or all of it
        color = np.array(
            sample_color(rng, bytes.fromhex("c8c83c d8d050 b0b838")), np.float32
        )
        field = 0.5 + 0.4 * smooth_noise(rng, shape, 0.4 * size, 2)
        weight = rng.uniform(0.2, 0.8) * np.clip(field, 0, 1) * (1 - fields.vein)
        _blend(albedo, weight, color)
    elif choice < 0.52:  # the under side
        gray = albedo.mean(axis=2, keepdims=True)
        albedo += np.float32(rng.uniform(0.15, 0.4)) * (1.4 * gray + 0.08 - albedo)
        _blend(albedo, 0.4 * fields.vein, np.array([0.72, 0.76, 0.5], np.float32))


def draw_soil(rng: np.random.Generator, albedo: Rgb, size: float) -> None:
    """Draw dust, or soil that rain has splashed up, in place."""
    shape = albedo.shape[:2]
    color = np.array(sample_color(rng, bytes.fromhex("a89274 b9a68c 8a7458")), np.float32)
    if rng.random() < 0.5:
        film = 0.5 + 0.5 * smooth_noise(rng, shape, 0.3 * size, 3)
        weight = rng.uniform(0.1, 0.45) * np.clip(film, 0, 1)
    else:
        grit = smooth_noise(rng, shape, rng.uniform(1.5, 2.5))
        broad = smooth_noise(rng, shape, 0.3 * size, 2)
        weight = 0.8 * np.clip(2 * (grit + 0.5 * broad - rng.uniform(2.2, 3)), 0, 1)
    _blend(albedo, weight.astype(np.float32), color)


def draw_drops(rng: np.random.Generator, albedo: Rgb, alpha: Plane) -> None:
    """Draw drops of water, in place: dark, with a spark."""
    h, w = alpha.shape
    typical = min(h, w) * log_uniform(rng, 0.004, 0.03)
    for _ in range(int(log_uniform(rng, 3.0, 60.0))):
        radius = max(1.5, typical * rng.lognormal(0, 0.4))
        cx, cy = rng.uniform(0, w), rng.uniform(0, h)
        reach = int(radius) + 2
        top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
        box = (slice(top, int(cy) + reach), slice(left, int(cx) + reach))
        if alpha[box].size == 0 or alpha[box].min() < 0.5:
            continue
        dx = np.arange(left, left + alpha[box].shape[1], dtype=np.float32) - cx
        dy = np.arange(top, top + alpha[box].shape[0], dtype=np.float32)[:, None] - cy
        square = (dx * dx + dy * dy) / radius**2
        inside = square < 1
        rim = np.where(inside, 0.55 + 0.6 * (1 - square), 1.0)
        # A drop is lit on the far side, where light that went through it comes out.
        rim = rim - np.where(inside, 0.35 * (dx + dy) / (1.5 * radius), 0)
        albedo[box] *= np.clip(rim, 0.3, 1.5)[..., None].astype(np.float32)
        spark = ((dx + 0.4 * radius) ** 2 + (dy + 0.4 * radius) ** 2) < (0.25 * radius) ** 2
        albedo[box][spark] = 0.97


def _blend(albedo: Rgb, weight: Plane, color: Float32[np.ndarray, "3"]) -> None:
    for channel in range(3):
        plane = albedo[..., channel]
        plane += weight * (color[channel] - plane)
