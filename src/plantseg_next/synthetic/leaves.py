"""Drawn leaves with exact masks: the embedded default data, and the tests' data.

The leaf comes from ``synthetic.leaf_shapes`` and its lesions from ``synthetic.lesions``;
here they are lit, laid on a ground and photographed. Much is drawn on purpose so that
"whatever is not green" is no shortcut: brown margins and petioles, yellowing, bites,
specks, glare, shadows, and dead leaves and soil on the ground.

Each part of an image has its own random stream, so another age or another disease of
the same seed leaves the rest of the image as it was.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1] until the last step.
"""

from dataclasses import dataclass, replace
from math import cos, pi, sin

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from plantseg_next.errors import UsageError
from plantseg_next.synthetic.leaf_shapes import (
    LeafFields,
    LeafShape,
    bite_leaf_shapes,
    grow_leaf_shapes,
    log_uniform,
    pick_color,
    render_surface,
    smooth_noise,
    trace_leaf_shapes,
)
from plantseg_next.synthetic.lesions import (
    LESION_KINDS,
    draw_look,
    paint_lesions,
    place_blots,
    ruggedness,
)

DISEASES = ("healthy", *LESION_KINDS)
"""Image-level labels: a leaf has lesions of one kind, or none."""

_PAPERS = bytes.fromhex("e0d6d6 dbdbde c7bdb8 a8a3a8 807a85 b8b39e 4d5c85 080808")
_PAPER_SHARES = (0.24, 0.22, 0.14, 0.1, 0.1, 0.08, 0.07, 0.05)
_SCENES = bytes.fromhex("4d6b24 334d1a 739933 6b5238 4d3826 8c734d b8cce0 d19980 141a0d")
_DEAD = np.array((1.3, 0.95, 0.6), np.float32)
_STREAMS = 8


@dataclass(frozen=True)
class DrawnLeaf:
    """One drawn image with its exact masks.

    Args:
        image: RGB, 0 to 255.
        lesion: 0 for none, ``i + 1`` for ``LESION_KINDS[i]``. Yellow halos are no part
            of a lesion; the yellow patches of rust are, out to half their strength.
        leaf: 1 on the leaf in focus, its petiole and lesions included; 0 in its holes
            and on foliage behind it. Scenes have ``IGNORE`` on foliage out of focus.
        disease: One of ``DISEASES``. A diseased leaf keeps its label while its lesions
            are too young to be seen.
        age_days: Days since the leaf could be infected.
    """

    image: UInt8[np.ndarray, "h w 3"]
    lesion: UInt8[np.ndarray, "h w"]
    leaf: UInt8[np.ndarray, "h w"]
    disease: str
    age_days: float


def draw_leaf(
    seed: int,
    *,
    size_hw: tuple[int, int] = (256, 256),
    disease: str | None = None,
    age_days: float | None = None,
    natural_ground: bool | None = None,
) -> DrawnLeaf:
    """Return one drawn leaf with its masks.

    The same seed with another age is the same image with younger or older lesions:
    no pixel of a lesion is ever healthy again.

    Args:
        seed: Number of the leaf, at least 0; the same seed gives the same bytes.
        size_hw: Rows and columns, at least 32 each.
        disease: One of ``DISEASES``; ``None`` draws it, one in six healthy.
        age_days: Age at which the leaf is seen, at least 0; at 0 no lesion shows.
            ``None`` draws 6 to 25 days.
        natural_ground: Foliage, soil or a blurred scene behind the leaf, or cloth and
            paper; ``None`` draws it, natural for one leaf in three.

    Raises:
        UsageError: If an argument is outside the range stated above.

    Example:
        >>> young, old = (draw_leaf(3, disease="rust", age_days=t) for t in (0.0, 20.0))
        >>> int(young.lesion.sum()), bool(old.lesion.any())
        (0, True)
    """
    refuse_impossible(seed, size_hw, disease, age_days)
    streams = (np.random.default_rng([seed, part]) for part in range(_STREAMS))
    choice, shape, skin, sites, colors, place, light, camera = streams
    drawn = DISEASES[int(choice.integers(len(DISEASES)))]
    drawn_age, drawn_natural = choice.uniform(6, 25), choice.random() < 0.33
    disease = drawn if disease is None else disease
    age_days = drawn_age if age_days is None else float(age_days)
    natural = drawn_natural if natural_ground is None else natural_ground

    leaf_shapes = grow_leaf_shapes(shape, size_hw)
    first = leaf_shapes[0]
    fields = trace_leaf_shapes(shape, leaf_shapes, size_hw)
    fields = bite_leaf_shapes(shape, fields, first.size_px)
    albedo = render_surface(skin, fields, first)
    leaf = fields.depth_px > 0
    lesion = np.zeros(size_hw, np.uint8)
    gloss = np.ones(size_hw, np.float32)
    if disease != "healthy":
        grain = first.angle if first.veins == 0 else None
        blots = place_blots(sites, disease, fields.depth_px, first.size_px, grain)
        extent = blots.extent(age_days, ruggedness(sites, blots, fields.vein))
        gloss = paint_lesions(colors, albedo, extent, draw_look(colors, disease, blots))
        lesion[leaf & (extent.depth_px > 0)] = DISEASES.index(disease)

    scene = _lay(
        draw_ground(place, size_hw, natural=bool(natural)),
        light_leaf(light, albedo, fields, gloss),
        fields.depth_px,
        light,
    )
    image = photograph(camera, scene)
    return DrawnLeaf(image, lesion, leaf.astype(np.uint8), disease, age_days)


