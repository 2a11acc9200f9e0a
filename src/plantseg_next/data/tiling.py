"""Tiles: sampling them for training, cutting and stitching them for inference.

Training samples informative tiles at random scale and rotation; inference covers every
pixel without seams. Both operate on arrays, without a network.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from plantseg_next.structures import IGNORE, NO_LESION, Sample, is_lesion

BACKGROUND_FRACTION = 0.3
"""Fraction of tiles with a uniformly drawn center, instead of a lesion."""
CELL = 16
"""Side of a cell of an information map, in pixels."""


@dataclass(frozen=True)
class TileGrid:
    """Overlapping tiles that cover an image, and the weights that hide their seams.

    A tile's weight is 0 in an outer rim of a quarter of the overlap, where scores depend
    on padding, and then rises as a squared sine; at the border of the image, which no
    other tile covers, it is 1. If the network's receptive field reaches no further than
    the rim, the stitched scores equal the untiled ones exactly.

    Args:
        image_hw: Size of the image.
        tile_px: Side of the square tiles.
        overlap_px: Least overlap of neighbors; less than ``tile_px``.

    Example:
        >>> TileGrid((100, 300), tile_px=128, overlap_px=32).lefts
        (0, 86, 172)
    """

    image_hw: tuple[int, int]
    tile_px: int
    overlap_px: int

    @property
    def tops(self) -> tuple[int, ...]:
        """First rows of the tiles."""
        return _starts(self.image_hw[0], self.tile_px, self.overlap_px)

    @property
    def lefts(self) -> tuple[int, ...]:
        """First columns of the tiles."""
        return _starts(self.image_hw[1], self.tile_px, self.overlap_px)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def cut(
        self, image: UInt8[np.ndarray, "h w c"]
    ) -> Iterator[UInt8[np.ndarray, "tile tile c"]]:
        """Yield the tiles row by row; outside the image they are mirrored."""
        for top in self.tops:
            for left in self.lefts:
                tile = image[top : top + self.tile_px, left : left + self.tile_px]
                yield pad_to(tile, (self.tile_px, self.tile_px))

    def stitch(
        self, scores: Iterable[Float32[np.ndarray, "k tile tile"]]
    ) -> Iterator[tuple[int, Float32[np.ndarray, "k rows w"]]]:
        """Yield bands of the image's scores, each with its first row, top to bottom.

        Only rows that later tiles still change are kept, so memory does not grow with
        the height of the image.

        Args:
            scores: Scores of the tiles, in the order of ``cut``.

        Yields:
            First row and weighted mean of the scores, ``(k, rows, w)``.
        """
        height, width = self.image_hw
        down, across = self._windows(self.tops), self._windows(self.lefts)
        scores = iter(scores)
        total = np.zeros((0, 0, 0), np.float32)
        weight = np.zeros((0, 0), np.float32)
        done = 0  # rows of the image already yielded
        for i, top in enumerate(self.tops):
            rows = min(self.tile_px, height - top)
            for j, left in enumerate(self.lefts):
                score = next(scores)
                if not total.size:
                    total = np.zeros((len(score), self.tile_px, width), np.float32)
                    weight = np.zeros((self.tile_px, width), np.float32)
                columns = min(self.tile_px, width - left)
                window = np.outer(down[i][:rows], across[j][:columns])
                here = np.s_[:rows, left : left + columns]
                total[:, *here] += score[:, :rows, :columns] * window
                weight[here] += window
            last = i + 1 == len(self.tops)
            ready = (height if last else self.tops[i + 1]) - done
            yield done, total[:, :ready] / weight[:ready]
            done += ready
            _shift_up(total, ready)
            _shift_up(weight, ready)

    def _windows(self, starts: tuple[int, ...]) -> list[Float32[np.ndarray, " tile"]]:
        return [
            _window(
                self.tile_px,
                self.overlap_px,
                rises=start != starts[0],
                falls=start != starts[-1],
            )
            for start in starts
        ]


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    if length <= tile:
        return (0,)
    n = -(-(length - overlap) // (tile - overlap))
    return tuple(round(i * (length - tile) / (n - 1)) for i in range(n))


def _window(
    tile: int, overlap: int, *, rises: bool, falls: bool
) -> Float32[np.ndarray, " tile"]:
    """Return one axis of a tile's weights, in [0, 1]."""
    rim = overlap // 4
    ramp = max(1, overlap - 2 * rim)
    from_edge = np.arange(tile) + 0.5 - rim
    rise = np.sin(0.5 * np.pi * np.clip(from_edge / ramp, 0, 1)) ** 2
    window = np.ones(tile)
    if rises:
        window *= rise
    if falls:
        window *= rise[::-1]
    return window.astype(np.float32)


