"""One training step. Read this first.

A step turns batches into gradients and the named parts of their loss. What is learned
from is plain in the targets: pixels and pictures without an annotation are ``IGNORE`` and
teach nothing, so a row that marks lesions only, one that marks the leaf too and one that
has only a name pass through the same lines. So do the teacher's labels: a pixel on which
it is not believed is ``IGNORE``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from plantseg_next.data.streams import Drawn, collate
from plantseg_next.experiment import LossSettings, UnlabelledSettings
from plantseg_next.models.segmenter import Scores
from plantseg_next.structures import Batch
from plantseg_next.training import losses
from plantseg_next.training.accumulation import StepLoss, accumulate_gradients
from plantseg_next.training.lessons import Lessons
from plantseg_next.training.taught import Taught


def learn(
    student: Callable[..., Scores],
    drawn: Sequence[Drawn],
    weights: LossSettings,
    backward: Callable[[Tensor], object],
    lessons: Lessons | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of one step to the student's, and return the parts of its loss.

    Args:
        student: The network in training.
        drawn: Micro-batches, on the network's device.
        weights: What the parts of the supervised loss are worth.
        backward: Differentiates a scalar, as Fabric does it.
        lessons: What the teacher makes of tiles without labels, once it is its time.
    """
    labelled = collate([d.labelled for d in drawn])
    loss = accumulate_gradients(
        student,
        [d.labelled.image for d in drawn],
        lambda scores: supervised_loss(scores, labelled, weights),
        backward,
    )
    weight = None if lessons is None else lessons.weight
    if lessons is None or weight is None:
        return loss.parts
    taught = lessons.teach(drawn)
    whole = Taught.joined(taught)
    settings = lessons.settings
    lesson = accumulate_gradients(
        partial(student, complementary=True) if settings.strong_views > 1 else student,
        [t.image for t in taught],
        lambda scores: lesson_loss(scores, whole, settings, weight),
        backward,
    )
    return loss.parts | lesson.parts


def supervised_loss(scores: Scores, batch: Batch, weights: LossSettings) -> StepLoss:
    """Return the loss of annotated tiles.

    Args:
        scores: What the network says of the batch, at any resolution.
        batch: The tiles.
        weights: What each part is worth; a part of weight 0 is not computed.
    """
    h, w = batch.lesion.shape[-2:]
    scores = scores.resized((h, w))
    parts: dict[str, Callable[[], Tensor]] = {
        "hardest_pixels": lambda: losses.hardest_pixels(
            scores.lesion, batch.lesion, share=weights.hardest_share
        ),
        "focal_tversky": lambda: losses.focal_tversky(scores.lesion, batch.lesion),
        "dice": lambda: losses.soft_dice(scores.lesion, batch.lesion),
        "boundary": lambda: losses.boundary(scores.lesion, batch.distance),
        "leaf": lambda: (
            losses.cross_entropy(scores.leaf, batch.leaf)
            + losses.soft_dice(scores.leaf, batch.leaf)
        ),
        "disease": lambda: losses.cross_entropy(scores.disease, batch.disease),
    }
    wanted = {n: part() for n, part in parts.items() if getattr(weights, n) > 0}
    total = sum(
        (getattr(weights, name) * part for name, part in wanted.items()),
        start=scores.lesion.new_zeros((), dtype=torch.float32),
    )
    return StepLoss(total, {name: part.detach() for name, part in wanted.items()})


def lesson_loss(
    scores: Scores, taught: Taught, settings: UnlabelledSettings, weight: float
) -> StepLoss:
    """Return the loss of tiles on which the teacher has spoken.

    Args:
        scores: What the student says of ``taught.image``, at any resolution.
        taught: What the teacher says.
        settings: Method and weights.
        weight: What all of it is worth now, beside the supervised loss.
    """
    h, w = taught.lesion.shape[-2:]
    scores = scores.resized((h, w))
    total = scores.lesion.new_zeros((), dtype=torch.float32)
    parts: dict[str, Tensor] = {}
    for head, worth in (("lesion", 1.0), ("leaf", 0.5)):
        logits, label = getattr(scores, head), getattr(taught, head)
        if taught.scores is not None:
            said = getattr(taught.scores, head)
            part = losses.consistency(logits, said, label, taught.inside)
        else:
            part = losses.pseudo_cross_entropy(
                logits,
                label,
                taught.inside if settings.divide_by == "inside" else None,
            )
            if settings.dice > 0:
                part = part + settings.dice * losses.soft_dice(logits, label)
        total = total + weight * worth * part
        parts[f"lesson_{head}"] = part.detach()
    return StepLoss(total, parts)
