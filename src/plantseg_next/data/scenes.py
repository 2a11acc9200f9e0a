"""Drawn scenes with exact masks: many leaves, natural ground, hard light, hands.

``synthetic.draw_leaf`` draws one leaf on paper or before a blurred ground. A model that has
seen only that takes the shadow beside a leaf for leaf, soil and undergrowth for lesions,
and leaves dead tissue out of the leaf. Here such things are drawn, and marked as what they
are: the starter model learns from these scenes.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1] until the last step.
"""

from dataclasses import replace
from math import cos, pi, sin
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from plantseg_next.data.blades import (
    Blade,
    bite_blades,
    draw_skin,
    grow_blades,
    log_uniform,
    smooth_noise,
    trace_blades,
)
from plantseg_next.data.lesions import (
    LESION_KINDS,
    Blots,
    Look,
    draw_look,
    paint_lesions,
    place_blots,
    ruggedness,
)
from plantseg_next.data.surfaces import draw_fingers, draw_grid, draw_soil, draw_wood
from plantseg_next.data.synthetic import (
    DISEASES,
    DrawnLeaf,
    draw_ground,
    light_leaf,
    photograph,
)
from plantseg_next.errors import OutputError, UsageError
from plantseg_next.structures import IGNORE

KINDS = ("leaf", "soil", "canopy", "foreground", "hand", "grass", "none")
"""What a scene shows; see ``draw_scene``."""
_FRACTIONS = (0.28, 0.2, 0.13, 0.16, 0.07, 0.1, 0.06)
_HEALTHY = 0.25
_DEAD = np.array((1.3, 0.95, 0.6), np.float32)


class _Leaf(NamedTuple):
    """One leaf in a frame of its own: what it looks like, and where it is what."""

    image: Float32[np.ndarray, "h w 3"]
    alpha: Float32[np.ndarray, "h w"]
    lesion: UInt8[np.ndarray, "h w"]


class _Canvas:
    """A scene in the making.

    Args:
        ground: What lies behind everything.
    """

    def __init__(self, ground: Float32[np.ndarray, "h w 3"]) -> None:
        h, w = ground.shape[:2]
        self.image = ground
        self.lesion: UInt8[np.ndarray, "h w"] = np.zeros((h, w), np.uint8)
        self.leaf: UInt8[np.ndarray, "h w"] = np.zeros((h, w), np.uint8)

    def lay(self, rng: np.random.Generator, leaf: _Leaf, x: int, y: int) -> None:
        """Lay a leaf with its upper left corner at a place, and the shadow it casts."""
        h, w = self.lesion.shape
        rows, columns = leaf.alpha.shape
        top, bottom = max(0, y), min(h, y + rows)
        left, right = max(0, x), min(w, x + columns)
        if bottom <= top or right <= left:
            return
        into = (slice(top, bottom), slice(left, right))
        of = (slice(top - y, bottom - y), slice(left - x, right - x))
        alpha = leaf.alpha[of]
        view = self.image[into]
        view *= 1 - _shadow(rng, leaf.alpha)[of]
        view += alpha[..., None] * (leaf.image[of] - view)
        on = alpha > 0.5
        self.leaf[into][on] = 1
        self.lesion[into][on] = leaf.lesion[of][on]


def draw_scene(
    seed: int, *, size_hw: tuple[int, int] = (384, 384), kind: str | None = None
) -> DrawnLeaf:
    """Return one drawn scene with its masks.

    Args:
        seed: Number of the scene, at least 0; the same seed gives the same bytes.
        size_hw: Rows and columns, at least 32 each.
        kind: One of ``KINDS``; ``None`` draws it. leaf: one leaf on paper, cloth, wood or
            ruled paper, with a hard or soft shadow beside it. soil: leaves and young
            plants on soil, stones and litter in focus. canopy: overlapping leaves, all in
            focus. foreground: one leaf before foliage out of focus. hand: a leaf held by
            fingers. grass: blades of cereals. none: no leaf at all, so that a model learns
            that an image may show none.

    Returns:
        The scene. ``leaf`` is 1 on every leaf in focus, dead tissue included, and 0 on
        soil, litter, skin and shadows; foliage out of focus is ``IGNORE`` (it is a matter
        of taste whether it counts), and no lesion.

    Raises:
        UsageError: If an argument is outside the range named above.
    """
    _refuse_wrong(seed, size_hw)
    if kind is not None and kind not in KINDS:
        raise UsageError(
            f"`kind` is {kind!r}.",
            needed=f"one of {', '.join(KINDS)}",
            fix="correct the spelling, or leave it out to draw any",
        )
    rng = np.random.default_rng([seed, 77])
    kind = str(rng.choice(KINDS, p=_FRACTIONS)) if kind is None else kind
    disease = "healthy"
    if kind != "none" and rng.random() >= _HEALTHY:
        disease = str(rng.choice(LESION_KINDS, p=(0.3, 0.28, 0.12, 0.2, 0.1)))
    canvas = _Canvas(_background(rng, size_hw, kind))
    ignored = np.zeros(size_hw, bool)
    if kind == "foreground" or (kind == "hand" and rng.random() < 0.4):
        canvas.image = draw_ground(rng, size_hw, natural=True)
        ignored[:] = True
    _fill(rng, canvas, kind, disease)
    if kind == "hand" or (kind == "none" and rng.random() < 0.2):
        skin = draw_fingers(rng, canvas.image) > 0.5
        canvas.leaf[skin], canvas.lesion[skin], ignored[skin] = 0, 0, False
    if rng.random() < 0.35:
        _cast_shadow(rng, canvas.image)
    canvas.leaf[ignored & (canvas.leaf == 0)] = IGNORE
    image = photograph(rng, _badly_exposed(rng, canvas.image))
    if not canvas.lesion.any():
        disease = "healthy"
    return DrawnLeaf(image, canvas.lesion, canvas.leaf, disease, 0.0)


