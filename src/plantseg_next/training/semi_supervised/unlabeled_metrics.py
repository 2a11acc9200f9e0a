"""Metrics of data sets without masks.

Without masks the accuracy of a network cannot be measured. What can be measured: whether
its predictions agree under two augmentations, how confident they are, which fraction of
the pixels it predicts as lesion, and whether the images show plants at all. Compare them
with the same metrics of the images that it learned from.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.data import Dataset

from plantseg_next.data.dataset import collate_views
from plantseg_next.data.quality.inspect import HARDLY_GREEN, green_fraction
from plantseg_next.errors import DataError
from plantseg_next.structures import NO_LESION, UnlabeledBatch
from plantseg_next.uncertainty.confidence import negative_entropy

TILES = 16


@torch.no_grad()
def unlabeled_set_metrics(
    network: nn.Module, views: Mapping[str, Dataset[UnlabeledBatch]], *, at_once: int
) -> dict[str, float]:
    """Return the metrics of every data set without masks, and of the images with.

    The tiles are the same every time. They are read again each time, a few at once, so
    that memory does not grow with the number of data sets.

    Args:
        network: In eval mode, on its device.
        views: Weak and strong views, by the name of the data set; ``SOURCE_DOMAIN`` for
            the images with masks. The first ``TILES`` items of each are used.
        at_once: Tiles in a forward pass.

    Returns:
        By ``METRIC/SET``, all in [0, 1]. ``aug_consistency``: Dice overlap of the lesions
        predicted under two augmentations; NaN where none is predicted. ``mean_entropy``:
        mean entropy of a pixel, as a fraction of its maximum. ``lesion_fraction``:
        fraction of the pixels predicted as lesion. ``non_green_fraction``: fraction of
        the tiles in which hardly anything is green. A data set whose images cannot be
        read has no metrics.
    """
    metrics: dict[str, float] = {}
    for name, tiles in views.items():
        try:
            measured = _measure(network, tiles, at_once)
        except DataError:  # each unreadable image is reported when it is read
            continue
        metrics |= {f"{metric}/{name}": value for metric, value in measured.items()}
    return metrics


def _measure(
    network: nn.Module, views: Dataset[UnlabeledBatch], at_once: int
) -> dict[str, float]:
    device = next(network.parameters()).device
    lesions = torch.zeros(3, dtype=torch.double)  # weak view, strong view, both
    pixels = entropy = 0.0
    non_green: list[bool] = []
    for start in range(0, TILES, at_once):
        stop = min(start + at_once, TILES)
        part = collate_views([views[i] for i in range(start, stop)])
        non_green += [
            green_fraction(tile.permute(1, 2, 0).numpy()) < HARDLY_GREEN
            for tile in part.weak
        ]
        valid = part.valid.to(device)
        weak, strong = (
            network(image.to(device)).resized(valid.shape[1:]).lesion
            for image in (part.weak, part.strong[0])
        )
        a, b = ((logits.argmax(1) != NO_LESION) & valid for logits in (weak, strong))
        lesions += torch.stack([a.sum(), b.sum(), (a & b).sum()]).cpu()
        entropy -= float(negative_entropy(weak.float())[valid].sum())
        pixels += float(valid.sum())
    n_weak, n_strong, both = lesions.tolist()
    return {
        "aug_consistency": 2 * both / (n_weak + n_strong)
        if n_weak + n_strong
        else math.nan,
        "mean_entropy": entropy / pixels if pixels else math.nan,
        "lesion_fraction": n_weak / pixels if pixels else math.nan,
        "non_green_fraction": sum(non_green) / len(non_green),
    }
