"""Mixed tiles: a part of one tile is copied into another, with its labels.

A mix moves everything that belongs to a pixel - image, labels, ignored pixels - by one
mask. Random numbers come from PyTorch's generator, whose state a run saves.

Axes: b tile, c channel, h row, w column.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from plantseg_next.structures import IGNORE
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch

BOX_AREA = (0.02, 0.4)  # fraction of the tile
BOX_ASPECT = (0.3, 1 / 0.3)  # height over width
BACKGROUND_PROBABILITY = 0.5
"""Probability that the background of a tile with an image-level label is painted over,
where the leaf is learned: a background can reveal which folder an image is from."""


def mix(
    tiles: PseudoLabeledBatch, probability: float, *, paint_backgrounds: bool
) -> PseudoLabeledBatch:
    """Return the tiles after CutMix.

    Args:
        tiles: Of a whole step.
        probability: That a tile gets a box of another tile.
        paint_backgrounds: Whether the background of some tiles with an image-level label
            is painted over first.
    """
    device, (b, h, w) = tiles.lesion.device, tiles.lesion.shape
    if paint_backgrounds and tiles.disease is not None:
        chosen = torch.rand(b) < BACKGROUND_PROBABILITY
        tiles = paint_background(tiles, chosen.to(device) & (tiles.disease != IGNORE))
    if probability > 0:
        boxes = sample_boxes(b, (h, w), probability=probability)
        tiles = cut_mix(tiles, boxes.to(device))
    return tiles


def sample_boxes(
    b: int, size_hw: tuple[int, int], *, probability: float
) -> Bool[Tensor, "b h w"]:
    """Return a box for each tile, empty with probability ``1 - probability``.

    Source:
        Yun et al. 2019 (CutMix), arXiv:1905.04899; sizes as in UniMatch (Yang et al.
        2023, arXiv:2208.09910).
    """
    h, w = size_hw
    boxes = torch.zeros(b, h, w, dtype=torch.bool)
    for box in boxes:
        sample, area, aspect, y, x = torch.rand(5).tolist()
        if sample >= probability:
            continue
        area = (BOX_AREA[0] + area * (BOX_AREA[1] - BOX_AREA[0])) * h * w
        low, high = (math.log(a) for a in BOX_ASPECT)
        ratio = math.exp(low + aspect * (high - low))
        box_h = min(h, max(1, round(math.sqrt(area * ratio))))
        box_w = min(w, max(1, round(math.sqrt(area / ratio))))
        top, left = int(y * (h - box_h + 1)), int(x * (w - box_w + 1))
        box[top : top + box_h, left : left + box_w] = True
    return boxes


def cut_mix(tiles: PseudoLabeledBatch, boxes: Bool[Tensor, "b h w"]) -> PseudoLabeledBatch:
    """Return the tiles with the content of each box taken from the tile before.

    A tile with a box shows two leaves, so its image-level label is dropped.
    """

    def mix(tensor: Tensor) -> Tensor:
        where = boxes if tensor.ndim == 3 else boxes[:, None]
        return torch.where(where, tensor.roll(1, dims=0), tensor)

    disease, is_mixed = tiles.disease, boxes.flatten(1).any(1)
    image, lesion, leaf, valid = map(
        mix, (tiles.image, tiles.lesion, tiles.leaf, tiles.valid)
    )
    return PseudoLabeledBatch(
        image,
        lesion,
        leaf,
        valid,
        disease=None if disease is None else disease.masked_fill(is_mixed, IGNORE),
        cam_seed=None if tiles.cam_seed is None else mix(tiles.cam_seed),
    )


def paint_background(
    tiles: PseudoLabeledBatch, chosen: Bool[Tensor, " b"]
) -> PseudoLabeledBatch:
    """Return the tiles with the pixels labeled as background painted in random colors.

    Eight pixels of the background alone suffice to classify half of PlantVillage (Noyan
    2022, arXiv:2206.04374): an image-level head must not learn from them.

    Args:
        tiles: Bytes, or in [0, 1].
        chosen: Tiles to change.
    """
    b, _, h, w = tiles.image.shape
    device = tiles.image.device
    color = torch.rand(b, 3, 1, 1, device=device)
    cloud = F.interpolate(
        torch.rand(b, 3, 4, 4, device=device), (h, w), mode="bilinear", align_corners=False
    )
    paint = (color + cloud) / 2
    if not tiles.image.is_floating_point():
        paint = (255 * paint).round()
    background = (tiles.leaf == 0) & chosen[:, None, None]
    image = torch.where(background[:, None], paint.to(tiles.image.dtype), tiles.image)
    return replace(tiles, image=image)
