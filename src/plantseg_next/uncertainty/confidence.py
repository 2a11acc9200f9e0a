"""Confidence of each pixel: four measures, and ranks to combine them.

Higher means more confident. The measures have different units, so they are combined as
ranks among pixels of labeled tiles, never as sums.

Axes: b tile, k class, h row, w column, n pass with dropout, p pixel.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Kind = Literal["probability", "energy", "entropy", "dropout"]
SAMPLE = 20_000
"""Most pixels a quantile is computed from: its error is then below half a percent."""
RANK_POINTS = 101
"""Quantiles that a table of ranks holds."""
KEPT_OF_RANKS = 0.9
"""Fraction of the old quantiles that a calibration keeps."""


def probability(logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b h w"]:
    """Return the probability of the likeliest class, in [1 / k, 1]."""
    return logits.float().softmax(1).amax(1)


def energy(
    logits: Float[Tensor, "b k h w"], *, temperature: float = 1.0
) -> Float[Tensor, "b h w"]:
    """Return the negative energy, ``T logsumexp(f / T)``: large where any score is large.

    Source:
        Liu et al. 2020, arXiv:2010.03759, for inputs; here for pixels. The original
        system's ``-log(sum(softmax))`` is zero for every pixel, because a softmax sums to
        one. This is the formula that was intended.
    """
    return temperature * (logits.float() / temperature).logsumexp(1)


def negative_entropy(logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b h w"]:
    """Return minus the entropy over the classes, as a fraction of its maximum: [-1, 0]."""
    log_prob = logits.float().log_softmax(1)
    return (log_prob.exp() * log_prob).sum(1) / math.log(logits.shape[1])


def negative_variance(logits: Float[Tensor, "n b k h w"]) -> Float[Tensor, "b h w"]:
    """Return minus the variance of the probabilities over passes, summed over classes.

    Args:
        logits: Of each pass with dropout; at least two.

    Returns:
        At most 0, which is perfect agreement.

    Source:
        Gal and Ghahramani 2016, arXiv:1506.02142.
    """
    return -logits.float().softmax(2).var(0, correction=0).sum(1)


def confidence(
    kind: Kind,
    logits: Float[Tensor, "b k h w"],
    passes: Float[Tensor, "n b k h w"] | None = None,
) -> Float[Tensor, "b h w"]:
    """Return the confidence of each pixel, in the units of its kind.

    Args:
        kind: Measure.
        logits: Without dropout.
        passes: With dropout; needed for "dropout" only.
    """
    match kind:
        case "probability":
            return probability(logits)
        case "energy":
            return energy(logits)
        case "entropy":
            return negative_entropy(logits)
        case "dropout":
            assert passes is not None, "the dropout confidence needs passes"  # noqa: S101
            return negative_variance(passes)


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Turn on dropout alone in a network in eval mode, within this context."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


class Ranks:
    """Ranks of confidences among those of labeled tiles, lesions separately.

    Background pixels are many and confident; among them every lesion would rank last. So
    pixels predicted as lesion are ranked among each other, and so are the others.
    """

    def __init__(self) -> None:
        self._at = torch.linspace(0, 1, RANK_POINTS)
        self._tables: list[Tensor | None] = [None, None]  # no lesion, lesion

    def calibrate(self, values: Float[Tensor, " p"], is_lesion: Bool[Tensor, " p"]) -> None:
        """Move the tables towards the quantiles of these pixels."""
        for group in (0, 1):
            sample = _sample(values[is_lesion == bool(group)])
            if not len(sample):
                continue
            quantiles = sample.quantile(self._at.to(sample.device)).cpu()
            old = self._tables[group]
            self._tables[group] = (
                quantiles if old is None else old.lerp(quantiles, 1 - KEPT_OF_RANKS)
            )

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return the state to save in a checkpoint."""
        return dict(zip(("none", "lesion"), self._tables, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor | None]) -> None:
        """Restore a saved state."""
        self._tables = [state["none"], state["lesion"]]

    def __call__(
        self,
        values: Float[Tensor, "*p"],
        is_lesion: Bool[Tensor, "*p"],
        *,
        unknown: float = 0.0,
    ) -> Float[Tensor, "*p"]:
        """Return ranks in [0, 1]; ``unknown`` in a group that was never calibrated."""
        rank = torch.full_like(values, unknown)
        for group, table in enumerate(self._tables):
            if table is None:
                continue
            index = torch.searchsorted(
                table.to(values.device), values.contiguous(), right=True
            )
            rank = torch.where(is_lesion == bool(group), index / len(table), rank)
        return rank


class CombinedConfidence:
    """The mean rank of several measures, among the pixels of labeled tiles.

    Args:
        kinds: Measures to combine.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.kinds = kinds
        self._ranks = {kind: Ranks() for kind in ("probability", *kinds)}
        self._combined = Ranks()  # a mean of ranks is not uniform, so it is ranked again

    def __call__(
        self, measured: Mapping[Kind, Tensor], is_lesion: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b h w"]:
        """Return the rank of each pixel in [0, 1]; 0 before the first calibration.

        Args:
            measured: The confidence ``(b, h, w)`` by each of the measures.
            is_lesion: Pixels predicted as lesion.
        """
        return self._combined(self._mean_rank(measured, is_lesion), is_lesion)

    def rank_of_probability(
        self, value: Float[Tensor, "b h w"], is_lesion: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b h w"]:
        """Return the ranks of probabilities; 2, above all ranks, before calibration.

        It makes a threshold on probability one on any kind: if 30 % of the labeled pixels
        have a probability of at most 0.9, its rank is 0.3, and 70 % pass with any kind.
        """
        return self._ranks["probability"](value, is_lesion, unknown=2.0)

    def calibrate(
        self,
        measured: Mapping[Kind, Tensor],
        is_lesion: Bool[Tensor, "b h w"],
        known: Bool[Tensor, "b h w"],
    ) -> None:
        """Update the ranks from labeled tiles.

        Args:
            measured: As in ``__call__``, and by probability.
            is_lesion: Pixels predicted as lesion.
            known: Pixels with a label.
        """
        for kind, ranks in self._ranks.items():
            ranks.calibrate(measured[kind][known], is_lesion[known])
        if known.any():
            mean_rank = self._mean_rank(measured, is_lesion)
            self._combined.calibrate(mean_rank[known], is_lesion[known])

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {
            "ranks": {kind: ranks.state_dict() for kind, ranks in self._ranks.items()},
            "combined": self._combined.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._combined.load_state_dict(state["combined"])
        for kind, ranks in self._ranks.items():
            ranks.load_state_dict(state["ranks"][kind])

    def _mean_rank(
        self, measured: Mapping[Kind, Tensor], is_lesion: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b h w"]:
        ranks = [self._ranks[kind](measured[kind], is_lesion) for kind in self.kinds]
        return torch.stack(ranks).mean(0)


def _sample(values: Float[Tensor, " p"]) -> Float[Tensor, " q"]:
    """Return at most ``SAMPLE`` of the values, evenly spaced and deterministic."""
    return values[:: max(1, -(-len(values) // SAMPLE))]
