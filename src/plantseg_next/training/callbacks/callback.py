"""The callback interface, and the data that callbacks receive.

This module does not import torch: the command line's progress bar is a callback too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from plantseg_next.training.checkpoints import Saved

EndReason = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Event:
    """Something notable in a run.

    Args:
        kind: Its fixed name.
        text: What happened, what it means, what to do.
    """

    kind: str
    text: str


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
    """

    monitored_metric: float
    metrics: Mapping[str, float]
    extra_metrics: Mapping[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    seconds: float = 0.0


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