def _refuse_wrong(seed: int, size_hw: tuple[int, int]) -> None:
    if seed < 0 or min(size_hw) < 32:
        raise UsageError(
            f"`seed` is {seed}, `size_hw` is {size_hw}.",
            needed="a seed from 0, and at least 32 rows and columns",
            fix="correct the value",
        )


def _background(
    rng: np.random.Generator, size_hw: tuple[int, int], kind: str
) -> Float32[np.ndarray, "h w 3"]:
    """Return what the leaves of a scene lie on: soil, wood, paper or cloth."""
    if kind in ("soil", "canopy") or (kind in ("grass", "none") and rng.random() < 0.6):
        soil = draw_soil(rng, size_hw)
        # Between the leaves of a canopy it is dark.
        return soil * np.float32(rng.uniform(0.15, 0.7) if kind == "canopy" else 1.0)
    choice = rng.random()
    if choice < 0.14:
        return draw_wood(rng, size_hw)
    if choice < 0.24:
        return draw_grid(rng, size_hw)
    return draw_ground(rng, size_hw, natural=False)


def _fill(rng: np.random.Generator, canvas: _Canvas, kind: str, disease: str) -> None:
    """Lay the leaves of a scene."""
    size_hw = canvas.lesion.shape
    match kind:
        case "leaf" | "foreground" | "hand":
            # The frame is that of the scene: the leaf is whole in it, or magnified.
            leaf = _grow(rng, size_hw, disease, whole=kind == "hand")
            canvas.lay(rng, leaf, 0, 0)
        case _:
            _lay_many(rng, canvas, kind, disease)


def _lay_many(rng: np.random.Generator, canvas: _Canvas, kind: str, disease: str) -> None:
    """Lay as many leaves as a scene of this kind shows, three in four of them diseased."""
    h, w = canvas.lesion.shape
    n = _count_leaves(rng, kind)
    # Whatever the kind, both are drawn: what a seed shows depends on it.
    on_soil, in_canopy = log_uniform(rng, 0.2, 0.8), rng.uniform(0.35, 0.8)
    typical = min(h, w) * (in_canopy if kind == "canopy" else on_soil)
    if kind in ("soil", "none"):
        _lay_dead_leaves(rng, canvas, int(rng.integers(0, 5)))
    shape = int(rng.integers(1 << 30))  # leaves of one plant are alike
    least, most = (-0.4, 1.0) if kind == "canopy" else (-0.1, 0.8)
    for _ in range(n):
        own = disease if rng.random() < 0.75 else "healthy"
        if kind == "grass":
            canvas.lay(rng, _grow(rng, (h, w), own, grass=True), 0, 0)
            continue
        size = max(32, int(typical * rng.uniform(0.7, 1.3)))
        leaf = _grow(rng, (size, size), own, whole=True, shape=shape)
        x, y = rng.uniform(least, most, 2) * (w, h)
        canvas.lay(rng, leaf, int(x), int(y))


def _count_leaves(rng: np.random.Generator, kind: str) -> int:
    """Return how many leaves a scene shows."""
    match kind:
        case "soil":
            return int(rng.integers(1, 9))
        case "canopy":
            return int(rng.integers(14, 26))
        case "grass":
            return int(rng.integers(1, 14))
        case _:
            return 0