def _shift_up(band: np.ndarray, rows: int) -> None:
    """Drop the first rows of the second-to-last axis, in place; append zeros."""
    left = band.shape[-2] - rows
    band[..., :left, :] = band[..., rows:, :].copy()
    band[..., left:, :] = 0


def pad_to(
    image: UInt8[np.ndarray, "h w c"], size_hw: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Return the image padded to ``size_hw`` at its right and lower edge by mirroring.

    OpenCV mirrors repeatedly, so an image of one pixel works too.
    """
    bottom, right = size_hw[0] - image.shape[0], size_hw[1] - image.shape[1]
    if bottom <= 0 and right <= 0:
        return image
    return cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REFLECT)


def shrink_to(
    image: UInt8[np.ndarray, "h w 3"], long_side_px: int | None
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Return the image with its long side at most ``long_side_px``; never enlarged."""
    scale = shrink_scale(image.shape[:2], long_side_px)
    if scale == 1:
        return image
    h, w = (max(1, round(n * scale)) for n in image.shape[:2])
    return cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)


def shrink_sample(sample: Sample, long_side_px: int | None) -> Sample:
    """Return the sample with its long side at most ``long_side_px``; masks by nearest."""
    scale = shrink_scale(sample.lesion.shape, long_side_px)
    if scale == 1:
        return sample
    image = shrink_to(sample.image, long_side_px)
    size = image.shape[1::-1]
    lesion, leaf = (
        cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        for mask in (sample.lesion, sample.leaf)
    )
    return replace(sample, image=image, lesion=lesion, leaf=leaf)


def shrink_scale(size_hw: tuple[int, int], long_side_px: int | None) -> float:
    """Return the factor, at most 1, that brings the long side to ``long_side_px``."""
    if long_side_px is None:
        return 1.0
    return min(1.0, long_side_px / max(size_hw))


