"""Light of a drawn scene: where shadows fall, how relief is shaded, what a camera spoils.

One ``Light`` belongs to a scene, so that the shadows of soil, stones and leaves agree.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1].
"""

from dataclasses import dataclass
from math import cos, pi, sin

import cv2
import numpy as np
from jaxtyping import Float32

from plantseg_next.synthetic.leaf_shapes import log_uniform, smooth_noise

_CASTS = ((1.25, 1.0, 0.7), (0.8, 0.98, 1.25), (0.9, 1.15, 0.85), (1.1, 0.9, 1.1))

Plane = Float32[np.ndarray, "h w"]
Rgb = Float32[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Light:
    """The light of one scene.

    Args:
        away_xy: Unit vector in the image plane along which shadows fall.
        slope: Height that a ray loses per pixel; a shadow is as long as height / slope.
        shadow_rgb: Fraction of the light that is left in full shadow, by channel.
        penumbra: Width of a shadow's edge over the distance to what casts it.
        relief: Gain of the shading of slopes.
        glare: Strength of reflections on glossy leaves.
    """

    away_xy: tuple[float, float]
    slope: float
    shadow_rgb: tuple[float, float, float]
    penumbra: float
    relief: float
    glare: float


def sample_light(rng: np.random.Generator, hard_fraction: float = 0.5) -> Light:
    """Return a light: hard sun with the given probability, else diffuse light."""
    angle = rng.uniform(0, 2 * pi)
    hard = rng.random() < hard_fraction
    left = rng.uniform(0.12, 0.5) if hard else rng.uniform(0.5, 0.92)
    # Shadows out of doors are lit by the sky and are bluish; lamps make warm ones.
    blue = rng.normal(0.06 if hard else 0.0, 0.07)
    return Light(
        away_xy=(cos(angle), sin(angle)),
        slope=log_uniform(rng, 0.5, 2.0),
        shadow_rgb=(left * (1 - blue), left, min(1.0, left * (1 + blue))),
        penumbra=log_uniform(rng, 0.02, 0.2) if hard else log_uniform(rng, 0.2, 1.0),
        relief=rng.uniform(0.6, 1.3) if hard else rng.uniform(0.25, 0.8),
        glare=max(0.0, rng.uniform(-0.25, 0.55 if hard else 0.45)),
    )


def shade_relief(height_px: Plane, light: Light) -> Plane:
    """Return the factor by which the light brightens each slope; 1 where it is flat."""
    x, y = light.away_xy
    slope = x * cv2.Sobel(height_px, cv2.CV_32F, 1, 0, scale=0.125)
    slope += y * cv2.Sobel(height_px, cv2.CV_32F, 0, 1, scale=0.125)
    shade: Plane = np.clip(1 + light.relief * slope, 0.3, 1.8)
    return shade


def relief_shadow(height_px: Plane, light: Light, reach_px: float) -> Plane:
    """Return how far each pixel lies in the shadow of higher ground, in [0, 1].

    Args:
        height_px: Relief.
        light: Its slope determines the length of shadows.
        reach_px: Greatest distance at which anything casts a shadow.
    """
    h, w = height_px.shape
    shadow = np.zeros((h, w), np.float32)
    x, y = light.away_xy
    for distance in np.geomspace(1.5, max(2.0, reach_px), 9).tolist():
        move = np.array([[1, 0, distance * x], [0, 1, distance * y]])
        other = cv2.warpAffine(height_px, move, (w, h), borderMode=cv2.BORDER_REPLICATE)
        soft = 0.5 + light.penumbra * distance
        np.maximum(shadow, (other - height_px - distance * light.slope) / soft, out=shadow)
    return np.minimum(shadow, 1)


def drop_shadow(alpha: Plane, light: Light, lift_px: float) -> Plane:
    """Return the shadow that a thing casts on a plane below it, in [0, 1].

    Args:
        alpha: Where the thing is.
        light: Gives direction and softness.
        lift_px: Distance by which the shadow is displaced.
    """
    h, w = alpha.shape
    x, y = light.away_xy
    move = np.array([[1, 0, lift_px * x], [0, 1, lift_px * y]])
    shadow = cv2.warpAffine(alpha, move, (w, h), borderMode=cv2.BORDER_REPLICATE)
    shadow = _blurred(shadow, 0.4 + light.penumbra * lift_px)
    # Little light from the sky comes to the ground right beside a thing that lies on it.
    contact = _blurred(alpha, 1.0 + 0.5 * lift_px)
    both: Plane = np.maximum(shadow, 0.35 * contact)
    return both


def _blurred(plane: Plane, sigma: float) -> Plane:
    """Blur; a wide blur is made at a quarter of the rows and columns."""
    if sigma < 6:
        return cv2.GaussianBlur(plane, (0, 0), sigma)
    h, w = plane.shape
    quarter = (max(1, w // 4), max(1, h // 4))
    small = cv2.resize(plane, quarter, interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / 4), (w, h))


def darken(image: Rgb, shadow: Plane, light: Light) -> None:
    """Take the light away where a shadow falls, in place."""
    for channel, left in enumerate(light.shadow_rgb):
        image[..., channel] *= 1 - (1 - left) * shadow


def light_surface(
    rng: np.random.Generator, albedo: Rgb, height_px: Plane, gloss: Plane, light: Light
) -> Rgb:
    """Return a surface under the light, with glare where it is glossy.

    Args:
        rng: Source of where the glare is.
        albedo: Color before any light falls on it.
        height_px: Relief.
        gloss: Fraction of the glare that each pixel shows.
        light: Light of the scene.
    """
    h, w = gloss.shape
    shade = 0.3 + 0.7 * shade_relief(height_px, light)
    lit: Rgb = albedo * shade[..., None]
    if light.glare > 0.02:
        # Glare has no sharp edges: a quarter of the rows and columns do.
        quarter = (max(2, h // 4), max(2, w // 4))
        side = min(quarter)
        patch = smooth_noise(rng, quarter, max(2.0, side * rng.uniform(0.1, 0.4)), 2)
        patch = cv2.resize(patch, (w, h))
        tilt = cv2.blur(shade, (3, 3)) - 1
        patch = 0.5 * patch + rng.uniform(0.5, 3) * tilt - rng.uniform(0.2, 1.0)
        glare = light.glare * np.clip(patch, 0, 1) * gloss
        lit += glare[..., None]
    return lit


def cast_from_outside(rng: np.random.Generator, image: Rgb, light: Light) -> None:
    """Draw the shadow of something outside the frame, in place: foliage, a wall, a body."""
    h, w = image.shape[:2]
    side = float(min(h, w))
    kind = rng.random()
    if kind < 0.45:
        cover = _foliage_silhouette(rng, (h, w))
    elif kind < 0.75:
        angle, off = rng.uniform(0, 2 * pi), rng.uniform(-0.3, 0.3) * side
        x = np.arange(w, dtype=np.float32) - w / 2
        y = np.arange(h, dtype=np.float32)[:, None] - h / 2
        bend = side * rng.uniform(0, 0.12) * smooth_noise(rng, (h, w), 0.4 * side)
        cover = np.clip(cos(angle) * x + sin(angle) * y + off + bend, 0, 1)
    else:  # sun through a crown of leaves
        dapple = smooth_noise(rng, (h, w), side * rng.uniform(0.06, 0.25), 2)
        cover = np.clip(4 * (dapple - rng.uniform(-0.8, 0.5)), 0, 1)
    soft = 0.6 + side * light.penumbra * rng.uniform(0.02, 0.12)
    darken(image, _blurred(cover.astype(np.float32), soft), light)


def _foliage_silhouette(rng: np.random.Generator, size_hw: tuple[int, int]) -> Plane:
    h, w = size_hw
    mask = np.zeros((h, w), np.uint8)
    length = min(h, w) * log_uniform(rng, 0.2, 1.0)
    slender = rng.uniform(0.05, 0.6)
    for _ in range(int(rng.integers(1, 12))):
        own, angle = length * rng.uniform(0.6, 1.3), rng.uniform(0, 2 * pi)
        center = rng.uniform(-0.2, 1.2, 2) * (w, h)
        t = np.linspace(-1, 1, 24)
        half = slender * own * (1 - t**2) * 0.5
        along = np.concatenate([t, t[::-1]]) * own / 2
        across = np.concatenate([half, -half[::-1]])
        points = np.stack(
            [
                center[0] + cos(angle) * along - sin(angle) * across,
                center[1] + sin(angle) * along + cos(angle) * across,
            ],
            axis=1,
        )
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255)
    return (mask / np.float32(255)).astype(np.float32)


def expose(rng: np.random.Generator, image: Rgb) -> Rgb:
    """Return the scene as bright as a camera's automatic exposure makes most scenes."""
    level = float(np.clip(image, 0, 1).mean()) + 1e-3
    target = rng.uniform(0.32, 0.52)
    factor = (target / level) ** rng.uniform(0.5, 0.95)
    # What is bright keeps its color, as a pale leaf on dark cloth does.
    bright = float(np.quantile(image[::4, ::4].max(axis=2), 0.96)) + 1e-3
    factor = min(factor, max(0.9, rng.uniform(0.8, 1.15) / bright))
    exposed: Rgb = image * np.float32(np.clip(factor, 0.9, 5.0))
    return exposed


def roll_off(image: Rgb) -> Rgb:
    """Return the scene with highlights compressed, as film and cameras render them.

    Otherwise areas above white would be flat patches without visible lesions.
    """
    over = np.maximum(image - np.float32(0.7), 0)
    rolled: Rgb = np.minimum(image, np.float32(0.7)) + np.float32(0.3) * np.tanh(2.2 * over)
    return rolled


def spoil(rng: np.random.Generator, image: Rgb) -> Rgb:
    """Return the scene as a poor camera or a harsh light shows it: one to three faults.

    The faults are a strong vignette, a color cast, a wrong exposure, a veil of stray
    light, clipped contrast, motion blur, defocus, few pixels, and noise.
    """
    faults = rng.permutation(9)[: int(rng.integers(1, 4))].tolist()
    h, w = image.shape[:2]
    for fault in faults:
        if fault == 0:
            x = np.linspace(-1, 1, w, dtype=np.float32) - rng.normal(0, 0.3)
            y = np.linspace(-1, 1, h, dtype=np.float32)[:, None] - rng.normal(0, 0.3)
            image = image / (1 + rng.uniform(0.3, 1.2) * (x * x + y * y))[..., None]
        elif fault == 1:
            cast = np.array(_CASTS[int(rng.integers(len(_CASTS)))], np.float32)
            image = image * cast ** np.float32(rng.uniform(0.3, 1.2))
        elif fault == 2:
            low = rng.random() < 0.6
            image = image * np.float32(
                log_uniform(rng, 0.45, 0.8) if low else log_uniform(rng, 1.25, 1.8)
            )
        elif fault == 3:
            veil = rng.uniform(0.08, 0.4)
            image = (1 - veil) * image + np.float32(veil * rng.uniform(0.4, 0.9))
        elif fault == 4:
            image = (image - 0.5) * np.float32(rng.uniform(1.15, 1.6)) + 0.5
        else:
            image = _degraded(rng, image, fault)
    spoiled: Rgb = np.clip(image, 0, None).astype(np.float32)
    return spoiled


def _degraded(rng: np.random.Generator, image: Rgb, fault: int) -> Rgb:
    h, w = image.shape[:2]
    if fault == 5:
        length, angle = rng.uniform(2, 7), rng.uniform(0, pi)
        kernel = np.zeros((15, 15), np.float32)
        end = (7 + length / 2 * cos(angle), 7 + length / 2 * sin(angle))
        start = (14 - end[0], 14 - end[1])
        for t in np.linspace(0, 1, 30):
            x = start[0] + t * (end[0] - start[0])
            y = start[1] + t * (end[1] - start[1])
            kernel[round(y), round(x)] += 1
        return cv2.filter2D(image, -1, kernel / kernel.sum())
    if fault == 6:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.8, 2.2))
    if fault == 7:
        small = rng.uniform(0.35, 0.7)
        fewer = cv2.resize(
            image,
            (max(8, int(w * small)), max(8, int(h * small))),
            interpolation=cv2.INTER_AREA,
        )
        how = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
        return cv2.resize(fewer, (w, h), interpolation=how)
    grain = rng.standard_normal((h, w, 3), dtype=np.float32)
    if rng.random() < 0.5:  # the noise of a small sensor is blotchy
        grain = 2 * cv2.GaussianBlur(grain, (0, 0), 0.9)
    noisy: Rgb = image + np.float32(rng.uniform(0.02, 0.07)) * grain
    return noisy


def distance_px(size_hw: tuple[int, int], x: float, y: float) -> Plane:
    """Return the distance of each pixel from a point."""
    h, w = size_hw
    dx = np.arange(w, dtype=np.float32) - np.float32(x)
    dy = np.arange(h, dtype=np.float32)[:, None] - np.float32(y)
    return cv2.magnitude(*np.broadcast_arrays(dx, dy))
