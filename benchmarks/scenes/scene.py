"""Drawn scenes with exact masks: many leaves, natural ground, hard light, hands.

``leaves.draw_leaf`` draws one leaf on paper or before a blurred ground. A model trained
on such images only predicts the shadow beside a leaf as leaf, soil and undergrowth as
lesions, and excludes dead tissue from the leaf. Scenes contain these with correct masks.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1] until the last step.
"""

from collections.abc import Callable
from dataclasses import replace
from math import cos, pi, sin

import numpy as np
from jaxtyping import Float32

from plantseg_next.errors import UsageError
from plantseg_next.structures import IGNORE
from plantseg_next.synthetic.leaf_shapes import log_uniform
from plantseg_next.synthetic.leaves import DISEASES, DrawnLeaf, photograph
from plantseg_next.synthetic.lesions import LESION_KINDS
from scenes.behind import draw_behind, draw_undergrowth
from scenes.canvas import Canvas, Place
from scenes.hands import draw_fingers, draw_palm, sample_skin
from scenes.leaves import draw_framed, draw_sprite, sample_species
from scenes.light import (
    Light,
    cast_from_outside,
    darken,
    drop_shadow,
    expose,
    roll_off,
    sample_light,
    spoil,
)
from scenes.plants import (
    any_species,
    draw_leaves,
    fill_with_leaves,
    grow_branches,
    grow_grass,
    grow_plants,
    hang_fruit,
    scatter_litter,
)
from scenes.surfaces import (
    draw_sheet,
    draw_sky,
    draw_soil,
    draw_wall,
    draw_wood,
    lay_objects,
)

KINDS = (
    "leaf", "soil", "canopy", "foreground", "hand", "grass", "undergrowth", "none",
)  # fmt: skip
"""What a scene shows; see ``draw_scene``."""

_KIND_ODDS = (0.25, 0.16, 0.12, 0.23, 0.08, 0.1, 0.01, 0.05)
_HARD_SUN = (0.45, 0.65, 0.5, 0.45, 0.4, 0.5, 0.5, 0.5)
_HEALTHY = 0.22
_DISEASE_ODDS = (0.3, 0.3, 0.11, 0.2, 0.09)
_STREAM = 77  # separates the random numbers of scenes from those of single leaves

Rgb = Float32[np.ndarray, "h w 3"]


def draw_scene(
    seed: int, *, size_hw: tuple[int, int] = (384, 384), kind: str | None = None
) -> DrawnLeaf:
    """Return one drawn scene with its masks.

    Args:
        seed: Number of the scene, at least 0; the same seed and size give the same bytes.
        size_hw: Rows and columns, at least 32 each.
        kind: One of ``KINDS``; ``None`` draws it.

            - leaf: one leaf or a few on paper, cloth, wood or a wall, with a hard or soft
              shadow beside it.
            - soil: young plants or leaves on soil, stones and litter, all in focus.
            - canopy: many overlapping leaves in focus.
            - foreground: a leaf in focus before foliage, ground or sky out of focus, or
              before undergrowth.
            - hand: a leaf held by fingers or on a palm.
            - grass: blades of cereals, scanned or in the field.
            - undergrowth: what grows and lies below a crop, and no leaf before it.
            - none: no leaf at all: soil, litter, wood, skin, sky, written paper. Without
              such scenes a model predicts a leaf in every image.

    Returns:
        The scene. ``leaf`` is 1 on all foliage in focus, dead tissue included; 0 on soil,
        fallen dead leaves, skin and shadows; ``IGNORE`` on undergrowth and on foliage out
        of focus, of which it is ambiguous whether it counts. ``lesion`` is 0 wherever
        ``leaf`` is not 1.
        ``disease`` is "healthy" if no lesion is in the frame, so also where there is no
        leaf. ``age_days`` is 0: lesions of scenes have no age.

    Raises:
        UsageError: If an argument is outside the range stated above.

    Example:
        >>> scene = draw_scene(4, size_hw=(64, 64), kind="none")
        >>> scene.disease, bool(scene.leaf.any())
        ('healthy', False)
    """
    _check(seed, size_hw, kind)
    rng = np.random.default_rng([seed, _STREAM])
    drawn = KINDS[int(rng.choice(len(KINDS), p=_KIND_ODDS))]
    kind = drawn if kind is None else kind
    disease = "healthy"
    if rng.random() >= _HEALTHY:
        disease = LESION_KINDS[int(rng.choice(len(LESION_KINDS), p=_DISEASE_ODDS))]
    light = sample_light(rng, _HARD_SUN[KINDS.index(kind)])
    canvas = _DRAW[kind](rng, size_hw, disease, light)
    if rng.random() < 0.3:
        cast_from_outside(rng, canvas.image, light)
    image = expose(rng, canvas.image)
    if rng.random() < 0.34:
        image = spoil(rng, image)
    numbers = np.unique(canvas.lesion)
    shown = DISEASES[int(numbers[-1])] if numbers.size else "healthy"
    return DrawnLeaf(
        photograph(rng, roll_off(image)), canvas.lesion, canvas.leaf, shown, 0.0
    )


