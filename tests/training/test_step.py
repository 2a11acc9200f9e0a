"""One training step: what its losses are, however it is divided into micro-batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import toy_encoder
from plantseg_next.data.dataset import collate
from plantseg_next.models.segmenter import Scores, build_segmenter
from plantseg_next.settings import LossSettings, ModelSettings
from plantseg_next.structures import IGNORE, Batch, ClassMap
from plantseg_next.training import losses, step
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch
from plantseg_next.training.semi_supervised.pseudo_labels import UnsupWeights
from plantseg_next.training.step import (
    count_labels,
    supervised_losses,
    train_step,
    unsupervised_losses,
)

CLASSES = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
WEIGHTS = LossSettings()
MEANS = LossSettings(ohem_ce=0, focal_tversky=0, leaf=0, disease=1, points=1)
"""Losses that are means over labels, and nothing else."""
UNSUP = UnsupWeights(1.0, disease=1.0, cam_seeds=0.5)


def make_batch(n: int, seed: int = 0, size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    lesion = torch.randint(0, 3, (n, size, size), generator=generator)
    lesion[0, : size // 2] = IGNORE
    lesion[1:2] = IGNORE
    return Batch(
        image=torch.rand(n, 3, size, size, generator=generator),
        lesion=lesion,
        leaf=torch.randint(0, 2, (n, size, size), generator=generator),
        disease=torch.randint(0, 2, (n,), generator=generator),
        keys=tuple(map(str, range(n))),
        sparse_target=dots(n, size, generator),
    )


def dots(n: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return nothing, but in the second tile a class here and there."""
    points = torch.randint(0, 3, (n, size, size), generator=generator)
    points[torch.rand(n, size, size, generator=generator) > 0.01] = IGNORE
    points[:1] = points[2:] = IGNORE
    return points


def make_tiles(n: int, seed: int = 0, size: int = 64) -> PseudoLabeledBatch:
    generator = torch.Generator().manual_seed(seed)
    lesion = torch.randint(0, 3, (n, size, size), generator=generator)
    lesion[:, :20] = IGNORE
    valid = torch.ones(n, size, size, dtype=torch.bool)
    valid[0, :10] = False
    return PseudoLabeledBatch(
        image=torch.rand(n, 3, size, size, generator=generator),
        lesion=lesion,
        leaf=torch.randint(0, 2, (n, size, size), generator=generator),
        valid=valid,
        disease=torch.tensor([1, IGNORE, 0, 1][:n]),
        cam_seed=torch.where(lesion == IGNORE, 1, IGNORE),
    )


def parts_of(batch, size: int):
    n = len(batch.lesion)
    return [batch.select(slice(i, i + size)) for i in range(0, n, size)]


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    settings = ModelSettings(
        encoder=toy_encoder.NAME, start="random", dropout=dropout, width=32
    )
    return build_segmenter(settings, CLASSES)


def gradients(student: nn.Module, labeled, weights=WEIGHTS, **arguments):
    student.zero_grad()
    values = train_step(
        student, labeled, weights, lambda loss: loss.backward(), **arguments
    )
    found = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    return values, found


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp_min(1e-6)
        assert error < 1e-3, name


def random_scores(n: int, size: int = 32, seed: int = 5) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(
        torch.randn(n, 3, size, size, generator=generator),
        torch.randn(n, 2, size, size, generator=generator),
        torch.randn(n, 2, generator=generator),
    )


