"""The loss of sparse labels: points, scribbles and CAM seeds.

Axes: b tile, k class, h row, w column.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from plantseg_next.structures import NO_LESION, is_lesion


class SparseCounts(NamedTuple):
    """Number of sparse labels of a whole step, each at least 1.

    Args:
        on: On lesions.
        off: Off lesions.
    """

    on: Tensor
    off: Tensor


def balanced_ce(
    entropy: Float[Tensor, "b h w"], labels: Integer[Tensor, "b h w"], counts: SparseCounts
) -> Float[Tensor, ""]:
    """Return the cross-entropy of sparse labels: those on and off lesions count alike.

    Args:
        entropy: Cross-entropy of each pixel.
        labels: Lesion classes; ``IGNORE`` where there is no label.
        counts: Of the whole step.

    Source:
        Huang et al. 2018 (DSRG), doi:10.1109/CVPR.2018.00733.
    """
    on = (entropy * is_lesion(labels)).sum() / counts.on
    off = (entropy * (labels == NO_LESION)).sum() / counts.off
    return (on + off) / 2


def logit_adjustment(
    logits: Float[Tensor, "b k h w"],
    where: Bool[Tensor, "b h w"],
    log_prior_odds: Float[Tensor, ""] | None,
) -> Float[Tensor, "b k h w"]:
    """Return the logits for a balanced sample of lesion and "no lesion" pixels.

    Points and seeds lie on lesions about as often as off them, though lesions are rare.
    Trained on them as on a random sample, a network would predict too many lesions. So
    the loss on such pixels is computed on logits adjusted to a balanced prior.

    Args:
        logits: Of each lesion class, "no lesion" first.
        where: Pixels sampled that way; the logits of others are returned unchanged.
        log_prior_odds: Log odds of "no lesion" among the pixels of the masks, in the
            training tiles: the prior that the network learns. ``None`` changes nothing.

    Source:
        King and Zeng 2001, doi:10.1093/oxfordjournals.pan.a004868 (prior correction);
        Menon et al. 2021, arXiv:2007.07314 (the same as a loss).
    """
    if log_prior_odds is None:
        return logits
    of_lesion = torch.arange(logits.shape[1], device=logits.device) != NO_LESION
    return logits + log_prior_odds * (of_lesion[:, None, None] & where[:, None])


def class_log_prior_odds(pixels: Integer[Tensor, " 2"]) -> Float[Tensor, ""]:
    """Return the log odds of "no lesion"; 0 where one of the two counts is 0.

    Args:
        pixels: Number of pixels without a lesion, and with one.
    """
    none, lesion = pixels.float()
    return torch.where(pixels.all(), none.log() - lesion.log(), 0.0)
