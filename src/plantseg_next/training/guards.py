"""Guards: what goes wrong in a run without an error, as events for its history."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

AGREEMENT = 0.3
"""Dice overlap of student and teacher below which they have drifted apart."""
SWALLOWED = 0.8
"""Share of a class's pixels under another name from which it counts as swallowed."""
NO_LESION_EVENT = "no-lesion"
MIN_PIXELS = 500
"""Fewer true pixels of a class say nothing."""


@dataclass(frozen=True)
class Event:
    """Something worth knowing about a run.

    Args:
        kind: Its name, the same every time.
        text: What came, what it means, what to do.
    """

    kind: str
    text: str


def collapse(
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
            "pictures are. Early in a run this passes; if it lasts, lower "
            "training.rate, or raise loss.focal_tversky.",
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


def drift(figures: Mapping[str, float]) -> Iterator[Event]:
    """Yield what an audit of the lessons says of a teacher that cannot be followed."""
    agreement = figures.get("agreement", np.nan)
    if agreement < AGREEMENT:
        yield Event(
            "teacher-drift",
            f"Student and teacher agree on few lesions (Dice {agreement:.2f}). Lower "
            "unlabelled.decay or training.rate if it lasts.",
        )
