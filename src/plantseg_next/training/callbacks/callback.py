"""What is told of a run, and whoever hears it: the bar, the history, the disk.

Nothing heavy is imported here: the command line's bar is a watcher too.
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
    """Something worth knowing about a run.

    Args:
        kind: Its name, the same every time.
        text: What came, what it means, what to do.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class StepInfo:
    """One optimizer step, done.

    Args:
        step: Steps taken, this one included.
        steps: Steps of the run, as far as is known.
        losses: Of the loss; none of a step that was not applied.
        seconds: It took, waiting included.
        elapsed_s: Of the run so far, all its parts together.
        waited_s: Of these, waiting for images.
        n_tiles: Tiles it learned from, labeled or not.
        micro_batch: Labeled tiles at once.
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
    """How good the network is on the validation split.

    Args:
        monitored_metric: The one number by which the best model is chosen; higher is
            better.
        metrics: All numbers, by name.
        extra_metrics: Further numbers, for the history only.
        events: What looks wrong.
        seconds: It took.
    """

    monitored_metric: float
    metrics: Mapping[str, float]
    extra_metrics: Mapping[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    seconds: float = 0.0


class Callback:
    """Hear how a run goes; override what you want to hear of.

    What ``on_step`` and ``on_validation`` return are events that the watcher has noticed;
    every watcher then hears of them.
    """

    def on_step(self, info: StepInfo) -> Sequence[Event]:
        """Hear of an optimizer step."""
        del info
        return ()

    def on_validation(
        self, step: int, validation: Validation, *, best: bool
    ) -> Sequence[Event]:
        """Hear of a validation, and whether it is the best so far."""
        del step, validation, best
        return ()

    def on_event(self, step: int, event: Event) -> None:
        """Hear of something worth knowing."""

    def on_checkpoint(self, step: int, saved: "Saved") -> None:
        """Hear of a checkpoint that was written."""

    def on_end(self, reason: EndReason, text: str) -> None:
        """Hear that the run, or this part of it, is over; ``text`` says why."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the watcher whose state it is."""