def test_step_runs_forward_then_backward_of_each_micro_batch():
    student, calls = network(), []

    def forward(image, **_):
        calls.append(f"forward {len(image)}")
        return student(image)

    def backward(loss):
        calls.append("backward")
        loss.backward()

    train_step(
        forward,
        parts_of(make_batch(4), 2),
        WEIGHTS,
        backward,
        pseudo_labeled=parts_of(make_tiles(3), 2),
        unsup=UNSUP,
    )
    assert calls == [
        "forward 2", "backward", "forward 2", "backward",
        "forward 2", "backward", "forward 1", "backward",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_same_means_of_the_whole_step(size, monkeypatch):
    monkeypatch.setattr(step, "UNSUP_DICE", 0.0)
    student, batch, tiles = network(), make_batch(4), make_tiles(4)
    whole, expected = gradients(
        student, [batch], MEANS, pseudo_labeled=[tiles], unsup=UNSUP
    )
    values, found = gradients(
        student,
        parts_of(batch, size),
        MEANS,
        pseudo_labeled=parts_of(tiles, size),
        unsup=UNSUP,
    )
    assert values.keys() == whole.keys()
    for name, value in whole.items():
        assert float(values[name]) == pytest.approx(float(value), rel=1e-4), name
    assert_close(found, expected)


def test_overlaps_and_hard_pixels_of_micro_batches_are_weighted_by_size():
    """Against each loss of each micro-batch, weighted here."""
    batch, scores = make_batch(3), random_scores(3)
    found: dict[str, float] = {}
    expected = dict.fromkeys(("ohem_ce", "focal_tversky", "leaf"), 0.0)
    counts = count_labels([batch])
    for these in (slice(2), slice(2, 3)):
        part = batch.select(these)
        near = Scores(*(t[these] for t in scores))
        for name, value in supervised_losses(near, part, counts, WEIGHTS).items():
            found[name] = found.get(name, 0.0) + float(value)
        maps = near.resized((64, 64))
        lesion = losses.soft_counts(maps.lesion, part.lesion)
        entropy = losses.cross_entropy(maps.lesion, part.lesion)
        n, n_all = ((b.lesion != IGNORE).sum() for b in (part, batch))
        hard = losses.ohem_ce(entropy, n.float())
        expected["ohem_ce"] += float(hard * n / n_all)
        tiles = len(part) / 3
        expected["focal_tversky"] += float(losses.focal_tversky(lesion)) * tiles
        leaf = losses.soft_counts(maps.leaf, part.leaf)
        leaf_ce = losses.cross_entropy(maps.leaf, part.leaf).sum() / batch.leaf.numel()
        expected["leaf"] += float(leaf_ce) + float(losses.soft_dice(leaf)) * tiles
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("rows", [16, 24])
def test_losses_of_row_chunks_give_the_gradient_of_whole_tiles(size, rows):
    student = network()
    batches, tiles = parts_of(make_batch(4), size), parts_of(make_tiles(4), size)
    unsupervised = {"pseudo_labeled": tiles, "unsup": UNSUP}
    whole, expected = gradients(student, batches, **unsupervised)
    values, found = gradients(student, batches, loss_chunk_rows=rows, **unsupervised)
    for name, value in whole.items():
        assert float(values[name]) == pytest.approx(float(value), rel=1e-4), name
    assert_close(found, expected)


def test_unannotated_heads_get_no_gradient():
    batch = make_batch(2)
    unknown = replace(
        batch,
        lesion=torch.full_like(batch.lesion, IGNORE),
        disease=torch.full_like(batch.disease, IGNORE),
        sparse_target=None,
    )
    _, found = gradients(network(), [unknown])
    assert not found["lesion_head.weight"].any()
    assert not found["disease_head.weight"].any()
    assert found["leaf_head.weight"].any()


@pytest.mark.parametrize("log_prior_odds", [0.0, 1.5])
def test_points_on_and_off_lesions_count_alike(log_prior_odds):
    batch, scores = make_batch(2), random_scores(2)
    counts = count_labels([batch])
    odds = torch.tensor(log_prior_odds)
    found = supervised_losses(scores, batch, counts, WEIGHTS, odds)
    logits = scores.resized((64, 64)).lesion.clone()
    logits[:, 1:] += log_prior_odds
    log_probability = logits.log_softmax(1).movedim(1, -1)  # (b, h, w, k)
    points = batch.sparse_target.numpy()
    means = [
        np.mean(
            [
                -log_probability[b, y, x, points[b, y, x]]
                for b, y, x in zip(*np.nonzero(mine), strict=True)
            ]
        )
        for mine in ((points != 0) & (points != IGNORE), points == 0)
    ]
    assert float(found["points"]) == pytest.approx(float(np.mean(means)), rel=1e-4)


def test_losses_of_weight_zero_are_left_out():
    batch, scores = make_batch(1), random_scores(1)
    counts = count_labels([batch])
    names = {"ohem_ce", "focal_tversky", "leaf", "disease", "points"}
    assert set(supervised_losses(scores, batch, counts, WEIGHTS)) == names
    dense = replace(batch, sparse_target=None)
    assert set(supervised_losses(scores, dense, counts, WEIGHTS)) == names - {"points"}
    only = LossSettings(ohem_ce=0, focal_tversky=0, leaf=0, points=0)
    assert set(supervised_losses(scores, batch, counts, only)) == {"disease"}


def test_unsupervised_losses_equal_sums_written_out():
    tiles, scores = make_tiles(2), random_scores(2)
    counts = count_labels([tiles])
    found = unsupervised_losses(scores, tiles, counts)
    maps = scores.resized((64, 64))
    n_valid = tiles.valid.sum()
    for head, name in (("lesion", "unsup_lesion"), ("leaf", "unsup_leaf")):
        logits, label = getattr(maps, head), getattr(tiles, head)
        known = label != IGNORE
        log_probability = logits.log_softmax(1).movedim(1, -1)
        entropy = -log_probability[known, label[known]].sum() / n_valid
        dice = losses.soft_dice(losses.soft_counts(logits, label))
        assert float(found[name]) == pytest.approx(float(entropy + 0.5 * dice), rel=1e-4)
    entropy = torch.nn.functional.cross_entropy(scores.disease[:1], tiles.disease[:1])
    assert float(found["unsup_disease"]) == pytest.approx(float(entropy), rel=1e-5)


def test_mean_teacher_loss_is_the_distance_from_trusted_pixels():
    tiles = make_tiles(2)
    mine, teacher = random_scores(2), random_scores(2, seed=6)
    tiles = replace(tiles, scores=teacher, disease=None, cam_seed=None)
    found = unsupervised_losses(mine, tiles, count_labels([tiles]))
    assert set(found) == {"unsup_lesion", "unsup_leaf"}
    probability = [s.resized((64, 64)).lesion.softmax(1) for s in (mine, teacher)]
    gap = (probability[0] - probability[1]).square().mean(1)
    expected = gap[tiles.lesion != IGNORE].sum() / tiles.valid.sum()
    assert float(found["unsup_lesion"]) == pytest.approx(float(expected), rel=1e-5)


def test_untrusted_pixels_have_no_gradient():
    scores = random_scores(1, size=64)
    lesion = scores.lesion.requires_grad_()
    tiles = replace(make_tiles(1), disease=None, cam_seed=None)
    found = unsupervised_losses(scores, tiles, count_labels([tiles]))
    found["unsup_lesion"].backward()
    trusted = (tiles.lesion != IGNORE)[:, None].expand_as(lesion)
    assert lesion.grad[trusted].any()
    assert not lesion.grad[~trusted].any()


def test_unsupervised_weights_scale_their_losses():
    student, batch, tiles = network(), make_batch(2), make_tiles(2)
    _, alone = gradients(student, [batch])
    _, zero = gradients(student, [batch], pseudo_labeled=[tiles], unsup=UnsupWeights(0.0))
    assert_close(zero, alone)
    _, once = gradients(student, [batch], pseudo_labeled=[tiles], unsup=UNSUP)
    twice = UnsupWeights(*(2 * weight for weight in UNSUP))
    _, both = gradients(student, [batch], pseudo_labeled=[tiles], unsup=twice)
    name = "lesion_head.weight"
    torch.testing.assert_close(
        both[name] - alone[name], 2 * (once[name] - alone[name]), rtol=1e-3, atol=1e-5
    )


def test_complementary_dropout_is_asked_for_unlabeled_tiles_alone():
    student, asked = network(), []

    def forward(image, **how):
        asked.append(how)
        return student(image)

    train_step(
        forward,
        [make_batch(2)],
        WEIGHTS,
        lambda loss: loss.backward(),
        pseudo_labeled=[make_tiles(2)],
        unsup=UNSUP,
        complementary_dropout=True,
    )
    assert asked == [{}, {"complementary_dropout": True}]


def test_collate_keeps_the_order():
    batch = make_batch(3)
    again = collate(parts_of(batch, 1))
    assert again.keys == batch.keys
    assert torch.equal(again.lesion, batch.lesion)
    assert torch.equal(again.sparse_target, batch.sparse_target)
