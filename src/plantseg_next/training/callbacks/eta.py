"""The time left of a run, from the time of its last steps and validations."""

from collections import deque
from dataclasses import dataclass
from statistics import fmean

from plantseg_next.training.time_budget import validations_left

RECENT = 50
"""Steps in the mean: first steps fill caches, and the load of a machine changes."""


@dataclass
class EtaEstimator:
    """Estimate the time left; steps with and without unlabeled tiles count separately.

    Args:
        validations: Of the run.
        minutes: Time budget of the run, if any: an upper bound.
        unsup_start: Fraction of the steps before the unsupervised loss starts; ``None``
            without unlabeled tiles.
    """

    validations: int
    minutes: float | None = None
    unsup_start: float | None = None

    def __post_init__(self) -> None:
        self._step_s: dict[bool, deque[float]] = {
            kind: deque(maxlen=RECENT) for kind in (False, True)
        }
        self._validation_s: list[float] = []

    def add_step(self, seconds: float, *, unsupervised: bool) -> None:
        """Add the time of a step."""
        self._step_s[unsupervised].append(seconds)

    def add_validation(self, seconds: float) -> None:
        """Add the time of a validation, with the files written after it."""
        self._validation_s.append(seconds)

    def left_s(self, step: int, steps: int, elapsed_s: float) -> float | None:
        """Return the seconds left, ``None`` before the first step.

        Args:
            step: Steps taken.
            steps: Steps of the run, as far as is known.
            elapsed_s: Time of the run so far, before and after resuming.
        """
        bound = None if self.minutes is None else max(0.0, 60 * self.minutes - elapsed_s)
        timed = [*self._step_s[False], *self._step_s[True]]
        if not timed:
            return bound
        supervised = steps - step
        if self.unsup_start is not None:
            supervised = min(max(round(self.unsup_start * steps) - step, 0), supervised)
        left = supervised * fmean(self._step_s[False] or timed)
        left += (steps - step - supervised) * fmean(self._step_s[True] or timed)
        if self._validation_s:
            n = validations_left(step, steps, self.validations)
            left += n * fmean(self._validation_s)
        return left if bound is None else min(left, bound)


def in_words(seconds: float) -> str:
    """Return a duration as text.

    Example:
        >>> [in_words(s) for s in (4.0, 100.0, 5e3, 1e5)]
        ['4 s', '1 min 40 s', '1 h 23 min', '1 d 3 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
