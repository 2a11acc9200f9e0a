"""Confidence masks: which of the teacher's pixels become pseudo-labels.

A mask measures the teacher's *certainty* of each pixel, higher being more certain, and
keeps the pixels above a threshold. Certainties of different kinds have different units,
so they are combined as ranks among the teacher's pixels on labeled tiles, never as sums.

Axes: b tile, k class, h row, w column, n pass with dropout.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plantseg_next.structures import NO_LESION

Kind = Literal["probability", "energy", "entropy", "dropout"]
SAMPLE = 20_000
"""Most pixels a quantile is computed from: its error is then below half a percent."""
BINS = 1024
"""Histogram bins of certainty, to find the most certain pixels of a class."""
MOMENTUM = 0.99
"""Fraction of a running mean that one step keeps."""
MIN_CLASS_FRACTION = 0.1
"""Least fraction of the pixels of each class that is kept, where ``adaptive``."""


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


@dataclass(frozen=True)
class TeacherPrediction:
    """The teacher's prediction of one head.

    Args:
        logits: ``(b, k, h, w)``, without dropout.
        passes: ``(n, b, k, h, w)`` with dropout; ``None`` where no mask needs them.
    """

    logits: Tensor
    passes: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["TeacherPrediction"]) -> "TeacherPrediction":
        """Return the predictions for many tiles as one, in order."""
        passes = [part.passes for part in parts if part.passes is not None]
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat(passes, dim=1) if passes else None,
        )

    @cached_property
    def label(self) -> Int[Tensor, "b h w"]:
        """The most probable class."""
        return self.logits.argmax(1)

    @cached_property
    def probability(self) -> Float[Tensor, "b h w"]:
        """Of the most probable class."""
        return probability(self.logits)

    def confidence(self, kind: Kind) -> Float[Tensor, "b h w"]:
        """Return the teacher's certainty, in the units of the kind."""
        if kind == "probability":
            return self.probability
        if kind == "energy":
            return energy(self.logits)
        if kind == "entropy":
            return negative_entropy(self.logits)
        assert self.passes is not None, "the dropout confidence needs passes"  # noqa: S101
        return negative_variance(self.passes)


