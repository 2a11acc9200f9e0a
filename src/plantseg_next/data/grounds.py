"""Drawn grounds behind photographed leaves.

Leaves laid on paper teach nothing of soil and straw, and a network that has never seen
them takes them for lesions. Where a mask says what is leaf, the rest of a tile can show a
drawn scene instead; nothing of it is lesion, so the labels stay true.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

from plantseg_next.data.synthetic import draw_ground
from plantseg_next.structures import Sample

SCENES = 48
"""Kept by a process; each is shown turned, mirrored and in part."""
MARGIN = 1.5
"""Side of a scene, in tiles."""
SOFT_PX = 0.7
"""Spread of the blend at the leaf's edge."""


class Grounds:
    """Scenes without a leaf in focus, drawn when they are first needed.

    Args:
        tile_px: Side of a tile.
        seed: Fixes every scene.
    """

    def __init__(self, tile_px: int, *, seed: int) -> None:
        self._tile_px = tile_px
        self._seed = seed
        self._scenes: dict[int, UInt8[np.ndarray, "s s 3"]] = {}

    def behind(self, tile: Sample, rng: np.random.Generator) -> Sample:
        """Return the tile with another ground; as it is if it shows no leaf.

        Pixels of which nobody said whether they are leaf stay as they are.

        Args:
            tile: A square of ``tile_px``.
            rng: Chooses the scene and the part of it.
        """
        off = tile.leaf == 0
        if not off.any() or not (tile.leaf == 1).any():
            return tile
        ground = self._part(rng).astype(np.float32)
        blend = cv2.GaussianBlur(off.astype(np.float32), (0, 0), SOFT_PX) * off
        image = tile.image + blend[..., None] * (ground - tile.image)
        return Sample(
            tile.key,
            (image + 0.5).astype(np.uint8),
            tile.lesion,
            tile.leaf,
            tile.disease,
        )

    def _part(self, rng: np.random.Generator) -> UInt8[np.ndarray, "t t 3"]:
        number = int(rng.integers(SCENES))
        scene = self._scenes.get(number)
        if scene is None:
            scene = self._scenes[number] = self._draw(number)
        room = len(scene) - self._tile_px + 1
        top, left = (int(i) for i in rng.integers(room, size=2))
        part = scene[top : top + self._tile_px, left : left + self._tile_px]
        part = np.rot90(part, int(rng.integers(4)))
        return part[::-1] if rng.integers(2) else part

    def _draw(self, number: int) -> UInt8[np.ndarray, "s s 3"]:
        side = round(MARGIN * self._tile_px)
        rng = np.random.default_rng((self._seed, number))
        scene = draw_ground(rng, (side, side), natural=True)
        return (np.clip(scene, 0, 1) * 255 + 0.5).astype(np.uint8)
