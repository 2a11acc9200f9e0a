"""Leaves of drawn scenes: their forms, and how markings and lesions are put on them.

A ``Sprite`` is one leaf before any light falls on it, with the masks of its pixels; a
scene lays it, turned and scaled, as often as it likes.

Axes: h row, w column, s sample of an angle. Lengths are pixels, colors are in [0, 1].
"""

from dataclasses import dataclass, replace
from math import cos, pi, sin

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from plantseg_next.synthetic.leaf_shapes import (
    LeafFields,
    LeafShape,
    bite_leaf_shapes,
    grow_leaf_shapes,
    render_surface,
    smooth_noise,
    trace_leaf_shapes,
)
from scenes.lesions import Tissue, infect
from scenes.markings import draw_drops, draw_soil, mark_healthy
from scenes.surfaces import sample_color

Plane = Float32[np.ndarray, "h w"]
Rgb = Float32[np.ndarray, "h w 3"]

_SAMPLES = 2048  # of the outline of a palmate leaf, by angle
_DEAD = bytes.fromhex("8a6a48 6d4f33 a98c68 4d3a2a c2a884 9a8f84 7d4a2c 5e564e d6c7ab")
_LEAF_FORMS = ("ovate", "lance", "lobed", "compound", "palmate", "obovate")
_GROWN = {"obovate": "ovate"}  # as what it is grown before it is given its own outline
_FORM_ODDS = (0.36, 0.2, 0.1, 0.1, 0.14, 0.1)


@dataclass(frozen=True)
class Sprite:
    """One leaf in a frame of its own.

    Args:
        albedo: Color before any light falls on it.
        alpha: Coverage in [0, 1].
        lesion: Lesion class ids, 0 for none.
        height_px: Relief.
        gloss: Fraction of the glare that each pixel shows.
        base_xy: Where the leaf begins, petiole excluded.
        length_px: From there to the tip; the tip is to the right unless the leaf was
            drawn for the frame of a scene.
    """

    albedo: Rgb
    alpha: Plane
    lesion: UInt8[np.ndarray, "h w"]
    height_px: Plane
    gloss: Plane
    base_xy: tuple[float, float]
    length_px: float


@dataclass(frozen=True)
class Species:
    """Common properties of the leaves of one plant.

    Args:
        form: ovate, lance, lobed, compound, palmate or obovate.
        shape_seed: Of outline and veins.
        color_seed: Of color and markings.
        slenderness: Width over length of a blade.
        petiole: Whether a petiole is drawn with the leaf.
    """

    form: str
    shape_seed: int
    color_seed: int
    slenderness: float
    petiole: bool = True


def sample_species(rng: np.random.Generator, form: str | None = None) -> Species:
    """Return a species, of any form unless one is given."""
    drawn = _LEAF_FORMS[int(rng.choice(len(_LEAF_FORMS), p=_FORM_ODDS))]
    form = form or drawn
    slender = {"lance": (0.12, 0.36), "lobed": (0.5, 0.9), "obovate": (0.4, 0.75)}
    return Species(
        form=form,
        shape_seed=int(rng.integers(1 << 30)),
        color_seed=int(rng.integers(1 << 30)),
        slenderness=rng.uniform(*slender.get(form, (0.35, 0.8))),
    )


def draw_sprite(
    rng: np.random.Generator, species: Species, side_px: int, disease: str
) -> Sprite:
    """Return a whole leaf in a square frame, with its tip to the right.

    Args:
        rng: Source of what differs between leaves of a species.
        species: Form and color.
        side_px: Rows and columns of the frame, at least 24.
        disease: One of ``DISEASES``.
    """
    shape = np.random.default_rng(species.shape_seed)
    size_hw = (side_px, side_px)
    if species.form == "palmate":
        reach = 0.46 * side_px
        base = (0.42 * side_px, 0.5 * side_px)
        leaf_shape = LeafShape(base, 0.0, 1.1 * reach, 1.2 * reach, (0.5, 0.5))
        fields = trace_palmate(shape, size_hw, base, reach, 0.0)
        return _cropped(_finished(rng, species, fields, leaf_shape, disease))
    leaf_shapes = _whole(shape, species, side_px)
    fields = trace_leaf_shapes(rng, leaf_shapes, size_hw)
    return _cropped(
        _finished(rng, species, fields, leaf_shapes[0], disease, len(leaf_shapes) > 1)
    )


