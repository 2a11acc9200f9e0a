"""Plants of drawn scenes: leaves on stems, rosettes, seedlings, grass, litter.

Lengths are pixels, colors are in [0, 1].
"""

from math import pi

import numpy as np

from plantseg_next.synthetic.leaf_shapes import log_uniform, smooth_noise
from plantseg_next.synthetic.lesions import LESION_KINDS
from scenes.canvas import Canvas, Place
from scenes.leaves import (
    Species,
    Sprite,
    draw_dead,
    draw_sprite,
    sample_species,
)
from scenes.light import darken, distance_px, drop_shadow
from scenes.strokes import (
    Color,
    Points,
    StrokeLayer,
    bowed_line,
    draw_blade,
)
from scenes.surfaces import lay_straw, sample_color

_STEMS = bytes.fromhex("6f8f3a 8aa050 5a7a34 9a9a58 8a5a4a a8b468")
_GRASS = bytes.fromhex("4f8a2f 6aa83a 3c6e2e 86b848 5a8f6a 7a9f5a 9ab84a 2f5a34")
_DEAD_GRASS = bytes.fromhex("d8923a c8a060 b8824a d8c088 a86a30 e0a850 8a6a48")
_FRUIT = bytes.fromhex("c02a1e d8541e e0a020 5a2a5a 7a1e2a e8d040 e8e8e8 d87aa0")
_BARK = bytes.fromhex("6a5440 8a7660 4a3a30 9a8a78 7a5a44")
_SPOTS = {
    "rust": bytes.fromhex("b5651d 9a4a16 d08a30"),
    "powdery mildew": bytes.fromhex("dcdcd4 c8ccc4"),
    "leaf miner": bytes.fromhex("d0c8a0 b8b088"),
    "leaf spot": bytes.fromhex("5a3018 3a2216 7a4a2a"),
}


def draw_leaves(
    rng: np.random.Generator, species: Species, side_px: int, disease: str, n: int
) -> list[Sprite]:
    """Return leaves of one plant; a third of those of a diseased plant are healthy."""
    leaves = []
    for k in range(n):
        sick = disease != "healthy" and (k == 0 or rng.random() < 0.67)
        own = disease if sick else "healthy"
        leaves.append(draw_sprite(rng, species, max(24, side_px), own))
    return leaves


def scatter_litter(
    rng: np.random.Generator,
    canvas: Canvas,
    n: int,
    *,
    sizes: tuple[float, float] = (0.1, 0.5),
) -> None:
    """Lay fallen dead leaves and pieces of them; none is leaf or lesion.

    Args:
        rng: Source of their form and place.
        canvas: The scene.
        n: Their number; at most two kinds.
        sizes: Least and greatest length of a whole one, of the shorter side of the frame.
    """
    h, w = canvas.size_hw
    side = float(min(h, w))
    kinds = [
        draw_dead(rng, max(24, int(side * log_uniform(rng, *sizes))))
        for _ in range(min(n, 2))
    ]
    for _ in range(n):
        xy = (rng.uniform(-0.05, 1.05) * w, rng.uniform(-0.05, 1.05) * h)
        place = Place(
            xy, rng.uniform(0, 2 * pi), rng.uniform(0.3, 1.1), rng.uniform(0.4, 1), "center"
        )
        dead = kinds[int(rng.integers(len(kinds)))]
        lift = side * log_uniform(rng, 0.004, 0.03)
        canvas.lay(
            rng, dead, place, lift_px=lift, counts=False, tone=rng.uniform(0.6, 1.25)
        )


