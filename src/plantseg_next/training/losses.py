"""Supervised losses on logits. Pure functions, float32 inside, no state.

Every loss skips ignored pixels, returns 0 with a zero gradient where nothing is left to
learn from, and stays finite for absent classes and empty masks. Sums run in float32 under
any autocast: float16 overflows past 65 504 pixels.

Axes: b tile, k class, h row, w column.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from plantseg_next.errors import UsageError
from plantseg_next.structures import IGNORE

SMOOTH = 1.0  # pixels added to both sides of an overlap ratio


class Overlap(NamedTuple):
    """Soft counts a class, in pixels, summed over the batch; each ``(k,)``.

    Args:
        hit: Probability mass on pixels of the class.
        false: Probability mass on pixels of other classes.
        missed: Pixels of the class, less ``hit``.
        present: Whether the class is in the batch.
    """

    hit: Tensor
    false: Tensor
    missed: Tensor
    present: Tensor


def overlap(logits: Float[Tensor, "b k h w"], target: Int[Tensor, "b h w"]) -> Overlap:
    """Return the soft counts that Dice and Tversky share.

    Counts are summed over the whole batch before any ratio is taken, so that a lesion of
    three pixels in one tile is not a class score of its own.

    Args:
        logits: Unnormalised class scores; softmax over ``k`` is taken here.
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
    ids = target.masked_fill(~known, 0)[:, None]  # (b, 1, h, w)
    at_truth = prob.gather(1, ids)  # (b, 1, h, w)
    # Counting by scatter keeps one (b, k, h, w) map alive, where one-hot keeps three.
    flat = ids.flatten()
    hit = prob.new_zeros(k).index_add(0, flat, at_truth.flatten())
    area = prob.new_zeros(k).index_add(0, flat, known.flatten().float())
    mass = prob.sum(dim=(0, 2, 3))
    return Overlap(hit, mass - hit, area - hit, area > 0)


def soft_dice(
    logits: Float[Tensor, "b k h w"],
    target: Int[Tensor, "b h w"],
    *,
    smooth: float = SMOOTH,
) -> Float[Tensor, ""]:
    """Return one minus the Dice overlap, averaged over the classes present.

    Args:
        logits: Unnormalised class scores.
        target: Class ids or ``IGNORE``.
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
        >>> round(soft_dice(perfect, target).item(), 4)
        0.0
    """
    hit, false, missed, present = overlap(logits, target)
    tiny = torch.finfo(hit.dtype).tiny  # keeps 0 / 0 finite when smooth is 0
    dice = (2 * hit + smooth) / (2 * hit + false + missed + smooth).clamp_min(tiny)
    return _mean_present(1 - dice, present)


