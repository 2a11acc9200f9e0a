"""Gradients of one large batch, computed in parts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plantseg_next.models.segmenter import Scores


class StepLoss(NamedTuple):
    """What one step is to learn from.

    Args:
        total: The weighted sum, to be differentiated.
        parts: Each part before its weight, detached, by name.
    """

    total: Tensor
    parts: dict[str, Tensor]


def accumulate_gradients(
    network: Callable[[Tensor], Scores],
    images: Sequence[Tensor],
    loss_of: Callable[[Scores], StepLoss],
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
        images: Pictures of each micro-batch, on the network's device.
        loss_of: Loss of the scores of all micro-batches together, in order.
        backward: Differentiates a scalar, as Fabric does it.

    Source:
        Gao et al. 2021 (GradCache), arXiv:2101.06983, for losses that join a batch.
    """
    if len(images) == 1:
        loss = loss_of(network(images[0]))
        backward(loss.total)
        return loss
    chances: list[Chance] = []
    with torch.no_grad():
        found = []
        for image in images:
            chances.append(Chance.now())
            found.append(network(image))
    whole = Scores(
        *(torch.cat(maps).float().requires_grad_() for maps in zip(*found, strict=True))
    )
    loss = loss_of(whole)
    # Heads that no tile of the step is annotated for get no gradient at all.
    slopes = torch.autograd.grad(
        loss.total, whole, allow_unused=True, materialize_grads=True
    )
    first = 0
    for image, chance in zip(images, chances, strict=True):
        chance.restore()
        part = slice(first, first + len(image))
        scores = network(image)
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
