"""Gradients of one large batch, computed in parts."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


class StepLoss(NamedTuple):
    """What one step is to learn from.

    Args:
        total: The weighted sum, to be differentiated.
        parts: Each part before its weight, detached, by name.
    """

    total: Tensor
    parts: dict[str, Tensor]


class LossStats(NamedTuple):
    """All that a loss must know of some tiles; little beside what the network computes.

    Args:
        sums: Figures by name, of any shape; those of other tiles are added.
        pixels: Maps by name, ``(b, h, w)``; those of other tiles stand beside them.
    """

    sums: dict[str, Tensor]
    pixels: dict[str, Tensor]

    @classmethod
    def joined(cls, parts: Sequence["LossStats"], *, dim: int = 0) -> "LossStats":
        """Return the tally of many parts: of tiles (0), or of the same tiles' rows (1)."""
        first = parts[0]
        return cls(
            {
                name: torch.stack([p.sums[name] for p in parts]).sum(0)
                for name in first.sums
            },
            {
                name: torch.cat([p.pixels[name] for p in parts], dim)
                for name in first.pixels
            },
        )


def accumulate_gradients(
    parts: Sequence[Part],
    stats_fn: Callable[[Part], LossStats],
    loss_fn: Callable[[LossStats], StepLoss],
    backward: Callable[[Tensor], object],
) -> StepLoss:
    """Add the gradient of one step, of one micro-batch or of several, and return its loss.

    Several micro-batches give the gradient of the one large batch, not nearly but
    exactly, for any loss: overlaps and hardest pixels are taken over all tiles. All
    micro-batches are tallied first without a graph; the loss is differentiated with
    respect to the tallies; then each micro-batch is run again, with the same dropout, to
    carry its part of that gradient into the network. It costs one more forward pass, and
    no more memory than one micro-batch and the tallies.

    Args:
        parts: The micro-batches.
        stats_fn: Runs the network on a micro-batch and tallies what it says.
        loss_fn: The loss of all tiles, from the tally of all.
        backward: Differentiates a scalar, as Fabric does it.

    Source:
        Gao et al. 2021 (GradCache), arXiv:2101.06983, for losses that join a batch. They
        keep what the network says of every tile; we keep less.
    """
    if len(parts) == 1:
        loss = loss_fn(stats_fn(parts[0]))
        backward(loss.total)
        return loss
    chances: list[RngState] = []
    found: list[LossStats] = []
    with torch.no_grad():
        for part in parts:
            chances.append(RngState.current())
            found.append(stats_fn(part))
    whole = LossStats.joined(found)
    sizes = {name: [len(one.pixels[name]) for one in found] for name in whole.pixels}
    del found
    metrics = [
        t.requires_grad_() for t in chain(whole.sums.values(), whole.pixels.values())
    ]
    loss = loss_fn(whole)
    # Heads that no tile of the step is annotated for get no gradient at all.
    slopes = torch.autograd.grad(
        loss.total, metrics, allow_unused=True, materialize_grads=True
    )
    n = len(whole.sums)
    of_sums = dict(zip(whole.sums, slopes[:n], strict=True))
    of_pixels = {
        name: torch.split(slope, sizes[name])
        for name, slope in zip(whole.pixels, slopes[n:], strict=True)
    }
    del whole, metrics, slopes
    for i, (part, chance) in enumerate(zip(parts, chances, strict=True)):
        chance.restore()
        stats = stats_fn(part)
        pulls = [(f * of_sums[name]).sum() for name, f in stats.sums.items()]
        pulls += [(f * of_pixels[name][i]).sum() for name, f in stats.pixels.items()]
        backward(torch.stack([pull for pull in pulls if pull.requires_grad]).sum())
        del stats, pulls
    return loss


class RngState(NamedTuple):
    """The state of PyTorch's random numbers, on the CPU and on the GPU if there is one."""

    cpu: Tensor
    gpu: Tensor | None

    @classmethod
    def current(cls) -> "RngState":
        """Return the present state."""
        has_gpu = torch.cuda.is_available()
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if has_gpu else None)

    def restore(self) -> None:
        """Go back to this state."""
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)