def _check(seed: int, size_hw: tuple[int, int], kind: str | None) -> None:
    if seed < 0:
        raise UsageError(
            f"`seed` is {seed}.", needed="a whole number from 0", fix="drop the sign"
        )
    if min(size_hw) < 32:
        raise UsageError(
            f"`size_hw` is {size_hw}.",
            needed="at least 32 rows and columns",
            fix="draw larger, then shrink it",
        )
    if kind is not None and kind not in KINDS:
        raise UsageError(
            f"`kind` is {kind!r}.",
            needed=f"one of {', '.join(KINDS)}",
            fix="correct the spelling, or leave it out to draw any",
        )


def _leaf_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], disease: str, light: Light
) -> Canvas:
    h, w = size_hw
    side = float(min(h, w))
    canvas = Canvas(draw_sheet(rng, size_hw, light), light)
    lift = side * log_uniform(rng, 0.003, 0.1)
    if rng.random() < 0.55:
        leaf = draw_framed(rng, size_hw, disease)
        if rng.random() < 0.2:  # a second lamp, a second shadow
            _second_shadow(rng, canvas, leaf.alpha, lift)
        canvas.lay(rng, leaf, None, lift_px=lift)
        return canvas
    n = 1 if rng.random() < 0.7 else int(rng.integers(2, 6))
    species = sample_species(rng)
    reach = side * (rng.uniform(0.4, 1.2) if n == 1 else rng.uniform(0.3, 0.6))
    leaves = draw_leaves(rng, species, int(reach), disease, min(n, 3))
    for k in range(n):
        x, y = rng.normal(0.5, 0.06 if n == 1 else 0.25, 2) * (w, h)
        place = Place((x, y), rng.uniform(0, 2 * pi), rng.uniform(0.85, 1.1), 1.0, "center")
        canvas.lay(rng, leaves[k % len(leaves)], place, lift_px=lift)
    return canvas


def _second_shadow(
    rng: np.random.Generator,
    canvas: Canvas,
    alpha: Float32[np.ndarray, "h w"],
    lift_px: float,
) -> None:
    other = sample_light(rng, 0.5)
    darken(canvas.image, drop_shadow(alpha, other, lift_px * rng.uniform(0.5, 2)), other)


def _soil_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], disease: str, light: Light
) -> Canvas:
    h, w = size_hw
    side = float(min(h, w))
    canvas = Canvas(draw_soil(rng, size_hw, light), light)
    if rng.random() < 0.5:
        scatter_litter(rng, canvas, int(rng.integers(1, 7)))
    habit = ("rosette", "shoot", "clover", "lying", "grass")[
        int(rng.choice(5, p=(0.2, 0.22, 0.22, 0.2, 0.16)))
    ]
    if habit == "grass":
        grow_grass(
            rng,
            canvas,
            disease,
            int(rng.integers(20, 240)),
            side * log_uniform(rng, 0.006, 0.024),
            rows=True,
        )
        return canvas
    size = side * log_uniform(rng, 0.12, 0.75)
    if habit == "lying":
        leaves = draw_leaves(rng, sample_species(rng), int(1.4 * size), disease, 3)
        for k in range(int(rng.integers(1, 7))):
            low, high = (0.25, 0.75) if k == 0 else (0.0, 1.0)
            xy = (rng.uniform(low, high) * w, rng.uniform(low, high) * h)
            place = Place(
                xy, rng.uniform(0, 2 * pi), rng.uniform(0.7, 1.2), rng.uniform(0.7, 1),
                "center",
            )  # fmt: skip
            leaf = leaves[int(rng.integers(3))]
            canvas.lay(rng, leaf, place, lift_px=side * log_uniform(rng, 0.005, 0.06))
        return canvas
    species = any_species(rng)
    if habit == "clover":
        species = replace(species, form="obovate" if rng.random() < 0.7 else "ovate")
    if rng.random() < 0.6:  # seedlings and legumes have broad leaves
        species = replace(species, slenderness=max(species.slenderness, 0.5))
    leaf_px = size * {"rosette": 0.9, "shoot": 0.6, "clover": 0.55}[habit]
    leaves = draw_leaves(rng, species, int(leaf_px), disease, 3)
    most = float(np.clip(0.6 * (side / size) ** 1.5, 1.5, 14))
    feet = [(rng.uniform(0.2, 0.8) * w, rng.uniform(0.2, 0.8) * h)]
    others = round(rng.uniform(0.3, 1) * most) - 1
    feet += [(rng.uniform(0, 1) * w, rng.uniform(0, 1) * h) for _ in range(others)]
    grow_plants(rng, canvas, leaves, feet, size, habit)
    return canvas


