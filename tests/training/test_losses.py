import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from plantseg_next.errors import UsageError
from plantseg_next.structures import IGNORE
from plantseg_next.training import losses


def soft_dice(logits, target, **options):
    return losses.soft_dice(losses.overlap(logits, target), **options)


def focal_tversky(logits, target, **options):
    return losses.focal_tversky(losses.overlap(logits, target), **options)


def ohem_ce(logits, target, **options):
    n_known = (target != IGNORE).sum().float()
    return losses.ohem_ce(losses.cross_entropy(logits, target), n_known, **options)


PIXEL_LOSSES = (soft_dice, focal_tversky, ohem_ce)


def draw(seed: int, k: int = 3, *, ignored: float = 0.2):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, k, 5, 7, generator=generator)
    target = torch.randint(0, k, (2, 5, 7), generator=generator)
    target[torch.rand(2, 5, 7, generator=generator) < ignored] = IGNORE
    return logits, target


def counts_by_hand(logits, target):
    """Soft counts a class by plain loops over NumPy arrays."""
    prob = torch.softmax(logits.double(), 1).numpy()
    target = target.numpy()
    k = prob.shape[1]
    hit, false, missed = np.zeros(k), np.zeros(k), np.zeros(k)
    for b, h, w in np.ndindex(target.shape):
        if target[b, h, w] == IGNORE:
            continue
        for c in range(k):
            p = prob[b, c, h, w]
            if target[b, h, w] == c:
                hit[c] += p
                missed[c] += 1 - p
            else:
                false[c] += p
    present = np.array([(target == c).any() for c in range(k)])
    return hit, false, missed, present


@given(seed=st.integers(0, 10_000), k=st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_dice_equals_a_count_by_hand(seed, k):
    logits, target = draw(seed, k)
    hit, false, missed, present = counts_by_hand(logits, target)
    dice = (2 * hit + 1) / (2 * hit + false + missed + 1)
    expected = (1 - dice)[present].mean()
    assert soft_dice(logits, target).item() == pytest.approx(expected, abs=1e-5)


@given(seed=st.integers(0, 10_000), k=st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_focal_tversky_equals_a_count_by_hand(seed, k):
    logits, target = draw(seed, k)
    hit, false, missed, present = counts_by_hand(logits, target)
    index = (hit + 1) / (hit + 0.3 * false + 0.7 * missed + 1)
    expected = ((1 - index) ** (1 / 1.2))[present].mean()
    loss = focal_tversky(logits, target).item()
    assert loss == pytest.approx(expected, abs=1e-5)


def test_misses_cost_more_than_false_positives():
    target = torch.zeros(1, 40, 40, dtype=torch.long)
    target[0, :4, :4] = 1
    one_missed, one_false = target[0].clone(), target[0].clone()
    one_missed[0, 0] = 0
    one_false[20, 20] = 1

    def loss_when_called(called):
        logits = 20.0 * torch.stack([1 - called, called])[None]
        return focal_tversky(logits, target, smooth=0.0).item()

    assert loss_when_called(one_missed) > 1.5 * loss_when_called(one_false)


@given(seed=st.integers(0, 10_000), fraction=st.sampled_from([0.1, 0.25, 0.5, 1.0]))
@settings(max_examples=20, deadline=None)
def test_ohem_ce_are_a_share_of_the_valid_ones(seed, fraction):
    logits, target = draw(seed)
    loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    valid = np.sort(loss[target != IGNORE].numpy())[::-1]
    kept = valid[: max(1, math.ceil(fraction * len(valid) - 1e-6))]
    found = ohem_ce(logits, target, fraction=fraction).item()
    assert found == pytest.approx(kept.mean(), rel=1e-5)


def test_image_level_leaves_unknown_rows_out():
    logits = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    known = losses.cross_entropy(logits, torch.tensor([0, IGNORE]))
    assert known.tolist() == pytest.approx([math.log(1 + math.exp(-2)), 0])


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
@pytest.mark.parametrize("value", [0, 1, IGNORE])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_uniform_masks_give_finite_losses_and_gradients(loss, value, scale):
    logits = (torch.randn(2, 3, 4, 4) * scale).requires_grad_()
    found = loss(logits, torch.full((2, 4, 4), value))
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(logits.grad).all()
    if value == IGNORE:
        assert found.item() == 0
        assert not logits.grad.any()


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_ignored_pixels_take_no_gradient(loss):
    logits, target = draw(0, ignored=0.5)
    logits.requires_grad_()
    loss(logits, target).backward()
    assert not logits.grad.movedim(1, -1)[target == IGNORE].any()


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_a_perfect_match_costs_nothing(loss):
    _, target = draw(0)
    perfect = 30.0 * F.one_hot(target % IGNORE, 3).movedim(-1, 1).float()
    assert loss(perfect, target).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_half_precision_does_not_overflow(loss):
    logits = torch.zeros(1, 2, 512, 512, dtype=torch.float16)
    target = torch.zeros(1, 512, 512, dtype=torch.long)
    assert torch.isfinite(loss(logits, target))
    assert loss(logits, target).dtype == torch.float32


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_dice_stays_finite_without_smoothing(seed):
    logits, target = draw(seed, ignored=1.0 if seed % 2 else 0.3)
    assert torch.isfinite(soft_dice(logits, target, smooth=0.0))


def test_a_target_of_another_size_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UsageError, match=r"`target` has shape \(1, 2, 2\) beside logits"):
        soft_dice(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, dtype=torch.long))


@given(st.integers(1, 10**6), st.lists(st.integers(1, 10**5), min_size=1, max_size=3))
def test_a_sample_with_as_many_lesions_as_not_asks_for_the_true_shares(none, lesions):
    """Half the points on no lesion, half on lesions: right logits are left alone."""
    pixels = (none, *lesions)
    shares = torch.tensor(pixels, dtype=torch.float64)
    logits = shares.log().view(1, -1, 1, 1).requires_grad_()
    where = torch.ones(1, 1, 1, dtype=torch.bool)
    log_prior_odds = losses.class_log_prior_odds(torch.tensor([none, sum(lesions)]))
    found = losses.logit_adjustment(logits, where, log_prior_odds)
    chance = shares.clone()
    chance[0] = 0.5 * shares.sum()
    chance[1:] *= 0.5 * shares.sum() / shares[1:].sum()
    entropy = [
        losses.cross_entropy(found, torch.tensor([[[c]]])).squeeze()
        for c in range(len(pixels))
    ]
    (chance / chance.sum() * torch.stack(entropy)).sum().backward()
    assert logits.grad.abs().max() < 1e-5


def test_only_points_are_seen_as_if_lesions_were_common():
    logits = torch.randn(1, 3, 2, 2)
    where = torch.tensor([[[True, False], [False, False]]])
    found = losses.logit_adjustment(logits, where, torch.tensor(2.0))
    assert torch.equal(found[:, :, ~where[0]], logits[:, :, ~where[0]])
    assert found[0, :, 0, 0] - logits[0, :, 0, 0] == pytest.approx(
        torch.tensor([0.0, 2, 2])
    )
    assert losses.logit_adjustment(logits, where, None) is logits


@pytest.mark.parametrize("pixels", [(10, 0), (0, 10), (10, 10)])
def test_where_nobody_knows_how_rare_lesions_are_nothing_is_corrected(pixels):
    assert losses.class_log_prior_odds(torch.tensor(pixels)) == 0.0
