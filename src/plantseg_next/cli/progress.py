"""Progress bars of the command line. rich is imported when the first bar is shown."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from plantseg_next.names import printable
from plantseg_next.training.callbacks.callback import Callback

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from plantseg_next.training.callbacks.callback import Event, StepInfo, Validation
    from plantseg_next.workflows.progress import Progress


@contextmanager
def bars() -> Iterator["Bar"]:
    """Yield a display for bars and lines on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield bar


def log_to(bar: "Bar") -> Callable[[str], None]:
    """Return a function that prints a line above the bars, as it is: without markup."""
    from rich.text import Text

    def log(text: str) -> None:
        bar.console.print(Text(printable(text)))

    return log


@contextmanager
def progress_bars() -> Iterator["Progress"]:
    """Yield ``task_bars`` of a new display."""
    with bars() as bar:
        yield task_bars(bar)


def task_bars(bar: "Bar") -> "Progress":
    """Return a progress callback for ``api`` that shows one bar per task."""
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, visible=done < total)

    return show


class TrainingBar(Callback):
    """Callback that shows the progress of a run.

    Args:
        bar: The display.
    """

    def __init__(self, bar: "Bar") -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def on_step(self, info: "StepInfo") -> Sequence["Event"]:
        """Update the bar; the loss is read every 10 steps, since reading takes time."""
        step, steps = info.step, info.steps
        if self._task is None:
            self._task = self._bar.add_task("training", total=steps)
        if step % 10 == 0 and info.losses:
            loss = sum(float(part) for part in info.losses.values())
            self._bar.update(self._task, description=f"training, loss {loss:.3f}")
        self._bar.update(self._task, completed=step, total=steps, visible=step < steps)
        return ()

    def on_validation(
        self, step: int, validation: "Validation", *, best: bool
    ) -> Sequence["Event"]:
        """Print the metrics."""
        mark = "  best so far" if best else "" if step else "  before training"
        log_to(self._bar)(f"step {step:>6}: {validation}{mark}")
        return ()

    def on_event(self, step: int, event: "Event") -> None:
        """Print the text of the event."""
        log_to(self._bar)(f"step {step:>6}: {event.text}")
