"""Drawn fingers and palms. Skin is no leaf, and no lesion.

Axes: h row, w column, j joint. Lengths are pixels, colors are in [0, 1].
"""

from dataclasses import dataclass, replace
from math import cos, pi, sin

import cv2
import numpy as np
from jaxtyping import Float, Float32

from plantseg_next.synthetic.leaf_shapes import smooth_noise
from scenes.light import Light, darken, drop_shadow, shade_relief
from scenes.surfaces import sample_color

Plane = Float32[np.ndarray, "h w"]
Rgb = Float32[np.ndarray, "h w 3"]

_SKINS = bytes.fromhex("f2d0b4 e4b48e d09a70 b07c54 8d5c3a 6b4429 4a2e1e 33211a")


@dataclass(frozen=True)
class Skin:
    """Skin of one person.

    Args:
        color: Where it is lit, RGB in [0, 1].
        nails: Whether nails are seen: the back of the hand is towards the camera.
        radius_px: Half the width of a finger.
    """

    color: tuple[float, float, float]
    nails: bool
    radius_px: float


def sample_skin(rng: np.random.Generator, side_px: float) -> Skin:
    """Return the skin of somebody, with fingers that suit a frame of that side."""
    return Skin(
        color=sample_color(rng, _SKINS, 0.06),
        nails=bool(rng.random() < 0.5),
        radius_px=side_px * rng.uniform(0.05, 0.13),
    )


def draw_fingers(
    rng: np.random.Generator,
    image: Rgb,
    skin: Skin,
    light: Light,
    root_xy: tuple[float, float],
    tip_xy: tuple[float, float],
    n: int,
) -> Plane:
    """Draw fingers side by side into a scene, in place.

    Args:
        rng: Source of their bends and lengths.
        image: The scene.
        skin: Color and width.
        light: Light of the scene.
        root_xy: Where the middle finger comes from, often outside the frame.
        tip_xy: Where it ends.
        n: Fingers; 0 draws nothing.

    Returns:
        How far each pixel is covered, in [0, 1].
    """
    h, w = image.shape[:2]
    covered = np.zeros((h, w), np.float32)
    root, tip = np.array(root_xy), np.array(tip_xy)
    along = (tip - root) / (np.linalg.norm(tip - root) + 1e-6)
    beside = np.array([-along[1], along[0]])
    if n >= 3:  # the palm that they belong to
        knuckle = root + 0.45 * (tip - root)
        joints = np.array([root - 0.5 * (tip - root), root, knuckle])
        wide = 0.95 * n * skin.radius_px
        plain = replace(skin, nails=False)
        covered = _draw_finger(rng, image, plain, light, joints, wide)
    order = rng.permutation(n).tolist()
    for k in order:
        off = (k - (n - 1) / 2) * 1.95 * skin.radius_px
        length = float(np.linalg.norm(tip - root)) * rng.uniform(0.85, 1.02)
        start = root + beside * off
        joints = _joints(rng, start, along, length)
        radius = skin.radius_px * rng.uniform(0.88, 1.08)
        alpha = _draw_finger(rng, image, skin, light, joints, radius)
        np.maximum(covered, alpha, out=covered)
    return covered


def _joints(
    rng: np.random.Generator,
    start: Float[np.ndarray, "2"],
    along: Float[np.ndarray, "2"],
    length: float,
) -> Float[np.ndarray, "j 2"]:
    heading = float(np.arctan2(along[1], along[0])) + rng.normal(0, 0.06)
    points = [start]
    for fraction in (0.45, 0.3, 0.25):
        step = fraction * length * np.array([cos(heading), sin(heading)])
        points.append(points[-1] + step)
        heading += rng.normal(0, 0.1)
    return np.array(points)


