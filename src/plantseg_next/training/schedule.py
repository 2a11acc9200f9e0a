"""Schedules as functions of the step, without state."""

import math

FINAL_LR_FRACTION = 0.01
"""Learning rate at the end, as a fraction of its peak."""


def warmup_cosine(step: int, *, steps: int, warmup: int) -> float:
    """Return the factor on the peak learning rate at a step.

    Rises linearly over ``warmup`` steps, then falls as a half cosine.

    Args:
        step: Optimizer steps already taken, from 0.
        steps: Steps of the whole run.
        warmup: Steps of the rise; 0 starts at the peak.

    Returns:
        Factor in (0, 1], ``FINAL_LR_FRACTION`` at the end.

    Source:
        Loshchilov and Hutter 2017 (SGDR), arXiv:1608.03983, one cycle; linear warm-up
        from Goyal et al. 2017, arXiv:1706.02677.

    Example:
        >>> [round(warmup_cosine(s, steps=10, warmup=2), 2) for s in (0, 1, 2, 10)]
        [0.5, 1.0, 1.0, 0.01]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    floor = FINAL_LR_FRACTION
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def ramp_up(done: float) -> float:
    """Return the ramp-up factor on the unsupervised loss.

    Args:
        done: Completed fraction of the ramp, from 0; past 1 the factor stays 1.

    Returns:
        ``exp(-5 (1 - done)^2)``, from 0.0067 to 1.

    Source:
        Laine and Aila 2017, arXiv:1610.02242.

    Example:
        >>> [round(ramp_up(x), 3) for x in (0.0, 0.5, 1.0, 2.0)]
        [0.007, 0.287, 1.0, 1.0]
    """
    return math.exp(-5 * (1 - min(max(done, 0.0), 1.0)) ** 2)


def teacher_decay(updates: int, *, steps: int, greatest: float) -> float:
    """Return the fraction of the old teacher that an update keeps.

    ``min(1 - 1 / (updates + 1), greatest)``, and in a short run at most such that the
    teacher averages over a twentieth of the run: at 0.999 and 1,000 steps half of it
    would still be its random initial weights.

    Args:
        updates: Updates already made, from 0; the first one copies the student.
        steps: Updates of the whole run.
        greatest: Bound in a long run, in [0, 1).

    Source:
        Tarvainen and Valpola 2017, arXiv:1703.01780; the bound by length is ours.

    Example:
        >>> [round(teacher_decay(n, steps=10**5, greatest=0.999), 3) for n in (0, 9, 9999)]
        [0.0, 0.9, 0.999]
        >>> teacher_decay(900, steps=1000, greatest=0.999)
        0.98
    """
    return max(0.0, min(1 - 1 / (updates + 1), greatest, 1 - 20 / max(steps, 1)))
