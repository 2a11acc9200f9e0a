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

    The squared distance of the student's probabilities from the teacher's, as a mean over
    classes: of each pixel in [0, 2 / k], and 0 off the confidence mask.

    Args:
        scores: Of the student.
        teacher: Scores of the teacher, for the same tiles; not differentiated.
        lesion: Pseudo-labels, ``IGNORE`` off the confidence mask.
        leaf: The same for the leaf.
        n_valid: Pixels inside the images of the whole step.

    Source:
        Tarvainen and Valpola 2017 (Mean Teacher), arXiv:1703.01780.
    """
    size = (lesion.shape[1], lesion.shape[2])
    mine, target = scores.resized(size), teacher.resized(size)

    def loss(logits: Tensor, of_teacher: Tensor, label: Tensor) -> Tensor:
        difference = logits.float().softmax(1) - of_teacher.detach().float().softmax(1)
        distance = difference.square().mean(1)
        return distance.masked_fill(label == IGNORE, 0.0).sum() / n_valid

    return {
        "unsup_lesion": loss(mine.lesion, target.lesion, lesion),
        "unsup_leaf": loss(mine.leaf, target.leaf, leaf),
    }
