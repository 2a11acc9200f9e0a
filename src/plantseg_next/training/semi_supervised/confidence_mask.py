"""Confidence masks: which of the teacher's pixels become pseudo-labels.

Axes: b tile, k class, h row, w column.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plantseg_next.structures import NO_LESION
from plantseg_next.training.semi_supervised.ema_teacher import TeacherPrediction
from plantseg_next.uncertainty.confidence import CombinedConfidence, Kind

BINS = 1024
"""Histogram bins of confidence, to find the most confident pixels of a class."""
MOMENTUM = 0.99
"""Fraction of a running mean that one step keeps."""
MIN_CLASS_FRACTION = 0.1
"""Least fraction of the pixels of each class that is kept, where ``adaptive``."""


class ConfidenceStats(NamedTuple):
    """Statistics of a prediction for part of a step, until those of the rest are known.

    Args:
        label: uint8 ``(b, h, w)``, the likeliest class.
        confidence: ``(b, h, w)``, in [0, 1]: probability, or rank of the mask's kinds.
        valid: Whether a pixel lies in the image.
        total: ``(k,)``, sum of the probabilities of the pixels inside, by class.
        pixels: ``(k, bins)``, number of the pixels inside, by class and confidence.
    """

    label: Tensor
    confidence: Tensor
    valid: Tensor
    total: Tensor
    pixels: Tensor


class ConfidenceMask:
    """Keep the pixels of which the teacher is confident enough; one mask for each head.

    Args:
        kinds: Measures of confidence; several are combined as the mean of their ranks.
        threshold: Least probability kept, in (0, 1). Other kinds keep the same fraction
            of labeled pixels as this probability would: if 0.9 is exceeded by 70 % of
            the lesion pixels of labeled tiles, "entropy" keeps pixels with an entropy
            among the lowest 70 % there. So kinds differ in which pixels they keep and not
            in how many.
        n_classes: Classes of the head.
        adaptive: Whether a class of which the teacher is seldom confident gets a lower
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
        self.threshold = threshold
        self.adaptive = adaptive
        self.min_class_fraction = min_class_fraction
        self._mean_confidence = torch.ones(n_classes)  # running mean probability of a class
        self._ranked = None if kinds == ("probability",) else CombinedConfidence(kinds)

    @property
    def needs_ranks(self) -> bool:
        """Whether ``calibrate`` must be called from time to time."""
        return self._ranked is not None

    def stats(
        self, prediction: TeacherPrediction, valid: Bool[Tensor, "b h w"]
    ) -> ConfidenceStats:
        """Return the statistics from which ``mask`` computes the mask."""
        k = len(self._mean_confidence)
        label, certainty = prediction.label, prediction.probability
        if self._ranked is not None:
            is_lesion = label != NO_LESION
            certainty = self._ranked(prediction.measured(*self._ranked.kinds), is_lesion)
        bins = (certainty * BINS).long().clamp(0, BINS - 1)
        empty = torch.zeros(k * BINS, dtype=torch.long, device=valid.device)
        pixels = empty.index_add(0, (label * BINS + bins).flatten(), valid.flatten().long())
        total = torch.zeros(k, device=valid.device).index_add(
            0, label.flatten(), (prediction.probability * valid).flatten()
        )
        return ConfidenceStats(label.byte(), certainty, valid, total, pixels.view(k, BINS))

    def update(self, stats: Sequence[ConfidenceStats]) -> None:
        """Update the running mean probability of each class, once per step."""
        old = self._mean_confidence = self._mean_confidence.to(stats[0].valid.device)
        n = torch.stack([s.pixels.sum(1) for s in stats]).sum(0)
        total = torch.stack([s.total for s in stats]).sum(0)
        mean = total / n.clamp_min(1)
        self._mean_confidence = old.lerp(mean, 1 - MOMENTUM).where(n > 0, old)

    def mask(self, stats: Sequence[ConfidenceStats]) -> Iterator[Bool[Tensor, "b h w"]]:
        """Yield the mask of each part of a step; False outside the image.

        The least fraction of a class is one of the whole step, so the result does not
        depend on the size of its parts.
        """
        lowest = self._lowest(torch.stack([s.pixels for s in stats]).sum(0))
        for part in stats:
            label, certainty = part.label.long(), part.confidence
            threshold = self._thresholds.to(certainty.device)[label]  # (b, h, w)
            if self._ranked is not None:  # without calibration nothing passes
                is_lesion = label != NO_LESION
                threshold = self._ranked.rank_of_probability(threshold, is_lesion)
            kept = certainty >= threshold
            if self.adaptive and self.min_class_fraction > 0:
                bins = (certainty * BINS).clamp(0, BINS - 1)
                kept |= (bins >= lowest[label]) & (certainty > 0)
            yield kept & part.valid

    def calibrate(
        self, prediction: TeacherPrediction, known: Bool[Tensor, "b h w"]
    ) -> None:
        """Update the ranks, if there are any, from predictions for labeled tiles."""
        if self._ranked is not None:
            measured = prediction.measured("probability", *self._ranked.kinds)
            self._ranked.calibrate(measured, prediction.label != NO_LESION, known)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        ranked = self._ranked
        return {
            "mean_confidence": self._mean_confidence.clone(),
            "ranked": None if ranked is None else ranked.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._mean_confidence = state["mean_confidence"].clone()
        if self._ranked is not None:
            self._ranked.load_state_dict(state["ranked"])

    @property
    def _thresholds(self) -> Float[Tensor, " k"]:
        if not self.adaptive:
            return torch.full_like(self._mean_confidence, self.threshold)
        return self.threshold * self._mean_confidence / self._mean_confidence.max()

    def _lowest(self, pixels: Int[Tensor, "k bins"]) -> Int[Tensor, " k"]:
        """Return the lowest bin of the most confident pixels of each class.

        These are at least ``min_class_fraction`` of the class. Confidences, which lie in
        [0, 1] here, are counted in bins: a quantile of each class in turn would copy the
        number of its pixels from the device.
        """
        at_least = pixels.flip(1).cumsum(1).flip(1)  # pixels in this bin or above
        return (at_least >= self.min_class_fraction * at_least[:, :1]).sum(1) - 1
