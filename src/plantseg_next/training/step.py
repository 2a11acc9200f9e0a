"""One training step: forward, loss, backward, in that order. Read this first.

A step is a few micro-batches, whose gradients add up. Labels of the whole step are
counted before the first forward pass, so cross-entropies are means over all its pixels
whatever the size of a micro-batch. Overlap losses and the choice of hard pixels are made
within a micro-batch and weighted by its size: it learns as well (docs/results/memory.md).

What is not annotated or not trusted is ``IGNORE`` in the targets and skipped by every loss.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plantseg_next.models.segmenter import Scores
from plantseg_next.settings import LossSettings
from plantseg_next.structures import IGNORE, NO_LESION, Batch, is_lesion
from plantseg_next.training import losses
from plantseg_next.training.losses import SoftCounts
from plantseg_next.training.semi_supervised.mean_teacher import consistency_losses
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch
from plantseg_next.training.semi_supervised.pseudo_labels import UnsupWeights
from plantseg_next.training.sparse_labels import (
    SparseCounts,
    balanced_ce,
    logit_adjustment,
)

UNSUP_LEAF = 0.5
"""Weight of the leaf beside the lesions in the unsupervised loss."""
UNSUP_DICE = 0.5
"""Weight of the overlap with a pseudo-label, beside cross-entropy."""


def train_step(  # noqa: PLR0913 - all that a step depends on
    student: Callable[..., Scores],
    labeled: Sequence[Batch],
    weights: LossSettings,
    backward: Callable[[Tensor], object],
    *,
    pseudo_labeled: Sequence[PseudoLabeledBatch] = (),
    unsup: UnsupWeights | None = None,
    complementary_dropout: bool = False,
    log_prior_odds: Tensor | None = None,
    loss_chunk_rows: int | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of one step to the student's.

    Args:
        student: The network in training mode.
        labeled: Micro-batches of labeled tiles, on the network's device.
        weights: Of the supervised losses; a loss of weight 0 is not computed.
        backward: Differentiates a scalar, as Fabric does it.
        pseudo_labeled: Micro-batches of tiles with pseudo-labels.
        unsup: Weights of their losses; needed where there are any.
        complementary_dropout: Whether a pseudo-labeled micro-batch holds two views a tile.
        log_prior_odds: Of "no lesion" in masks; see ``logit_adjustment``.
        loss_chunk_rows: Rows of a tile whose losses are computed at once; ``None``: all.

    Returns:
        Each loss of the step, unweighted and detached, by its name.
    """
    values: dict[str, Tensor] = {}
    counts, scale = count_labels(labeled), weights.model_dump()
    for batch in labeled:
        scores = student(batch.image)
        terms = supervised_losses(
            scores, batch, counts, weights, log_prior_odds, loss_chunk_rows
        )
        backward(_weighted_sum(terms, scale))
        _add(values, terms)
    if unsup is None:
        return values
    scale = {
        "unsup_lesion": unsup.consistency,
        "unsup_leaf": unsup.consistency * UNSUP_LEAF,
        "unsup_disease": unsup.disease * weights.disease,
        "unsup_cam_seeds": unsup.cam_seeds,
    }
    counts = count_labels(pseudo_labeled)
    views = {"complementary_dropout": True} if complementary_dropout else {}
    for tiles in pseudo_labeled:
        scores = student(tiles.image, **views)
        terms = unsupervised_losses(scores, tiles, counts, log_prior_odds, loss_chunk_rows)
        backward(_weighted_sum(terms, scale))
        _add(values, terms)
    return values


class LabelCounts(NamedTuple):
    """What the losses of a whole step are divided by; each at least 1.

    Args:
        tiles: Of the step.
        lesion: Pixels labeled as a lesion class or as no lesion.
        leaf: Pixels labeled as leaf or not.
        valid: Pixels inside the image.
        disease: Tiles with an image-level label.
        sparse: Sparse labels: points or CAM seeds.
    """

    tiles: int
    lesion: Tensor
    leaf: Tensor
    valid: Tensor
    disease: Tensor
    sparse: SparseCounts


def count_labels(batches: Sequence[Batch] | Sequence[PseudoLabeledBatch]) -> LabelCounts:
    """Return what is labeled in all micro-batches of a step."""

    def total(parts: Iterable[Tensor]) -> Tensor:
        sums = [part.sum() for part in parts]
        return torch.stack(sums).sum().clamp_min(1) if sums else torch.ones(())

    sparse = [b.sparse_target if isinstance(b, Batch) else b.cam_seed for b in batches]
    return LabelCounts(
        tiles=sum(len(b.lesion) for b in batches),
        lesion=total(b.lesion != IGNORE for b in batches),
        leaf=total(b.leaf != IGNORE for b in batches),
        valid=total(b.valid for b in batches if isinstance(b, PseudoLabeledBatch)),
        disease=total(b.disease != IGNORE for b in batches if b.disease is not None),
        sparse=SparseCounts(
            on=total(is_lesion(target) for target in sparse if target is not None),
            off=total(target == NO_LESION for target in sparse if target is not None),
        ),
    )


