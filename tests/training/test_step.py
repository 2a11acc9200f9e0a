from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import toy_encoder
from plantseg_next.data.dataset import collate
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.settings import LossSettings, ModelSettings
from plantseg_next.structures import IGNORE, Batch, ClassMap
from plantseg_next.training.accumulation import StepLoss, accumulate_gradients
from plantseg_next.training.step import supervised_loss, supervised_stats

CLASSES = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
WEIGHTS = LossSettings()


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


def split(batch: Batch, size: int) -> list[Batch]:
    return [batch.select(slice(i, i + size)) for i in range(0, len(batch), size)]


def accumulate(network, batches: list[Batch], rows: int | None = None) -> StepLoss:
    return accumulate_gradients(
        batches,
        lambda batch: supervised_stats(
            network(batch.image), batch, WEIGHTS, loss_chunk_rows=rows
        ),
        lambda stats: supervised_loss(stats, WEIGHTS),
        lambda loss: loss.backward(),
    )


def gradients(
    network: nn.Module, batches: list[Batch], rows: int | None = None
) -> dict[str, torch.Tensor]:
    network.zero_grad()
    torch.manual_seed(1)
    accumulate(network, batches, rows)
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_gradient_of_the_large_batch(size):
    """For losses that join the whole batch too: overlaps and hardest pixels."""
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", dropout=0.0, width=32),
        CLASSES,
    )
    batch = make_batch(4)
    whole, parts = gradients(network, [batch]), gradients(network, split(batch, size))
    assert whole.keys() == parts.keys()
    for name, expected in whole.items():
        error = (parts[name] - expected).norm() / expected.norm().clamp_min(1e-8)
        assert error < 1e-3, name


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("rows", [16, 24])
def test_stripes_give_the_gradient_of_whole_tiles(size, rows):
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", dropout=0.0, width=32),
        CLASSES,
    )
    batches = split(make_batch(4), size)
    whole, striped = gradients(network, batches), gradients(network, batches, rows)
    for name, expected in whole.items():
        error = (striped[name] - expected).norm() / expected.norm().clamp_min(1e-8)
        assert error < 1e-3, name


def test_the_mean_of_micro_batches_would_not_be_enough():
    """The test above is one that plain accumulation fails."""
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", dropout=0.0, width=32),
        CLASSES,
    )
    batch = make_batch(4)
    whole = gradients(network, [batch])["lesion_head.weight"]
    plain = sum(gradients(network, [b])["lesion_head.weight"] for b in split(batch, 1)) / 4
    assert (plain - whole).norm() / whole.norm() > 0.02


def test_both_passes_of_a_micro_batch_drop_the_same():
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", dropout=0.5, width=32),
        CLASSES,
    ).train()
    seen: list[torch.Tensor] = []

    def watched(image):
        scores = network(image)
        seen.append(scores.lesion.detach())
        return scores

    batch = make_batch(2)
    accumulate(watched, split(batch, 1))
    first, second, first_again, second_again = seen
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)


def test_a_row_teaches_only_the_heads_it_is_annotated_for():
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", width=32), CLASSES
    )
    batch = make_batch(2)
    unknown = Batch(
        batch.image,
        torch.full_like(batch.lesion, IGNORE),
        batch.leaf,
        torch.full_like(batch.disease, IGNORE),
        batch.keys,
    )
    found = gradients(network, [unknown])
    assert not found["lesion_head.weight"].any()
    assert not found["disease_head.weight"].any()
    assert found["leaf_head.weight"].any()


@pytest.mark.parametrize("log_prior_odds", [0.0, 1.5])
def test_points_on_lesions_and_on_none_count_alike(log_prior_odds):
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", width=32), CLASSES
    ).eval()
    batch = make_batch(2)
    weights = LossSettings(points=0.5)
    with torch.no_grad():
        scores = network(batch.image)
        stats = supervised_stats(
            scores, batch, weights, log_prior_odds=torch.tensor(log_prior_odds)
        )
        loss = supervised_loss(stats, weights)
        others = weights.model_copy(update={"points": 0.0})
        rest = supervised_loss(supervised_stats(scores, batch, others), others)
    logits = scores.resized((64, 64)).lesion.clone()
    logits[:, 1:] += log_prior_odds
    chance = logits.log_softmax(1).movedim(1, -1)  # (b, h, w, k)
    points = batch.sparse_target.numpy()
    of_kind = [
        [
            -chance[b, y, x, points[b, y, x]]
            for b, y, x in zip(*np.nonzero(mine), strict=True)
        ]
        for mine in ((points != 0) & (points != IGNORE), points == 0)
    ]
    expected = sum(sum(losses) / len(losses) for losses in of_kind) / 2
    assert loss.parts["points"] == pytest.approx(float(expected), rel=1e-5)
    assert loss.total - rest.total == pytest.approx(0.5 * float(expected), rel=1e-4)
    assert "points" not in rest.parts


def test_a_part_of_weight_zero_is_left_out():
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", width=32), CLASSES
    )
    batch = make_batch(1)
    weights = LossSettings()
    stats = supervised_stats(network(batch.image), batch, weights)
    loss = supervised_loss(stats, weights)
    parts = {"ohem_ce", "focal_tversky", "leaf", "disease", "points"}
    assert set(loss.parts) == parts
    bare = supervised_stats(
        network(batch.image), replace(batch, sparse_target=None), weights
    )
    assert set(supervised_loss(bare, weights).parts) == parts - {"points"}


def test_collate_keeps_the_order():
    batch = make_batch(3)
    again = collate(split(batch, 1))
    assert again.keys == batch.keys
    assert torch.equal(again.lesion, batch.lesion)
    assert torch.equal(again.sparse_target, batch.sparse_target)
