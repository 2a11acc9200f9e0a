"""The time budget of a run: minutes become steps, and validations are evenly spaced."""

import math
import time
from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from typing import Any

from plantseg_next.models.start import STARTS
from plantseg_next.settings import TrainingSettings

UNTIMED_STEPS = 10  # slow: workers start and kernels are chosen
TIMED_STEPS = 20
PROFILE_STEPS = UNTIMED_STEPS + TIMED_STEPS
"""Steps at the start that do all the work of later ones, so that time and memory of those
are known in the first minute."""
FIRST_ESTIMATE_STEPS = 5
"""Steps after which a first estimate can warn: later steps are not slower."""
FEW_STEPS = 300
"""With fewer steps, more of them still help much: coffee leaves from an ImageNet start,
validation Dice 0.853 after 188 steps, 0.891 after 375."""
FEW_STEPS_FROM_MODEL = 100
"""The same for a start from a trained model. Not measured; the demo takes 200 steps, and
they help."""


def few_steps_limit(start: str) -> int:
    """Return the number of steps below which a run is too short to learn much.

    Args:
        start: As ``ModelSettings.start``.
    """
    return FEW_STEPS if start in STARTS else FEW_STEPS_FROM_MODEL


def few_steps(steps: int, start: str) -> str | None:
    """Return a sentence if a run of so many steps is too short to learn much.

    Args:
        steps: Of the run.
        start: As ``ModelSettings.start``.
    """
    if steps >= few_steps_limit(start):
        return None
    why = (
        f": a model improves much up to about {FEW_STEPS} (coffee leaves: validation Dice "
        "0.853 after 188 steps, 0.891 after 375)"
        if start in STARTS
        else ", also from a trained model: the demo takes 200"
    )
    return (
        f"{steps} steps are few{why}. For more, raise training.steps or training.minutes."
    )


class TimeBudget:
    """Turn the minutes of a run into steps, once, from its first steps.

    After that the number of steps is fixed, and with it the learning rate at every step:
    they depend neither on the machine's load nor on interruptions.

    Args:
        settings: ``minutes`` and the largest number of ``steps``.
        few_steps: See ``few_steps_limit``; a budget for fewer steps gives a warning.
    """

    def __init__(self, settings: TrainingSettings, *, few_steps: int) -> None:
        self._settings = settings
        self._few_steps = few_steps
        self._is_fixed = settings.minutes is None
        self._began = time.perf_counter()
        self._earlier_s = 0.0
        self._first_ends: list[float] = []  # of the steps before the timed ones
        self._ends: list[float] = []  # of the timed steps
        self._has_warned = False
        self.steps = settings.steps

    @property
    def seconds(self) -> float:
        """Wall time so far, before and after resuming."""
        return self._earlier_s + time.perf_counter() - self._began

    def warn_if_few_steps(self, step: int) -> str | None:
        """Return a warning if few steps will fit into the minutes, early and once.

        It uses the fastest of the first steps, so that a slow start alone does not warn.
        """
        if self._is_fixed or len(self._first_ends) >= FIRST_ESTIMATE_STEPS:
            return None
        self._first_ends.append(time.perf_counter())
        if len(self._first_ends) < FIRST_ESTIMATE_STEPS:
            return None
        step_s = min(b - a for a, b in pairwise(self._first_ends))
        return self._too_few_steps(
            step, step_s, self._minutes * 60 - self.seconds, "about "
        )

    def ends_profile(self, step: int) -> bool:
        """Return whether this step ends the profiling; then a validation is timed."""
        if self._is_fixed or step < UNTIMED_STEPS:
            return False
        self._ends.append(time.perf_counter())
        return step >= PROFILE_STEPS and len(self._ends) > TIMED_STEPS // 2

    def set_steps(self, step: int, *, validation_s: float) -> str | None:
        """Fix the number of steps, after steps and a validation have been timed.

        Returns:
            A warning, if few steps fit into the minutes.
        """
        if self._is_fixed or len(self._ends) < 2:  # a validation of a very short run
            return None
        # The median: single steps wait for uncached files or other programs.
        step_s = median(b - a for a, b in pairwise(self._ends))
        left_s = self._minutes * 60 - self.seconds
        left_s -= validation_s * self._settings.validations
        few = None if self._has_warned else self._too_few_steps(step, step_s, left_s)
        self._is_fixed = True
        self.steps = min(self.steps, step + max(1, int(left_s / step_s)))
        return few

    @property
    def _minutes(self) -> float:
        return self._settings.minutes or 0.0

    def _too_few_steps(
        self, step: int, step_s: float, left_s: float, about: str = ""
    ) -> str | None:
        """Return a warning if few steps fit into the time left."""
        fit = step + max(1, int(left_s / step_s))
        n_wanted = min(self._few_steps, self.steps)
        if fit >= n_wanted:
            return None
        self._has_warned = True
        enough_s = self._minutes * 60 - left_s + (n_wanted - step) * step_s
        return (
            f"Only {about}{fit} steps of {step_s:.1f} s fit into {self._minutes:g} minutes "
            f"here; fewer than {self._few_steps} are few. Set "
            f"`training.minutes={math.ceil(enough_s / 60)}`, or make steps faster with a "
            "smaller `data.tile_px` or `training.batch`, and start again with --restart."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"steps": self.steps, "is_fixed": self._is_fixed, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        steps, seconds = int(state["steps"]), float(state["seconds"])
        if steps < 1 or not 0 <= seconds < math.inf:
            raise ValueError(f"{steps} steps, {seconds} s")
        self.steps = steps
        self._is_fixed = bool(state["is_fixed"])
        # A rollback does not reset the elapsed time.
        self._earlier_s = max(seconds, self.seconds)
        self._began = time.perf_counter()


def is_due(step: int, steps: int, validations: int) -> bool:
    """Return whether a step is one of ``validations`` evenly spaced ones, or the last.

    Example:
        >>> [s for s in range(1, 11) if is_due(s, 10, 3)]
        [4, 7, 10]
    """
    return (
        step == steps or (step * validations) // steps > ((step - 1) * validations) // steps
    )


def validations_left(step: int, steps: int, validations: int) -> int:
    """Return at how many of the steps after this one ``is_due`` is true.

    Example:
        >>> [validations_left(s, 10, 3) for s in (0, 4, 9, 10)]
        [3, 2, 1, 0]
    """
    return min(steps - step, validations - (step * validations) // steps)
