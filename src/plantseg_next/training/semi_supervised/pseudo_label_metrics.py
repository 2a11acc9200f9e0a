"""Coverage and precision of pseudo-labels, on tiles whose masks a run does not learn."""

import math

import torch
from torch import Tensor, nn

from plantseg_next.structures import IGNORE, NO_LESION, Batch
from plantseg_next.training.semi_supervised.ema_teacher import TeacherPrediction
from plantseg_next.training.semi_supervised.pseudo_labels import PseudoLabeler


def pseudo_label_metrics(
    labeler: PseudoLabeler, student: nn.Module, hidden: Batch, *, at_once: int = 16
) -> dict[str, float]:
    """Return how many pixels are pseudo-labeled, and how many of these correctly.

    Args:
        labeler: Its counts of unlabeled tiles are taken, and its precision of CAM seeds is
            updated.
        student: Whose predictions are compared with the teacher's.
        hidden: Tiles whose masks the run does not learn from.
        at_once: Tiles in a forward pass.

    Returns:
        For each class and "no lesion": ``pl_coverage/...``, the fraction of the pixels
        predicted as the class that pass the confidence mask, and ``pl_precision/...``, the
        fraction of those that are of the class. ``student_teacher_dice``, the Dice overlap
        of the student's lesions with the teacher's. For the unlabeled tiles since the last
        call: ``pl_mask_ratio``, the fraction of the pixels in the confidence mask, and
        ``pl_lesion_ratio``, the fraction pseudo-labeled as lesion. The precision of seeds,
        see ``ImageLabelSupervision.update_precision``. All in [0, 1], NaN where there is
        nothing to divide by.
    """
    images = torch.split(hidden.image, at_once)
    predictions = [labeler.predict(image)[1:] for image in images]
    prediction = TeacherPrediction.joined([lesion for lesion, _ in predictions])
    label, known = prediction.label, hidden.lesion != IGNORE
    stats = labeler.lesion_mask.stats(prediction, known)
    (is_confident,) = labeler.lesion_mask.mask([stats])
    metrics: dict[str, float] = {}
    for c, name in enumerate(("no lesion", *labeler.classes.lesions)):
        is_class = label == c
        kept = is_confident & is_class
        metrics[f"pl_coverage/{name}"] = _ratio(kept, is_class & known)
        metrics[f"pl_precision/{name}"] = _ratio(kept & (label == hidden.lesion), kept)
    student_lesion = (
        _predicted_lesion(student, images, (label.shape[1], label.shape[2])) & known
    )
    teacher_lesion = (label != NO_LESION) & known
    total = student_lesion.sum() + teacher_lesion.sum()
    both = 2 * (student_lesion & teacher_lesion).sum()
    metrics["student_teacher_dice"] = float(both / total) if total else math.nan
    n, n_masked, n_lesion = labeler.take_pixel_counts()
    metrics["pl_mask_ratio"] = n_masked / n if n else math.nan
    metrics["pl_lesion_ratio"] = n_lesion / n if n else math.nan
    image_labels = labeler.image_labels
    if image_labels is not None and image_labels.makes_cam_seeds:
        seeds = []
        diseases, valid_parts = (torch.split(t, at_once) for t in (hidden.disease, known))
        for image, valid, disease, (lesion, leaf) in zip(
            images, valid_parts, diseases, predictions, strict=True
        ):
            likely = image_labels.likelihood(labeler.teacher, image, disease, lesion)
            on_leaf = labeler.on_leaf(leaf, valid)
            seeds.append(image_labels.cam_seeds(likely, on_leaf, valid, disease))
        metrics |= image_labels.update_precision(
            torch.cat(seeds), hidden.lesion, hidden.disease
        )
    return metrics


@torch.no_grad()
def _predicted_lesion(
    student: nn.Module, images: tuple[Tensor, ...], size_hw: tuple[int, int]
) -> Tensor:
    was_training = student.training
    student.eval()
    lesion = [student(image).resized(size_hw).lesion.argmax(1) for image in images]
    student.train(was_training)
    return torch.cat(lesion) != NO_LESION


def _ratio(some: Tensor, all_: Tensor) -> float:
    return float(some.sum() / all_.sum()) if all_.any() else math.nan
