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
from plantseg_next.training import losses, sparse_labels


def soft_dice(logits, target):
    return losses.soft_dice(losses.soft_counts(logits, target))


def focal_tversky(logits, target):
    return losses.focal_tversky(losses.soft_counts(logits, target))


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


def counts_by_loops(logits, target):
    """Soft counts of each class by plain loops over NumPy arrays."""
    prob = torch.softmax(logits.double(), 1).numpy()
    target = target.numpy()
    k = prob.shape[1]
    tp, fp, fn = np.zeros(k), np.zeros(k), np.zeros(k)
    for b, h, w in np.ndindex(target.shape):
        if target[b, h, w] == IGNORE:
            continue
        for c in range(k):
            p = prob[b, c, h, w]
            if target[b, h, w] == c:
                tp[c] += p
                fn[c] += 1 - p
            else:
                fp[c] += p
    present = np.array([(target == c).any() for c in range(k)])
    return tp, fp, fn, present


@given(seed=st.integers(0, 10_000), k=st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_dice_equals_loop_implementation(seed, k):
    logits, target = draw(seed, k)
    tp, fp, fn, present = counts_by_loops(logits, target)
    dice = (2 * tp + 1) / (2 * tp + fp + fn + 1)
    expected = (1 - dice)[present].mean()
    assert soft_dice(logits, target).item() == pytest.approx(expected, abs=1e-5)


@given(seed=st.integers(0, 10_000), k=st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_focal_tversky_equals_loop_implementation(seed, k):
    logits, target = draw(seed, k)
    tp, fp, fn, present = counts_by_loops(logits, target)
    index = (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)
    expected = ((1 - index) ** (1 / 1.2))[present].mean()
    loss = focal_tversky(logits, target).item()
    assert loss == pytest.approx(expected, abs=1e-5)


def test_focal_tversky_weighs_false_negatives_more(monkeypatch):
    monkeypatch.setattr(losses, "SMOOTH", 0.0)
    target = torch.zeros(1, 40, 40, dtype=torch.long)
    target[0, :4, :4] = 1
    one_fn, one_fp = target[0].clone(), target[0].clone()
    one_fn[0, 0] = 0
    one_fp[20, 20] = 1

    def loss_when_predicted(predicted):
        logits = 20.0 * torch.stack([1 - predicted, predicted])[None]
        return focal_tversky(logits, target).item()

    assert loss_when_predicted(one_fn) > 1.5 * loss_when_predicted(one_fp)


@given(seed=st.integers(0, 10_000), fraction=st.sampled_from([0.1, 0.25, 0.5, 1.0]))
@settings(max_examples=20, deadline=None)
def test_ohem_ce_keeps_a_fraction_of_valid_pixels(seed, fraction):
    logits, target = draw(seed)
    loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    valid = np.sort(loss[target != IGNORE].numpy())[::-1]
    kept = valid[: max(1, math.ceil(fraction * len(valid) - 1e-6))]
    found = ohem_ce(logits, target, fraction=fraction).item()
    assert found == pytest.approx(kept.mean(), rel=1e-5)


def test_cross_entropy_of_unlabeled_image_is_zero():
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
def test_perfect_match_has_zero_loss(loss):
    _, target = draw(0)
    perfect = 30.0 * F.one_hot(target % IGNORE, 3).movedim(-1, 1).float()
    assert loss(perfect, target).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
def test_half_precision_does_not_overflow(loss):
    logits = torch.zeros(1, 2, 512, 512, dtype=torch.float16)
    target = torch.zeros(1, 512, 512, dtype=torch.long)
    assert torch.isfinite(loss(logits, target))
    assert loss(logits, target).dtype == torch.float32


def test_target_of_other_size_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(
        UsageError, match=r"`target` has shape \(1, 2, 2\), the logits have shape"
    ):
        soft_dice(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, dtype=torch.long))


@given(st.integers(1, 10**6), st.lists(st.integers(1, 10**5), min_size=1, max_size=3))
def test_logit_adjustment_of_balanced_sample_has_no_gradient_at_true_prior(none, lesions):
    """Half the points lie off lesions, half on them; logits are those of the prior."""
    pixels = (none, *lesions)
    fractions = torch.tensor(pixels, dtype=torch.float64)
    logits = fractions.log().view(1, -1, 1, 1).requires_grad_()
    where = torch.ones(1, 1, 1, dtype=torch.bool)
    log_prior_odds = sparse_labels.class_log_prior_odds(torch.tensor([none, sum(lesions)]))
    found = sparse_labels.logit_adjustment(logits, where, log_prior_odds)
    probability = fractions.clone()
    probability[0] = 0.5 * fractions.sum()
    probability[1:] *= 0.5 * fractions.sum() / fractions[1:].sum()
    entropy = [
        losses.cross_entropy(found, torch.tensor([[[c]]])).squeeze()
        for c in range(len(pixels))
    ]
    (probability / probability.sum() * torch.stack(entropy)).sum().backward()
    assert logits.grad.abs().max() < 1e-5


def test_logit_adjustment_changes_points_only():
    logits = torch.randn(1, 3, 2, 2)
    where = torch.tensor([[[True, False], [False, False]]])
    found = sparse_labels.logit_adjustment(logits, where, torch.tensor(2.0))
    assert torch.equal(found[:, :, ~where[0]], logits[:, :, ~where[0]])
    assert found[0, :, 0, 0] - logits[0, :, 0, 0] == pytest.approx(
        torch.tensor([0.0, 2, 2])
    )
    assert sparse_labels.logit_adjustment(logits, where, None) is logits


@pytest.mark.parametrize("pixels", [(10, 0), (0, 10), (10, 10)])
def test_log_prior_odds_without_counts_or_imbalance_is_zero(pixels):
    assert sparse_labels.class_log_prior_odds(torch.tensor(pixels)) == 0.0