def _draw_finger(
    rng: np.random.Generator,
    image: Rgb,
    skin: Skin,
    light: Light,
    joints: Float[np.ndarray, "j 2"],
    radius: float,
) -> Plane:
    whole = np.zeros(image.shape[:2], np.float32)
    # Only the part of the scene around the finger and its shadow is worked on.
    reach = 2.2 * radius + 4
    left, top = np.maximum(joints.min(axis=0) - reach, 0).astype(int).tolist()
    right, bottom = (joints.max(axis=0) + reach).astype(int).tolist()
    box = (slice(top, max(0, bottom)), slice(left, max(0, right)))
    image, joints = image[box], joints - np.array([left, top])
    h, w = image.shape[:2]
    if min(h, w) < 3:
        return whole
    x = np.arange(w, dtype=np.float32)
    y = np.arange(h, dtype=np.float32)[:, None]
    depth = np.full((h, w), -1e4, np.float32)
    creases = np.zeros((h, w), np.float32)
    for k in range(len(joints) - 1):
        a, b = joints[k], joints[k + 1]
        v = b - a
        t = ((x - a[0]) * v[0] + (y - a[1]) * v[1]) / (v @ v + 1e-6)
        inside = np.clip(t, 0, 1)
        gap = np.hypot(x - a[0] - inside * v[0], y - a[1] - inside * v[1])
        taper = 1 - 0.07 * (k + inside)
        np.maximum(depth, (radius * taper - gap).astype(np.float32), out=depth)
        if k:
            span = float(np.linalg.norm(v))
            for shift in (-0.09, 0.0, 0.08):
                line = np.abs(t * span - shift * radius * 3)
                fold = np.exp(-((line / (0.05 * radius + 0.5)) ** 2))
                np.maximum(creases, fold, out=creases)
    alpha = np.clip(depth + 0.5, 0, 1)
    if not alpha.any():
        return whole
    level = np.clip(depth / radius, 0, 1)
    height = radius * np.sqrt(np.clip(level * (2 - level), 0, 1))
    height += 0.06 * smooth_noise(rng, (h, w), 1.8, 2)
    albedo = _albedo(rng, skin, (h, w), creases)
    if skin.nails:
        _draw_nail(rng, albedo, skin, joints, radius)
    soft = Light(light.away_xy, 1.0, light.shadow_rgb, 0.5, 0.35, 0.0)
    shade = 0.55 * shade_relief(height, soft) + 0.45 * np.sqrt(0.25 + 0.75 * level)
    lit = albedo * np.clip(shade, 0.25, 1.3)[..., None]
    darken(image, drop_shadow(alpha, light, 0.5 * radius), light)
    image += alpha[..., None] * (lit - image)
    whole[box] = alpha
    return whole


def _albedo(
    rng: np.random.Generator, skin: Skin, size_hw: tuple[int, int], creases: Plane
) -> Rgb:
    color = np.array(skin.color, np.float32)
    blotch = smooth_noise(rng, size_hw, max(4.0, 1.2 * skin.radius_px), 3)
    broad = smooth_noise(rng, size_hw, max(8.0, 2.5 * skin.radius_px), 2)
    tone = 1 + 0.012 * smooth_noise(rng, size_hw, 2.0, 2) + 0.04 * broad - 0.14 * creases
    albedo: Rgb = tone[..., None] * color
    albedo[..., 1:] *= 1 - 0.03 * np.clip(blotch, -1, 2)[..., None]
    return albedo


def _draw_nail(
    rng: np.random.Generator,
    albedo: Rgb,
    skin: Skin,
    joints: Float[np.ndarray, "j 2"],
    radius: float,
) -> None:
    h, w = albedo.shape[:2]
    v = joints[-1] - joints[-2]
    v = v / (np.linalg.norm(v) + 1e-6)
    center = joints[-1] + 0.15 * radius * v
    mask = np.zeros((h, w), np.uint8)
    axes = (max(1, round(0.62 * radius)), max(1, round(0.5 * radius)))
    at = (round(center[0] * 8), round(center[1] * 8))
    size = (axes[0] * 8, axes[1] * 8)
    angle = float(np.degrees(np.arctan2(v[1], v[0])))
    cv2.ellipse(mask, at, size, angle, 0, 360, 255, -1, cv2.LINE_AA, 3)
    weight = mask[..., None] / np.float32(255)
    lighter = np.clip(np.array(skin.color) * rng.uniform(1.0, 1.2) + 0.07, 0, 1)
    albedo += 0.8 * weight * (lighter.astype(np.float32) - albedo)
    edge = cv2.GaussianBlur(mask, (0, 0), 1.0) / np.float32(255)
    albedo *= 1 - 0.5 * (edge * (1 - edge) * 4)[..., None] * 0.5


def draw_palm(
    rng: np.random.Generator, size_hw: tuple[int, int], skin: Skin, light: Light
) -> Rgb:
    """Return skin that fills the frame, as of a palm from near by: lines, red patches."""
    h, w = size_hw
    side = float(min(h, w))
    creases = np.zeros((h, w), np.float32)
    canvas = np.zeros((h, w), np.uint8)
    for _ in range(int(rng.integers(2, 7))):
        n = 20
        heading = rng.uniform(0, 2 * pi) + np.cumsum(rng.normal(0.02, 0.06, n))
        step = side * rng.uniform(0.02, 0.06)
        points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * step, 0)
        points += rng.uniform(0, 1, 2) * (w, h)
        line = [np.round(points).astype(np.int32)]
        thick = int(rng.integers(1, 3))
        cv2.polylines(canvas, line, isClosed=False, color=255, thickness=thick)
    creases += cv2.GaussianBlur(canvas, (0, 0), 1.2) / np.float32(255)
    albedo = _albedo(rng, skin, size_hw, creases)
    relief = 0.03 * side * smooth_noise(rng, size_hw, 0.4 * side, 2)
    relief += 0.07 * smooth_noise(rng, size_hw, 2.5, 2)
    palm: Rgb = albedo * shade_relief(relief, light)[..., None]
    return palm