def grow_plants(
    rng: np.random.Generator,
    canvas: Canvas,
    leaves: list[Sprite],
    feet: list[tuple[float, float]],
    size_px: float,
    habit: str,
) -> None:
    """Draw young plants of one kind, seen from above.

    Args:
        rng: Source of their form.
        canvas: The scene.
        leaves: What their leaves look like.
        feet: Column and row of the foot of each.
        size_px: From the foot to the ends of the leaves, typically.
        habit: rosette, shoot (leaves in pairs along a stem) or clover (leaflets in threes
            or fours at the ends of stalks).
    """
    layer = StrokeLayer(canvas.size_hw)
    stem = sample_color(rng, _STEMS)
    thick = max(0.7, size_px * rng.uniform(0.012, 0.03))
    bright = rng.uniform(0.95, 1.5)  # leaves in the sun outshine soil
    places: list[Place] = []
    for xy in feet:
        own = size_px * rng.uniform(0.6, 1.2)
        if habit == "shoot":
            places += _shoot(rng, layer, xy, own, stem, thick)
        else:
            places += _rosette(rng, layer, xy, own, stem, thick, habit == "clover")
    canvas.lay_strokes(layer, lift_px=0.05 * size_px, counts=True, tone=bright)
    for k, place in enumerate(places):
        leaf = leaves[int(rng.integers(len(leaves)))]
        scaled = Place(place.xy, place.angle, place.scale / leaf.length_px, place.squash)
        tone = bright * rng.uniform(0.85, 1.1) * (0.8 + 0.2 * k / len(places))
        lift = size_px * rng.uniform(0.02, 0.14)
        canvas.lay(rng, leaf, scaled, lift_px=lift, tone=tone)


def _rosette(
    rng: np.random.Generator,
    layer: StrokeLayer,
    xy: tuple[float, float],
    size_px: float,
    stem: Color,
    thick: float,
    clover: bool,
) -> list[Place]:
    """Return the leaves around a foot; ``scale`` is their length."""
    places = []
    n, turn = int(rng.integers(2, 10)), rng.uniform(0, 2 * pi)
    for k in range(n):
        angle = turn + k * 2.4 + rng.normal(0, 0.2)
        reach = size_px * rng.uniform(0.6, 1.0)
        bare = 0.55 if clover else rng.uniform(0.1, 0.45)
        stalk = bowed_line(rng, xy, angle, bare * reach, 0.15)
        _stem(layer, stalk, thick, stem)
        if clover:
            places += _leaflets(rng, stalk, 0.45 * reach)
        else:
            places.append(_at_end(rng, stalk, (1 - bare) * reach))
    return places


def _shoot(
    rng: np.random.Generator,
    layer: StrokeLayer,
    xy: tuple[float, float],
    size_px: float,
    stem: Color,
    thick: float,
) -> list[Place]:
    places = []
    line = bowed_line(rng, xy, rng.uniform(0, 2 * pi), 1.6 * size_px, 0.25, 16)
    _stem(layer, line, thick, stem)
    leaf_px = size_px * rng.uniform(0.3, 0.7)
    step = int(rng.integers(2, 5))
    for k in range(step, len(line), step):
        for side in (-1, 1):
            if rng.random() < 0.1:
                continue
            forward = np.arctan2(*(line[k] - line[k - 1])[::-1])
            angle = forward + side * rng.uniform(0.5, 1.3)
            own = leaf_px * rng.uniform(0.7, 1.15) * (1.1 - 0.4 * k / len(line))
            places.append(
                Place((line[k][0], line[k][1]), angle, own, side * rng.uniform(0.6, 1))
            )
    places.append(_at_end(rng, line, leaf_px))
    return places


def _leaflets(rng: np.random.Generator, stalk: Points, length_px: float) -> list[Place]:
    """Return three or four leaflets at the end of a stalk; ``scale`` is their length."""
    forward = float(np.arctan2(*(stalk[-1] - stalk[-2])[::-1]))
    turns = (-1.3, 0.0, 1.3) if rng.random() < 0.5 else (-1.9, -0.6, 0.6, 1.9)
    end = (float(stalk[-1][0]), float(stalk[-1][1]))
    return [
        Place(
            end,
            forward + turn + rng.normal(0, 0.12),
            length_px * rng.uniform(0.85, 1.1),
            rng.uniform(0.7, 1.0),
        )
        for turn in turns
    ]