def _canopy_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], disease: str, light: Light
) -> Canvas:
    side = float(min(size_hw))
    ground = draw_soil(rng, size_hw, light) * np.float32(rng.uniform(0.1, 0.5))
    canvas = Canvas(ground, light)
    size = side * log_uniform(rng, 0.25, 0.9)
    leaves = draw_leaves(rng, any_species(rng), int(size), disease, 3)
    if rng.random() < 0.3:
        grow_branches(rng, canvas, int(rng.integers(1, 4)))
    fill_with_leaves(rng, canvas, leaves, size, rng.uniform(1.2, 3.5))
    if rng.random() < 0.12:
        hang_fruit(rng, canvas, int(rng.integers(1, 9)))
    return canvas


def _foreground_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], disease: str, light: Light
) -> Canvas:
    h, w = size_hw
    side = float(min(h, w))
    image, foliage = draw_behind(rng, size_hw, light)
    # A shadow falls far behind, where it is out of focus as well.
    canvas = Canvas(image, replace(light, penumbra=max(0.4, light.penumbra)))
    far = side * rng.uniform(0.2, 0.6)
    if rng.random() < 0.6:
        canvas.lay(rng, draw_framed(rng, size_hw, disease), None, lift_px=far)
    else:
        n = int(rng.integers(1, 4))
        leaves = draw_leaves(
            rng, any_species(rng), int(side * rng.uniform(0.5, 1.1)), disease, n
        )
        angle = rng.uniform(0, 2 * pi)
        for leaf in leaves:
            x, y = (np.array([0.5, 0.5]) + rng.normal(0, 0.15, 2)) * (w, h)
            own = angle + rng.normal(0, 0.8)
            x, y = x - 0.5 * leaf.length_px * cos(own), y - 0.5 * leaf.length_px * sin(own)
            place = Place((x, y), own, rng.uniform(0.9, 1.3), rng.uniform(0.6, 1.0))
            canvas.lay(rng, leaf, place, lift_px=side * rng.uniform(0.03, 0.15))
    canvas.leaf[foliage & (canvas.leaf == 0)] = IGNORE
    return canvas


def _hand_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], disease: str, light: Light
) -> Canvas:
    h, w = size_hw
    side = float(min(h, w))
    foliage = np.zeros(size_hw, bool)
    if rng.random() < 0.65:
        image, foliage = draw_behind(rng, size_hw, light)
    else:
        image = draw_sheet(rng, size_hw, light)
    canvas = Canvas(image, light)
    skin = sample_skin(rng, side)
    heading = rng.uniform(0, 2 * pi)
    middle = np.array([w, h]) * rng.uniform(0.4, 0.6, 2)
    forward = np.array([cos(heading), sin(heading)])
    root = middle - 0.9 * side * forward
    on_hand = np.zeros(size_hw, np.float32)
    if rng.random() < 0.7:  # fingers or a palm below the leaf
        wide = replace(skin, radius_px=skin.radius_px * rng.uniform(1, 1.5))
        end = middle + side * rng.uniform(-0.1, 0.45) * forward
        on_hand = draw_fingers(
            rng, canvas.image, wide, light, _xy(root), _xy(end), int(rng.integers(2, 5))
        )
    size = side * rng.uniform(0.6, 1.4)
    leaf = draw_sprite(rng, sample_species(rng), int(size), disease)
    place = Place(
        _xy(middle), rng.uniform(0, 2 * pi), rng.uniform(0.9, 1.2), rng.uniform(0.7, 1),
        "center",
    )  # fmt: skip
    canvas.lay(rng, leaf, place, lift_px=side * log_uniform(rng, 0.005, 0.05))
    covered = np.zeros(size_hw, np.float32)
    if rng.random() < 0.75:  # the thumb lies on the leaf
        end = middle + side * rng.uniform(-0.4, 0.05) * forward
        end = end + rng.normal(0, 0.1 * side, 2)
        thumb = replace(skin, radius_px=1.2 * skin.radius_px)
        covered = draw_fingers(rng, canvas.image, thumb, light, _xy(root), _xy(end), 1)
        canvas.cover(covered)
    bare = (canvas.leaf == 0) & (on_hand < 0.5) & (covered < 0.5)
    canvas.leaf[foliage & bare] = IGNORE
    return canvas


