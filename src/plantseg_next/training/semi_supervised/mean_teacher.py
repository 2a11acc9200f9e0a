"""The loss of ``semi.method=mean_teacher``: the teacher's probabilities are the targets.

Axes: b tile, k class, h row, w column.
"""

from jaxtyping import Float, Integer
from torch import Tensor

from plantseg_next.models.segmenter import Scores
from plantseg_next.structures import IGNORE


def consistency_losses(
    scores: Scores,
    teacher: Scores,
    lesion: Integer[Tensor, "b h w"],
    leaf: Integer[Tensor, "b h w"],
    n_valid: Integer[Tensor, ""] | Float[Tensor, ""],
) -> dict[str, Tensor]:
    """Return a micro-batch's part of the losses; parts of a step add up.

    Args:
        scores: Of the student.
        teacher: Scores of the teacher, for the same tiles.
        lesion: Pseudo-labels, ``IGNORE`` off the confidence mask.
        leaf: The same for the leaf.
        n_valid: Pixels inside the images of the whole step.
    """
    size = (lesion.shape[1], lesion.shape[2])
    mine, target = scores.resized(size), teacher.resized(size)
    of_lesion = squared_distance(mine.lesion, target.lesion, lesion)
    of_leaf = squared_distance(mine.leaf, target.leaf, leaf)
    return {
        "unsup_lesion": of_lesion.sum() / n_valid,
        "unsup_leaf": of_leaf.sum() / n_valid,
    }


def squared_distance(
    logits: Float[Tensor, "b k h w"],
    teacher: Float[Tensor, "b k h w"],
    label: Integer[Tensor, "b h w"],
) -> Float[Tensor, "b h w"]:
    """Return the squared distance of the student's probabilities from the teacher's.

    Args:
        logits: The student's logits.
        teacher: The teacher's logits of the same pixels; not differentiated.
        label: ``IGNORE`` off the confidence mask; those pixels count as 0.

    Returns:
        Mean over classes of each pixel, in [0, 2 / k].

    Source:
        Tarvainen and Valpola 2017 (Mean Teacher), arXiv:1703.01780.
    """
    difference = logits.float().softmax(1) - teacher.detach().float().softmax(1)
    return difference.square().mean(1).masked_fill(label == IGNORE, 0.0)