def _lay_dead_leaves(rng: np.random.Generator, canvas: _Canvas, n: int) -> None:
    """Lay litter, which is neither leaf nor lesion."""
    h, w = canvas.lesion.shape
    for _ in range(n):
        size = max(32, int(min(h, w) * log_uniform(rng, 0.1, 0.6)))
        leaf = _grow(rng, (size, size), "healthy", whole=True)
        gray = leaf.image.mean(axis=2, keepdims=True)
        dead = leaf._replace(image=gray * _DEAD * np.float32(rng.uniform(0.5, 1.6)))
        before = canvas.leaf.copy(), canvas.lesion.copy()
        canvas.lay(
            rng, dead, int(rng.uniform(-0.2, 0.9) * w), int(rng.uniform(-0.2, 0.9) * h)
        )
        canvas.leaf, canvas.lesion = before


def _grow(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    disease: str,
    *,
    whole: bool = False,
    grass: bool = False,
    shape: int | None = None,
) -> _Leaf:
    """Return one leaf, lit, with its lesions.

    Args:
        rng: Source of chance.
        size_hw: Of its frame.
        disease: One of ``DISEASES``.
        whole: Whether all of it lies in the frame.
        grass: Whether it is the blade of a grass.
        shape: Seed of its shape, for leaves that are alike.
    """
    own = rng if shape is None else np.random.default_rng(shape)
    blades = grow_blades(own, size_hw)
    while grass != (blades[0].veins == 0 and len(blades) == 1) and (grass or whole):
        blades = grow_blades(own, size_hw)
    if grass:
        blades = (_grass_blade(rng, blades[0], size_hw),)
    elif whole:
        blades = _fitted(rng, blades, size_hw)
    first = blades[0]
    fields = trace_blades(rng, blades, size_hw)
    fields = bite_blades(rng, fields, first.size_px)
    skin = draw_skin(rng, fields, first)
    leaf = fields.depth_px > 0
    lesion = np.zeros(size_hw, np.uint8)
    gloss = np.ones(size_hw, np.float32)
    if disease != "healthy" and leaf.any():
        grain = first.angle if first.veins == 0 else None
        blots = place_blots(rng, disease, fields.depth_px, first.size_px, grain)
        blots = _varied(rng, blots, disease)
        look = _faint(rng, draw_look(rng, disease, blots))
        extent = blots.extent(rng.uniform(6, 25), ruggedness(rng, blots, fields.vein))
        gloss = paint_lesions(rng, skin, extent, look)
        lesion[leaf & (extent.depth_px > 0)] = DISEASES.index(disease)
    image = light_leaf(rng, skin, fields, gloss)
    return _Leaf(image, np.clip(fields.depth_px + 0.5, 0, 1), lesion)


def _varied(rng: np.random.Generator, blots: Blots, disease: str) -> Blots:
    """Return some lesions far larger than usual: dead tips, margins, most of a leaf."""
    if disease not in ("blight", "leaf spot", "leaf miner") or rng.random() > 0.3:
        return blots
    return replace(blots, radius_px=blots.radius_px * log_uniform(rng, 1.3, 3.0))


def _faint(rng: np.random.Generator, look: Look) -> Look:
    """Return some lesions hard to see: they replace part of the leaf's color only."""
    if rng.random() > 0.25:
        return look
    return replace(
        look,
        cover=look.cover * rng.uniform(0.4, 0.8),
        halo_strength=look.halo_strength * rng.uniform(0, 0.6),
    )


def _grass_blade(rng: np.random.Generator, blade: Blade, size_hw: tuple[int, int]) -> Blade:
    """Return a long narrow blade through the frame, leaves of a row in one direction."""
    h, w = size_hw
    side = min(h, w)
    length = side * rng.uniform(1.2, 3.0)
    angle = rng.normal(pi / 2, 0.5) + (pi if rng.random() < 0.5 else 0.0)
    middle = rng.uniform(0.1, 0.9, 2) * (w, h)
    base = middle - 0.5 * length * np.array([cos(angle), sin(angle)])
    return replace(
        blade,
        base_xy=(float(base[0]), float(base[1])),
        angle=angle,
        length_px=length,
        widest_px=side * log_uniform(rng, 0.03, 0.3),
        bend=rng.normal(0, 0.06),
    )


def _fitted(
    rng: np.random.Generator, blades: tuple[Blade, ...], size_hw: tuple[int, int]
) -> tuple[Blade, ...]:
    """Return the blades turned, and made so small that all of them lie in the frame."""
    points = []
    for blade in blades:
        along = blade.length_px * np.array([cos(blade.angle), sin(blade.angle)])
        beside = 0.5 * blade.widest_px * np.array([-sin(blade.angle), cos(blade.angle)])
        base = np.array(blade.base_xy)
        middle = base + 0.5 * along
        points += [base - 0.2 * along, base + along, middle + beside, middle - beside]
    center = (np.max(points, 0) + np.min(points, 0)) / 2
    reach = max(float(np.linalg.norm(p - center)) for p in points)
    scale = 0.46 * min(size_hw) / reach
    turn = rng.uniform(0, 2 * pi)
    rotation = np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    middle = np.array(size_hw[::-1]) / 2
    fitted = []
    for blade in blades:
        base = middle + scale * rotation @ (np.array(blade.base_xy) - center)
        fitted.append(
            replace(
                blade,
                base_xy=(float(base[0]), float(base[1])),
                angle=blade.angle + turn,
                length_px=blade.length_px * scale,
                widest_px=blade.widest_px * scale,
            )
        )
    return tuple(fitted)


