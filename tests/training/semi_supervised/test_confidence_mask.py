import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plantseg_next.training.semi_supervised.confidence_mask import ConfidenceMask
from plantseg_next.training.semi_supervised.ema_teacher import TeacherPrediction
from plantseg_next.uncertainty.confidence import (
    Ranks,
    energy,
    negative_entropy,
    negative_variance,
    probability,
)


def logits(seed: int = 0, k: int = 3, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, k, size, size, generator=generator)


INSIDE = torch.ones(2, 16, 16, dtype=torch.bool)


def mask_of(
    confidence_mask: ConfidenceMask, prediction: TeacherPrediction, inside: torch.Tensor
) -> torch.Tensor:
    (kept,) = confidence_mask.mask([confidence_mask.stats(prediction, inside)])
    return kept


def make_mask(**changes) -> ConfidenceMask:
    settings = {
        "threshold": 0.9,
        "n_classes": 3,
        "adaptive": False,
        "min_class_fraction": 0.0,
    }
    kinds = changes.pop("kinds", ("probability",))
    return ConfidenceMask(kinds, **(settings | changes))


def test_certainties_equal_explicit_sums():
    scores = logits()
    b, h, w = 1, 3, 5
    f = scores[b, :, h, w].double().tolist()
    p = [math.exp(x) / sum(math.exp(y) for y in f) for x in f]
    assert probability(scores)[b, h, w].item() == pytest.approx(max(p), rel=1e-5)
    total = sum(math.exp(x / 2) for x in f)
    value = energy(scores, temperature=2.0)[b, h, w].item()
    assert value == pytest.approx(2 * math.log(total), rel=1e-5)
    entropy = -sum(x * math.log(x) for x in p) / math.log(3)
    assert negative_entropy(scores)[b, h, w].item() == pytest.approx(-entropy, rel=1e-4)


def test_variance_over_passes_equals_explicit_numbers():
    passes = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]).view(2, 1, 2, 1, 1)
    # Probabilities of the first class: 0.5 and 0.75; of the second: 0.5 and 0.25.
    assert negative_variance(passes).item() == pytest.approx(-2 * 0.125**2)


def test_energy_is_not_constant_unlike_original_formula():
    """``-log(sum(softmax))`` is zero everywhere; ours is not constant."""
    scores = logits()
    assert torch.allclose(
        -scores.softmax(1).sum(1).log(), torch.zeros(2, 16, 16), atol=1e-6
    )
    assert energy(scores).std() > 0.5


def test_fixed_threshold_is_a_probability():
    scores = logits()
    kept = mask_of(make_mask(), TeacherPrediction(scores), INSIDE)
    assert torch.equal(kept, scores.softmax(1).amax(1) >= 0.9)
    assert 0 < kept.float().mean() < 1


def test_mask_is_false_outside_the_image():
    inside = INSIDE.clone()
    inside[:, :8] = False
    for adaptive in (False, True):
        confidence_mask = make_mask(adaptive=adaptive, min_class_fraction=0.5)
        assert not (
            mask_of(confidence_mask, TeacherPrediction(logits()), inside) & ~inside
        ).any()


@pytest.mark.parametrize("kind", ["energy", "entropy", "dropout"])
def test_each_kind_keeps_as_many_labeled_pixels_as_probability(kind):
    prediction = TeacherPrediction(
        logits(size=64), torch.stack([logits(s, size=64) for s in (0, 1)])
    )
    inside = torch.ones(2, 64, 64, dtype=torch.bool)
    plain = mask_of(make_mask(), prediction, inside)
    confidence_mask = make_mask(kinds=(kind,))
    confidence_mask.calibrate(prediction, inside)
    kept = mask_of(confidence_mask, prediction, inside)
    for lesion in (False, True):
        group = (prediction.label != 0) == lesion
        fraction, expected = (x[group].float().mean().item() for x in (kept, plain))
        assert fraction == pytest.approx(expected, abs=0.03)


def test_combined_kinds_keep_as_many_pixels_as_probability():
    """A mean of ranks is not uniform: without a second ranking fewer would be kept."""
    prediction = TeacherPrediction(logits(size=64))
    inside = torch.ones(2, 64, 64, dtype=torch.bool)
    confidence_mask = make_mask(kinds=("probability", "entropy"))
    confidence_mask.calibrate(prediction, inside)
    both = mask_of(confidence_mask, prediction, inside)
    fraction, alone = (
        kept.float().mean().item()
        for kept in (both, mask_of(make_mask(), prediction, inside))
    )
    assert fraction == pytest.approx(alone, abs=0.03)


def test_uncalibrated_mask_keeps_nothing():
    confidence_mask = make_mask(kinds=("energy",))
    assert not mask_of(confidence_mask, TeacherPrediction(logits()), INSIDE).any()


def test_adaptive_threshold_is_lower_for_uncertain_class():
    scores = torch.zeros(1, 3, 8, 8)
    scores[:, 0, :4] = 9.0  # certain of class 0
    scores[:, 2, 4:] = 1.5  # class 2 at best 0.69
    prediction, inside = TeacherPrediction(scores), torch.ones(1, 8, 8, dtype=torch.bool)
    confidence_mask = make_mask(adaptive=True)
    assert not mask_of(confidence_mask, prediction, inside)[:, 4:].any()
    for _ in range(300):
        confidence_mask.update([confidence_mask.stats(prediction, inside)])
    assert mask_of(confidence_mask, prediction, inside).all()


def test_rare_class_keeps_its_most_certain_pixels():
    scores = logits()
    scores[:, 2] -= 4.0
    prediction = TeacherPrediction(scores)
    confidence_mask = make_mask(adaptive=True, threshold=0.999, min_class_fraction=0.2)
    kept = mask_of(confidence_mask, prediction, INSIDE)
    for c in prediction.label.unique():
        mine = prediction.label == c
        assert kept[mine].float().mean() >= 0.19


@pytest.mark.parametrize("kinds", [("probability",), ("entropy", "energy")])
def test_mask_is_independent_of_micro_batch_size(kinds):
    scores = torch.cat([logits(seed) for seed in range(3)])
    inside = torch.rand(scores.shape[0], 16, 16) < 0.9
    found = []
    for size in (1, 2, 6):
        confidence_mask = make_mask(adaptive=True, min_class_fraction=0.3, kinds=kinds)
        confidence_mask.calibrate(TeacherPrediction(scores), inside)
        confidence_stats = [
            confidence_mask.stats(
                TeacherPrediction(scores[i : i + size]), inside[i : i + size]
            )
            for i in range(0, 6, size)
        ]
        confidence_mask.update(confidence_stats)
        found.append(
            (
                torch.cat([*confidence_mask.mask(confidence_stats)]),
                confidence_mask.state_dict()["mean_confidence"],
            )
        )
    for kept, mean_confidence in found[:-1]:
        assert torch.equal(kept, found[-1][0])
        assert torch.allclose(mean_confidence, found[-1][1])


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=50))
def test_ranks_are_monotonic_in_unit_interval(values):
    certainty = torch.tensor(values)
    lesion = torch.ones(len(values), dtype=torch.bool)
    ranks = Ranks()
    ranks.calibrate(certainty, lesion)
    found = ranks(certainty, lesion)
    assert found.min() >= 0
    assert found.max() == 1
    order = certainty.argsort()
    assert (found[order].diff() >= 0).all()
    assert not ranks(certainty, ~lesion).any()
