"""Losses on logits. Pure functions, float32 inside, no state.

What joins a whole batch comes in two parts: figures of tiles, which add up or stand side
by side, and the loss that they make together. So a batch may be counted in parts.

Every loss skips ignored pixels, returns 0 with a zero gradient where nothing is left to
learn from, and stays finite for absent classes and empty masks. Sums run in float32 under
any autocast: float16 overflows past 65 504 pixels.

Axes: b tile, k class, h row, w column.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

from plantseg_next.errors import UsageError
from plantseg_next.structures import IGNORE, NO_LESION

SMOOTH = 1.0  # pixels added to both sides of an overlap ratio


class Overlap(NamedTuple):
    """Soft counts a class, in pixels, each ``(k,)``; those of parts of a batch add up.

    Args:
        tp: Probability mass on pixels of the class.
        pred: Probability mass on known pixels.
        target: Pixels of the class.
    """

    tp: Tensor
    pred: Tensor
    target: Tensor

    @property
    def fp(self) -> Tensor:
        """Probability mass on pixels of other classes."""
        return self.pred - self.tp

    @property
    def fn(self) -> Tensor:
        """Pixels of the class, less ``hit``."""
        return self.target - self.tp

    @property
    def n_known(self) -> Tensor:
        """Pixels that have a label."""
        return self.target.sum()

    def mean_present(self, loss: Tensor) -> Tensor:
        """Return the mean of a figure a class over the classes that there are."""
        present = self.target > 0
        return (loss * present).sum() / present.sum().clamp_min(1)


def overlap(logits: Float[Tensor, "b k h w"], target: Integer[Tensor, "b h w"]) -> Overlap:
    """Return the soft counts that Dice and Tversky share.

    Counts are summed over the whole batch before any ratio is taken, so that a lesion of
    three pixels in one tile is not a class score of its own.

    Args:
        logits: Unnormalized class scores; softmax over ``k`` is taken here.
        target: Class ids in [0, k), or ``IGNORE``. Ids are checked when a mask is read,
            on the CPU: a check here would stall a GPU at every step.

    Raises:
        UsageError: If ``target`` is not ``(b, h, w)`` for these logits.
    """
    b, k, h, w = logits.shape
    if target.shape != (b, h, w):
        raise UsageError(
            f"`target` has shape {tuple(target.shape)} beside logits of shape "
            f"{tuple(logits.shape)}.",
            needed=f"a target of shape {(b, h, w)}",
            fix="resize the logits to the target; never resize a label map",
        )
    known = target != IGNORE
    prob = logits.float().softmax(dim=1) * known[:, None]  # (b, k, h, w)
    ids = target.masked_fill(~known, 0).long()  # (b, h, w)
    at_truth = prob.gather(1, ids[:, None])
    # Counting by index keeps one (b, k, h, w) map alive, where one-hot keeps three. Tiles
    # are counted apart: float32 cannot count the pixels of many large ones.
    tile = torch.arange(b, device=ids.device)[:, None, None]
    flat = (ids + k * tile).flatten()
    hit = prob.new_zeros(b * k).index_add(0, flat, at_truth.flatten())
    area = prob.new_zeros(b * k).index_add(0, flat, known.flatten().float())
    return Overlap(hit.view(b, k).sum(0), prob.sum(dim=(0, 2, 3)), area.view(b, k).sum(0))


def soft_dice(found: Overlap, *, smooth: float = SMOOTH) -> Float[Tensor, ""]:
    """Return one minus the Dice overlap, averaged over the classes present.

    Args:
        found: Counts of the whole batch.
        smooth: Pixels added to both sides of the ratio; 0 is the paper's form.

    Returns:
        Loss in [0, 1], 0 for a perfect match.

    Source:
        Milletari et al. 2016 (V-Net), arXiv:1606.04797. We depart in three ways: softmax
        over k classes for their two; plain, not squared, sums in the denominator;
        classes absent from the batch leave the mean.

    Example:
        >>> target = torch.tensor([[[0, 1], [1, 255]]])
        >>> perfect = 20.0 * F.one_hot(target % 255, 2).movedim(-1, 1).float()
        >>> round(soft_dice(overlap(perfect, target)).item(), 4)
        0.0
    """
    tiny = torch.finfo(found.tp.dtype).tiny  # keeps 0 / 0 finite when smooth is 0
    both = 2 * found.tp + smooth
    return found.mean_present(1 - both / (both + found.fp + found.fn).clamp_min(tiny))


def focal_tversky(
    found: Overlap,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 1.2,
    smooth: float = SMOOTH,
) -> Float[Tensor, ""]:
    """Return the focal Tversky loss, averaged over the classes present.

    ``mean_c (1 - TI_c) ** (1 / gamma)`` with ``TI = hit / (hit + alpha * false positives
    + beta * misses)``. Orientation matters and published code disagrees: here alpha
    weighs false positives and beta misses, so beta > alpha favors recall; and the
    exponent is 1 / gamma, so that with gamma > 1 the slope does not fade while a class
    nears perfection.

    Args:
        found: Counts of the whole batch.
        alpha: Weight of false positives.
        beta: Weight of misses.
        gamma: Focus, > 0; 1 gives the plain Tversky loss.
        smooth: Pixels added to both sides of the ratio.

    Returns:
        Loss in [0, 1].

    Source:
        Abraham and Khan 2019, arXiv:1810.07842 (exponent 1 / gamma as in their code);
        Salehi et al. 2017, arXiv:1706.05721. Departure: ``1 - TI`` is held above 1e-6,
        since a power below 1 has an infinite slope at 0.
    """
    hit = found.tp
    index = (hit + smooth) / (hit + alpha * found.fp + beta * found.fn + smooth)
    return found.mean_present((1 - index).clamp_min(1e-6) ** (1 / gamma))


def cross_entropy(
    logits: Float[Tensor, "b k ..."], target: Integer[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """Return the cross-entropy of each pixel, or of each image: nats, 0 if unlabeled."""
    return F.cross_entropy(
        logits.float(), target.long(), ignore_index=IGNORE, reduction="none"
    )


def logit_adjustment(
    logits: Float[Tensor, "b k h w"],
    where: Bool[Tensor, "b h w"],
    log_prior_odds: Float[Tensor, ""] | None,
) -> Float[Tensor, "b k h w"]:
    """Return the logits that would be right if lesions were as common as the rest.

    Points and seeds lie on lesions and beside them alike, though lesions are rare. A
    network that took them for a fair sample would call too much a lesion. So it is judged
    by what it would say of such a sample.

    Args:
        logits: Of each lesion class, "no lesion" first.
        where: Pixels chosen that way; the logits of others are returned as they are.
        log_prior_odds: Log odds of "no lesion" among the pixels of the masks, in tiles
            as they are drawn: what the network learns to expect. ``None`` changes
            nothing.

    Source:
        King and Zeng 2001, doi:10.1093/oxfordjournals.pan.a004868 (prior correction);
        Menon et al. 2021, arXiv:2007.07314 (the same as a loss).
    """
    if log_prior_odds is None:
        return logits
    is_lesion = torch.arange(logits.shape[1], device=logits.device) != NO_LESION
    return logits + log_prior_odds * (is_lesion[:, None, None] & where[:, None])


def class_log_prior_odds(pixels: Integer[Tensor, " 2"]) -> Float[Tensor, ""]:
    """Return the log odds of "no lesion"; 0 where one of the two is missing.

    Args:
        pixels: Without a lesion, and with one.
    """
    none, lesion = pixels.float()
    return torch.where(pixels.all(), none.log() - lesion.log(), 0.0)


def ohem_ce(
    loss: Float[Tensor, "b h w"], n_known: Float[Tensor, ""], *, fraction: float = 0.25
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the hardest pixels of the batch.

    Args:
        loss: Cross-entropy of each pixel of the whole batch, 0 without a label.
        n_known: Pixels that have a label.
        fraction: Part of the *labeled* pixels kept, in (0, 1]. Taking it of all pixels, as
            some code does, would learn from easy ones wherever a tile is padded.

    Returns:
        Loss >= 0, in nats.

    Source:
        Wu et al. 2016, arXiv:1605.06885 (online bootstrapping). For true labels only:
        on pseudo-labels the hardest pixels are the wrongly labeled ones.
    """
    # How many are kept is known to the device alone; asking would stall a GPU.
    million = 10**6
    parts = round(fraction * million)
    most = max(1, -(-loss.numel() * parts // million))
    n_kept = ((n_known.long() * parts + million - 1) // million).clamp_min(1)
    kept = loss.flatten().topk(most).values
    is_kept = torch.arange(most, device=loss.device) < n_kept
    return (kept * is_kept).sum() / n_kept


def squared_distance(
    logits: Float[Tensor, "b k h w"],
    teacher: Float[Tensor, "b k h w"],
    label: Integer[Tensor, "b h w"],
) -> Float[Tensor, "b h w"]:
    """Return the squared distance of the student's probabilities from the teacher's.

    Args:
        logits: The student's scores.
        teacher: The teacher's scores of the same pixels; not differentiated.
        label: ``IGNORE`` where the teacher is not believed; those pixels count as 0.

    Returns:
        Mean over classes of each pixel, in [0, 2 / k].

    Source:
        Tarvainen and Valpola 2017 (Mean Teacher), arXiv:1703.01780.
    """
    gap = logits.float().softmax(1) - teacher.detach().float().softmax(1)
    return gap.square().mean(1).masked_fill(label == IGNORE, 0.0)
