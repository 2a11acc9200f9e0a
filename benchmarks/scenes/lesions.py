"""Lesions of drawn scenes, wider in form and color than those of ``synthetic.lesions``.

Added are large dead areas (tips, margins, sectors, patches), pin-head spots in hundreds,
angular spots between veins, rings, pale centers with dark rims, dense mildew, and faint
chlorotic and rust spots. As there, mask and color come from the same ``Extent``, so that
masks are exact.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from plantseg_next.synthetic.leaf_shapes import FAR, LeafFields, log_uniform, smooth_noise
from plantseg_next.synthetic.lesions import (
    LESION_KINDS,
    Color,
    Extent,
    Look,
    draw_look,
    paint_lesions,
    place_blots,
    ruggedness,
)
from scenes.surfaces import cells, sample_color

Plane = Float32[np.ndarray, "h w"]
Rgb = Float32[np.ndarray, "h w 3"]

_LEAST_CHANGE = 0.07  # of the color of lesions, or they are not drawn
_DEAD = bytes.fromhex(
    "6b4a2b 4a3020 8a6238 a98a5f c9b48a dccfae 7b7468 9a948a 2a211c 171412 7a3f1e b07a3c"
)
_DARK = bytes.fromhex("3a2216 20140f 4a2a2a 5a2f1a 120d0c")
_PALE = bytes.fromhex("d9cfb8 e8e2d2 b8ad98 c9b391 a59c90 f0ece0")
_HALO = bytes.fromhex("c9b02c d8c84a b8b03a e0d070")
_RUST = bytes.fromhex("b5651d 9a4a16 c98428 d9a03a 7a3a18 c2582a")
_FAINT = bytes.fromhex("b0a83a c4b850 a89a40 b89a48 d0c878 a8843c")


@dataclass(frozen=True)
class Tissue:
    """What lesions are drawn on.

    Args:
        fields: Depth, veins and coordinates of the leaf.
        size_px: Square root of length times width of the whole leaf.
        grain_angle: Direction of parallel veins, radians; ``None`` for netted veins.
    """

    fields: LeafFields
    size_px: float
    grain_angle: float | None = None

    @property
    def on(self) -> Bool[np.ndarray, "h w"]:
        """Where the leaf is."""
        return self.fields.depth_px > 0


Drawn = tuple[Extent, Look]
_Form = Callable[[np.random.Generator, Tissue], Drawn]


def infect(
    rng: np.random.Generator, disease: str, albedo: Rgb, tissue: Tissue
) -> tuple[UInt8[np.ndarray, "h w"], Plane]:
    """Draw lesions of one disease onto a leaf, in place.

    Args:
        rng: Source of their form, place and color.
        disease: One of ``LESION_KINDS``.
        albedo: Color of the leaf before any light falls on it; changed.
        tissue: The leaf.

    Returns:
        Lesion class ids, 0 for none and off the leaf; and the fraction of the gloss that
        is left.
    """
    before = albedo.copy()
    lesion = np.zeros(tissue.fields.depth_px.shape, np.uint8)
    gloss = np.ones(lesion.shape, np.float32)
    if not tissue.on.any():
        return lesion, gloss
    forms, odds = _FORMS[disease]
    for _ in range(1 if rng.random() < 0.8 else 2):
        extent, look = forms[int(rng.choice(len(forms), p=odds))](rng, tissue)
        gloss *= paint_lesions(rng, albedo, extent, look)
        lesion[tissue.on & (extent.depth_px > 0)] = LESION_KINDS.index(disease) + 1
    sick = lesion > 0
    change = np.abs(albedo[sick] - before[sick]).max(axis=1, initial=0.0)
    if change.size and float(change.mean()) < _LEAST_CHANGE:
        # Pale spots on a pale leaf: a mask of what nobody can see would be noise.
        albedo[:] = before
        return np.zeros_like(lesion), np.ones_like(gloss)
    return lesion, gloss


def _usual(rng: np.random.Generator, tissue: Tissue, disease: str) -> Drawn:
    """Return lesions as ``synthetic.lesions`` draws them, at times faint."""
    depth = tissue.fields.depth_px
    blots = place_blots(rng, disease, depth, tissue.size_px, tissue.grain_angle)
    rugged = ruggedness(rng, blots, tissue.fields.vein)
    look = draw_look(rng, disease, blots)
    if disease != "powdery mildew" and rng.random() < 0.15:
        look = replace(look, cover=look.cover * rng.uniform(0.4, 0.75))
    return blots.extent(rng.uniform(7, 25), rugged), look


def _blot_form(kind: str) -> _Form:
    """Return the form that ``synthetic.lesions`` draws."""

    def form(rng: np.random.Generator, tissue: Tissue) -> Drawn:
        return _usual(rng, tissue, kind)

    return form


def _restyled(kind: str, restyle: Callable[[np.random.Generator, Look], Look]) -> _Form:
    """Return a form with the usual places and sizes, in other colors."""

    def form(rng: np.random.Generator, tissue: Tissue) -> Drawn:
        extent, look = _usual(rng, tissue, kind)
        return extent, restyle(rng, look)

    return form


def _pale_centers(rng: np.random.Generator, look: Look) -> Look:
    dark = sample_color(rng, _DARK)
    return replace(
        look,
        center=sample_color(rng, _PALE),
        body=sample_color(rng, _PALE if rng.random() < 0.5 else _DEAD),
        rim=dark,
        halo=sample_color(rng, _HALO),
        halo_strength=max(0.0, rng.uniform(-0.5, 0.9)),
        cover=1.0,
        softness=0.0,
    )


def _ringed(rng: np.random.Generator, look: Look) -> Look:
    body = sample_color(rng, _DEAD)
    return replace(
        look,
        body=body,
        center=_scaled(body, rng.uniform(0.6, 1.4)),
        rim=_scaled(body, rng.uniform(0.5, 0.9)),
        rings=rng.uniform(0.12, 0.4),
        halo=sample_color(rng, _HALO),
        halo_strength=max(0.0, rng.uniform(-0.3, 1.0)),
    )


def _haloed(rng: np.random.Generator, look: Look) -> Look:
    body = sample_color(rng, _DARK if rng.random() < 0.5 else _DEAD)
    return replace(
        look,
        body=body,
        center=_scaled(body, rng.uniform(0.8, 1.6)),
        rim=_scaled(body, rng.uniform(0.7, 1.0)),
        halo=sample_color(rng, _HALO),
        halo_strength=rng.uniform(0.6, 1.0),
    )


def _pinheads(rng: np.random.Generator, tissue: Tissue) -> Drawn:
    """Return hundreds of dark spots of one or a few pixels."""
    extent = _points(
        rng, tissue, log_uniform(rng, 40.0, 900.0), log_uniform(rng, 0.003, 0.012)
    )
    body = sample_color(rng, _DARK if rng.random() < 0.7 else _PALE)
    look = Look(
        center=_scaled(body, rng.uniform(0.8, 1.4)),
        body=body,
        rim=_scaled(body, 0.9),
        halo=sample_color(rng, _HALO),
        halo_strength=max(0.0, rng.uniform(-0.5, 0.8)),
        cover=rng.uniform(0.7, 1.0),
    )
    return extent, look


def _pustules(rng: np.random.Generator, tissue: Tissue) -> Drawn:
    """Return rust pustules, strong or faint."""
    extent = _points(
        rng, tissue, log_uniform(rng, 20.0, 700.0), log_uniform(rng, 0.003, 0.014)
    )
    body = sample_color(rng, _RUST)
    look = Look(
        center=_scaled(body, rng.uniform(0.9, 1.4)),
        body=body,
        rim=_scaled(body, rng.uniform(0.7, 1.0)),
        halo=sample_color(rng, _HALO),
        halo_strength=max(0.0, rng.uniform(-0.3, 0.9)),
        cover=rng.uniform(0.45, 1.0),
        softness=max(0.0, rng.uniform(-0.4, 0.5)),
    )
    return extent, look


def _chlorotic(rng: np.random.Generator, tissue: Tissue) -> Drawn:
    """Return small yellowish spots with little contrast: young rust, or mites."""
    extent = _points(
        rng, tissue, log_uniform(rng, 8.0, 250.0), log_uniform(rng, 0.007, 0.035)
    )
    body = sample_color(rng, _FAINT)
    look = Look(
        center=sample_color(rng, _RUST) if rng.random() < 0.4 else _scaled(body, 1.1),
        body=body,
        rim=body,
        cover=rng.uniform(0.35, 0.8),
        softness=rng.uniform(0.2, 0.8),
        grain=0.08,
        dryness=rng.uniform(0, 0.4),
    )
    return extent, look


def _points(
    rng: np.random.Generator, tissue: Tissue, count: float, radius: float
) -> Extent:
    """Return many small spots at once: ``count`` on a whole leaf, clustered or not."""
    h, w = tissue.on.shape
    density = np.exp(rng.uniform(0, 1.5) * smooth_noise(rng, (h, w), 0.3 * tissue.size_px))
    weight = (density * (tissue.fields.depth_px > 1)).ravel().cumsum()
    extent = Extent(np.full((h, w), -FAR, np.float32), np.full((h, w), FAR, np.float32))
    if weight[-1] <= 0:
        return extent
    visible = float(tissue.on.sum()) / (0.65 * tissue.size_px**2)
    n = int(np.clip(count * visible, 1, 2500))
    sites = np.searchsorted(weight, rng.random(n) * weight[-1]).clip(max=h * w - 1)
    free = np.full(h * w, 255, np.uint8)
    free[sites] = 0
    far, label = cv2.distanceTransformWithLabels(
        free.reshape(h, w), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    typical = max(0.9, radius * tissue.size_px)
    sizes = typical * rng.lognormal(0, rng.uniform(0.1, 0.5), n + 2)
    own = sizes.astype(np.float32)[label]
    rough = 1 + 0.18 * smooth_noise(rng, (h, w), max(1.5, typical))
    distance = far * np.clip(rough, 0.6, 1.6)
    return Extent(own - distance, distance / own)


def _angular(rng: np.random.Generator, tissue: Tissue) -> Drawn:
    """Return spots with straight sides, as veins bound them."""
    h, w = tissue.on.shape
    size = max(3.0, tissue.size_px * log_uniform(rng, 0.015, 0.08))
    _, value = cells(rng, (h, w), size)
    cluster = smooth_noise(rng, (h, w), 0.3 * tissue.size_px)
    likely = rng.uniform(0.04, 0.3) * np.exp(0.8 * cluster)
    inside = (value < np.median(likely)) | ((value < likely) & (cluster > 1))
    extent = _from_mask(inside & (tissue.fields.vein < 0.7), 0.35 * size)
    body = sample_color(rng, _DEAD)
    look = Look(
        center=_scaled(body, rng.uniform(0.8, 1.3)),
        body=body,
        rim=_scaled(body, rng.uniform(0.5, 1.0)),
        halo=sample_color(rng, _HALO),
        halo_strength=max(0.0, rng.uniform(-0.4, 0.9)),
        cover=rng.uniform(0.6, 1.0),
    )
    return extent, look


def _from_mask(inside: Bool[np.ndarray, "h w"], radius_px: float) -> Extent:
    """Return the extent of an area, as if it were made of blots of one radius."""
    mask = inside.astype(np.uint8)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    depth = depth - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    depth = (depth - 0.5 * np.sign(depth)).astype(np.float32)
    return Extent(depth, np.clip(1 - depth / np.float32(radius_px), 0, FAR))


def _necrosis(rng: np.random.Generator, tissue: Tissue) -> Drawn:
    """Return one large dead area: tip, margin, one side of the midrib, or patches.

    It covers 5 to 60 % of the leaf that is in the frame.
    """
    fields, on, size = tissue.fields, tissue.on, tissue.size_px
    shape = on.shape
    kind = int(rng.choice(4, p=(0.32, 0.3, 0.13, 0.25)))
    if kind == 0:  # from the tip, at times from the base
        reach = fields.along if rng.random() < 0.85 else 1 - fields.along
        reach = reach + rng.uniform(-0.4, 0.4) * np.abs(fields.across)
    elif kind == 1:  # from the margin
        reach = np.abs(fields.across) + rng.uniform(-0.3, 0.5) * fields.along
    elif kind == 2:  # one side
        sign = 1 if rng.random() < 0.5 else -1
        reach = sign * fields.across + rng.uniform(-0.4, 0.6) * fields.along
    else:
        reach = 0.6 * smooth_noise(rng, shape, size * rng.uniform(0.15, 0.5), 2)
    cell = max(3.0, size * rng.uniform(0.06, 0.3))
    reach = reach + rng.uniform(0.04, 0.25) * smooth_noise(rng, shape, cell, 3)
    reach = reach - rng.uniform(0, 0.1) * fields.vein
    small = rng.random() < 0.5
    fraction = log_uniform(rng, 0.05, 0.6) if small else rng.uniform(0.1, 0.6)
    level = float(np.quantile(reach[on], 1 - fraction))
    extent = _from_mask(reach > level, max(3.0, size * rng.uniform(0.03, 0.2)))
    body = sample_color(rng, _DEAD)
    look = Look(
        center=sample_color(rng, _DEAD) if rng.random() < 0.4 else _scaled(body, 1.1),
        body=body,
        rim=_scaled(body, rng.uniform(0.5, 1.1)),
        halo=sample_color(rng, _HALO),
        halo_strength=max(0.0, rng.uniform(-0.4, 0.8)),
        softness=max(0.0, rng.uniform(-0.2, 0.3)),
        cover=rng.uniform(0.85, 1.0),
        rings=max(0.0, rng.uniform(-0.2, 0.12)),
        grain=log_uniform(rng, 0.03, 0.16),
        grain_px=float(np.clip(size * rng.uniform(0.004, 0.015), 1.0, 3.0)),
        dryness=rng.uniform(0.6, 1.0),
    )
    return extent, look


def _powder(rng: np.random.Generator, tissue: Tissue) -> Drawn:
    """Return mildew from a few patches to most of the leaf, thin or thick."""
    shape, size = tissue.on.shape, tissue.size_px
    field = smooth_noise(rng, shape, size * log_uniform(rng, 0.04, 0.3), 4)
    field += rng.uniform(-0.4, 0.4) * tissue.fields.vein
    fraction = log_uniform(rng, 0.04, 0.85)
    level = float(np.quantile(field[tissue.on], 1 - fraction))
    extent = _from_mask(field > level, max(2.0, size * rng.uniform(0.015, 0.06)))
    body = sample_color(rng, bytes.fromhex("dfe1da d0d4cc eceae2 c4c6bc"), 0.05)
    look = Look(
        center=_scaled(body, 1.05),
        body=body,
        rim=body,
        softness=rng.uniform(0.4, 1.0),
        cover=rng.uniform(0.45, 0.95),
        grain=rng.uniform(0.04, 0.16),
        grain_px=rng.uniform(1.0, 2.5),
        dryness=1.0,
    )
    return extent, look


def _scaled(color: Color, factor: float) -> Color:
    r, g, b = (min(1.0, c * factor) for c in color)
    return r, g, b


_FORMS: dict[str, tuple[tuple[_Form, ...], tuple[float, ...]]] = {
    "leaf spot": (
        (
            _blot_form("leaf spot"),
            _restyled("leaf spot", _pale_centers),
            _restyled("leaf spot", _ringed),
            _restyled("leaf spot", _haloed),
            _pinheads,
            _angular,
        ),
        (0.22, 0.16, 0.14, 0.16, 0.16, 0.16),
    ),
    "blight": (
        (_blot_form("blight"), _necrosis, _restyled("blight", _ringed)),
        (0.25, 0.63, 0.12),
    ),
    "powdery mildew": ((_blot_form("powdery mildew"), _powder), (0.4, 0.6)),
    "rust": ((_blot_form("rust"), _pustules, _chlorotic), (0.35, 0.35, 0.3)),
    "leaf miner": (
        (_blot_form("leaf miner"), _restyled("leaf miner", _pale_centers)),
        (0.75, 0.25),
    ),
}
