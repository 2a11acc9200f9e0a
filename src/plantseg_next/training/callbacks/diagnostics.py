"""Diagnostics: problems in a run that raise no error, as events."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from plantseg_next.training.callbacks.callback import Event

MIN_STUDENT_TEACHER_DICE = 0.3
"""Dice overlap of student and teacher below which they differ too much."""
SWALLOWED = 0.8
"""Fraction of a class's lesion pixels predicted as one other class that is reported."""
SOURCE_DOMAIN = "labeled"
"""Name of the images with masks in the metrics by data set."""
NO_LESION_EVENT = "no-lesion"
MOSTLY = 0.5
"""Fraction of non-green tiles from which a data set may show no plants."""
MIN_RELATIVE_CONSISTENCY = 0.75
"""Fraction of the source domain's consistency. Below it, lesions in a data set without
masks were segmented badly (``benchmarks/new_crops.py``); above it they may be as well."""
MIN_PIXELS = 500
"""Classes with fewer annotated pixels are not diagnosed."""


def no_lesion_found(
    confusion: Int64[np.ndarray, "k k"], names: tuple[str, ...]
) -> Iterator[Event]:
    """Yield events for classes that are never predicted.

    Args:
        confusion: Pixels by true class (row) and predicted class, "no lesion" first.
        names: Of the lesion classes.
    """
    true = confusion.sum(1)
    if true[1:].sum() >= MIN_PIXELS and not confusion[:, 1:].any():
        yield Event(
            NO_LESION_EVENT,
            f"No lesion is predicted at all; {true[1:].sum()} pixels of the validation "
            "images are lesion. Early in a run this is normal.",
            "If it lasts, lower training.lr, or raise loss.focal_tversky.",
        )
        return
    for c in range(1, len(true)):
        if true[c] < MIN_PIXELS or confusion[:, c].any():
            continue  # rare, or predicted somewhere
        other = 1 + int(confusion[c, 1:].argmax())
        if confusion[c, other] >= SWALLOWED * confusion[c, 1:].sum() > 0:
            yield Event(
                "class-swallowed",
                f"`{names[c - 1]}` is never predicted; its pixels are predicted as "
                f"`{names[other - 1]}`.",
                "Raise data.balance, or add masks of it.",
            )


def no_true_lesion(n_images: int, *, with_leaf: bool) -> Event:
    """Return the event for validation masks without any lesion.

    Args:
        n_images: Validation images whose lesions are known.
        with_leaf: Whether their leaf is marked.
    """
    chosen_by = "chosen by leaf IoU alone" if with_leaf else "the model of the last one"
    return Event(
        "no-dice",
        f"No lesion is marked in the {n_images} validation images, so validations have no "
        f"lesion Dice, and `best` is {chosen_by}. Put images with lesions into the "
        "validation split.",
    )


def teacher_drift(metrics: Mapping[str, float]) -> Iterator[Event]:
    """Yield an event if student and teacher disagree on unseen masks."""
    dice = metrics.get("student_teacher_dice", np.nan)
    if dice < MIN_STUDENT_TEACHER_DICE:
        yield Event(
            "teacher-drift",
            f"Student and teacher agree on few lesions (Dice {dice:.2f}).",
            "Lower semi.ema_decay or training.lr if it lasts.",
        )


def non_plant_images(metrics: Mapping[str, float]) -> Iterator[Event]:
    """Yield events for data sets without masks that may show no plants."""
    for name, fraction in _of_each(metrics, "non_green_fraction/").items():
        if fraction >= MOSTLY:
            yield Event(
                "no-plants",
                f"In {fraction:.0%} of the tiles of `{name}`, which has no masks, hardly "
                "anything is green. If the images show no plants, leave them out: they "
                "are learned from otherwise.",
            )


