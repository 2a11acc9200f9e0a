"""One training step. Read this first.

A step turns batches into gradients and the named parts of their loss. What is learned
from is plain in the targets: pixels and pictures without an annotation are ``IGNORE`` and
teach nothing, so a row that marks lesions only, one that marks the leaf too and one that
has only a name pass through the same lines.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plantseg_next.data.streams import collate
from plantseg_next.experiment import LossSettings
from plantseg_next.models.segmenter import Scores
from plantseg_next.structures import Batch
from plantseg_next.training import losses


class StepLoss(NamedTuple):
    """What one step is to learn from.

    Args:
        total: The weighted sum, to be differentiated.
        parts: Each part before its weight, detached, by name.
    """

    total: Tensor
    parts: dict[str, Tensor]


def supervised_loss(scores: Scores, batch: Batch, weights: LossSettings) -> StepLoss:
    """Return the loss of annotated tiles.

    Args:
        scores: What the network says of the batch, at any resolution.
        batch: The tiles.
        weights: What each part is worth; a part of weight 0 is not computed.
    """
    h, w = batch.lesion.shape[-2:]
    scores = scores.resized((h, w))
    parts: dict[str, Callable[[], Tensor]] = {
        "hardest_pixels": lambda: losses.hardest_pixels(
            scores.lesion, batch.lesion, share=weights.hardest_share
        ),
        "focal_tversky": lambda: losses.focal_tversky(scores.lesion, batch.lesion),
        "dice": lambda: losses.soft_dice(scores.lesion, batch.lesion),
        "boundary": lambda: losses.boundary(scores.lesion, batch.distance),
        "leaf": lambda: (
            losses.cross_entropy(scores.leaf, batch.leaf)
            + losses.soft_dice(scores.leaf, batch.leaf)
        ),
        "disease": lambda: losses.cross_entropy(scores.disease, batch.disease),
    }
    wanted = {n: part() for n, part in parts.items() if getattr(weights, n) > 0}
    total = sum(
        (getattr(weights, name) * part for name, part in wanted.items()),
        start=scores.lesion.new_zeros((), dtype=torch.float32),
    )
    return StepLoss(total, {name: part.detach() for name, part in wanted.items()})


def accumulate_gradients(
    network: Callable[[Tensor], Scores],
    batches: Sequence[Batch],
    loss_of: Callable[[Scores, Batch], StepLoss],
    backward: Callable[[Tensor], object],
) -> StepLoss:
    """Add the gradient of one step, of one micro-batch or of several, and return its loss.

    Several micro-batches give the gradient of the one large batch, not nearly but
    exactly, for any loss: overlaps and hardest pixels are taken over all tiles. The
    scores of all micro-batches are computed first without a graph; the loss is
    differentiated with respect to them; then each micro-batch is run again, with the same
    dropout, to carry its part of that gradient into the network. It costs one more
    forward pass, and no more memory than the scores of the batch.

    Args:
        network: Pictures in [0, 1] to scores.
        batches: Micro-batches of one step, on the network's device.
        loss_of: Loss of the scores of any number of tiles.
        backward: Differentiates a scalar, as Fabric does it.

    Source:
        Gao et al. 2021 (GradCache), arXiv:2101.06983, for losses that join a batch.
    """
    if len(batches) == 1:
        loss = loss_of(network(batches[0].image), batches[0])
        backward(loss.total)
        return loss
    chances: list[Chance] = []
    with torch.no_grad():
        found = []
        for batch in batches:
            chances.append(Chance.now())
            found.append(network(batch.image))
    whole = Scores(
        *(torch.cat(maps).float().requires_grad_() for maps in zip(*found, strict=True))
    )
    loss = loss_of(whole, collate(batches))  # for the targets; pictures come along
    # Heads that no tile of the step is annotated for get no gradient at all.
    slopes = torch.autograd.grad(
        loss.total, whole, allow_unused=True, materialize_grads=True
    )
    first = 0
    for batch, chance in zip(batches, chances, strict=True):
        chance.restore()
        part = slice(first, first + len(batch))
        scores = network(batch.image)
        pulls = [(s * g[part]).sum() for s, g in zip(scores, slopes, strict=True)]
        backward(torch.stack([pull.float() for pull in pulls]).sum())
        first = part.stop
    return loss


class Chance(NamedTuple):
    """The state of PyTorch's random numbers, on the CPU and on the GPU if there is one."""

    cpu: Tensor
    gpu: Tensor | None

    @classmethod
    def now(cls) -> "Chance":
        """Return the present state."""
        has_gpu = torch.cuda.is_available()
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if has_gpu else None)

    def restore(self) -> None:
        """Go back to this state."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)
