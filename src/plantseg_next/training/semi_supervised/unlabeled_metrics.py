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
from plantseg_next.data.quality.inspect import HARDLY_GREEN, green_share
from plantseg_next.errors import DataError
from plantseg_next.structures import NO_LESION, Views
from plantseg_next.training.semi_supervised.confidence import negative_entropy

TILES = 16


class Domains:
    """Ask a network about tiles of every data set without masks, and of those with.

    The tiles are the same every time. They are drawn anew and a few at a time, so that
    memory does not grow with the number of data sets.

    Args:
        views: Weak and strong views, by the name of the data set; ``HOME`` for the
            images with masks.
        visits: Draws that give ``TILES`` tiles.
    """

    def __init__(self, views: Mapping[str, Dataset[Views]], *, visits: int) -> None:
        self._views = views
        self._visits = visits

    @torch.no_grad()
    def __call__(self, network: nn.Module, *, at_once: int) -> dict[str, float]:
        """Return the figures of every data set, by ``NAME_of_SET``; all in [0, 1].

        Args:
            network: In eval, where it is to compute.
            at_once: Tiles that it looks at at once.

        Returns:
            ``steady``: Dice overlap of the lesions that the network sees in two lights;
            NaN where it sees none. ``doubt``: mean entropy of a pixel, as a share of the
            greatest. ``lesion``: share of the pixels that it calls lesion.
            ``colorless``: share of the tiles in which hardly anything is green.
            Nothing of a data set whose images cannot be read.
        """
        figures: dict[str, float] = {}
        for name, views in self._views.items():
            try:
                found = self._ask(network, views, at_once)
            except DataError:  # each of its images is told of when it is drawn
                continue
            figures |= {f"{figure}_of_{name}": value for figure, value in found.items()}
        return figures

    def _ask(
        self, network: nn.Module, views: Dataset[Views], at_once: int
    ) -> dict[str, float]:
        place = next(network.parameters()).device
        lesions = torch.zeros(3, dtype=torch.double)  # in one light, the other, both
        pixels = doubt = 0.0
        colorless: list[bool] = []
        for part in _parts(views, self._visits, at_once):
            colorless += [
                green_share(tile.permute(1, 2, 0).numpy()) < HARDLY_GREEN
                for tile in part.weak
            ]
            inside = part.inside.to(place)
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
            "steady": 2 * both / (one + other) if one + other else math.nan,
            "doubt": doubt / pixels if pixels else math.nan,
            "lesion": one / pixels if pixels else math.nan,
            "colorless": sum(colorless) / len(colorless),
        }


def _parts(views: Dataset[Views], visits: int, at_once: int) -> Iterator[Views]:
    """Yield the tiles of these visits, about ``at_once`` at a time."""
    held: list[Views] = []
    for draw in range(visits):
        held.append(views[draw])
        if sum(map(len, held)) >= at_once or draw == visits - 1:
            yield collate_views(held)
            held = []
