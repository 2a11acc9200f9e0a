"""A drawn scene in the making: what is laid on what, with the shadows that it casts.

Axes: h row, w column. Lengths are pixels, colors are in [0, 1].
"""

from dataclasses import dataclass, replace
from math import cos, sin

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from scenes.leaves import Sprite
from scenes.light import Light, darken, drop_shadow, light_surface
from scenes.strokes import StrokeLayer

Plane = Float32[np.ndarray, "h w"]
Rgb = Float32[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Place:
    """Where a sprite is laid.

    Args:
        xy: Column and row of ``anchor``.
        angle: By which the sprite is turned, radians.
        scale: By which its length is multiplied.
        squash: By which its width is multiplied besides; a leaf seen aslant is narrow.
            Below 0 it is mirrored.
        anchor: The base of the leaf, or the ``center`` of its frame.
    """

    xy: tuple[float, float]
    angle: float
    scale: float = 1.0
    squash: float = 1.0
    anchor: str = "base"


class Canvas:
    """A scene in the making.

    Args:
        ground: What lies below everything; changed.
        light: The light of the scene.
    """

    def __init__(self, ground: Rgb, light: Light) -> None:
        self.image = ground
        self.light = light
        self.lesion: UInt8[np.ndarray, "h w"] = np.zeros(ground.shape[:2], np.uint8)
        self.leaf: UInt8[np.ndarray, "h w"] = np.zeros(ground.shape[:2], np.uint8)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Rows and columns."""
        h, w = self.leaf.shape
        return h, w

    def lay(
        self,
        rng: np.random.Generator,
        sprite: Sprite,
        place: Place | None,
        *,
        lift_px: float,
        counts: bool = True,
        tone: float = 1.0,
    ) -> None:
        """Lay one leaf.

        Args:
            rng: Source of where its glare is.
            sprite: The leaf.
            place: ``None`` for a sprite that was drawn for this frame.
            lift_px: How far its shadow is displaced.
            counts: Whether it is leaf; litter is not.
            tone: Factor on its brightness.
        """
        box = self._box(sprite, place, lift_px)
        if box is None:
            return
        view = self.image[box]
        placed = sprite if place is None else _moved(sprite, place, box)
        if not (placed.alpha > 0.5).any():
            return
        darken(view, drop_shadow(placed.alpha, self.light, lift_px), self.light)
        albedo = placed.albedo * np.float32(tone)
        lit = light_surface(rng, albedo, placed.height_px, placed.gloss, self.light)
        view += placed.alpha[..., None] * (lit - view)
        on = placed.alpha > 0.5
        self.leaf[box][on] = int(counts)
        self.lesion[box][on] = placed.lesion[on] if counts else 0

    def lay_strokes(
        self, layer: StrokeLayer, *, lift_px: float, counts: bool, tone: float = 1.0
    ) -> None:
        """Lay stems, straw or blades of grass."""
        color, alpha, lesion = layer.finish()
        darken(self.image, drop_shadow(alpha, self.light, lift_px), self.light)
        self.image += alpha[..., None] * (color * np.float32(tone) - self.image)
        on = alpha > 0.5
        self.leaf[on] = int(counts)
        self.lesion[on] = lesion[on] if counts else 0

    def cover(self, alpha: Plane) -> None:
        """Note that something that is no leaf covers what was there."""
        on = alpha > 0.5
        self.leaf[on] = 0
        self.lesion[on] = 0

    def _box(
        self, sprite: Sprite, place: Place | None, lift_px: float
    ) -> tuple[slice, slice] | None:
        h, w = self.size_hw
        if place is None:
            return slice(0, h), slice(0, w)
        size = np.array(sprite.alpha.shape[::-1], float)
        corners = np.array([[0, 0], [size[0], 0], [0, size[1]], size])
        matrix = _matrix(sprite, place)
        at = corners @ matrix[:, :2].T + matrix[:, 2]
        if (at.max(0) < 0).any() or (at.min(0) > (w, h)).any():
            return None
        margin = 2.0 + lift_px * (1.0 + 2.5 * min(1.0, self.light.penumbra + 0.3))
        left, top = np.floor(np.maximum(at.min(0) - margin, 0)).astype(int)
        right, bottom = np.ceil(np.minimum(at.max(0) + margin, (w, h))).astype(int)
        if right - left < 3 or bottom - top < 3:
            return None
        return slice(top, bottom), slice(left, right)


def _matrix(sprite: Sprite, place: Place) -> np.ndarray:
    h, w = sprite.alpha.shape
    anchor = np.array(sprite.base_xy if place.anchor == "base" else (w / 2, h / 2))
    c, s = cos(place.angle), sin(place.angle)
    across = place.scale * place.squash
    linear = np.array([[c * place.scale, -s * across], [s * place.scale, c * across]])
    offset = np.array(place.xy) - linear @ anchor
    return np.concatenate([linear, offset[:, None]], axis=1)


def _moved(sprite: Sprite, place: Place, box: tuple[slice, slice]) -> Sprite:
    """Return the sprite as it lies in a part of the scene."""
    matrix = _matrix(sprite, place)
    matrix[:, 2] -= (box[1].start, box[0].start)
    size = (box[1].stop - box[1].start, box[0].stop - box[0].start)

    def warp(planes: np.ndarray, flags: int = cv2.INTER_LINEAR) -> np.ndarray:
        return cv2.warpAffine(planes, matrix, size, flags=flags)

    # One call for four planes takes little longer than one for one.
    surface = warp(np.dstack([sprite.albedo, sprite.height_px]))
    cover = warp(np.dstack([sprite.alpha, sprite.gloss]))
    scale = np.float32(place.scale * min(1.0, abs(place.squash)))
    return replace(
        sprite,
        albedo=surface[..., :3],
        alpha=np.ascontiguousarray(cover[..., 0]),
        lesion=warp(sprite.lesion, cv2.INTER_NEAREST),
        height_px=surface[..., 3] * scale,
        gloss=cover[..., 1],
    )
