"""One training step. Read this first.

A step turns batches into gradients and the named parts of their loss: the network looks
at tiles, what it says is tallied, and the loss is a function of the tally. What is learned
from is plain in the targets: pixels and images without an annotation are ``IGNORE`` and
teach nothing, so a row that marks lesions only, one that marks the leaf too and one that
has only a name pass through the same lines. So do the teacher's labels: a pixel on which
it is not believed is ``IGNORE``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plantseg_next.data.dataset import TrainBatch
from plantseg_next.models.segmenter import Scores
from plantseg_next.settings import LossSettings
from plantseg_next.structures import IGNORE, NO_LESION, Batch
from plantseg_next.training import losses
from plantseg_next.training.accumulation import LossStats, StepLoss, accumulate_gradients
from plantseg_next.training.losses import Overlap
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch
from plantseg_next.training.semi_supervised.pseudo_labels import PseudoLabeler

UNSUP_HEADS = {"lesion": 1.0, "leaf": 0.5}
"""What the teacher teaches of, and how much each counts."""
UNSUP_DICE = 0.5
"""Weight of the overlap with the teacher's mask, beside cross-entropy."""


def learn(
    student: Callable[..., Scores],
    micro_batches: Sequence[TrainBatch],
    weights: LossSettings,
    backward: Callable[[Tensor], object],
    pseudo_labeler: PseudoLabeler | None = None,
    *,
    loss_chunk_rows: int | None = None,
    log_prior_odds: Tensor | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of one step to the student's, and return the parts of its loss.

    Args:
        student: The network in training.
        micro_batches: Micro-batches, on the network's device.
        weights: What the parts of the supervised loss are worth.
        backward: Differentiates a scalar, as Fabric does it.
        pseudo_labeler: What the teacher makes of tiles without labels, once it is its time.
        loss_chunk_rows: Rows of a tile whose losses are computed at once; ``None`` for all.
        log_prior_odds: Log odds of "no lesion" in masks; see ``losses.as_if_common``.
    """
    weight = None if pseudo_labeler is None else pseudo_labeler.weight
    # The teacher speaks first, while there are no gradients in memory yet.
    pseudo_labeled = (
        pseudo_labeler.make_targets(micro_batches)
        if pseudo_labeler is not None and weight is not None
        else []
    )
    loss = accumulate_gradients(
        [one.labeled for one in micro_batches],
        lambda batch: supervised_stats(
            student(batch.image),
            batch,
            weights,
            loss_chunk_rows=loss_chunk_rows,
            log_prior_odds=log_prior_odds,
        ),
        partial(supervised_loss, weights=weights),
        backward,
    )
    if pseudo_labeler is None or weight is None:
        return loss.parts
    settings = pseudo_labeler.settings
    looks = partial(student, complementary_dropout=True) if settings.strong_views > 1 else student
    unsup = accumulate_gradients(
        pseudo_labeled,
        lambda pseudo_labeled: unsup_stats(
            looks(pseudo_labeled.image),
            pseudo_labeled,
            loss_chunk_rows=loss_chunk_rows,
            log_prior_odds=log_prior_odds,
        ),
        partial(
            unsup_loss,
            weight=weight,
            disease_weight=weights.disease * pseudo_labeler.disease_weight,
            cam_seed_weight=pseudo_labeler.cam_seed_weight,
        ),
        backward,
    )
    return loss.parts | unsup.parts


def supervised_stats(
    scores: Scores,
    batch: Batch,
    weights: LossSettings,
    *,
    loss_chunk_rows: int | None = None,
    log_prior_odds: Tensor | None = None,
) -> LossStats:
    """Count what the loss of annotated tiles needs; see ``supervised_loss``.

    Args:
        scores: What the network says of them, at any resolution.
        batch: The tiles.
        weights: What each part is worth; for a part of weight 0 nothing is counted.
        loss_chunk_rows: Rows at once.
        log_prior_odds: As in ``learn``.
    """
    points = batch.sparse_target if weights.points > 0 else None

    def count(scores: Scores, these: slice) -> LossStats:
        lesion = batch.lesion[:, these]
        sums = {"lesion": torch.stack(losses.overlap(scores.lesion, lesion))}
        pixels = {}
        if points is not None:
            # Of masks and points at once: of all that a loss keeps, this needs most memory.
            chosen = points[:, these]
            logits = losses.logit_adjustment(
                scores.lesion, chosen != IGNORE, log_prior_odds
            )
            entropy = losses.cross_entropy(logits, batch.target[:, these])
            sums |= _balanced_sums("points", entropy, chosen)
            if weights.ohem_ce > 0:
                pixels["lesion"] = entropy * (lesion != IGNORE)
        elif weights.ohem_ce > 0:
            pixels["lesion"] = losses.cross_entropy(scores.lesion, lesion)
        if weights.leaf > 0:
            leaf = batch.leaf[:, these]
            sums["leaf"] = torch.stack(losses.overlap(scores.leaf, leaf))
            sums["leaf_entropy"] = losses.cross_entropy(scores.leaf, leaf).sum()
        return LossStats(sums, pixels)

    stats = chunked_loss(
        scores, (batch.lesion.shape[1], batch.lesion.shape[2]), loss_chunk_rows, count
    )
    if weights.disease > 0:
        entropy = losses.cross_entropy(scores.disease, batch.disease).sum()
        stats.sums["disease"] = torch.stack([entropy, (batch.disease != IGNORE).sum()])
    return stats


def supervised_loss(stats: LossStats, weights: LossSettings) -> StepLoss:
    """Return the loss of annotated tiles.

    Args:
        stats: Of all tiles of the step.
        weights: What each part is worth; a part of weight 0 is not computed.
    """
    sums = stats.sums
    lesion = Overlap(*sums["lesion"])
    parts: dict[str, Callable[[], Tensor]] = {
        "ohem_ce": lambda: losses.ohem_ce(stats.pixels["lesion"], lesion.n_known.detach()),
        "focal_tversky": lambda: losses.focal_tversky(lesion),
        "leaf": lambda: (
            _mean(sums["leaf_entropy"], Overlap(*sums["leaf"]).n_known)
            + losses.soft_dice(Overlap(*sums["leaf"]))
        ),
        "disease": lambda: _mean(*sums["disease"]),
    }
    if "points_lesion" in sums:
        parts["points"] = lambda: _balanced_mean("points", sums)
    wanted = {n: part() for n, part in parts.items() if getattr(weights, n) > 0}
    total = sum(
        (getattr(weights, name) * part for name, part in wanted.items()),
        start=lesion.tp.new_zeros(()),
    )
    return StepLoss(total, {name: part.detach() for name, part in wanted.items()})


def unsup_stats(
    scores: Scores,
    pseudo_labeled: PseudoLabeledBatch,
    *,
    loss_chunk_rows: int | None = None,
    log_prior_odds: Tensor | None = None,
) -> LossStats:
    """Count what the loss of taught tiles needs; see ``lesson_loss``.

    Args:
        scores: What the student says of ``taught.image``, at any resolution.
        pseudo_labeled: What the teacher says.
        loss_chunk_rows: Rows at once.
        log_prior_odds: As in ``learn``.
    """
    size = (pseudo_labeled.lesion.shape[1], pseudo_labeled.lesion.shape[2])

    def count(scores: Scores, these: slice) -> LossStats:
        sums = {"inside": pseudo_labeled.valid[:, these].sum().float()}
        said = pseudo_labeled.scores and pseudo_labeled.scores.row_slice(these, size)
        for head in UNSUP_HEADS:
            logits, label = getattr(scores, head), getattr(pseudo_labeled, head)[:, these]
            if said is not None:
                distance = losses.squared_distance(logits, getattr(said, head), label)
                sums[f"{head}_distance"] = distance.sum()
                continue
            sums[f"{head}_entropy"] = losses.cross_entropy(logits, label).sum()
            sums[head] = torch.stack(losses.overlap(logits, label))
        if pseudo_labeled.cam_seed is not None:
            seed = pseudo_labeled.cam_seed[:, these]
            logits = losses.logit_adjustment(scores.lesion, seed != IGNORE, log_prior_odds)
            sums |= _balanced_sums("seed", losses.cross_entropy(logits, seed), seed)
        return LossStats(sums, {})

    stats = chunked_loss(scores, size, loss_chunk_rows, count)
    if pseudo_labeled.disease is not None:
        entropy = losses.cross_entropy(scores.disease, pseudo_labeled.disease).sum()
        stats.sums["name"] = torch.stack(
            [entropy, (pseudo_labeled.disease != IGNORE).sum()]
        )
    return stats


def unsup_loss(
    stats: LossStats,
    weight: float,
    *,
    disease_weight: float = 0.0,
    cam_seed_weight: float = 0.0,
) -> StepLoss:
    """Return the loss of tiles on which the teacher has spoken.

    The sum of cross-entropies is divided by all pixels of the images, as FixMatch does
    it (Sohn et al. 2020, arXiv:2001.07685), so that a batch of which little is believed
    weighs little.

    Args:
        stats: Of all tiles of the step.
        weight: What the teacher's word is worth now, beside the supervised loss.
        disease_weight: What the names of images are worth.
        cam_seed_weight: What seeds are worth now.
    """
    sums = stats.sums
    total = sums["inside"].new_zeros(())
    parts: dict[str, Tensor] = {}
    for head, worth in UNSUP_HEADS.items():
        if f"{head}_distance" in sums:
            part = _mean(sums[f"{head}_distance"], sums["inside"])
        else:
            part = _mean(sums[f"{head}_entropy"], sums["inside"])
            part = part + UNSUP_DICE * losses.soft_dice(Overlap(*sums[head]))
        total = total + weight * worth * part
        parts[f"unsup_{head}"] = part.detach()
    if "name" in sums:
        part = _mean(*sums["name"])
        total = total + disease_weight * part
        parts["unsup_disease"] = part.detach()
    if "seed_lesion" in sums:
        part = _balanced_mean("seed", sums)
        total = total + cam_seed_weight * part
        parts["unsup_cam_seeds"] = part.detach()
    return StepLoss(total, parts)


def _balanced_sums(name: str, entropy: Tensor, seed: Tensor) -> dict[str, Tensor]:
    """Return cross-entropy and number of the seeds of lesions, and of those of none."""
    is_none, known = seed == NO_LESION, seed != IGNORE
    return {
        f"{name}_{kind}": torch.stack([(entropy * mine).sum(), mine.sum()])
        for kind, mine in (("lesion", known & ~is_none), ("none", is_none))
    }


def _balanced_mean(name: str, sums: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of seeds: lesion and none count alike, however many of each.

    Source:
        Huang et al. 2018 (DSRG), doi:10.1109/CVPR.2018.00733.
    """
    return (_mean(*sums[f"{name}_lesion"]) + _mean(*sums[f"{name}_none"])) / 2


def chunked_loss(
    scores: Scores,
    size_hw: tuple[int, int],
    chunk_rows: int | None,
    count: Callable[[Scores, slice], LossStats],
) -> LossStats:
    """Return the tally of maps brought to the tile's size, whole or stripe by stripe.

    With many classes the maps at full size are what needs most memory. In stripes only
    one of them exists at a time; the backward pass makes each again.

    Args:
        scores: At a resolution of which ``size_hw`` is a multiple.
        size_hw: The tile's size.
        chunk_rows: Height of a stripe; ``None`` for the whole tile.
        count: Tallies a stripe.
    """
    height = size_hw[0]
    if chunk_rows is None or chunk_rows >= height:
        return count(scores.resized(size_hw), slice(0, height))
    stripes = [slice(r, min(r + chunk_rows, height)) for r in range(0, height, chunk_rows)]

    def counted(these: slice) -> LossStats:
        return count(scores.row_slice(these, size_hw), these)

    return LossStats.joined(
        [checkpoint(counted, these, use_reentrant=False) for these in stripes], dim=1
    )


def _mean(total: Tensor, n: Tensor) -> Tensor:
    return total / n.clamp_min(1)