def inconsistent_predictions(metrics: Mapping[str, float]) -> Iterator[Event]:
    """Yield events for data sets without masks with inconsistent predictions."""
    consistency = _of_each(metrics, "aug_consistency/")
    source = consistency.pop(SOURCE_DOMAIN, math.nan)
    for name, overlap in consistency.items():
        if overlap < MIN_RELATIVE_CONSISTENCY * source:
            yield Event(
                "inconsistent-predictions",
                f"The lesions predicted in `{name}`, which has no masks, change with the "
                f"augmentation: an overlap of {overlap:.2f}, against {source:.2f} on "
                "labeled images. Do not trust the model there.",
                "Mask a few of its images.",
            )


def lesion_fractions(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the predicted lesion fraction by data set, ``SOURCE_DOMAIN`` included."""
    return _of_each(metrics, "lesion_fraction/")


def _of_each(metrics: Mapping[str, float], start: str) -> dict[str, float]:
    """Return the metrics with this prefix, by the rest of their names."""
    return {n.removeprefix(start): v for n, v in metrics.items() if n.startswith(start)}


def unreliable_cam_seeds(metrics: Mapping[str, float], least: float) -> Iterator[Event]:
    """Yield events for diseases whose CAM seeds are not used.

    Args:
        metrics: Of an evaluation of pseudo-labels.
        least: Precision below which seeds are not used.
    """
    precisions = _of_each(metrics, "cam_seed_precision/")
    for disease, precision in precisions.items():
        if precision < least:
            yield Event(
                "cam-seeds-unreliable",
                f"CAM seeds of `{disease}` are lesion in {precision:.0%} of the pixels "
                "where the mask is known; they are not used.",
            )
    unmeasured = [
        disease for disease, precision in precisions.items() if math.isnan(precision)
    ]
    if unmeasured:
        names = ", ".join(f"`{disease}`" for disease in unmeasured)
        yield Event(
            "cam-seeds-unmeasured",
            f"No mask shows how precise the CAM seeds of {names} are; they are not used. "
            "Mask a few such images, in a data set whose images have the same labels.",
        )


def noise_of(scores: Sequence[float]) -> float:
    """Estimate the noise of the scores from the differences of consecutive ones.

    Half the variance of such a difference is the noise of one score; the median leaves
    out the differences that are progress.

    Args:
        scores: In the order of the run.

    Returns:
        A standard deviation; 0 for fewer than four scores.

    Source:
        The median absolute deviation as a robust scale, 1.4826 of it for normal noise
        (Rousseeuw and Croux 1993, doi:10.1080/01621459.1993.10476408); over sqrt(2),
        because each value is the difference of two scores.
    """
    if len(scores) < 4:
        return 0.0
    differences = np.diff(scores)
    deviations = np.abs(differences - np.median(differences))
    return 1.4826 * float(np.median(deviations)) / math.sqrt(2)


def trends(scores: Sequence[float], losses: Sequence[float]) -> Iterator[Event]:
    """Yield events for divergence, regression and plateau.

    Args:
        scores: Of the validations so far; higher is better.
        losses: Mean training loss before each of them.
    """
    if len(losses) >= 4 and _is_diverging(losses):
        yield Event(
            "diverging",
            f"The training loss has risen three times in a row, to {losses[-1]:.3g} from "
            f"{min(losses):.3g}. Lower training.lr.",
        )
    if len(scores) < 5:
        return
    noise = max(noise_of(scores), 1e-4)
    best = max(scores)
    if best - scores[-1] > 3 * noise and best - scores[-2] > 3 * noise:
        yield Event(
            "regressing",
            f"The last two validations ({scores[-2]:.3f}, {scores[-1]:.3f}) are worse than "
            f"the best ({best:.3f}) by more than noise ({noise:.3f}). The best model is "
            "kept; a lower training.lr or more masks may help.",
        )
    elif len(scores) >= 8 and max(scores[len(scores) // 2 :]) <= (
        max(scores[: len(scores) // 2]) + noise
    ):
        yield Event(
            "plateau",
            f"Since validation {len(scores) // 2} of {len(scores)} the score has "
            "not improved by more than noise. The rest of the run may improve it little.",
        )


def _is_diverging(losses: Sequence[float]) -> bool:
    a, b, c, d = losses[-4:]
    return a < b < c < d and d > 1.5 * min(losses)
