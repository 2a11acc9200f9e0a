"""Segment lesions on leaf photographs and measure their severity.

import plantseg_next
model = plantseg_next.load("RUN")         # a run, a model, or "starter"
model.predict("leaf.jpg").severity_pct    # a path, bytes, PIL image or uint8 array
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plantseg_next.inference.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(model: str | Path = "starter") -> "Pipeline":
    """Return a model in memory, ready to predict on the best device there is.

    Args:
        model: A run, one of its models, or a packaged one by name (``starter``,
            ``starter-field``).

    Raises:
        UsageError: If there is no such model.
        DataError: If its files are damaged.
    """
    from plantseg_next.inference.pipeline import load_pipeline

    return load_pipeline(model)
