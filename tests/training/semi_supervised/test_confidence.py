import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plantseg_next.training.semi_supervised.confidence import (
    Gate,
    Opinion,
    Ranks,
    energy,
    negative_entropy,
    probability,
    steadiness,
)


def logits(seed: int = 0, k: int = 3, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, k, size, size, generator=generator)


INSIDE = torch.ones(2, 16, 16, dtype=torch.bool)


def believed_by(gate: Gate, opinion: Opinion, inside: torch.Tensor) -> torch.Tensor:
    (believed,) = gate.believes([gate.weigh(opinion, inside)])
    return believed


def make_gate(**changes) -> Gate:
    settings = {"threshold": 0.9, "n_classes": 3, "dynamic": False, "floor": 0.0}
    kinds = changes.pop("kinds", ("probability",))
    return Gate(kinds, **(settings | changes))


def test_certainties_agree_with_sums_written_out():
    scores = logits()
    b, h, w = 1, 3, 5
    f = scores[b, :, h, w].double().tolist()
    p = [math.exp(x) / sum(math.exp(y) for y in f) for x in f]
    assert probability(scores)[b, h, w].item() == pytest.approx(max(p), rel=1e-5)
    total = sum(math.exp(x / 2) for x in f)
    found = energy(scores, temperature=2.0)[b, h, w].item()
    assert found == pytest.approx(2 * math.log(total), rel=1e-5)
    entropy = -sum(x * math.log(x) for x in p) / math.log(3)
    assert negative_entropy(scores)[b, h, w].item() == pytest.approx(-entropy, rel=1e-4)


def test_variance_over_passes_agrees_with_numbers_written_out():
    passes = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]).view(2, 1, 2, 1, 1)
    # Probabilities of the first class: 0.5 and 0.75; of the second: 0.5 and 0.25.
    assert steadiness(passes).item() == pytest.approx(-2 * 0.125**2)


def test_the_energy_of_the_original_system_would_tell_nothing():
    """``-log(sum(softmax))`` is zero everywhere; ours is not constant."""
    scores = logits()
    assert torch.allclose(
        -scores.softmax(1).sum(1).log(), torch.zeros(2, 16, 16), atol=1e-6
    )
    assert energy(scores).std() > 0.5


def test_a_fixed_threshold_is_a_probability():
    scores = logits()
    believed = believed_by(make_gate(), Opinion(scores), INSIDE)
    assert torch.equal(believed, scores.softmax(1).amax(1) >= 0.9)
    assert 0 < believed.float().mean() < 1


def test_nothing_outside_the_image_is_believed():
    inside = INSIDE.clone()
    inside[:, :8] = False
    for dynamic in (False, True):
        gate = make_gate(dynamic=dynamic, floor=0.5)
        assert not (believed_by(gate, Opinion(logits()), inside) & ~inside).any()


@pytest.mark.parametrize("kind", ["energy", "entropy", "dropout"])
def test_every_gate_believes_as_many_labeled_pixels_as_the_probability(kind):
    opinion = Opinion(logits(size=64), torch.stack([logits(s, size=64) for s in (0, 1)]))
    inside = torch.ones(2, 64, 64, dtype=torch.bool)
    plain = believed_by(make_gate(), opinion, inside)
    gate = make_gate(kinds=(kind,))
    gate.learn(opinion, inside)
    found = believed_by(gate, opinion, inside)
    for lesion in (False, True):
        group = (opinion.label != 0) == lesion
        share, expected = (x[group].float().mean().item() for x in (found, plain))
        assert share == pytest.approx(expected, abs=0.03)


def test_gates_are_combined_by_their_ranks():
    """A mean of ranks is no rank: without a second ranking fewer would be believed."""
    opinion = Opinion(logits(size=64))
    inside = torch.ones(2, 64, 64, dtype=torch.bool)
    gate = make_gate(kinds=("probability", "entropy"))
    gate.learn(opinion, inside)
    both = believed_by(gate, opinion, inside)
    share, alone = (
        believed.float().mean().item()
        for believed in (both, believed_by(make_gate(), opinion, inside))
    )
    assert share == pytest.approx(alone, abs=0.03)


def test_a_gate_that_has_learned_nothing_believes_nothing():
    gate = make_gate(kinds=("energy",))
    assert not believed_by(gate, Opinion(logits()), INSIDE).any()


def test_a_doubtful_class_gets_a_lower_threshold():
    scores = torch.zeros(1, 3, 8, 8)
    scores[:, 0, :4] = 9.0  # sure of class 0
    scores[:, 2, 4:] = 1.5  # class 2 at best 0.69
    opinion, inside = Opinion(scores), torch.ones(1, 8, 8, dtype=torch.bool)
    gate = make_gate(dynamic=True)
    assert not believed_by(gate, opinion, inside)[:, 4:].any()
    for _ in range(300):
        gate.notice([gate.weigh(opinion, inside)])
    assert believed_by(gate, opinion, inside).all()


def test_a_rare_class_keeps_its_surest_pixels():
    scores = logits()
    scores[:, 2] -= 4.0
    opinion = Opinion(scores)
    gate = make_gate(dynamic=True, threshold=0.999, floor=0.2)
    believed = believed_by(gate, opinion, INSIDE)
    for c in opinion.label.unique():
        mine = opinion.label == c
        assert believed[mine].float().mean() >= 0.19


@pytest.mark.parametrize("kinds", [("probability",), ("entropy", "energy")])
def test_how_a_step_is_parted_changes_nothing(kinds):
    scores = torch.cat([logits(seed) for seed in range(3)])
    inside = torch.rand(scores.shape[0], 16, 16) < 0.9
    found = []
    for size in (1, 2, 6):
        gate = make_gate(dynamic=True, floor=0.3, kinds=kinds)
        gate.learn(Opinion(scores), inside)
        verdicts = [
            gate.weigh(Opinion(scores[i : i + size]), inside[i : i + size])
            for i in range(0, 6, size)
        ]
        gate.notice(verdicts)
        found.append((torch.cat([*gate.believes(verdicts)]), gate.state_dict()["sureness"]))
    for believed, sureness in found[:-1]:
        assert torch.equal(believed, found[-1][0])
        assert torch.allclose(sureness, found[-1][1])


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=50))
def test_ranks_keep_the_order_and_lie_in_the_unit_interval(values):
    certainty = torch.tensor(values)
    lesion = torch.ones(len(values), dtype=torch.bool)
    ranks = Ranks()
    ranks.learn(certainty, lesion)
    found = ranks(certainty, lesion)
    assert found.min() >= 0
    assert found.max() == 1
    order = certainty.argsort()
    assert (found[order].diff() >= 0).all()
    assert not ranks(certainty, ~lesion).any()