def supervised_losses(
    scores: Scores,
    batch: Batch,
    counts: LabelCounts,
    weights: LossSettings,
    log_prior_odds: Tensor | None = None,
    chunk_rows: int | None = None,
) -> dict[str, Tensor]:
    """Return a micro-batch's part of each supervised loss; parts of a step add up.

    Args:
        scores: Of its tiles, at a resolution of which the tile's size is a multiple.
        batch: The tiles.
        counts: Of the whole step.
        weights: A loss of weight 0 is left out.
        log_prior_odds: As in ``train_step``.
        chunk_rows: Rows of a tile at once; ``None`` for all.
    """
    sparse = batch.sparse_target if weights.points > 0 else None
    comparison = compare(
        scores, batch.lesion, batch.leaf, sparse, log_prior_odds, chunk_rows
    )
    lesion, leaf = comparison.lesion, comparison.leaf
    fraction = len(batch) / counts.tiles
    terms: dict[str, Tensor] = {}
    if weights.ohem_ce > 0:
        hard = losses.ohem_ce(comparison.lesion_ce, lesion.n_known.detach())
        terms["ohem_ce"] = hard * (lesion.n_known / counts.lesion)
    if weights.focal_tversky > 0:
        terms["focal_tversky"] = fraction * losses.focal_tversky(lesion)
    if weights.leaf > 0:
        leaf_ce = comparison.leaf_ce.sum() / counts.leaf
        terms["leaf"] = leaf_ce + fraction * losses.soft_dice(leaf)
    if weights.disease > 0:
        disease_ce = losses.cross_entropy(scores.disease, batch.disease)
        terms["disease"] = disease_ce.sum() / counts.disease
    if sparse is not None:
        terms["points"] = balanced_ce(comparison.sparse_ce, sparse, counts.sparse)
    return terms


def unsupervised_losses(
    scores: Scores,
    tiles: PseudoLabeledBatch,
    counts: LabelCounts,
    log_prior_odds: Tensor | None = None,
    chunk_rows: int | None = None,
) -> dict[str, Tensor]:
    """Return a micro-batch's part of each unsupervised loss; parts of a step add up.

    Cross-entropies are divided by all pixels inside the image, as in FixMatch (Sohn et
    al. 2020, arXiv:2001.07685), so that tiles with few trusted pixels weigh little.

    Args:
        scores: Of the student.
        tiles: With pseudo-labels.
        counts: Of the whole step.
        log_prior_odds: As in ``train_step``.
        chunk_rows: Rows of a tile at once; ``None`` for all.
    """
    lesion, leaf, seed = tiles.lesion, tiles.leaf, tiles.cam_seed
    if tiles.scores is None or seed is not None:
        comparison = compare(scores, lesion, leaf, seed, log_prior_odds, chunk_rows)
    if tiles.scores is not None:
        terms = consistency_losses(scores, tiles.scores, lesion, leaf, counts.valid)
    else:
        dice = UNSUP_DICE * len(lesion) / counts.tiles
        terms = {
            "unsup_lesion": comparison.lesion_ce.sum() / counts.valid
            + dice * losses.soft_dice(comparison.lesion),
            "unsup_leaf": comparison.leaf_ce.sum() / counts.valid
            + dice * losses.soft_dice(comparison.leaf),
        }
    if tiles.disease is not None:
        disease_ce = losses.cross_entropy(scores.disease, tiles.disease)
        terms["unsup_disease"] = disease_ce.sum() / counts.disease
    if seed is not None:
        terms["unsup_cam_seeds"] = balanced_ce(comparison.sparse_ce, seed, counts.sparse)
    return terms


class Comparison(NamedTuple):
    """Scores beside targets, at the size of the tile.

    Args:
        lesion: Soft counts a lesion class.
        lesion_ce: Cross-entropy of each pixel, ``(b, h, w)``; 0 where ignored.
        leaf: Soft counts of no leaf and leaf.
        leaf_ce: As ``lesion_ce``.
        sparse_ce: Of sparse labels, on adjusted logits; all 0 where there are none.
    """

    lesion: SoftCounts
    lesion_ce: Tensor
    leaf: SoftCounts
    leaf_ce: Tensor
    sparse_ce: Tensor


def compare(
    scores: Scores,
    lesion: Tensor,
    leaf: Tensor,
    sparse: Tensor | None = None,
    log_prior_odds: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Comparison:
    """Compare score maps with targets at the tile's size, whole or some rows at a time.

    With many classes the maps at full size need most of the memory of a step. With
    ``chunk_rows`` only one chunk of them exists at a time; the backward pass computes
    each again.
    """
    height, width = lesion.shape[1:]

    def of_rows(rows: slice) -> tuple[Tensor, ...]:
        if rows.stop - rows.start == height:
            maps = scores.resized((height, width))
        else:
            maps = scores.row_slice(rows, (height, width))
        chunk = [
            torch.stack(losses.soft_counts(maps.lesion, lesion[:, rows])),
            losses.cross_entropy(maps.lesion, lesion[:, rows]),
            torch.stack(losses.soft_counts(maps.leaf, leaf[:, rows])),
            losses.cross_entropy(maps.leaf, leaf[:, rows]),
        ]
        if sparse is not None:
            labels = sparse[:, rows]
            logits = logit_adjustment(maps.lesion, labels != IGNORE, log_prior_odds)
            chunk.append(losses.cross_entropy(logits, labels))
        return tuple(chunk)

    step = height if chunk_rows is None else min(chunk_rows, height)
    chunks = [slice(r, min(r + step, height)) for r in range(0, height, step)]
    parts = [
        of_rows(rows)
        if len(chunks) == 1
        else checkpoint(of_rows, rows, use_reentrant=False)
        for rows in chunks
    ]
    # Counts of chunks add up; maps lie below one another.
    lesion_counts, lesion_ce, leaf_counts, leaf_ce, *sparse_ce = (
        torch.stack(chunk).sum(0) if i in (0, 2) else torch.cat(chunk, dim=1)
        for i, chunk in enumerate(zip(*parts, strict=True))
    )
    return Comparison(
        SoftCounts(*lesion_counts),
        lesion_ce,
        SoftCounts(*leaf_counts),
        leaf_ce,
        sparse_ce[0] if sparse_ce else torch.zeros_like(lesion_ce),
    )


def _weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _add(values: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    for name, term in terms.items():
        values[name] = values.get(name, 0) + term.detach()
