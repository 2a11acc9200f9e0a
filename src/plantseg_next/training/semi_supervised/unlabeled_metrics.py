"""Domains: what can be said of a data set without looking at a mask.

Nobody can tell from images alone how right a network is about them. It can be asked
whether it says the same of an image in another light, how sure it is, and how much it
calls a lesion; and whether the images show plants at all. Beside the same figures of the
images that it learned from, a person who knows the crop can judge them.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.utils.data import Dataset

from plantseg_next.data.dataset import collate_views
from plantseg_next.data.quality.inspect import HARDLY_GREEN, green_fraction
from plantseg_next.errors import DataError
from plantseg_next.structures import NO_LESION, UnlabeledBatch
from plantseg_next.training.semi_supervised.confidence import negative_entropy

TILES = 16


class UnlabeledSetMetrics:
    """Ask a network about tiles of every data set without masks, and of those with.

    The tiles are the same every time. They are drawn anew and a few at a time, so that
    memory does not grow with the number of data sets.

    Args:
        views: Weak and strong views, by the name of the data set; ``HOME`` for the
            images with masks.
        visits: Draws that give ``TILES`` tiles.
    """

    def __init__(
        self, views: Mapping[str, Dataset[UnlabeledBatch]], *, visits: int
    ) -> None:
        self._views = views
        self._visits = visits

    @torch.no_grad()
    def __call__(self, network: nn.Module, *, at_once: int) -> dict[str, float]:
        """Return the figures of every data set, by ``NAME_of_SET``; all in [0, 1].

        Args:
            network: In eval, where it is to compute.
            at_once: Tiles that it looks at at once.

        Returns:
            ``aug_consistency``: Dice overlap of the lesions that the network sees in
            two lights; NaN where it sees none. ``mean_entropy``: mean entropy of a
            pixel, as a fraction of the greatest. ``lesion_fraction``: fraction of the
            pixels that it calls lesion. ``non_green_fraction``: fraction of the tiles in
            which hardly anything is green. Nothing of a data set whose images cannot be
            read.
        """
        metrics: dict[str, float] = {}
        for name, views in self._views.items():
            try:
                found = self._measure(network, views, at_once)
            except DataError:  # each of its images is told of when it is drawn
                continue
            metrics |= {f"{figure}/{name}": value for figure, value in found.items()}
        return metrics

    def _measure(
        self, network: nn.Module, views: Dataset[UnlabeledBatch], at_once: int
    ) -> dict[str, float]:
        place = next(network.parameters()).device
        lesions = torch.zeros(3, dtype=torch.double)  # in one light, the other, both
        pixels = doubt = 0.0
        non_green: list[bool] = []
        for part in _parts(views, self._visits, at_once):
            non_green += [
                green_fraction(tile.permute(1, 2, 0).numpy()) < HARDLY_GREEN
                for tile in part.weak
            ]
            inside = part.valid.to(place)
            weak, strong = (
                network(image.to(place)).resized(inside.shape[1:]).lesion
                for image in (part.weak, part.strong[0])
            )
            one, other = ((s.argmax(1) != NO_LESION) & inside for s in (weak, strong))
            lesions += torch.stack([one.sum(), other.sum(), (one & other).sum()]).cpu()
            doubt -= float(negative_entropy(weak.float())[inside].sum())
            pixels += float(inside.sum())
        one, other, both = lesions.tolist()
        return {
            "aug_consistency": 2 * both / (one + other) if one + other else math.nan,
            "mean_entropy": doubt / pixels if pixels else math.nan,
            "lesion_fraction": one / pixels if pixels else math.nan,
            "non_green_fraction": sum(non_green) / len(non_green),
        }


def _parts(
    views: Dataset[UnlabeledBatch], visits: int, at_once: int
) -> Iterator[UnlabeledBatch]:
    """Yield the tiles of these visits, about ``at_once`` at a time."""
    held: list[UnlabeledBatch] = []
    for draw in range(visits):
        held.append(views[draw])
        if sum(map(len, held)) >= at_once or draw == visits - 1:
            yield collate_views(held)
            held = []
