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

from plantseg_next.data.dataset import Drawn
from plantseg_next.models.segmenter import Scores
from plantseg_next.settings import LossSettings
from plantseg_next.structures import IGNORE, NO_LESION, Batch
from plantseg_next.training import losses
from plantseg_next.training.accumulation import StepLoss, Tally, accumulate_gradients
from plantseg_next.training.losses import Overlap
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import Taught
from plantseg_next.training.semi_supervised.pseudo_labels import Lessons

LESSON_HEADS = {"lesion": 1.0, "leaf": 0.5}
"""What the teacher teaches of, and how much each counts."""
LESSON_DICE = 0.5
"""Weight of the overlap with the teacher's mask, beside cross-entropy."""


def learn(
    student: Callable[..., Scores],
    drawn: Sequence[Drawn],
    weights: LossSettings,
    backward: Callable[[Tensor], object],
    lessons: Lessons | None = None,
    *,
    rows: int | None = None,
    rarity: Tensor | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of one step to the student's, and return the parts of its loss.

    Args:
        student: The network in training.
        drawn: Micro-batches, on the network's device.
        weights: What the parts of the supervised loss are worth.
        backward: Differentiates a scalar, as Fabric does it.
        lessons: What the teacher makes of tiles without labels, once it is its time.
        rows: Rows of a tile whose losses are computed at once; ``None`` for all.
        rarity: Log odds of "no lesion" in masks; see ``losses.as_if_common``.
    """
    weight = None if lessons is None else lessons.weight
    # The teacher speaks first, while there are no gradients in memory yet.
    taught = lessons.teach(drawn) if lessons is not None and weight is not None else []
    loss = accumulate_gradients(
        [one.labeled for one in drawn],
        lambda batch: supervised_tally(
            student(batch.image), batch, weights, rows=rows, rarity=rarity
        ),
        partial(supervised_loss, weights=weights),
        backward,
    )
    if lessons is None or weight is None:
        return loss.parts
    settings = lessons.settings
    looks = partial(student, complementary=True) if settings.strong_views > 1 else student
    lesson = accumulate_gradients(
        taught,
        lambda taught: lesson_tally(looks(taught.image), taught, rows=rows, rarity=rarity),
        partial(
            lesson_loss,
            weight=weight,
            name=weights.disease * lessons.name_weight,
            seeds=lessons.seed_weight,
        ),
        backward,
    )
    return loss.parts | lesson.parts


def supervised_tally(
    scores: Scores,
    batch: Batch,
    weights: LossSettings,
    *,
    rows: int | None = None,
    rarity: Tensor | None = None,
) -> Tally:
    """Count what the loss of annotated tiles needs; see ``supervised_loss``.

    Args:
        scores: What the network says of them, at any resolution.
        batch: The tiles.
        weights: What each part is worth; for a part of weight 0 nothing is counted.
        rows: Rows at once.
        rarity: As in ``learn``.
    """
    points = batch.points if weights.points > 0 else None

    def count(scores: Scores, these: slice) -> Tally:
        lesion = batch.lesion[:, these]
        sums = {"lesion": torch.stack(losses.count_overlap(scores.lesion, lesion))}
        pixels = {}
        if points is not None:
            # Of masks and points at once: of all that a loss keeps, this needs most memory.
            chosen = points[:, these]
            logits = losses.as_if_common(scores.lesion, chosen != IGNORE, rarity)
            entropy = losses.cross_entropy(logits, batch.said[:, these])
            sums |= _seed_sums("points", entropy, chosen)
            if weights.hardest_pixels > 0:
                pixels["lesion"] = entropy * (lesion != IGNORE)
        elif weights.hardest_pixels > 0:
            pixels["lesion"] = losses.cross_entropy(scores.lesion, lesion)
        if weights.leaf > 0:
            leaf = batch.leaf[:, these]
            sums["leaf"] = torch.stack(losses.count_overlap(scores.leaf, leaf))
            sums["leaf_entropy"] = losses.cross_entropy(scores.leaf, leaf).sum()
        return Tally(sums, pixels)

    tally = by_rows(scores, (batch.lesion.shape[1], batch.lesion.shape[2]), rows, count)
    if weights.disease > 0:
        entropy = losses.cross_entropy(scores.disease, batch.disease).sum()
        tally.sums["disease"] = torch.stack([entropy, (batch.disease != IGNORE).sum()])
    return tally


def supervised_loss(tally: Tally, weights: LossSettings) -> StepLoss:
    """Return the loss of annotated tiles.

    Args:
        tally: Of all tiles of the step.
        weights: What each part is worth; a part of weight 0 is not computed.
    """
    sums = tally.sums
    lesion = Overlap(*sums["lesion"])
    parts: dict[str, Callable[[], Tensor]] = {
        "hardest_pixels": lambda: losses.hardest_pixels(
            tally.pixels["lesion"], lesion.n_known.detach()
        ),
        "focal_tversky": lambda: losses.focal_tversky(lesion),
        "leaf": lambda: (
            _mean(sums["leaf_entropy"], Overlap(*sums["leaf"]).n_known)
            + losses.soft_dice(Overlap(*sums["leaf"]))
        ),
        "disease": lambda: _mean(*sums["disease"]),
    }
    if "points_lesion" in sums:
        parts["points"] = lambda: _mean_of_seeds("points", sums)
    wanted = {n: part() for n, part in parts.items() if getattr(weights, n) > 0}
    total = sum(
        (getattr(weights, name) * part for name, part in wanted.items()),
        start=lesion.hit.new_zeros(()),
    )
    return StepLoss(total, {name: part.detach() for name, part in wanted.items()})


def lesson_tally(
    scores: Scores,
    taught: Taught,
    *,
    rows: int | None = None,
    rarity: Tensor | None = None,
) -> Tally:
    """Count what the loss of taught tiles needs; see ``lesson_loss``.

    Args:
        scores: What the student says of ``taught.image``, at any resolution.
        taught: What the teacher says.
        rows: Rows at once.
        rarity: As in ``learn``.
    """
    size = (taught.lesion.shape[1], taught.lesion.shape[2])

    def count(scores: Scores, these: slice) -> Tally:
        sums = {"inside": taught.inside[:, these].sum().float()}
        said = taught.scores and taught.scores.stripe(these, size)
        for head in LESSON_HEADS:
            logits, label = getattr(scores, head), getattr(taught, head)[:, these]
            if said is not None:
                distance = losses.squared_distance(logits, getattr(said, head), label)
                sums[f"{head}_distance"] = distance.sum()
                continue
            sums[f"{head}_entropy"] = losses.cross_entropy(logits, label).sum()
            sums[head] = torch.stack(losses.count_overlap(logits, label))
        if taught.seed is not None:
            seed = taught.seed[:, these]
            logits = losses.as_if_common(scores.lesion, seed != IGNORE, rarity)
            sums |= _seed_sums("seed", losses.cross_entropy(logits, seed), seed)
        return Tally(sums, {})

    tally = by_rows(scores, size, rows, count)
    if taught.disease is not None:
        entropy = losses.cross_entropy(scores.disease, taught.disease).sum()
        tally.sums["name"] = torch.stack([entropy, (taught.disease != IGNORE).sum()])
    return tally


def lesson_loss(
    tally: Tally,
    weight: float,
    *,
    name: float = 0.0,
    seeds: float = 0.0,
) -> StepLoss:
    """Return the loss of tiles on which the teacher has spoken.

    The sum of cross-entropies is divided by all pixels of the images, as FixMatch does
    it (Sohn et al. 2020, arXiv:2001.07685), so that a batch of which little is believed
    weighs little.

    Args:
        tally: Of all tiles of the step.
        weight: What the teacher's word is worth now, beside the supervised loss.
        name: What the names of images are worth.
        seeds: What seeds are worth now.
    """
    sums = tally.sums
    total = sums["inside"].new_zeros(())
    parts: dict[str, Tensor] = {}
    for head, worth in LESSON_HEADS.items():
        if f"{head}_distance" in sums:
            part = _mean(sums[f"{head}_distance"], sums["inside"])
        else:
            part = _mean(sums[f"{head}_entropy"], sums["inside"])
            part = part + LESSON_DICE * losses.soft_dice(Overlap(*sums[head]))
        total = total + weight * worth * part
        parts[f"lesson_{head}"] = part.detach()
    if "name" in sums:
        part = _mean(*sums["name"])
        total = total + name * part
        parts["lesson_name"] = part.detach()
    if "seed_lesion" in sums:
        part = _mean_of_seeds("seed", sums)
        total = total + seeds * part
        parts["lesson_seeds"] = part.detach()
    return StepLoss(total, parts)


def _seed_sums(name: str, entropy: Tensor, seed: Tensor) -> dict[str, Tensor]:
    """Return cross-entropy and number of the seeds of lesions, and of those of none."""
    is_none, known = seed == NO_LESION, seed != IGNORE
    return {
        f"{name}_{kind}": torch.stack([(entropy * mine).sum(), mine.sum()])
        for kind, mine in (("lesion", known & ~is_none), ("none", is_none))
    }


def _mean_of_seeds(name: str, sums: Mapping[str, Tensor]) -> Tensor:
    """Return the loss of seeds: lesion and none count alike, however many of each.

    Source:
        Huang et al. 2018 (DSRG), doi:10.1109/CVPR.2018.00733.
    """
    return (_mean(*sums[f"{name}_lesion"]) + _mean(*sums[f"{name}_none"])) / 2


def by_rows(
    scores: Scores,
    size_hw: tuple[int, int],
    rows: int | None,
    count: Callable[[Scores, slice], Tally],
) -> Tally:
    """Return the tally of maps brought to the tile's size, whole or stripe by stripe.

    With many classes the maps at full size are what needs most memory. In stripes only
    one of them exists at a time; the backward pass makes each again.

    Args:
        scores: At a resolution of which ``size_hw`` is a multiple.
        size_hw: The tile's size.
        rows: Height of a stripe; ``None`` for the whole tile.
        count: Tallies a stripe.
    """
    height = size_hw[0]
    if rows is None or rows >= height:
        return count(scores.resized(size_hw), slice(0, height))
    stripes = [slice(r, min(r + rows, height)) for r in range(0, height, rows)]

    def counted(these: slice) -> Tally:
        return count(scores.stripe(these, size_hw), these)

    return Tally.joined(
        [checkpoint(counted, these, use_reentrant=False) for these in stripes], dim=1
    )


def _mean(total: Tensor, n: Tensor) -> Tensor:
    return total / n.clamp_min(1)