class Ranks:
    """Ranks of certainties among those of labeled tiles, lesions separately.

    Background pixels are many and certain; among them every lesion would rank last. So
    pixels predicted as lesion are ranked among each other, and so are the others.
    """

    def __init__(self, points: int = 101) -> None:
        self._at = torch.linspace(0, 1, points)
        self._tables: list[Tensor | None] = [None, None]  # no lesion, lesion

    def calibrate(
        self, certainty: Float[Tensor, " p"], is_lesion: Bool[Tensor, " p"]
    ) -> None:
        """Move the tables towards the quantiles of these pixels."""
        for group in (0, 1):
            values = _some(certainty[is_lesion == bool(group)])
            if not len(values):
                continue
            quantiles = values.quantile(self._at.to(values.device)).cpu()
            old = self._tables[group]
            self._tables[group] = quantiles if old is None else old.lerp(quantiles, 1 - 0.9)

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return the state to save in a checkpoint."""
        return dict(zip(("none", "lesion"), self._tables, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor | None]) -> None:
        """Restore a saved state."""
        self._tables = [state["none"], state["lesion"]]

    def __call__(
        self,
        certainty: Float[Tensor, "*p"],
        is_lesion: Bool[Tensor, "*p"],
        *,
        unknown: float = 0.0,
    ) -> Float[Tensor, "*p"]:
        """Return ranks in [0, 1]; ``unknown`` in a group that was never calibrated."""
        rank = torch.full_like(certainty, unknown)
        for group, table in enumerate(self._tables):
            if table is None:
                continue
            index = torch.searchsorted(
                table.to(certainty.device), certainty.contiguous(), right=True
            )
            rank = torch.where(is_lesion == bool(group), index / len(table), rank)
        return rank


@dataclass(frozen=True)
class ConfidenceStats:
    """Statistics of a prediction for part of a step, until those of the rest are known.

    Args:
        label: uint8 ``(b, h, w)``, the likeliest class.
        confidence: ``(b, h, w)``, in [0, 1]: probability, or rank of the mask's kinds.
        valid: Whether a pixel lies in the image.
        total: ``(k,)``, sum of the probabilities of the pixels inside, by class.
        pixels: ``(k, bins)``, number of the pixels inside, by class and certainty.
    """

    label: Tensor
    confidence: Tensor
    valid: Tensor
    total: Tensor
    pixels: Tensor


class ConfidenceMask:
    """Keep the pixels of which the teacher is certain enough; one mask for each head.

    Args:
        kinds: Kinds of certainty; several are combined as the mean of their ranks.
        threshold: Least probability kept, in (0, 1). Other kinds keep the same fraction
            of labeled pixels as this probability would, so that kinds differ in which
            pixels they keep and not in how many.
        n_classes: Classes of the head.
        adaptive: Whether a class of which the teacher is seldom certain gets a lower
            threshold, in proportion to its running mean probability.
        min_class_fraction: Least fraction of the pixels of each class that is kept, so
            that a rare disease keeps some; only where ``adaptive``.

    Source:
        Sohn et al. 2020 (FixMatch), arXiv:2001.07685, the fixed threshold; Zhang et al.
        2021 (FlexMatch), arXiv:2110.08263, and Wang et al. 2023 (FreeMatch),
        arXiv:2205.07246, the adaptive one; the least fraction of a class and the equal
        fractions of all kinds are ours.
    """

    def __init__(
        self,
        kinds: tuple[Kind, ...],
        *,
        threshold: float,
        n_classes: int,
        adaptive: bool,
        min_class_fraction: float = MIN_CLASS_FRACTION,
    ) -> None:
        self.kinds = kinds
        self.threshold = threshold
        self.adaptive = adaptive
        self.min_class_fraction = min_class_fraction
        self._mean_confidence = torch.ones(n_classes)  # running mean probability of a class
        self._ranks = {kind: Ranks() for kind in ("probability", *kinds)}
        self._combined = Ranks()  # a mean of ranks is not uniform, so it is ranked again

    @property
    def needs_ranks(self) -> bool:
        """Whether ``calibrate`` must be called from time to time."""
        return self.kinds != ("probability",)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        ranks: dict[str, Any] = {k: r.state_dict() for k, r in self._ranks.items()}
        combined = self._combined.state_dict()
        return {
            "mean_confidence": self._mean_confidence.clone(),
            "ranks": ranks,
            "combined": combined,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._mean_confidence = state["mean_confidence"].clone()
        self._combined.load_state_dict(state["combined"])
        for kind, ranks in self._ranks.items():
            ranks.load_state_dict(state["ranks"][kind])

    def calibrate(
        self, prediction: TeacherPrediction, known: Bool[Tensor, "b h w"]
    ) -> None:
        """Update the ranks from the teacher's predictions for labeled tiles."""
        is_lesion = (prediction.label != NO_LESION)[known]
        for kind, ranks in self._ranks.items():
            ranks.calibrate(prediction.confidence(kind)[known], is_lesion)
        if known.any():
            self._combined.calibrate(self._mean_rank(prediction)[known], is_lesion)

    def stats(
        self, prediction: TeacherPrediction, valid: Bool[Tensor, "b h w"]
    ) -> "ConfidenceStats":
        """Return the statistics from which ``mask`` computes the mask."""
        k = len(self._mean_confidence)
        label, probability = prediction.label, prediction.probability
        certainty = probability
        if self.needs_ranks:
            certainty = self._combined(self._mean_rank(prediction), label != NO_LESION)
        bins = (certainty * BINS).long().clamp(0, BINS - 1)
        bin_of = (label * BINS + bins).flatten()
        empty = torch.zeros(k * BINS, dtype=torch.long, device=valid.device)
        return ConfidenceStats(
            label.byte(),
            certainty,
            valid,
            torch.zeros(k, device=valid.device).index_add(
                0, label.flatten(), (probability * valid).flatten()
            ),
            empty.index_add(0, bin_of, valid.flatten().long()).view(k, BINS),
        )

    def update(self, stats: Sequence["ConfidenceStats"]) -> None:
        """Update the running mean probability of each class, once per step."""
        old = self._mean_confidence = self._mean_confidence.to(stats[0].valid.device)
        n = torch.stack([s.pixels.sum(1) for s in stats]).sum(0)
        total = torch.stack([s.total for s in stats]).sum(0)
        mean = total / n.clamp_min(1)
        self._mean_confidence = old.lerp(mean, 1 - MOMENTUM).where(n > 0, old)

    def mask(self, stats: Sequence["ConfidenceStats"]) -> Iterator[Bool[Tensor, "b h w"]]:
        """Yield the mask of each part of a step; False outside the image.

        The least fraction of a class is one of the whole step, so the result does not
        depend on the size of its parts.
        """
        lowest = self._lowest(torch.stack([s.pixels for s in stats]).sum(0))
        for part in stats:
            label, certainty = part.label.long(), part.confidence
            threshold = self._thresholds.to(certainty.device)[label]  # (b, h, w)
            if self.needs_ranks:  # without calibration nothing passes
                is_lesion = label != NO_LESION
                threshold = self._ranks["probability"](threshold, is_lesion, unknown=2.0)
            kept = certainty >= threshold
            if self.adaptive and self.min_class_fraction > 0:
                bins = (certainty * BINS).clamp(0, BINS - 1)
                kept |= (bins >= lowest[label]) & (certainty > 0)
            yield kept & part.valid

    @property
    def _thresholds(self) -> Float[Tensor, " k"]:
        if not self.adaptive:
            return torch.full_like(self._mean_confidence, self.threshold)
        return self.threshold * self._mean_confidence / self._mean_confidence.max()

    def _mean_rank(self, prediction: TeacherPrediction) -> Float[Tensor, "b h w"]:
        is_lesion = prediction.label != NO_LESION
        return torch.stack(
            [self._ranks[k](prediction.confidence(k), is_lesion) for k in self.kinds]
        ).mean(0)

    def _lowest(self, pixels: Int[Tensor, "k bins"]) -> Int[Tensor, " k"]:
        """Return the lowest bin of the most certain pixels of each class.

        These are at least ``min_class_fraction`` of the class. Certainties, which lie in
        [0, 1] here, are counted in bins: a quantile of each class in turn would copy the
        number of its pixels from the device.
        """
        at_least = pixels.flip(1).cumsum(1).flip(1)  # pixels in this bin or above
        return (at_least >= self.min_class_fraction * at_least[:, :1]).sum(1) - 1


def _some(values: Tensor) -> Tensor:
    """Return at most ``SAMPLE`` of the values, evenly spaced and deterministic."""
    return values[:: max(1, -(-len(values) // SAMPLE))]