def focal_tversky(
    logits: Float[Tensor, "b k h w"],
    target: Int[Tensor, "b h w"],
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 1.2,
    smooth: float = SMOOTH,
) -> Float[Tensor, ""]:
    """Return the focal Tversky loss, averaged over the classes present.

    ``mean_c (1 - TI_c) ** (1 / gamma)`` with ``TI = hit / (hit + alpha * false positives
    + beta * misses)``. Orientation matters and published code disagrees: here alpha
    weighs false positives and beta misses, so beta > alpha favours recall; and the
    exponent is 1 / gamma, so that with gamma > 1 the slope does not fade while a class
    nears perfection.

    Args:
        logits: Unnormalised class scores.
        target: Class ids or ``IGNORE``.
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
    hit, false, missed, present = overlap(logits, target)
    index = (hit + smooth) / (hit + alpha * false + beta * missed + smooth)
    return _mean_present((1 - index).clamp_min(1e-6) ** (1 / gamma), present)


def hardest_pixels(
    logits: Float[Tensor, "b k h w"],
    target: Int[Tensor, "b h w"],
    *,
    share: float = 0.25,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the hardest pixels of the batch.

    Args:
        logits: Unnormalised class scores.
        target: Class ids or ``IGNORE``.
        share: Part of the *valid* pixels kept, in (0, 1]. Taking it of all pixels, as
            some code does, would learn from easy ones wherever a tile is padded.

    Returns:
        Loss >= 0, in nats.

    Source:
        Wu et al. 2016, arXiv:1605.06885 (online bootstrapping). For true labels only:
        on pseudo-labels the hardest pixels are the wrongly labelled ones.
    """
    loss = F.cross_entropy(
        logits.float(), target, ignore_index=IGNORE, reduction="none"
    ).flatten()
    valid = target.flatten() != IGNORE
    n_kept = max(1, -(-int(valid.sum() * round(share * 1e6)) // 10**6))
    kept = loss.masked_fill(~valid, 0.0).topk(n_kept).values
    return kept.sum() / n_kept


def pseudo_cross_entropy(
    logits: Float[Tensor, "b k h w"],
    label: Int[Tensor, "b h w"],
    inside: Bool[Tensor, "b h w"] | None,
) -> Float[Tensor, ""]:
    """Return the cross-entropy with labels of which only some are believed.

    Args:
        logits: Unnormalised class scores.
        label: The teacher's class, ``IGNORE`` where it is not believed.
        inside: Pixels that the sum is divided by, so that a batch of which little is
            believed weighs little; ``None`` divides by the believed ones.

    Returns:
        Loss >= 0, in nats; 0 where nothing is believed.

    Source:
        Sohn et al. 2020 (FixMatch), arXiv:2001.07685, who divide by all.
    """
    total = F.cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="sum")
    n = (label != IGNORE).sum() if inside is None else inside.sum()
    return total / n.clamp_min(1)


def consistency(
    logits: Float[Tensor, "b k h w"],
    teacher: Float[Tensor, "b k h w"],
    label: Int[Tensor, "b h w"],
    inside: Bool[Tensor, "b h w"],
) -> Float[Tensor, ""]:
    """Return the squared distance of the student's probabilities from the teacher's.

    Args:
        logits: The student's scores.
        teacher: The teacher's scores of the same pixels; not differentiated.
        label: ``IGNORE`` where the teacher is not believed; those pixels count as 0.
        inside: Pixels of the picture, which the sum is divided by.

    Returns:
        Mean over pixels of the mean over classes, in [0, 2 / k].

    Source:
        Tarvainen and Valpola 2017 (Mean Teacher), arXiv:1703.01780.
    """
    gap = logits.float().softmax(1) - teacher.detach().float().softmax(1)
    distance = gap.square().mean(1).masked_fill(label == IGNORE, 0.0)  # (b, h, w)
    return distance.sum() / inside.sum().clamp_min(1)


def boundary(
    logits: Float[Tensor, "b k h w"], distance: Float[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Return the mean of foreground probability times signed distance to the truth.

    Args:
        logits: Unnormalised class scores; all but class 0 are foreground.
        distance: Signed distance to the true outline (``data.tiling.signed_distance``):
            negative inside, 0 where ignored and where the tile has no lesion. In
            parts of the tile's diagonal, so that the loss does not grow with the tile.

    Returns:
        Loss, negative for a good match; never to be used alone.

    Source:
        Kervadec et al. 2019, arXiv:1812.07032. Departures: all lesion classes form one
        foreground; distances are divided by the diagonal.
    """
    foreground = 1 - logits.float().softmax(dim=1)[:, 0]  # (b, h, w)
    return (foreground * distance).mean()


def cross_entropy(
    logits: Float[Tensor, "b k ..."], target: Int[Tensor, "b ..."]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the labels that are known, of pixels or pictures."""
    n_known = (target != IGNORE).sum().clamp_min(1)
    total = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="sum")
    return total / n_known


def _mean_present(loss: Tensor, present: Tensor) -> Tensor:
    return (loss * present).sum() / present.sum().clamp_min(1)
