"""Losses on logits. Pure functions, float32 inside, no state.

Every loss skips ignored pixels, returns 0 with a zero gradient where no pixel has a
label, and stays finite for absent classes and empty masks. Sums run in float32 under any
autocast: float16 overflows past 65 504 pixels.

Axes: b tile, k class, h row, w column.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F

from plantseg_next.errors import UsageError
from plantseg_next.structures import IGNORE

SMOOTH = 1.0  # pixels added to both sides of an overlap ratio
TVERSKY_ALPHA, TVERSKY_BETA = 0.3, 0.7  # weights of false positives, of false negatives
TVERSKY_GAMMA = 1.2  # 1 is the plain Tversky loss


class SoftCounts(NamedTuple):
    """Soft counts of each class, in pixels, each ``(k,)``; parts of a batch are summed.

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
        """Pixels of the class, minus ``tp``."""
        return self.target - self.tp

    @property
    def n_known(self) -> Tensor:
        """Pixels that have a label."""
        return self.target.sum()

    def mean_present(self, loss: Tensor) -> Tensor:
        """Return the mean of a loss for each class over the classes present."""
        present = self.target > 0
        return (loss * present).sum() / present.sum().clamp_min(1)


def soft_counts(
    logits: Float[Tensor, "b k h w"], target: Integer[Tensor, "b h w"]
) -> SoftCounts:
    """Return the soft counts that Dice and Tversky use.

    Counts are summed over a micro-batch before any ratio is taken, so that a lesion of
    three pixels in one tile does not become a class score by itself.

    Args:
        logits: Unnormalized class scores; softmax over ``k`` is taken here.
        target: Class ids in [0, k), or ``IGNORE``. Ids are checked when a mask is read,
            on the CPU: a check here would synchronize the GPU at every step.

    Raises:
        UsageError: If ``target`` is not ``(b, h, w)`` for these logits.
    """
    b, k, h, w = logits.shape
    if target.shape != (b, h, w):
        raise UsageError(
            f"`target` has shape {tuple(target.shape)}, the logits have shape "
            f"{tuple(logits.shape)}.",
            needed=f"a target of shape {(b, h, w)}",
            fix="resize the logits to the target; never resize a label map",
        )
    known = target != IGNORE
    prob = logits.float().softmax(dim=1) * known[:, None]  # (b, k, h, w)
    ids = target.masked_fill(~known, 0).long()  # (b, h, w)
    prob_of_target = prob.gather(1, ids[:, None])
    # Counting by index keeps one (b, k, h, w) map in memory, one-hot keeps three. Tiles
    # are counted separately: float32 cannot count the pixels of many large ones.
    tile = torch.arange(b, device=ids.device)[:, None, None]
    flat = (ids + k * tile).flatten()
    tp = prob.new_zeros(b * k).index_add(0, flat, prob_of_target.flatten())
    area = prob.new_zeros(b * k).index_add(0, flat, known.flatten().float())
    return SoftCounts(tp.view(b, k).sum(0), prob.sum(dim=(0, 2, 3)), area.view(b, k).sum(0))


def soft_dice(counts: SoftCounts) -> Float[Tensor, ""]:
    """Return one minus the Dice overlap, averaged over the classes present.

    Args:
        counts: Of a micro-batch.

    Returns:
        Loss in [0, 1], 0 for a perfect match.

    Source:
        Milletari et al. 2016 (V-Net), arXiv:1606.04797. Four departures: softmax over k
        classes instead of two; plain, not squared, sums in the denominator; ``SMOOTH``;
        classes absent from the batch are left out of the mean.

    Example:
        >>> target = torch.tensor([[[0, 1], [1, 255]]])
        >>> perfect = 20.0 * F.one_hot(target % 255, 2).movedim(-1, 1).float()
        >>> round(soft_dice(soft_counts(perfect, target)).item(), 4)
        0.0
    """
    intersection = 2 * counts.tp + SMOOTH
    return counts.mean_present(1 - intersection / (intersection + counts.fp + counts.fn))


def focal_tversky(counts: SoftCounts) -> Float[Tensor, ""]:
    """Return the focal Tversky loss, averaged over the classes present.

    ``mean_c (1 - TI_c) ** (1 / gamma)`` with ``TI = tp / (tp + alpha * fp + beta * fn)``.
    Conventions differ in published code: here alpha weighs false positives and beta
    false negatives, so beta > alpha favors recall; and the exponent is 1 / gamma, so
    that with gamma > 1 the slope does not vanish as TI approaches 1.

    Args:
        counts: Of a micro-batch.

    Returns:
        Loss in [0, 1].

    Source:
        Abraham and Khan 2019, arXiv:1810.07842 (exponent 1 / gamma as in their code);
        Salehi et al. 2017, arXiv:1706.05721. Departure: ``1 - TI`` is clamped to at least
        1e-6, since a power below 1 has an infinite slope at 0.
    """
    tp, alpha, beta = counts.tp, TVERSKY_ALPHA, TVERSKY_BETA
    index = (tp + SMOOTH) / (tp + alpha * counts.fp + beta * counts.fn + SMOOTH)
    return counts.mean_present((1 - index).clamp_min(1e-6) ** (1 / TVERSKY_GAMMA))


def cross_entropy(
    logits: Float[Tensor, "b k ..."], target: Integer[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """Return the cross-entropy of each pixel, or of each image: nats, 0 if unlabeled."""
    return F.cross_entropy(
        logits.float(), target.long(), ignore_index=IGNORE, reduction="none"
    )


def ohem_ce(
    loss: Float[Tensor, "b h w"], n_known: Float[Tensor, ""], *, fraction: float = 0.25
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the hardest pixels of a micro-batch.

    Args:
        loss: Cross-entropy of each pixel of a micro-batch, 0 without a label.
        n_known: Pixels that have a label.
        fraction: Fraction of the *labeled* pixels kept, in (0, 1]. A fraction of all
            pixels, as in some code, would keep easy ones wherever a tile is padded.

    Returns:
        Loss >= 0, in nats.

    Source:
        Wu et al. 2016, arXiv:1605.06885 (online bootstrapping). For true labels only:
        on pseudo-labels the hardest pixels are the wrongly labeled ones.
    """
    # The number kept stays on the device: copying it would synchronize the GPU.
    million = 10**6
    per_million = round(fraction * million)
    n_max = max(1, -(-loss.numel() * per_million // million))
    n_kept = ((n_known.long() * per_million + million - 1) // million).clamp_min(1)
    kept = loss.flatten().topk(n_max).values
    is_kept = torch.arange(n_max, device=loss.device) < n_kept
    return (kept * is_kept).sum() / n_kept
