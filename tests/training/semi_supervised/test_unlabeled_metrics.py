import math
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from plantseg_next.errors import DataError
from plantseg_next.models.segmenter import Scores
from plantseg_next.structures import IGNORE, UnlabeledBatch
from plantseg_next.training.semi_supervised import unlabeled_metrics
from plantseg_next.training.semi_supervised.unlabeled_metrics import (
    TILES,
    unlabeled_set_metrics,
)

GREEN, GRAY = (40, 160, 30), (90, 90, 90)


class Red(nn.Module):
    """Predict a lesion from the red byte, which is the difference of the logits."""

    def __init__(self):
        super().__init__()
        self.any_parameter = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        red = image[:, :1].float() - 128
        return Scores(torch.cat([-red, red], 1) / 2, red, red.new_zeros(len(red), 0))


class Tiles(Dataset):
    """Views by index."""

    def __init__(self, weak, strong):
        self._weak, self._strong = weak, strong

    def __getitem__(self, index):
        weak, strong = self._weak[index], self._strong[index]
        valid = torch.ones(1, *weak.shape[1:], dtype=torch.bool)
        valid[:, :, 0] = False
        none = torch.full((1,), IGNORE, dtype=torch.uint8)
        return UnlabeledBatch(weak[None], strong[None, None], valid, none, ("tile",))


def tile(color, *, red_rows=0):
    pixels = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1).repeat(1, 8, 9)
    pixels[0, :red_rows] = 255
    return pixels


def measure(weak, strong, at_once=2):
    views = {"crop": Tiles(weak, strong)}
    with patch.object(unlabeled_metrics, "TILES", len(weak)):
        return unlabeled_set_metrics(Red().eval(), views, at_once=at_once)


def test_consistency_compares_both_augmentations_by_pixel():
    weak = [tile(GREEN, red_rows=4), tile(GREEN, red_rows=2), tile(GREEN)]
    strong = [tile(GREEN, red_rows=2), tile(GREEN, red_rows=4), tile(GREEN)]
    metrics = measure(weak, strong)
    assert metrics["aug_consistency/crop"] == pytest.approx(2 * 4 / (6 + 6))
    assert metrics["lesion_fraction/crop"] == pytest.approx(
        6 / 24
    )  # outside does not count
    assert metrics["mean_entropy/crop"] == pytest.approx(0, abs=1e-6)
    assert metrics == pytest.approx(measure(weak, strong, at_once=16))


def test_uniform_network_has_maximal_entropy():
    even = [tile((128, 200, 30))]
    metrics = measure(even, even)
    assert metrics["mean_entropy/crop"] == pytest.approx(1)
    assert math.isnan(metrics["aug_consistency/crop"])


def test_non_green_fraction_counts_tiles():
    tiles = [tile(GREEN), tile(GRAY), tile(GRAY), tile((30, 60, 160))]
    assert measure(tiles, tiles)["non_green_fraction/crop"] == pytest.approx(3 / 4)


def test_unreadable_data_set_has_no_metrics():
    class Unreadable(Dataset):
        def __getitem__(self, index):
            raise DataError(f"tile {index} cannot be read.", needed="a", fix="b")

    readable = Tiles([tile(GREEN)] * TILES, [tile(GREEN)] * TILES)
    views = {"lost": Unreadable(), "crop": readable}
    metrics = unlabeled_set_metrics(Red(), views, at_once=2)
    assert {name.split("/")[1] for name in metrics} == {"crop"}
