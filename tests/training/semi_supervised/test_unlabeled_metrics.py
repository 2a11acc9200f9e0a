import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from plantseg_next.errors import DataError
from plantseg_next.models.segmenter import Scores
from plantseg_next.structures import IGNORE, UnlabeledBatch
from plantseg_next.training.semi_supervised.unlabeled_metrics import UnlabeledSetMetrics

GREEN, GREY = (40, 160, 30), (90, 90, 90)


class Red(nn.Module):
    """Call a pixel a lesion by its red, a byte that is the difference of the logits."""

    def __init__(self):
        super().__init__()
        self.any_parameter = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        red = image[:, :1].float() - 128
        return Scores(torch.cat([-red, red], 1) / 2, red, red.new_zeros(len(red), 0))


class Tiles(Dataset):
    """Views by draw number."""

    def __init__(self, weak, strong):
        self._weak, self._strong = weak, strong

    def __getitem__(self, draw):
        weak, strong = self._weak[draw], self._strong[draw]
        inside = torch.ones(1, *weak.shape[1:], dtype=torch.bool)
        inside[:, :, 0] = False
        none = torch.full((1,), IGNORE, dtype=torch.uint8)
        return UnlabeledBatch(weak[None], strong[None, None], inside, none, ("tile",))


def tile(color, *, red_rows=0):
    pixels = torch.tensor(color, dtype=torch.uint8).view(3, 1, 1).repeat(1, 8, 9)
    pixels[0, :red_rows] = 255
    return pixels


def ask(weak, strong, at_once=2):
    unlabeled_metrics = UnlabeledSetMetrics({"crop": Tiles(weak, strong)}, visits=len(weak))
    return unlabeled_metrics(Red().eval(), at_once=at_once)


def test_lesions_in_two_lights_are_compared_pixel_by_pixel():
    weak = [tile(GREEN, red_rows=4), tile(GREEN, red_rows=2), tile(GREEN)]
    strong = [tile(GREEN, red_rows=2), tile(GREEN, red_rows=4), tile(GREEN)]
    found = ask(weak, strong)
    assert found["aug_consistency/crop"] == pytest.approx(2 * 4 / (6 + 6))
    assert found["lesion_fraction/crop"] == pytest.approx(6 / 24)  # outside does not count
    assert found["mean_entropy/crop"] == pytest.approx(0, abs=1e-6)
    assert found == pytest.approx(ask(weak, strong, at_once=16))


def test_a_network_that_knows_nothing_doubts_everything():
    even = [tile((128, 200, 30))]
    found = ask(even, even)
    assert found["mean_entropy/crop"] == pytest.approx(1)
    assert math.isnan(found["aug_consistency/crop"])


def test_tiles_without_any_green_are_counted():
    tiles = [tile(GREEN), tile(GREY), tile(GREY), tile((30, 60, 160))]
    assert ask(tiles, tiles)["non_green_fraction/crop"] == pytest.approx(3 / 4)


def test_a_data_set_that_cannot_be_read_has_no_figures():
    class Unreadable(Dataset):
        def __getitem__(self, draw):
            raise DataError(f"tile {draw} cannot be read.", needed="a", fix="b")

    readable = Tiles([tile(GREEN)] * 2, [tile(GREEN)] * 2)
    unlabeled_metrics = UnlabeledSetMetrics(
        {"lost": Unreadable(), "crop": readable}, visits=2
    )
    assert {name.split("/")[1] for name in unlabeled_metrics(Red(), at_once=2)} == {"crop"}