def _whole(rng: np.random.Generator, species: Species, side: int) -> tuple[LeafShape, ...]:
    leaf_shapes = grow_leaf_shapes(
        rng, (side, side), _GROWN.get(species.form, species.form)
    )
    first = leaf_shapes[0]
    if species.form == "compound":
        return _fitted(leaf_shapes, side)
    length = (0.76 if species.petiole else 0.92) * side
    fullness = (rng.uniform(1.0, 1.7), rng.uniform(0.3, 0.6))
    leaf_shape = replace(
        first,
        base_xy=((0.2 if species.petiole else 0.04) * side, 0.5 * side),
        angle=0.0,
        length_px=length,
        widest_px=length * species.slenderness,
        fullness=fullness if species.form == "obovate" else first.fullness,
        petiole=first.petiole if species.petiole else 0.0,
    )
    return (_ribbed(rng, leaf_shape),)


def _ribbed(rng: np.random.Generator, leaf_shape: LeafShape) -> LeafShape:
    """Return a blade, at times with the many close veins of gingers and bananas."""
    if leaf_shape.veins == 0 or rng.random() > 0.15:
        return leaf_shape
    return replace(
        leaf_shape,
        veins=rng.uniform(18, 45),
        vein_slant=rng.uniform(0.8, 2.5),
        lobes=(0.0, 0.0),
    )


def _fitted(leaf_shapes: tuple[LeafShape, ...], side: int) -> tuple[LeafShape, ...]:
    """Return a compound leaf with its rachis to the right, scaled to fit its frame."""
    rachis = leaf_shapes[-1]
    turn = -rachis.angle
    rotation = np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    base = np.array(rachis.base_xy)
    bases = [rotation @ (np.array(leaf_shape.base_xy) - base) for leaf_shape in leaf_shapes]
    angles = [leaf_shape.angle + turn for leaf_shape in leaf_shapes]
    tips = np.array(
        [
            b + leaf_shape.length_px * np.array([cos(a), sin(a)])
            for b, a, leaf_shape in zip(bases, angles, leaf_shapes, strict=True)
        ]
    )
    wide = max(leaf_shape.widest_px for leaf_shape in leaf_shapes) / 2
    scale = (
        0.92
        * side
        / max(float(tips[:, 0].max()) + wide, 2 * (float(np.abs(tips[:, 1]).max()) + wide))
    )
    return tuple(
        replace(
            leaf_shape,
            base_xy=(float(0.04 * side + scale * b[0]), float(0.5 * side + scale * b[1])),
            angle=a,
            length_px=leaf_shape.length_px * scale,
            widest_px=leaf_shape.widest_px * scale,
        )
        for b, a, leaf_shape in zip(bases, angles, leaf_shapes, strict=True)
    )


def draw_framed(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    disease: str,
    form: str | None = None,
) -> Sprite:
    """Return a leaf drawn for the frame of a scene: whole in it, or magnified."""
    species = sample_species(rng, form)
    side = float(min(size_hw))
    if species.form == "palmate":
        whole = rng.random() < 0.6
        reach = side * (rng.uniform(0.4, 0.6) if whole else rng.uniform(0.7, 2))
        far = max(0.0, reach - 0.5 * side)
        middle = np.array(size_hw[::-1]) / 2 + rng.uniform(-far, far, 2)
        base = (float(middle[0]), float(middle[1]))
        angle = rng.uniform(0, 2 * pi)
        leaf_shape = LeafShape(base, angle, 1.1 * reach, 1.2 * reach, (0.5, 0.5))
        fields = trace_palmate(rng, size_hw, base, reach, angle)
        return _finished(rng, species, fields, leaf_shape, disease)
    leaf_shapes = grow_leaf_shapes(
        rng, size_hw, form or _GROWN.get(species.form, species.form)
    )
    if len(leaf_shapes) == 1:
        leaf_shapes = (_ribbed(rng, leaf_shapes[0]),)
    fields = trace_leaf_shapes(rng, leaf_shapes, size_hw)
    return _finished(rng, species, fields, leaf_shapes[0], disease, len(leaf_shapes) > 1)