def refuse_impossible(
    seed: int, size_hw: tuple[int, int], disease: str | None, age_days: float | None
) -> None:
    """Refuse what cannot be drawn.

    Raises:
        UsageError: States the argument and its range.
    """
    if seed < 0:
        raise UsageError(
            f"`seed` is {seed}.", needed="a whole number from 0", fix="drop the sign"
        )
    if min(size_hw) < 32:
        needed, fix = "at least 32 rows and columns", "draw larger, then shrink it"
        raise UsageError(f"`size_hw` is {size_hw}.", needed=needed, fix=fix)
    if disease is not None and disease not in DISEASES:
        raise UsageError(
            f"`disease` is {disease!r}.",
            needed=f"one of {', '.join(DISEASES)}",
            fix="correct the spelling, or leave it out to draw any",
        )
    if age_days is not None and not age_days >= 0:
        raise UsageError(
            f"`age_days` is {age_days}.",
            needed="a number of days from 0",
            fix="use 0 for a leaf on which no lesion shows yet",
        )


def light_leaf(
    rng: np.random.Generator,
    albedo: Float32[np.ndarray, "h w 3"],
    fields: LeafFields,
    gloss: Float32[np.ndarray, "h w"],
) -> Float32[np.ndarray, "h w 3"]:
    """Return the leaf under a light from one side, with glare where it is glossy."""
    size_hw = gloss.shape
    towards = rng.uniform(0, 2 * pi)
    height = cv2.GaussianBlur(fields.height_px, (3, 3), 0)
    slope = cos(towards) * cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    slope += sin(towards) * cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    shade = np.clip(1 + rng.uniform(0.3, 1.3) * slope, 0.45, 1.7)
    if rng.random() < 0.3:  # the shadow of something that is not in the image
        cell = min(size_hw) * rng.uniform(0.2, 0.8)
        cover = smooth_noise(rng, size_hw, cell) * rng.uniform(1, 8) - rng.uniform(0, 4)
        shade *= 1 - rng.uniform(0.2, 0.55) * np.clip(cover, 0, 1)
    # Glare follows the relief; mildew does not.
    shine = max(0.0, rng.uniform(-0.25, 0.6))
    patch = smooth_noise(rng, size_hw, min(size_hw) * rng.uniform(0.08, 0.4), 2)
    patch = 0.6 * patch + rng.uniform(1, 7) * slope - rng.uniform(0, 0.6)
    sheen = 1 + rng.uniform(0, 0.3) * smooth_noise(rng, size_hw, rng.uniform(1, 3))
    glare = shine * np.clip(patch, 0, 1) * sheen * (1 - 0.6 * fields.vein)
    if rng.random() < 0.15:  # drops of water
        drops = smooth_noise(rng, size_hw, rng.uniform(2, 5))
        glare += np.clip(3 * (drops - 2.3), 0, 0.7)
    lit: Float32[np.ndarray, "h w 3"] = albedo * shade[..., None]
    lit += (glare * gloss)[..., None]
    return lit


def _lay(
    ground: Float32[np.ndarray, "h w 3"],
    leaf: Float32[np.ndarray, "h w 3"],
    depth_px: Float32[np.ndarray, "h w"],
    rng: np.random.Generator,
) -> Float32[np.ndarray, "h w 3"]:
    """Return the leaf on its ground, with the shadow that it casts there."""
    alpha = np.clip(depth_px + 0.5, 0, 1)
    side = min(alpha.shape)
    lift = side * log_uniform(rng, 0.002, 0.06)
    away = rng.uniform(0, 2 * pi)
    move = np.array([[1, 0, lift * cos(away)], [0, 1, lift * sin(away)]])
    shadow = cv2.warpAffine(alpha, move, alpha.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.5 + lift * rng.uniform(0.1, 0.9))
    strength = max(0.0, rng.uniform(-0.1, 0.95))
    warm = rng.normal(0, 0.08)  # light that fell through or off the leaf
    tint = (strength * np.array([1 - warm, 1, 1 + warm])).astype(np.float32)
    dimmed: Float32[np.ndarray, "h w 3"] = ground * (1 - shadow[..., None] * tint)
    dimmed += alpha[..., None] * (leaf - dimmed)
    return dimmed