def _xy(point: Float32[np.ndarray, "2"] | np.ndarray) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def _grass_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], disease: str, light: Light
) -> Canvas:
    side = float(min(size_hw))
    kind = rng.random()
    if kind < 0.3:  # scanned, or magnified on paper
        white = rng.uniform(0.85, 1.0)
        ground = np.full((*size_hw, 3), white, np.float32)
        canvas = Canvas(ground if rng.random() < 0.6 else draw_sheet(rng, size_hw, light),
                        light)  # fmt: skip
        for _ in range(int(rng.integers(1, 3))):
            leaf_shape = draw_framed(rng, size_hw, disease, "grass")
            canvas.lay(rng, leaf_shape, None, lift_px=side * log_uniform(rng, 0.003, 0.04))
        return canvas
    foliage = np.zeros(size_hw, bool)
    if kind < 0.6:
        canvas = Canvas(draw_soil(rng, size_hw, light), light)
        rows = rng.random() < 0.6
    else:
        image, foliage = draw_behind(rng, size_hw, light)
        canvas, rows = Canvas(image, light), False
    n = int(log_uniform(rng, 6.0, 120.0))
    grow_grass(rng, canvas, disease, n, side * log_uniform(rng, 0.012, 0.07), rows=rows)
    if rng.random() < 0.3:
        leaf_shape = draw_framed(rng, size_hw, disease, "grass")
        canvas.lay(rng, leaf_shape, None, lift_px=side * log_uniform(rng, 0.01, 0.1))
    canvas.leaf[foliage & (canvas.leaf == 0)] = IGNORE
    return canvas


def _undergrowth_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], disease: str, light: Light
) -> Canvas:
    del disease
    image, foliage = draw_undergrowth(rng, size_hw, light)
    canvas = Canvas(image, light)
    canvas.leaf[foliage] = IGNORE
    return canvas


def _empty_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], disease: str, light: Light
) -> Canvas:
    del disease
    kind = rng.random()
    if kind < 0.4:
        canvas = Canvas(draw_soil(rng, size_hw, light), light)
        scatter_litter(rng, canvas, int(rng.integers(0, 16)))
        return canvas
    if kind < 0.65:
        canvas = Canvas(draw_sheet(rng, size_hw, light), light)
    elif kind < 0.73:
        skin = sample_skin(rng, float(min(size_hw)))
        canvas = Canvas(draw_palm(rng, size_hw, skin, light), light)
    elif kind < 0.8:
        canvas = Canvas(draw_sky(rng, size_hw), light)
    elif kind < 0.9:
        canvas = Canvas(draw_wood(rng, size_hw, light), light)
    else:
        canvas = Canvas(draw_wall(rng, size_hw, light), light)
    if rng.random() < 0.2:
        lay_objects(rng, canvas.image, light)
    if rng.random() < 0.25:
        h, w = size_hw
        root = (rng.uniform(-0.1, 1.1) * w, 1.1 * h)
        tip = (rng.uniform(0.2, 0.8) * w, rng.uniform(0.2, 0.7) * h)
        skin = sample_skin(rng, float(min(h, w)))
        draw_fingers(rng, canvas.image, skin, light, root, tip, int(rng.integers(1, 5)))
    if rng.random() < 0.3:
        scatter_litter(rng, canvas, int(rng.integers(1, 4)))
    return canvas


_DRAW: dict[str, Callable[[np.random.Generator, tuple[int, int], str, Light], Canvas]] = {
    "leaf": _leaf_scene,
    "soil": _soil_scene,
    "canopy": _canopy_scene,
    "foreground": _foreground_scene,
    "hand": _hand_scene,
    "grass": _grass_scene,
    "undergrowth": _undergrowth_scene,
    "none": _empty_scene,
}
