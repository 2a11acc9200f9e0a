"""Drawn lesions: where they sit, how far they have grown on a day, how they look.

Every kind is made of blots, each with its own place, onset and growth; an image's
lesion is their union. The mask and the colors come from the same two maps of an
``Extent``, so a mask is exact by construction and can only grow with age.

Axes: n blot, h row, w column. Lengths are pixels, time is days, colors are in [0, 1].
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32

from plantseg_next.synthetic.leaf_shapes import FAR, log_uniform, pick_color, smooth_noise

LESION_KINDS = ("leaf spot", "blight", "powdery mildew", "rust", "leaf miner")
"""Names of the lesion classes; ``LESION_KINDS[i]`` has the mask id ``i + 1``."""

HALO_REACH = 2.0
"""Zone up to which a blot can tint the leaf around it."""

Color = tuple[float, float, float]

_YOUNG_FRACTION = 0.02  # of the final area, on the day of onset
_NECROSES = bytes.fromhex("694724 47301c 66381c 876133 786952 a88c66 d9cca3 241a17")
"""Dead tissue, from brown, dark and reddish to gray, bleached and black."""

_LIKELY = {
    "leaf spot": (0.28, 0.18, 0.18, 0.10, 0.06, 0.06, 0.09, 0.05),
    "blight": (0.28, 0.32, 0.05, 0.08, 0.12, 0.05, 0.00, 0.10),
    "leaf miner": (0.30, 0.22, 0.16, 0.14, 0.04, 0.12, 0.02, 0.00),
}
"""How often a kind has each of the colors of dead tissue."""


@dataclass(frozen=True)
class Extent:
    """How far the lesions of one leaf reach on one day.

    Args:
        depth_px: Distance inside the nearest lesion edge, negative outside.
        zone: Distance from a blot's center in units of its radius; below 1 inside.
    """

    depth_px: Float32[np.ndarray, "h w"]
    zone: Float32[np.ndarray, "h w"]


@dataclass(frozen=True)
class Blots:
    """Growing blots of one kind on one leaf; a lesion is one of them or several.

    Args:
        center_xy: Column and row.
        radius_px: Radius once grown.
        stretch: Length over width, square root of it; 1 is round.
        angle: Direction of the length, radians.
        onset_days: Age of the leaf at which the blot appears, above 0.
        rate_per_day: Speed of the logistic growth of the area, above 0.
        unrest: How far the edge departs from an ellipse, no unit; 0 is smooth.
    """

    center_xy: Float[np.ndarray, "n 2"]
    radius_px: Float[np.ndarray, " n"]
    stretch: Float[np.ndarray, " n"]
    angle: Float[np.ndarray, " n"]
    onset_days: Float[np.ndarray, " n"]
    rate_per_day: Float[np.ndarray, " n"]
    unrest: float

    def radii_px(self, age_days: float) -> Float[np.ndarray, " n"]:
        """Return the radii on a day: 0 up to the onset, never falling afterwards.

        The area is logistic, ``A / (1 + (1 / s - 1) exp(-rate (age - onset)))`` with
        the fraction ``s`` of the final area ``A`` on the day of onset.
        """
        since = age_days - self.onset_days
        # Before onset the growth is not used; the bound keeps exp() from overflowing.
        growth = np.exp(-self.rate_per_day * np.maximum(since, 0.0))
        fraction = 1.0 / (1.0 + (1.0 / _YOUNG_FRACTION - 1.0) * growth)
        radii: Float[np.ndarray, " n"] = self.radius_px * np.sqrt(fraction) * (since > 0)
        return radii

    def extent(self, age_days: float, ruggedness: Float32[np.ndarray, "h w"]) -> Extent:
        """Return how far the blots reach on a day.

        Args:
            age_days: Age of the leaf.
            ruggedness: Factor on distances, in [0.6, 1.7], the same on every day: the
                edge stays behind where it is high, and a later day holds an earlier.
        """
        h, w = ruggedness.shape
        depth = np.full((h, w), -FAR, np.float32)
        zone = np.full((h, w), FAR, np.float32)
        for (x, y), radius, stretch, angle in zip(
            self.center_xy.tolist(),
            self.radii_px(age_days).tolist(),
            self.stretch.tolist(),
            self.angle.tolist(),
            strict=True,
        ):
            reach = HALO_REACH * radius * max(stretch, 1 / stretch) / 0.6 + 2
            top, left = max(0, int(y - reach)), max(0, int(x - reach))
            box = (slice(top, int(y + reach) + 1), slice(left, int(x + reach) + 1))
            factor = ruggedness[box]
            if radius == 0 or factor.size == 0:
                continue
            dx = np.arange(left, left + factor.shape[1], dtype=np.float32) - x
            dy = np.arange(top, top + factor.shape[0], dtype=np.float32)[:, None] - y
            along = (np.cos(angle) * dx + np.sin(angle) * dy) / stretch
            across = (np.cos(angle) * dy - np.sin(angle) * dx) * stretch
            distance = cv2.magnitude(along, across) * factor
            np.maximum(depth[box], radius - distance, out=depth[box])
            np.minimum(zone[box], distance / radius, out=zone[box])
        return Extent(depth, zone)


def ruggedness(
    rng: np.random.Generator, blots: Blots, vein: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w"]:
    """Return the factor on distances that makes edges irregular, in [0.6, 1.7].

    Args:
        rng: Source of the irregularity; the same state gives the same at every age.
        blots: Their mean radius sets the scale of it.
        vein: Strength of the veins in [0, 1]; lesions are slow to cross them.
    """
    scale = float(blots.radius_px.mean()) if blots.radius_px.size else 1.0
    cell_px = float(np.clip(0.7 * scale, 3, 64))
    noise = blots.unrest * smooth_noise(rng, vein.shape, cell_px, octaves=3)
    factor = np.exp(noise) * (1 + rng.uniform(0, 0.35) * vein)
    return np.clip(factor, 0.6, 1.7).astype(np.float32)


@dataclass(frozen=True)
class Look:
    """Colors of one kind of lesion on one leaf; RGB in [0, 1].

    Args:
        center: Color in the middle of a blot.
        body: Color of most of it.
        rim: Color along the edge.
        halo: Color of the tint around it, which is no part of the lesion.
        halo_strength: Fraction of the leaf's color that the halo replaces at the edge.
        softness: Width of the edge over the radius; 0 is an edge of one pixel. The mask
            ends where a soft edge is half way.
        cover: Fraction of the leaf's color that the lesion replaces.
        rings: Strength of concentric zones.
        grain: Strength of the texture.
        grain_px: Size of the texture.
        dryness: Fraction of the gloss that is lost.
    """

    center: Color
    body: Color
    rim: Color
    halo: Color = (0.66, 0.62, 0.14)
    halo_strength: float = 0.0
    softness: float = 0.0
    cover: float = 1.0
    rings: float = 0.0
    grain: float = 0.15
    grain_px: float = 2.0
    dryness: float = 0.8


def draw_look(rng: np.random.Generator, kind: str, blots: Blots) -> Look:
    """Return the colors of one kind, one of ``LESION_KINDS``, for one leaf."""
    scale = float(blots.radius_px.mean()) if blots.radius_px.size else 1.0
    grain_px = float(np.clip(scale * rng.uniform(0.06, 0.22), 1.0, 5.0))
    halo = _jitter(rng, (0.70, 0.60, 0.13) if rng.random() < 0.6 else (0.6, 0.65, 0.2))
    if kind == "powdery mildew":
        body = _jitter(rng, (0.86, 0.87, 0.83), 0.05)
        return Look(
            center=_scaled(body, rng.uniform(0.9, 1.05)),
            body=body,
            rim=body,
            softness=rng.uniform(0.25, 0.7),
            cover=rng.uniform(0.5, 0.95),
            grain=rng.uniform(0.03, 0.14),
            grain_px=grain_px,
            dryness=1.0,
        )
    if kind == "rust" and scale > 4:  # patches with powder, else single pustules
        body = _jitter(rng, (0.66, 0.54, 0.18))
        dead = pick_color(rng, _NECROSES[:9])
        orange = _jitter(rng, (0.69, 0.48, 0.15))
        return Look(
            center=dead if rng.random() < 0.25 else orange,
            body=body,
            rim=_jitter(rng, (0.64, 0.60, 0.22)),
            halo=halo,
            halo_strength=rng.uniform(0.0, 0.35),
            softness=rng.uniform(0.2, 0.9),
            cover=rng.uniform(0.7, 1.0),
            grain=log_uniform(rng, 0.02, 0.25),
            grain_px=max(1.0, grain_px / 2),
            dryness=rng.uniform(0.2, 0.8),
        )
    if kind == "rust":
        body = _jitter(rng, (0.58, 0.30, 0.10))
        return Look(
            center=_scaled(body, rng.uniform(0.8, 1.5)),
            body=body,
            rim=_scaled(body, rng.uniform(0.7, 1.0)),
            halo=halo,
            halo_strength=rng.uniform(0.3, 0.9),
        )
    body = _jitter(rng, pick_color(rng, _NECROSES, _LIKELY[kind]))
    track = kind == "leaf miner" and bool(blots.rate_per_day.max(initial=0.0) > 2)
    if track:
        body = _jitter(rng, (0.74, 0.70, 0.52))
    pale = kind == "leaf spot" and rng.random() < 0.3
    center = (0.80, 0.74, 0.62) if pale else _scaled(body, rng.uniform(0.75, 1.3))
    return Look(
        center=_scaled(body, 0.55) if track else center,
        body=body,
        rim=_scaled(body, rng.uniform(0.5, 1.05)),
        halo=halo,
        halo_strength=max(0.0, rng.uniform(-0.4, 0.9)),
        softness=max(0.0, rng.uniform(-0.3, 0.25)) if kind == "blight" else 0.0,
        cover=rng.uniform(0.75, 1.0) if kind == "blight" else rng.uniform(0.9, 1.0),
        rings=max(0.0, rng.uniform(-0.15, 0.2)),
        grain=log_uniform(rng, 0.02, 0.25 if kind == "blight" else 0.16),
        grain_px=grain_px,
        dryness=rng.uniform(0.4, 1.0),
    )


def paint_lesions(
    rng: np.random.Generator,
    albedo: Float32[np.ndarray, "h w 3"],
    extent: Extent,
    look: Look,
) -> Float32[np.ndarray, "h w"]:
    """Color the lesions into ``albedo``, in place.

    Args:
        rng: Source of the texture; the same state gives the same texture at every age.
        albedo: Color of the leaf before any light falls on it, in [0, 1].
        extent: Where the lesions are.
        look: Their colors.

    Returns:
        Fraction of the gloss that is left, in [0, 1]: dead and powdery tissue is dull.
    """
    h, w = extent.zone.shape
    grain = 1 + look.grain * smooth_noise(rng, (h, w), look.grain_px)
    drift = 0.5 * smooth_noise(rng, (h, w), 6 * look.grain_px, octaves=2)
    zone = extent.zone
    near = zone < HALO_REACH
    if not near.any():
        return np.ones((h, w), np.float32)
    soft = look.softness > 0
    inside = (1 - zone) / look.softness if soft else extent.depth_px
    inside = np.clip(0.5 + inside, 0, 1) * look.cover

    halo = np.clip((HALO_REACH - zone) / (HALO_REACH - 1), 0, 1) ** 2
    halo *= look.halo_strength * np.clip(1 + drift, 0, 1)
    core = np.clip((0.6 - zone + 0.3 * drift) / 0.35, 0, 1)
    rim = np.clip((zone - 0.72 + 0.15 * drift) / 0.2, 0, 1)
    shade = grain * (1 + 0.2 * drift)
    if look.rings > 0:
        shade += look.rings * np.cos(np.minimum(zone, 2) * 14)
    for channel in range(3):
        plane = albedo[..., channel]
        color = look.body[channel] + core * (look.center[channel] - look.body[channel])
        color += rim * (look.rim[channel] - color)
        plane += halo * (look.halo[channel] - plane)
        plane += inside * (color * shade - plane)
    return (1 - look.dryness * inside).astype(np.float32)


def _jitter(rng: np.random.Generator, color: Color, spread: float = 0.12) -> Color:
    bright = rng.normal(1, spread)
    r, g, b = (float(np.clip(c * bright * rng.normal(1, 0.06), 0, 1)) for c in color)
    return r, g, b


def _scaled(color: Color, factor: float) -> Color:
    r, g, b = (min(1.0, c * factor) for c in color)
    return r, g, b


@dataclass(frozen=True)
class _Habit:
    """How often, how large and how irregular one kind is; lengths over the leaf's size.

    Args:
        count: Fewest and most lesions on a whole leaf.
        radius: Smallest and largest final radius.
        blots: Fewest and most blots a lesion.
        unrest: Least and greatest departure from an ellipse.
        at_margin: Fraction of lesions that start at the margin.
    """

    count: tuple[float, float]
    radius: tuple[float, float]
    blots: tuple[int, int]
    unrest: tuple[float, float]
    at_margin: float = 0.0


_SPOTS = _Habit((1.0, 50.0), (0.014, 0.07), (1, 1), (0.05, 0.2), 0.1)
_BLIGHT = _Habit((1.0, 4.0), (0.06, 0.32), (2, 6), (0.15, 0.35), 0.75)
_MILDEW = _Habit((2.0, 14.0), (0.03, 0.16), (1, 3), (0.15, 0.4))
_RUST_PATCHES = _Habit((4.0, 50.0), (0.012, 0.055), (1, 2), (0.08, 0.25), 0.1)
_PUSTULES = _Habit((50.0, 350.0), (0.004, 0.013), (1, 1), (0.05, 0.15))
_BLOTCHES = _Habit((1.0, 6.0), (0.025, 0.10), (2, 5), (0.12, 0.3), 0.15)
_TRACKS = _Habit((1.0, 5.0), (0.010, 0.018), (60, 130), (0.05, 0.12))


def place_blots(
    rng: np.random.Generator,
    kind: str,
    leaf_depth_px: Float32[np.ndarray, "h w"],
    leaf_size_px: float,
    grain_angle: float | None = None,
) -> Blots:
    """Return the blots of one kind on one leaf, before any has grown.

    Args:
        rng: Source of places, sizes, onsets and rates.
        kind: One of ``LESION_KINDS``.
        leaf_depth_px: Distance inside the leaf, negative outside.
        leaf_size_px: Square root of length times width of the whole leaf, of which the
            image may show a part only.
        grain_angle: Direction of parallel veins, radians, along which lesions stretch;
            ``None`` for netted veins.

    Returns:
        At least one blot if any leaf is in the image, else none. The first appears
        within three days and is never small.
    """
    habit = _habit(rng, kind)
    on_leaf = np.flatnonzero(leaf_depth_px > 1)
    if on_leaf.size == 0:
        return _blots(np.zeros((0, 7)), 0.0)
    near_margin = on_leaf[leaf_depth_px.ravel()[on_leaf] < 2 + 0.03 * leaf_size_px]
    visible = on_leaf.size / (0.65 * leaf_size_px**2)
    n = int(np.clip(rng.poisson(log_uniform(rng, *habit.count) * visible), 1, 260))
    typical_px = leaf_size_px * log_uniform(rng, *habit.radius)
    spread = rng.uniform(0.1, 0.5)
    common_stretch = rng.uniform(1.2, 2.2) if grain_angle is not None else 1.0
    rows = []
    for index in range(n):
        margin = near_margin.size and rng.random() < habit.at_margin
        site = int(rng.choice(near_margin if margin else on_leaf))
        y, x = map(float, divmod(site, leaf_depth_px.shape[1]))
        radius = max(1.3, typical_px * float(np.exp(spread * rng.standard_normal())))
        radius = max(radius, typical_px) if index == 0 else radius
        onset = rng.uniform(1, 3) + (rng.exponential(3.5) if index else 0.0)
        rate = log_uniform(rng, 0.4, 1.0)
        angle = rng.uniform(0, np.pi) if grain_angle is None else grain_angle
        if habit is _TRACKS:
            rows += _track(rng, x, y, radius, onset)
            continue
        for k in range(int(rng.integers(habit.blots[0], habit.blots[1] + 1))):
            off = rng.normal(0, 0.5 * radius, 2) if k else (0.0, 0.0)
            size = radius * (rng.uniform(0.4, 0.8) if k else 1.0)
            stretch = common_stretch * rng.uniform(1, 1.2)
            start = onset + (rng.exponential(1.5) if k else 0.0)
            rows.append((x + off[0], y + off[1], size, stretch, angle, start, rate))
    return _blots(np.array(rows), rng.uniform(*habit.unrest))


def _blots(table: Float[np.ndarray, "n 7"], unrest: float) -> Blots:
    radius, stretch, angle, onset, rate = table[:, 2:].T
    return Blots(table[:, :2], radius, stretch, angle, onset, rate, unrest)


def _habit(rng: np.random.Generator, kind: str) -> _Habit:
    match kind:
        case "leaf spot":
            return _SPOTS
        case "blight":
            return _BLIGHT
        case "powdery mildew":
            return _MILDEW
        case "rust":
            return _RUST_PATCHES if rng.random() < 0.65 else _PUSTULES
        case _:
            return _BLOTCHES if rng.random() < 0.72 else _TRACKS


def _track(
    rng: np.random.Generator, x: float, y: float, radius: float, onset: float
) -> list[tuple[float, ...]]:
    """Return the blots of a serpentine mine, which lengthens as they start in turn."""
    n = int(rng.integers(*_TRACKS.blots))
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(0.25 * rng.standard_normal(n))
    width = radius * np.linspace(0.6, 1.2, n)
    xs = x + np.cumsum(np.cos(heading) * width * 0.7)
    ys = y + np.cumsum(np.sin(heading) * width * 0.7)
    return [(xs[k], ys[k], width[k], 1.0, 0.0, onset + 12 * k / n, 4.0) for k in range(n)]
