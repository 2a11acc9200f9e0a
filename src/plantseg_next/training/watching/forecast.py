"""When a run will end, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from plantseg_next.training.pace import REHEARSED_STEPS, UNTIMED_STEPS, validations_left

BLOCK = 20
"""Steps whose mean counts as one observation: neighbours are slow together."""
LEAST_DOUBT = 0.05
"""Half width of the interval that no evenness of the past can narrow: the machine may get
other work."""


@dataclass(frozen=True)
class Estimate:
    """A duration in seconds, with an interval that should hold it nineteen times in twenty.

    Args:
        seconds: The expectation.
        low: Least.
        high: Greatest.
    """

    seconds: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it in words."""
        low, high, middle = map(in_words, (self.low, self.high, self.seconds))
        return f"about {middle}" if low == high else f"about {middle} ({low} to {high})"


class Forecast:
    """Learn how long steps and validations take, and add up what is left.

    Steps with and without lessons cost differently, and the first ones of a run, which
    rehearse the lessons, show both.

    Args:
        validations: Of the run.
        lessons_start: Part of the run before lessons begin; ``None`` without lessons.
    """

    def __init__(self, *, validations: int, lessons_start: float | None = None) -> None:
        self._validations = validations
        self._lessons_start = lessons_start
        self._steps: dict[bool, list[float]] = {False: [], True: []}
        self._has_begun = False
        self._noted = 0
        self._validation_s: list[float] = []
        self._expected_validation_s = 0.0

    def note_step(self, step: int, seconds: float, *, with_lessons: bool) -> None:
        """Take in a step."""
        self._noted += 1
        self._has_begun |= with_lessons and step > REHEARSED_STEPS
        if self._noted > UNTIMED_STEPS:
            self._steps[with_lessons].append(seconds)

    def expect_validation(self, seconds: float) -> None:
        """Take in what a validation will take by a rehearsal, until there is one."""
        self._expected_validation_s = seconds

    def note_validation(self, seconds: float) -> None:
        """Take in a validation, with all that is written after it."""
        self._validation_s.append(seconds)

    def left(self, step: int, steps: int) -> Estimate | None:
        """Return what is left of a run, ``None`` while nothing is known.

        Args:
            step: Steps taken.
            steps: Steps of the run.
        """
        timed = self._steps[False] + self._steps[True]
        if not timed:
            return None
        expected = 0.0
        for with_lessons, n in self._kinds_left(step, steps).items():
            known = self._steps[with_lessons] or timed
            expected += n * fmean(_recent(known))
        doubt = _doubt(self._steps[self._has_begun] or timed, steps - step)
        n_validations = validations_left(step, steps, self._validations)
        validation_s = self._validation_s or [self._expected_validation_s]
        expected += n_validations * fmean(validation_s)
        return Estimate(expected, expected / (1 + doubt), expected * (1 + doubt))

    def _kinds_left(self, step: int, steps: int) -> dict[bool, int]:
        """Return how many steps without and with lessons are to come."""
        left = steps - step
        if self._lessons_start is None:
            return {False: left}
        plain = 0 if self._has_begun else round(self._lessons_start * steps) - step
        plain = min(max(plain, 0), left)
        return {False: plain, True: left - plain}


def _recent(seconds: Sequence[float]) -> Sequence[float]:
    """Return the second half, at least a block: caches fill in the first."""
    return seconds[-max(BLOCK, len(seconds) // 2) :]


def _doubt(seconds: Sequence[float], n_left: int) -> float:
    """Return how much longer it may take, in parts of the expectation; above 0.

    After a pause, as of a computer that slept, it may be above 1.
    """
    blocks = [fmean(seconds[i : i + BLOCK]) for i in range(0, len(seconds), BLOCK)]
    blocks = blocks[:-1] if len(blocks) > 2 else blocks  # the last may be short
    if len(blocks) < 2:
        return 0.3
    spread = stdev(blocks) / fmean(blocks)
    blocks_left = max(n_left / BLOCK, 1)
    return max(LEAST_DOUBT, 2 * spread * math.sqrt(1 / len(blocks) + 1 / blocks_left))


def in_words(seconds: float) -> str:
    """Return a duration as people say it.

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
