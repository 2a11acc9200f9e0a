"""Rates as functions of the step: nothing is kept between calls."""

import math


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Return the factor on the peak learning rate at a step.

    Rises linearly over ``warmup`` steps, then falls as a half cosine to ``floor``.

    Args:
        step: Optimiser steps already taken, from 0.
        steps: Steps of the whole run.
        warmup: Steps of the rise; 0 starts at the peak.
        floor: Factor at the end, in [0, 1].

    Returns:
        Factor in (0, 1].

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
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
