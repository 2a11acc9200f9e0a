"""Guards: what goes wrong in a run without an error, as events for its history."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median

import numpy as np
from jaxtyping import Int64

from plantseg_next.training.callbacks.callback import Event

MIN_STUDENT_TEACHER_DICE = 0.3
"""Dice overlap of student and teacher below which they have drifted apart."""
SWALLOWED = 0.8
"""Share of a class's pixels under another name from which it counts as swallowed."""
SOURCE_DOMAIN = "labeled"
"""What the images with masks are called among the data sets."""
NO_LESION_EVENT = "no-lesion"
MOSTLY = 0.5
"""Share of a data set's tiles without any green from which it may show no plants."""
UNSTEADY = 0.75
"""Of the steadiness at home: below it, lesions in a data set without masks were found badly
(``benchmarks/new_crops.py``). Above it they may be found badly all the same."""
MIN_PIXELS = 500
"""Fewer true pixels of a class say nothing."""


def no_lesion_found(
    confusion: Int64[np.ndarray, "k k"], names: tuple[str, ...]
) -> Iterator[Event]:
    """Yield what a validation says of classes that were lost.

    Args:
        confusion: Pixels by true class (row) and predicted class, "no lesion" first.
        names: Of the lesion classes.
    """
    true = confusion.sum(1)
    if true[1:].sum() >= MIN_PIXELS and not confusion[:, 1:].any():
        yield Event(
            NO_LESION_EVENT,
            f"No lesion is predicted at all; {true[1:].sum()} pixels of the validation "
            "images are. Early in a run this passes; if it lasts, lower "
            "training.lr, or raise loss.focal_tversky.",
        )
        return
    for c in range(1, len(true)):
        if true[c] < MIN_PIXELS or confusion[:, c].any():
            continue  # seldom seen, or found somewhere
        other = 1 + int(confusion[c, 1:].argmax())
        if confusion[c, other] >= SWALLOWED * confusion[c, 1:].sum() > 0:
            yield Event(
                "class-swallowed",
                f"`{names[c - 1]}` is never predicted; its pixels are called "
                f"`{names[other - 1]}`. Raise data.balance, or give it more masks.",
            )


def few_right_pseudo_labels(metrics: Mapping[str, float]) -> Iterator[Event]:
    """Yield what an audit of the lessons says of a teacher that cannot be followed."""
    agreement = metrics.get("student_teacher_dice", np.nan)
    if agreement < MIN_STUDENT_TEACHER_DICE:
        yield Event(
            "teacher-drift",
            f"Student and teacher agree on few lesions (Dice {agreement:.2f}). Lower "
            "semi.ema_decay or training.lr if it lasts.",
        )


def non_plant_images(metrics: Mapping[str, float]) -> Iterator[Event]:
    """Yield which images without masks do not look like plants."""
    for name, share in _of_each(metrics, "non_green_fraction/").items():
        if share >= MOSTLY:
            yield Event(
                "no-plants",
                f"In {share:.0%} of what was looked at in the images of "
                f"`{name}` without masks, hardly anything is green. If "
                "they show no plants, leave them out: they are learned from all the same.",
            )


def inconsistent_predictions(metrics: Mapping[str, float]) -> Iterator[Event]:
    """Yield in which data sets without masks the network is not at home."""
    consistency = _of_each(metrics, "aug_consistency/")
    at_home = consistency.pop(SOURCE_DOMAIN, math.nan)
    for name, overlap in consistency.items():
        if overlap < UNSTEADY * at_home:
            yield Event(
                "unsteady",
                f"What is called lesion in `{name}`, of which no mask is known, "
                f"changes with the light: an overlap of {overlap:.2f}, of {at_home:.2f} "
                "where masks are known. Do not trust it there; masks of a few of its "
                "images help.",
            )


def lesion_fractions(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return how much of each data set without masks is called lesion, and of ``HOME``."""
    return _of_each(metrics, "lesion_fraction/")


def _of_each(metrics: Mapping[str, float], start: str) -> dict[str, float]:
    """Return the figures whose names begin so, by what follows."""
    return {n.removeprefix(start): v for n, v in metrics.items() if n.startswith(start)}


def unreliable_cam_seeds(metrics: Mapping[str, float], least: float) -> Iterator[Event]:
    """Yield which diseases are not learned from by their names' seeds, and why.

    Args:
        metrics: Of an evaluation of pseudo-labels.
        least: Precision below which seeds are left out.
    """
    right = _of_each(metrics, "cam_seed_precision/")
    for disease, precision in right.items():
        if precision < least:
            yield Event(
                "seeds-left-out",
                f"Seeds of `{disease}` are lesion in {precision:.0%} of the pixels where "
                "the mask is known; none are learned from.",
            )
    unjudged = [disease for disease, precision in right.items() if math.isnan(precision)]
    if unjudged:
        names = ", ".join(f"`{disease}`" for disease in unjudged)
        yield Event(
            "seeds-unjudged",
            f"No mask that was looked at tells how right seeds of {names} are; none are "
            "learned from. Masks of a few such images would tell, in a data set whose "
            "images have the same names.",
        )


def noise_of(scores: Sequence[float]) -> float:
    """Return how much scores of one unchanged model would vary, from how they jump.

    Half of what two neighbors differ by is the one's noise and half the other's; the
    median leaves out the jumps that are progress.

    Args:
        scores: In the order of the run.

    Returns:
        A standard deviation; 0 of fewer than four scores.

    Source:
        The median absolute deviation as a robust scale, 1.4826 of it for normal noise
        (Rousseeuw and Croux 1993, doi:10.1080/01621459.1993.10476408); over sqrt(2), for
        a jump is the difference of two.
    """
    if len(scores) < 4:
        return 0.0
    jumps = [b - a for a, b in pairwise(scores)]
    middle = median(jumps)
    return 1.4826 * median(abs(jump - middle) for jump in jumps) / math.sqrt(2)


def trends(scores: Sequence[float], losses: Sequence[float]) -> Iterator[Event]:
    """Yield what the course of a run says.

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
            f"Since validation {len(scores) // 2} of {len(scores)} nothing has become "
            "better by more than noise. The rest of the run may bring little.",
        )


def _is_diverging(losses: Sequence[float]) -> bool:
    a, b, c, d = losses[-4:]
    return a < b < c < d and d > 1.5 * min(losses)