def _finished(
    rng: np.random.Generator,
    species: Species,
    fields: LeafFields,
    leaf_shape: LeafShape,
    disease: str,
    compound: bool = False,
) -> Sprite:
    """Return the leaf with skin, markings, damage and lesions."""
    size = leaf_shape.size_px
    fields = bite_leaf_shapes(rng, fields, size)
    if not compound and rng.random() < 0.1:
        fields = _torn(rng, fields, leaf_shape)
    own = np.random.default_rng(species.color_seed)
    albedo = render_surface(own, fields, leaf_shape)
    mark_healthy(own, albedo, fields, size)
    albedo *= np.float32(rng.normal(1, 0.06))
    grain = leaf_shape.angle if leaf_shape.veins == 0 else None
    gloss = (1 - 0.6 * fields.vein).astype(np.float32)
    lesion = np.zeros(gloss.shape, np.uint8)
    if disease != "healthy":
        lesion, left = infect(rng, disease, albedo, Tissue(fields, size, grain))
        gloss *= left
    if rng.random() < 0.12:
        draw_soil(rng, albedo, size)
    np.clip(albedo, 0.01, 1.0, out=albedo)
    alpha = np.clip(fields.depth_px + 0.5, 0, 1)
    if rng.random() < 0.12:
        draw_drops(rng, albedo, alpha)
    base, length = leaf_shape.base_xy, leaf_shape.length_px
    return Sprite(albedo, alpha, lesion, fields.height_px, gloss, base, length)


def _cropped(sprite: Sprite) -> Sprite:
    """Return the sprite without empty rows and columns: it is laid in less time."""
    margin = 4
    x, y, width, height = cv2.boundingRect((sprite.alpha > 0).astype(np.uint8))
    top, left = max(0, y - margin), max(0, x - margin)
    box = (slice(top, y + height + margin), slice(left, x + width + margin))
    if width == 0:  # no leaf at all: insects have eaten it
        return sprite
    return replace(
        sprite,
        albedo=sprite.albedo[box],
        alpha=sprite.alpha[box],
        lesion=sprite.lesion[box],
        height_px=sprite.height_px[box],
        gloss=sprite.gloss[box],
        base_xy=(sprite.base_xy[0] - left, sprite.base_xy[1] - top),
    )


