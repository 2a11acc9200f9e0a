"""Prediction of whole images: cut into tiles, predict them, stitch the probabilities.

Probabilities of all classes are held for a band of rows only, whatever the size of the
image: rows are finished as soon as no later tile covers them. Finished rows take three or
five bytes per pixel.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Float16, Float32, UInt8

from plantseg_next.data.tiling import TileGrid, shrink_scale, shrink_to
from plantseg_next.errors import DataError
from plantseg_next.inference.backends import Backend, TorchBackend
from plantseg_next.models.bundle import ModelCard
from plantseg_next.structures import ClassMap, Prediction

if TYPE_CHECKING:
    from torch import nn

TILES_AT_ONCE = 4
SOFTMAX_VALUES = 2**17
"""Logits per step of the softmax: half a MiB, which stays in the cache of a core."""


@dataclass(frozen=True)
class Predictor:
    """Predict images of any size.

    Args:
        backend: Returns the logits of tiles.
        classes: Names of the class ids.
        tile_px: Side of a tile; a multiple of 32.
        long_side_px: Larger images are shrunk to this, and their probabilities resized
            to the image's own size; ``None`` keeps every pixel.
        tiles_at_once: Tiles per call of the backend.
        threshold: Smallest probability of any lesion that is marked as lesion.
        only_finite: Whether scores that are not finite are refused; a run, whose weights
            change, recovers from them by itself.
    """

    backend: Backend
    classes: ClassMap
    tile_px: int
    long_side_px: int | None
    tiles_at_once: int = TILES_AT_ONCE
    threshold: float = 0.5
    only_finite: bool = False

    def scale(self, size_hw: tuple[int, int]) -> float:
        """Return the factor by which an image of this size is shrunk first, at most 1."""
        return shrink_scale(size_hw, self.long_side_px)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Prediction:
        """Return the prediction for an upright RGB image, at its own size.

        Raises:
            DataError: If ``only_finite``, and a score is not.
        """
        small = shrink_to(image, self.long_side_px)
        grid = TileGrid(small.shape[:2], self.tile_px, self.tile_px // 4)
        class_id = np.zeros(small.shape[:2], np.uint8)
        lesion = np.zeros(small.shape[:2], np.float16)
        leaf = np.zeros(small.shape[:2], np.float16)
        diseases = DiseaseVote(len(self.classes.diseases))
        for top, band in grid.stitch(self._probabilities(grid, small, diseases)):
            rows = slice(top, top + band.shape[1])
            class_id[rows] = band[1:-1].argmax(0) + 1
            lesion[rows] = band[1:-1].sum(0)
            leaf[rows] = band[-1]
        size = image.shape[:2]
        lesion = _resize(lesion, size)
        class_id = cv2.resize(class_id, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return Prediction(
            lesion=np.where(lesion >= self.threshold, class_id, 0).astype(np.uint8),
            lesion_probability=lesion,
            leaf_probability=_resize(leaf, size) if self.classes.has_leaf else None,
            disease_probability=diseases.result(),
        )

    def _probabilities(
        self,
        grid: TileGrid,
        image: UInt8[np.ndarray, "h w 3"],
        diseases: "DiseaseVote",
    ) -> Iterator[Float32[np.ndarray, "k1 tile tile"]]:
        """Yield the probabilities of each tile: of the lesion classes, then of leaf."""
        tiles = grid.cut(image)
        while batch := list(islice(tiles, self.tiles_at_once)):
            logits = self.backend(np.stack(batch))
            for lesion, leaf, disease in zip(*logits, strict=True):
                tile = tile_probabilities(lesion, leaf)
                plant = (1 - tile[0]).mean()
                if self.classes.has_leaf:
                    plant += tile[-1].mean()
                probability = softmax(disease, np.empty_like(disease))
                # One score that is not finite makes the mean of its tile so.
                if self.only_finite and not math.isfinite(plant + probability.sum()):
                    raise DataError(
                        "The model gives scores that are not finite.",
                        needed="weights with which its network can be computed",
                        fix="take another copy of the model, or train it again",
                    )
                diseases.add(probability, weight=float(plant))
                yield tile


def tile_probabilities(
    lesion: Float32[np.ndarray, "k h w"], leaf: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "k1 h w"]:
    """Return the probabilities of one tile: of the ``k`` lesion classes, then of leaf.

    Args:
        lesion: Logits, as ``TileLogits.lesion``; they are not changed.
        leaf: Logit of leaf minus that of not leaf.
    """
    k, height, width = lesion.shape
    out = np.empty((k + 1, height, width), np.float32)
    step = max(1, SOFTMAX_VALUES // (k * width))
    for top in range(0, height, step):
        rows = slice(top, top + step)
        softmax(lesion[:, rows], out[:-1, rows])
    sigmoid = np.tanh(0.5 * leaf, out=out[-1])  # unlike exp, it cannot overflow
    sigmoid += 1
    sigmoid *= 0.5
    return out


def softmax(
    logits: Float32[np.ndarray, " k *map"], out: Float32[np.ndarray, " k *map"]
) -> Float32[np.ndarray, " k *map"]:
    """Write the softmax over the first axis to ``out``, and return that; ``k`` may be 0."""
    np.subtract(logits, logits.max(0, initial=-np.inf), out=out)
    np.exp(out, out=out)
    out /= out.sum(0)
    return out


class DiseaseVote:
    """Average the tiles' image-level probabilities, weighted by their area of plant.

    Args:
        n: Number of diseases; 0 if the model has none.
    """

    def __init__(self, n: int) -> None:
        self._total = np.zeros(n)
        self._weight = 0.0

    def add(self, probability: Float32[np.ndarray, " d"], *, weight: float) -> None:
        """Add one tile; ``weight`` is its fraction of leaf or lesion."""
        self._total += probability * (weight + 1e-6)
        self._weight += weight + 1e-6

    def result(self) -> tuple[float, ...]:
        """Return the probability of each disease; empty if there are none."""
        return tuple(float(p) for p in self._total / max(self._weight, 1e-12))


def _resize(
    score: Float16[np.ndarray, "h w"], size_hw: tuple[int, int]
) -> Float16[np.ndarray, "h2 w2"]:
    if score.shape == size_hw:
        return score
    resized = cv2.resize(
        score.astype(np.float32), size_hw[::-1], interpolation=cv2.INTER_LINEAR
    )
    return resized.astype(np.float16)


def make_predictor(
    network: "nn.Module",
    card: ModelCard,
    device: str,
    *,
    tiles_at_once: int = TILES_AT_ONCE,
) -> Predictor:
    """Return a predictor for a network that is already on the device."""
    return Predictor(
        TorchBackend(network, device),
        card.classes,
        card.tile_px,
        card.long_side_px,
        tiles_at_once,
        card.threshold,
    )