@dataclass(frozen=True)
class Placement:
    """Position, scale and rotation of a training tile on an image.

    Args:
        center_xy: Center of the tile, in pixels of the image.
        scale: Tile pixels per image pixel; 2 magnifies.
        angle_deg: Rotation, counter-clockwise.
        mirrored: Whether left and right are exchanged.
    """

    center_xy: tuple[float, float]
    scale: float = 1.0
    angle_deg: float = 0.0
    mirrored: bool = False

    def matrix(self, tile_px: int) -> Float[np.ndarray, "2 3"]:
        """Return the affine map from image to tile coordinates."""
        angle = np.deg2rad(self.angle_deg)
        linear = self.scale * np.array(
            [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        )
        if self.mirrored:
            linear[0] *= -1
        middle = (tile_px - 1) / 2
        shift = middle - linear @ np.asarray(self.center_xy)
        return np.hstack([linear, shift[:, None]])


def draw_tile(sample: Sample, placement: Placement, tile_px: int) -> Sample:
    """Return the tile of an image and its masks at a placement.

    Outside the image, the tile is mirrored and its masks are ``IGNORE``. The tile keeps
    the image-level label unless the mask of the image shows lesions and the tile has
    none of them.
    """
    matrix = placement.matrix(tile_px)
    size = (tile_px, tile_px)
    image = cv2.warpAffine(
        sample.image,
        matrix,
        size,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    lesion, leaf = (
        cv2.warpAffine(
            mask,
            matrix,
            size,
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(IGNORE,),
        )
        for mask in (sample.lesion, sample.leaf)
    )
    hidden = not is_lesion(lesion).any() and is_lesion(sample.lesion).any()
    return Sample(sample.key, image, lesion, leaf, IGNORE if hidden else sample.disease)


def covered(
    image_hw: tuple[int, int], placement: Placement, tile_px: int
) -> Bool[np.ndarray, "tile tile"]:
    """Return which pixels of a tile lie inside the image; the rest is mirrored."""
    return (
        cv2.warpAffine(
            np.ones(image_hw, np.uint8),
            placement.matrix(tile_px),
            (tile_px, tile_px),
            flags=cv2.INTER_NEAREST,
        )
        > 0
    )


def lesion_information(
    lesion: UInt8[np.ndarray, "h w"], class_weights: Float[np.ndarray, " k"]
) -> Float32[np.ndarray, "gh gw"]:
    """Return the information map of a labeled image: weighted lesion pixels per cell.

    Args:
        lesion: Lesion class ids.
        class_weights: Weight of a pixel of each class, "no lesion" (0) included; larger
            for rare classes.

    Returns:
        Mean weight of the pixels of each cell of ``CELL`` pixels; 0 without a lesion.
    """
    weights = np.zeros(256, np.float32)
    weights[: len(class_weights)] = class_weights
    weights[NO_LESION] = 0
    return _cell_means(weights[lesion])


def saliency(image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "gh gw"]:
    """Return the information map of an unlabeled image: the contrast of each cell.

    The distance in CIELAB between the finely and the coarsely blurred image
    (Achanta et al. 2009, frequency-tuned saliency, with a local mean instead of their
    global one): high for spots on a leaf, low for even leaf or background.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    fine = cv2.blur(lab, (3, 3))
    coarse = cv2.blur(lab, (4 * CELL + 1, 4 * CELL + 1))
    return _cell_means(np.linalg.norm(fine - coarse, axis=2).astype(np.float32))


def choose_center(
    information: Float32[np.ndarray, "gh gw"],
    *,
    reach_cells: float,
    rng: np.random.Generator,
    background_fraction: float = BACKGROUND_FRACTION,
) -> tuple[float, float]:
    """Return a random center of a tile.

    A cell is drawn with probability proportional to its information, or uniformly with
    probability ``background_fraction`` and where the map is zero: without background
    tiles, a network predicts lesions everywhere.

    Args:
        information: Weight of each cell, >= 0: lesions, saliency or uncertainty.
        reach_cells: Half the side of a tile, in cells; a drawn cell lies anywhere in the
            inner half of its tile, not always in its center.
        rng: Random generator.
        background_fraction: Probability of a uniform draw, in [0, 1].

    Returns:
        ``(x, y)`` in pixels of the image.
    """
    weights = information.astype(np.float64)
    rows, columns = weights.shape
    is_uniform = rng.random() < background_fraction or weights.sum() <= 0
    probability = (
        np.full(weights.size, 1 / weights.size)
        if is_uniform
        else weights.ravel() / weights.sum()
    )
    row, column = divmod(int(rng.choice(weights.size, p=probability)), columns)
    jitter = rng.uniform(-reach_cells / 2, reach_cells / 2, 2) if not is_uniform else (0, 0)
    y = _keep_inside(row + 0.5 + jitter[0], rows, reach_cells)
    x = _keep_inside(column + 0.5 + jitter[1], columns, reach_cells)
    return x * CELL, y * CELL


def class_weights(pixels: Int64[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Return the weight of a pixel of each class: one over the root of its count."""
    return 1 / np.sqrt(np.maximum(pixels, 1))


def _keep_inside(center: float, length: int, reach: float) -> float:
    """Return the center moved so that its tile overlaps the image as far as possible."""
    low, high = sorted((reach, length - reach))
    if length < 2 * reach:  # the tile is larger than the image: vary its position
        low, high = (low + length / 2) / 2, (high + length / 2) / 2
    return float(np.clip(center, low, high))


def _cell_means(weights: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "gh gw"]:
    rows, columns = (-(-n // CELL) for n in weights.shape)
    padded = np.zeros((rows * CELL, columns * CELL), np.float32)
    padded[: weights.shape[0], : weights.shape[1]] = weights
    return padded.reshape(rows, CELL, columns, CELL).mean((1, 3))