def trace_palmate(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    base_xy: tuple[float, float],
    reach_px: float,
    angle: float,
) -> LeafFields:
    """Return the fields of a leaf whose main veins spread from the end of its petiole.

    Args:
        rng: Source of lobes, teeth and veins.
        size_hw: Rows and columns.
        base_xy: Where the main veins meet.
        reach_px: Length of the middle lobe.
        angle: Direction of the middle lobe, radians.
    """
    n, spread = int(rng.choice((3, 5, 7))), rng.uniform(0.55, 0.8)
    axes = spread * (np.arange(n) - n // 2)
    lengths = 1 - rng.uniform(0.04, 0.16) * np.abs(np.arange(n) - n // 2)
    theta = np.linspace(-pi, pi, _SAMPLES, dtype=np.float32)
    away = np.abs(theta[:, None] - axes)
    cut = rng.uniform(0.05, 0.6)
    outline = (lengths * (1 - cut * np.clip(away / (0.55 * spread), 0, 1) ** 1.5)).max(1)
    behind = (pi - np.abs(theta)) / rng.uniform(0.15, 0.5)
    outline = outline * (1 - np.exp(-(behind**2)))
    teeth = rng.uniform(0, 0.08)
    outline = outline * (1 - teeth * (rng.uniform(5, 14) * np.abs(theta) % 1.0))
    outline = cv2.GaussianBlur(outline[None].astype(np.float32), (0, 0), 5)[0]

    warp = 0.03 * reach_px
    dx = np.arange(size_hw[1], dtype=np.float32) - np.float32(base_xy[0])
    dx = dx + warp * smooth_noise(rng, size_hw, 0.4 * reach_px)
    dy = np.arange(size_hw[0], dtype=np.float32)[:, None] - np.float32(base_xy[1])
    dy = dy + warp * smooth_noise(rng, size_hw, 0.4 * reach_px)
    radius, turn = cv2.cartToPolar(dx, dy)
    turn = (turn - np.float32(angle) + pi) % (2 * pi) - pi
    index = np.clip((turn + pi) * ((_SAMPLES - 1) / (2 * pi)), 0, _SAMPLES - 1)
    slope = np.gradient(outline) * (_SAMPLES / (2 * pi)) / np.maximum(outline, 0.05)
    aslant = (1 / np.sqrt(1 + slope**2)).astype(np.float32)
    at = index.astype(np.int32)
    edge = outline[at] * reach_px
    depth = (edge - radius) * aslant[at]

    nearest = np.clip(np.round(turn / spread), -(n // 2), n // 2)
    off = turn - nearest * np.float32(spread)
    ahead = radius * np.cos(off)
    beside = radius * np.sin(off)
    rib = max(0.8, 0.008 * reach_px)
    vein = 1 / (1 + (beside / rib) ** 4) * (ahead > 0)
    spacing = reach_px / rng.uniform(6, 14)
    phase = (ahead - rng.uniform(0.5, 1.2) * np.abs(beside)) / spacing
    phase = phase - np.floor(phase) - 0.5
    thin = max(0.7, 0.0025 * reach_px)
    branch = 0.7 / (1 + (phase * spacing / thin) ** 4)
    vein = np.maximum(vein, branch * (ahead > 0)).astype(np.float32)
    along = (ahead / reach_px).astype(np.float32)
    across = np.clip(radius / np.maximum(edge, 1) * np.sign(off), -1.5, 1.5)
    height = (rng.uniform(0, 0.3) * spacing / 6) * np.cos(2 * pi * phase)
    height = height - rng.uniform(-0.1, 0.3) * np.abs(beside) - 0.4 * vein
    swell = reach_px * rng.uniform(0.006, 0.03)
    height = height + swell * smooth_noise(rng, size_hw, 0.3 * reach_px, 2)
    return LeafFields(
        depth.astype(np.float32),
        along,
        across.astype(np.float32),
        vein,
        height.astype(np.float32),
    )


def _torn(
    rng: np.random.Generator, fields: LeafFields, leaf_shape: LeafShape
) -> LeafFields:
    """Return the fields with one or two tears from the margin inwards."""
    h, w = fields.depth_px.shape
    depth = fields.depth_px.copy()
    x = np.arange(w, dtype=np.float32)
    y = np.arange(h, dtype=np.float32)[:, None]
    for _ in range(int(rng.integers(1, 3))):
        u, side = rng.uniform(0.2, 0.85), 1 if rng.random() < 0.5 else -1
        start = np.array(leaf_shape.base_xy) + u * leaf_shape.length_px * np.array(
            [cos(leaf_shape.angle), sin(leaf_shape.angle)]
        )
        heading = leaf_shape.angle + side * rng.uniform(0.6, 1.3)
        ahead = (x - start[0]) * cos(heading) + (y - start[1]) * sin(heading)
        aside = (y - start[1]) * cos(heading) - (x - start[0]) * sin(heading)
        size = leaf_shape.size_px
        aside = aside + 0.02 * size * smooth_noise(rng, (h, w), 0.08 * size)
        ahead = ahead - leaf_shape.widest_px * rng.uniform(0.05, 0.3)
        gap = np.abs(aside) - rng.uniform(0.05, 0.3) * np.maximum(ahead, -20)
        np.minimum(depth, np.where(ahead > -20, gap, 1e4), out=depth)
    return replace(fields, depth_px=depth.astype(np.float32))


def draw_dead(rng: np.random.Generator, side_px: int) -> Sprite:
    """Return a dead leaf that has fallen: litter, of which no part is leaf or lesion."""
    leaf = draw_sprite(rng, sample_species(rng), side_px, "healthy")
    gray = leaf.albedo.mean(axis=2, keepdims=True)
    tone = gray / (float(gray.mean()) + 1e-6)
    color = np.array(sample_color(rng, _DEAD, 0.15), np.float32)
    shape = leaf.alpha.shape
    blotch = 1 + 0.2 * smooth_noise(rng, shape, max(3.0, 0.15 * side_px), 3)
    albedo = (0.4 + 0.6 * tone) * color * blotch[..., None]
    curl = side_px * rng.uniform(0.01, 0.06) * smooth_noise(rng, shape, 0.25 * side_px, 2)
    return replace(
        leaf,
        albedo=np.clip(albedo, 0.01, 1).astype(np.float32),
        lesion=np.zeros(shape, np.uint8),
        height_px=(leaf.height_px + curl).astype(np.float32),
        gloss=0.3 * leaf.gloss,
    )
