"""The callback interface, and the data that callbacks receive.

This module does not import torch: the command line's progress bar is a callback too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from plantseg_next.training.checkpoints import Saved

EndReason = Literal["finished", "stopped", "failed"]
METRIC_LABELS = {
    "lesion_dice": "lesion Dice",
    "disease_miou": "disease mIoU",
    "leaf_iou": "leaf IoU",
}


@dataclass(frozen=True)
class Event:
    """Something notable in a run.

    Args:
        kind: Its fixed name.
        text: What happened and what it means; with what to do, where that is always so.
        advice: What to do if the run has learned for long enough.
    """

    kind: str
    text: str
    advice: str = ""

    def stated(self, *, with_advice: bool) -> "Event":
        """Return the event with its advice in the text, or without it."""
        text = f"{self.text} {self.advice}" if self.advice and with_advice else self.text
        return replace(self, text=text, advice="")


@dataclass(frozen=True)
class StepInfo:
    """A completed optimizer step.

    Args:
        step: Steps taken, this one included.
        steps: Steps of the run, as far as is known.
        losses: Parts of the loss; empty for a step that was not applied.
        seconds: Time of the step, waiting included.
        elapsed_s: Time of the run so far, before and after resuming.
        waited_s: Part of ``seconds`` spent waiting for images.
        n_tiles: Tiles of the step, labeled and unlabeled.
        micro_batch: Labeled tiles in a forward pass.
    """

    step: int
    steps: int
    losses: Mapping[str, "Tensor"]
    seconds: float
    elapsed_s: float
    waited_s: float
    n_tiles: int
    micro_batch: int


@dataclass(frozen=True)
class Validation:
    """Result on the validation split.

    Args:
        monitored_metric: The metric that selects the best model; higher is better.
        metrics: All metrics, by name.
        extra_metrics: Further metrics, for the history alone.
        events: Problems noticed.
        seconds: Time of the validation.
        n_images: Images whose lesions are known; 0 if that was not counted.
        lesion_dice_low: Lower bound of the 95 % interval of ``lesion_dice`` over groups of
            images; NaN if there is none.
        lesion_dice_high: Upper bound.
    """

    monitored_metric: float
    metrics: Mapping[str, float]
    extra_metrics: Mapping[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    seconds: float = 0.0
    n_images: int = 0
    lesion_dice_low: float = math.nan
    lesion_dice_high: float = math.nan

    def values(self) -> dict[str, float | int]:
        """Return the metrics, the number of images and the interval; no NaN."""
        values = {
            **self.metrics,
            "n_images": self.n_images,
            "lesion_dice_low": self.lesion_dice_low,
            "lesion_dice_high": self.lesion_dice_high,
        }
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def __str__(self) -> str:
        """Return the metrics as text; see ``describe``."""
        return describe(self.values())


def describe(values: Mapping[str, float | int]) -> str:
    """Return what ``Validation.values`` returned as text.

    Example:
        >>> interval = {"lesion_dice_low": 0.77, "lesion_dice_high": 0.85}
        >>> describe({"lesion_dice": 0.8123, "leaf_iou": 0.9, "n_images": 60} | interval)
        'lesion Dice 0.812 (0.77 to 0.85, 60 images), leaf IoU 0.900'
        >>> describe({"n_images": 4})
        'no lesion Dice (no lesion in 4 images)'
    """
    rest = dict(values)
    n_images = int(rest.pop("n_images", 0))
    low, high = (rest.pop(f"lesion_dice_{bound}", None) for bound in ("low", "high"))
    parts = {n: f"{METRIC_LABELS.get(n, n)} {value:.3f}" for n, value in rest.items()}
    images = f"{n_images} image{'s' * (n_images != 1)}"
    if "lesion_dice" in parts:
        notes = [] if low is None else [f"{low:.2f} to {high:.2f}"]
        notes += [images] if n_images else []
        parts["lesion_dice"] += f" ({', '.join(notes)})" if notes else ""
    else:
        parts = {"": f"no lesion Dice (no lesion in {images})", **parts}
    return ", ".join(parts.values())


class Callback:
    """Receives the progress of a run; override the methods you need.

    ``on_step`` and ``on_validation`` return new events, which are then passed to every
    callback.
    """

    key = ""
    """Name of its state in a checkpoint; "" for a callback without state."""

    def on_step(self, info: StepInfo) -> Sequence[Event]:
        """Called after an optimizer step."""
        del info
        return ()

    def on_validation(
        self, step: int, validation: Validation, *, best: bool
    ) -> Sequence[Event]:
        """Called after a validation; ``best`` if it is the best so far."""
        del step, validation, best
        return ()

    def on_event(self, step: int, event: Event) -> None:
        """Called for every event."""

    def on_checkpoint(self, step: int, saved: "Saved") -> None:
        """Called after a checkpoint was written."""

    def on_end(self, reason: EndReason, text: str) -> None:
        """Called when the process stops training; ``text`` states why."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint, under ``key``."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