def _shadow(
    rng: np.random.Generator, alpha: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w 3"]:
    """Return the light that a leaf takes from what lies below it, a channel."""
    side = min(alpha.shape)
    lift = side * log_uniform(rng, 0.003, 0.2)
    away = rng.uniform(0, 2 * pi)
    move = np.array([[1, 0, lift * cos(away)], [0, 1, lift * sin(away)]])
    shadow = cv2.warpAffine(alpha, move, alpha.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    blur = 0.5 + lift * log_uniform(rng, 0.03, 0.9)  # hard under the sun, soft indoors
    shadow = cv2.GaussianBlur(shadow, (0, 0), blur)
    strength = max(0.0, rng.uniform(-0.1, 0.9))
    warm = rng.normal(0, 0.08)
    tint = strength * np.array([1 - warm, 1 - max(0.0, rng.normal(0, 0.06)), 1 + warm])
    return np.clip(shadow[..., None] * tint.astype(np.float32), 0, 0.95)


def _cast_shadow(rng: np.random.Generator, image: Float32[np.ndarray, "h w 3"]) -> None:
    """Darken what lies in the shadow of something outside the frame, in place."""
    h, w = image.shape[:2]
    if rng.random() < 0.5:  # an edge
        angle = rng.uniform(0, 2 * pi)
        x = np.arange(w, dtype=np.float32) - rng.uniform(0.2, 0.8) * w
        y = np.arange(h, dtype=np.float32)[:, None] - rng.uniform(0.2, 0.8) * h
        distance = cos(angle) * x + sin(angle) * y
        distance += 0.05 * min(h, w) * smooth_noise(rng, (h, w), 0.3 * min(h, w))
    else:  # twigs and leaves
        distance = 8 * (
            smooth_noise(rng, (h, w), min(h, w) * rng.uniform(0.05, 0.3), 2) - 0.4
        )
    cover = np.clip(0.5 + distance / log_uniform(rng, 2.0, 40.0), 0, 1)
    image *= 1 - (rng.uniform(0.15, 0.6) * cover)[..., None]


def _badly_exposed(
    rng: np.random.Generator, image: Float32[np.ndarray, "h w 3"]
) -> Float32[np.ndarray, "h w 3"]:
    """Return one scene in three too dark, too bright, pale, or with a color cast."""
    if rng.random() > 0.33:
        return image
    cast = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    veil = max(0.0, rng.uniform(-0.2, 0.25))
    exposed: Float32[np.ndarray, "h w 3"] = image * cast * log_uniform(rng, 0.55, 1.5)
    return (1 - veil) * exposed + veil * np.float32(rng.uniform(0.4, 0.9))


def write_scenes(
    folder: Path, n: int, *, seed: int = 0, size_hw: tuple[int, int] = (384, 384)
) -> None:
    """Write a data set of drawn scenes: images, masks, names of classes.

    What is written: ``images/*.jpg``; ``masks/*.png`` with 0 background, 1 leaf,
    ``i + 2`` for ``LESION_KINDS[i]``, and last "no lesion" for foliage of which it is
    unknown whether it counts as leaf; ``classes.yaml`` from value to name.

    Args:
        folder: New.
        n: Scenes, at least 1.
        seed: Of the whole folder, at least 0; folders of two seeds share no scene.
        size_hw: Rows and columns of each image, at least 32 each.

    Raises:
        UsageError: If an argument is outside the range named above.
        OutputError: If the folder is there already.
    """
    _refuse_wrong(seed, size_hw)
    if n < 1:
        raise UsageError(f"`n` is {n}.", needed="a scene at least", fix="correct the value")
    if folder.exists():
        raise OutputError(
            f"`{folder}` is already there.",
            needed="a new folder",
            fix="name another folder, or remove this one first",
        )
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    names = ("background", "leaf", *LESION_KINDS, "no lesion")
    lines = (f"{value}: {name}\n" for value, name in enumerate(names))
    (folder / "classes.yaml").write_text("".join(lines), "utf-8")
    for k in range(n):
        scene = draw_scene(seed * 1_000_003 + k, size_hw=size_hw)
        values = np.where(scene.lesion > 0, scene.lesion + 1, scene.leaf).astype(np.uint8)
        values[scene.leaf == IGNORE] = len(names) - 1
        name = f"scene_{k:05}"
        Image.fromarray(scene.image).save(folder / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(values).save(folder / "masks" / f"{name}.png")