def _at_end(rng: np.random.Generator, stalk: Points, length_px: float) -> Place:
    forward = float(np.arctan2(*(stalk[-1] - stalk[-2])[::-1]))
    end = (float(stalk[-1][0]), float(stalk[-1][1]))
    squash = rng.uniform(0.5, 1.0)
    return Place(end, forward + rng.normal(0, 0.2), length_px, squash)


def _stem(layer: StrokeLayer, line: Points, thick_px: float, color: Color) -> None:
    half = np.linspace(thick_px, 0.6 * thick_px, len(line))
    layer.ribbon(line, half, color, relief=0.18)


def grow_grass(
    rng: np.random.Generator,
    canvas: Canvas,
    disease: str,
    n: int,
    width_px: float,
    *,
    rows: bool,
) -> None:
    """Draw blades of a cereal in three layers, with the shadows of upper on lower ones.

    Args:
        rng: Source of their form.
        canvas: The scene.
        disease: One of ``DISEASES``: dead tips and whole dead blades, or spots along the
            veins.
        n: Blades.
        width_px: Typical width of a blade.
        rows: Whether tufts stand in rows seen from above; else blades rise from below.
    """
    h, w = canvas.size_hw
    side = float(min(h, w))
    green, lean = sample_color(rng, _GRASS), rng.normal(0, 0.3)
    tilt, offset = rng.normal(0, 0.15), rng.uniform(0.2, 0.8)
    lines = int(rng.integers(1, 4))
    foot = [(rng.uniform(-0.05, 1.05), rng.normal(0, 0.02)) for _ in range(n // 6 + 2)]
    length = side * (log_uniform(rng, 0.15, 0.5) if rows else log_uniform(rng, 0.6, 1.3))
    sick_fraction = rng.uniform(0.15, 0.8)
    dead = sample_color(rng, _DEAD_GRASS)
    for layer_index in range(3):
        layer = StrokeLayer((h, w))
        for _ in range(max(1, n // 3)):
            if rows:
                tuft = int(rng.integers(len(foot)))
                x = (foot[tuft][0] + rng.normal(0, 0.012)) * w
                row = (tuft % lines + offset) / lines + foot[tuft][1]
                y = (row + tilt * (x / w - 0.5)) * h + rng.normal(0, 0.012) * h
                angle = rng.uniform(0, 2 * pi)
            else:
                x, y = rng.uniform(-0.2, 1.2) * w, rng.uniform(0.7, 1.25) * h
                angle = -pi / 2 + lean + rng.normal(0, 0.4)
            tone = (0.6, 0.8, 1.0)[layer_index] * rng.uniform(0.8, 1.15)
            r, g, b = (c * tone for c in green)
            points = bowed_line(rng, (x, y), angle, length * rng.uniform(0.5, 1.2), 0.4)
            width = width_px * rng.lognormal(0, 0.25)
            half = draw_blade(rng, layer, points, width, (r, g, b))
            if disease != "healthy" and rng.random() < sick_fraction:
                r, g, b = (c * tone for c in dead)
                _infect_blade(rng, layer, points, half, disease, (r, g, b))
        canvas.lay_strokes(layer, lift_px=side * rng.uniform(0.01, 0.05), counts=True)


def _infect_blade(
    rng: np.random.Generator,
    layer: StrokeLayer,
    points: Points,
    half: np.ndarray,
    disease: str,
    dead: Color,
) -> None:
    lesion = LESION_KINDS.index(disease) + 1
    if disease == "blight":
        start = 0 if rng.random() < 0.3 else int(rng.integers(3, len(points) - 3))
        relief = rng.uniform(0.03, 0.15)
        layer.ribbon(points[start:], half[start:], dead, relief=relief, lesion=lesion)
        return
    color = sample_color(rng, _SPOTS[disease])
    n = int(log_uniform(rng, 2.0, 40.0))
    at = rng.uniform(1, len(points) - 2, n)
    low = np.floor(at).astype(int)
    along = points[low + 1] - points[low]
    along = along / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    off = rng.uniform(-0.65, 0.65, n) * half[low]
    centers = points[low] + (at - low)[:, None] * (points[low + 1] - points[low])
    centers = centers + off[:, None] * normal
    radii = np.maximum(0.5, half[low] * rng.uniform(0.08, 0.3) * rng.lognormal(0, 0.3, n))
    radii = np.minimum(radii, 0.6 * half[low] + 0.4)
    angle = float(np.arctan2(along[0, 1], along[0, 0]))
    layer.spots(centers, radii, color, angle, lesion)


def fill_with_leaves(
    rng: np.random.Generator,
    canvas: Canvas,
    leaves: list[Sprite],
    size_px: float,
    cover: float,
) -> None:
    """Lay overlapping leaves over the whole frame, lower ones darker.

    Args:
        rng: Source of their places.
        canvas: The scene.
        leaves: What they look like.
        size_px: Their typical length.
        cover: Area of all leaves over that of the frame.
    """
    h, w = canvas.size_hw
    area = np.mean([x.alpha.sum() * (size_px / x.length_px) ** 2 for x in leaves])
    n = int(np.clip(cover * h * w / (0.8 * area), 3, 36))
    # Slender leaves of that number would leave the frame bare; they are longer.
    size_px *= max(1.0, float(np.sqrt(cover * h * w / (0.8 * area * n))))
    columns = max(1, round(np.sqrt(n * w / h)))
    lines = max(1, round(n / columns))
    grid = [(c, r) for c in range(-1, columns + 1) for r in range(-1, lines + 1)]
    lean = rng.uniform(0, 2 * pi)
    spread = rng.uniform(0.5, 3.0)
    for k, index in enumerate(rng.permutation(len(grid)).tolist()):
        c, r = grid[index]
        x = (c + 0.5 + rng.normal(0, 0.4)) * w / columns
        y = (r + 0.5 + rng.normal(0, 0.4)) * h / lines
        leaf = leaves[int(rng.integers(len(leaves)))]
        scale = size_px / leaf.length_px * rng.uniform(0.65, 1.25)
        squash = rng.uniform(0.55, 1.1) * (1 if rng.random() < 0.5 else -1)
        place = Place((x, y), lean + rng.normal(0, spread), scale, squash, "center")
        tone = (0.45 + 0.6 * k / len(grid)) * rng.uniform(0.85, 1.15)
        canvas.lay(rng, leaf, place, lift_px=size_px * rng.uniform(0.02, 0.2), tone=tone)


def grow_undergrowth(rng: np.random.Generator, canvas: Canvas) -> None:
    """Cover the ground with what grows and lies below a crop, nearly in focus.

    Small leaves of several wild species in clumps, some dry, grass, twigs, straw and
    litter, with gaps in deep shade and flecks of sun. The foliage is marked as leaf; none
    of it has lesions.
    """
    h, w = canvas.size_hw
    side = float(min(h, w))
    if rng.random() < 0.7:
        lay_straw(rng, canvas.image, canvas.light, int(rng.integers(8, 60)))
    scatter_litter(rng, canvas, int(rng.integers(0, 30)), sizes=(0.05, 0.25))
    for _ in range(int(rng.integers(2, 6))):
        kind = rng.random()
        if kind < 0.6:
            _clumps(rng, canvas, side * log_uniform(rng, 0.03, 0.2))
        elif kind < 0.8:
            wide = side * log_uniform(rng, 0.003, 0.02)
            grow_grass(
                rng, canvas, "healthy", int(rng.integers(9, 90)), wide,
                rows=rng.random() < 0.5,
            )  # fmt: skip
        elif kind < 0.9:
            grow_branches(rng, canvas, int(rng.integers(1, 5)))
        else:
            scatter_litter(rng, canvas, int(rng.integers(3, 20)), sizes=(0.05, 0.3))
    shade = smooth_noise(rng, (h, w), side * log_uniform(rng, 0.02, 0.3))
    canvas.image *= np.exp(rng.uniform(0.1, 0.9) * shade)[..., None].astype(np.float32)


def _clumps(rng: np.random.Generator, canvas: Canvas, size_px: float) -> None:
    """Lay small leaves of one species, in clumps of different brightness."""
    h, w = canvas.size_hw
    dry = rng.random() < 0.2
    if dry:
        leaves = [draw_dead(rng, max(24, int(size_px))) for _ in range(2)]
    else:
        leaves = draw_leaves(rng, any_species(rng), int(size_px), "healthy", 2)
    for _ in range(int(rng.integers(2, 8))):
        middle = np.array([rng.uniform(0, w), rng.uniform(0, h)])
        spread = size_px * rng.uniform(0.5, 3.0)
        tone = rng.uniform(0.35, 1.25)
        lean = rng.uniform(0, 2 * pi)
        for _ in range(int(rng.integers(3, 18))):
            x, y = middle + rng.normal(0, spread, 2)
            leaf = leaves[int(rng.integers(len(leaves)))]
            place = Place(
                (float(x), float(y)),
                lean + rng.normal(0, 1.0),
                size_px / leaf.length_px * rng.uniform(0.5, 1.3),
                rng.uniform(0.4, 1.1),
                "center",
            )
            canvas.lay(
                rng, leaf, place, lift_px=size_px * rng.uniform(0.05, 0.4),
                counts=not dry, tone=tone * rng.uniform(0.75, 1.2),
            )  # fmt: skip


def hang_fruit(rng: np.random.Generator, canvas: Canvas, n: int) -> None:
    """Draw round fruit or flower heads of one color; none is leaf or lesion."""
    h, w = canvas.size_hw
    side = min(h, w)
    color = np.array(sample_color(rng, _FRUIT), np.float32)
    typical = side * log_uniform(rng, 0.015, 0.12)
    away = canvas.light.away_xy
    for _ in range(n):
        radius = max(1.5, typical * rng.lognormal(0, 0.25))
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        far = distance_px((h, w), x, y) / np.float32(radius)
        alpha = np.clip((1 - far) * radius + 0.5, 0, 1)
        # The side that faces the light is bright, and mirrors it at one spot.
        near = distance_px((h, w), x - 0.4 * radius * away[0], y - 0.4 * radius * away[1])
        near /= np.float32(radius)
        tone = np.clip(1.25 - 0.75 * near, 0.2, 1.25)
        lit = tone[..., None] * color
        lit += (0.6 * np.exp(-((near / 0.22) ** 2)))[..., None]
        shadow = drop_shadow(alpha, canvas.light, 0.5 * radius)
        darken(canvas.image, shadow, canvas.light)
        canvas.image += alpha[..., None] * (lit - canvas.image)
        canvas.cover(alpha)


def grow_branches(rng: np.random.Generator, canvas: Canvas, n: int) -> None:
    """Draw woody stems through the frame; they are no leaf."""
    h, w = canvas.size_hw
    side = min(h, w)
    layer = StrokeLayer((h, w))
    color = sample_color(rng, _BARK)
    for _ in range(n):
        start = (rng.uniform(-0.1, 1.1) * w, 1.1 * h)
        line = bowed_line(rng, start, -pi / 2 + rng.normal(0, 0.6), 1.5 * side, 0.3)
        half = side * log_uniform(rng, 0.006, 0.03) * np.linspace(1.0, 0.5, len(line))
        layer.ribbon(line, half, color, relief=rng.uniform(0.1, 0.35))
    canvas.lay_strokes(layer, lift_px=side * rng.uniform(0.01, 0.06), counts=False)


def any_species(rng: np.random.Generator) -> Species:
    """Return a species whose leaves are on stems, drawn elsewhere."""
    species = sample_species(rng)
    return Species(
        species.form,
        species.shape_seed,
        species.color_seed,
        species.slenderness,
        petiole=False,
    )