def draw_ground(
    rng: np.random.Generator, size_hw: tuple[int, int], *, natural: bool
) -> Float32[np.ndarray, "h w 3"]:
    """Return what lies behind the leaf, before the shadow falls on it."""
    side = min(size_hw)
    if not natural:
        color = np.array(pick_color(rng, _PAPERS, _PAPER_SHARES))
        color = color * rng.normal(1, 0.07) * rng.normal(1, 0.02, 3)
        wide = smooth_noise(rng, size_hw, side * rng.uniform(0.8, 2))
        weave = smooth_noise(rng, size_hw, rng.uniform(1, 3), 2)
        tone = 1 + rng.uniform(0, 0.1) * wide + log_uniform(rng, 0.003, 0.08) * weave
        dirt = smooth_noise(rng, size_hw, rng.uniform(1.5, 4))
        tone -= np.clip(dirt - rng.uniform(2.8, 6), 0, 0.5)
        return tone[..., None] * color.astype(np.float32)
    # It is out of focus: half the rows and columns do, in a quarter of the time.
    full_hw, size_hw, side = size_hw, (size_hw[0] // 2, size_hw[1] // 2), side // 2
    scene = np.zeros((*size_hw, 3), np.float32)
    for layer in range(int(rng.integers(2, 5))):
        color = np.array(pick_color(rng, _SCENES), np.float32)
        cell = side * log_uniform(rng, 0.05, 0.6)
        field = smooth_noise(rng, size_hw, cell, 3)
        weight = np.clip(3 * field, 0, 1) if layer else np.ones_like(field)
        tone = 1 + 0.25 * smooth_noise(rng, size_hw, rng.uniform(1.5, 8), 3)
        scene += weight[..., None] * (tone[..., None] * color - scene)
    for _ in range(int(rng.integers(0, 9))):
        leaf_shape = _blade_behind(rng, size_hw)
        fields = trace_leaf_shapes(rng, (leaf_shape,), size_hw)
        skin = render_surface(rng, fields, leaf_shape)
        if rng.random() < 0.25:  # a dead leaf
            skin = skin.mean(axis=2, keepdims=True) * _DEAD
        scene = _lay(scene, skin * rng.uniform(0.5, 1.3), fields.depth_px, rng)
    blur = side * log_uniform(rng, 0.002, 0.04)
    scene = cv2.resize(cv2.GaussianBlur(scene, (0, 0), blur), full_hw[::-1])
    sand = rng.uniform(0, 0.08) * smooth_noise(rng, full_hw, 1.0)
    natural_scene: Float32[np.ndarray, "h w 3"] = scene * (1 + sand)[..., None]
    return natural_scene


def _blade_behind(rng: np.random.Generator, size_hw: tuple[int, int]) -> LeafShape:
    leaf_shape = grow_leaf_shapes(rng, size_hw)[0]
    h, w = size_hw
    scale = min(h, w) * rng.uniform(0.4, 1.2) / leaf_shape.length_px
    return replace(
        leaf_shape,
        base_xy=(rng.uniform(-0.2, 1.2) * w, rng.uniform(-0.2, 1.2) * h),
        length_px=leaf_shape.length_px * scale,
        widest_px=leaf_shape.widest_px * scale,
    )


def photograph(
    rng: np.random.Generator, scene: Float32[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return what a camera makes of the scene: vignette, tone, blur, noise, JPEG."""
    h, w = scene.shape[:2]
    x = np.linspace(-1, 1, w, dtype=np.float32) - rng.normal(0, 0.3)
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None] - rng.normal(0, 0.3)
    vignette = 1 - max(0.0, rng.uniform(-0.15, 0.25)) * (x * x + y * y)
    warmth = rng.normal(0, 0.06)
    balance = np.array([1 + warmth, 1.0, 1 - 1.3 * warmth], np.float32)
    exposed = scene * (rng.normal(1.0, 0.13) * balance) * vignette[..., None]
    gray = exposed.mean(axis=2, keepdims=True)
    exposed = gray + rng.uniform(0.65, 1.2) * (exposed - gray)
    image = np.clip(exposed, 0, 1) ** rng.uniform(0.8, 1.25)
    blur = rng.uniform(0, 1.3)
    if blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    if rng.random() < 0.25:
        smooth = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.8, 2))
        image = image + rng.uniform(0.3, 2.0) * (image - smooth)
    noise = log_uniform(rng, 0.002, 0.03)
    image += noise * rng.standard_normal((h, w, 1), dtype=np.float32)
    image += 0.4 * noise * rng.standard_normal((h, w, 3), dtype=np.float32)
    levels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 97))]
    _, coded = cv2.imencode(".jpg", levels, quality)
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
