"""The pulse of a run: where it is and when it will end, for whoever looks into its folder.

RUN/progress.json   rewritten every few seconds
RUN/summary.txt     the same for people, at every validation and at the end
RUN/curves.png      losses and scores, at the same moments
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from plantseg_next.errors import OutputError
from plantseg_next.files import explained, write_atomically
from plantseg_next.training.checkpoints import Saved
from plantseg_next.training.pace import REHEARSED_STEPS
from plantseg_next.training.watching.curves import draw_curves
from plantseg_next.training.watching.forecast import Estimate, Forecast
from plantseg_next.training.watching.guards import lesion_shares
from plantseg_next.training.watching.monitor import Monitor
from plantseg_next.training.watching.status import PROGRESS, SUMMARY, read_status
from plantseg_next.training.watching.watchers import (
    Ending,
    Event,
    Stepped,
    Validation,
    Watcher,
)

BEAT_S = 3.0


class Pulse(Watcher):
    """Say how a run goes, in its folder.

    Args:
        folder: Of the run.
        monitor: Whose measures are told of.
        forecast: Which learns from what this hears.
    """

    def __init__(self, folder: Path, monitor: Monitor, forecast: Forecast) -> None:
        self._folder = folder
        self._monitor = monitor
        self._forecast = forecast
        self._beat_due = 0.0
        self._has_forecast = False
        self._step_ended = 0.0
        self._has_validated = False
        self._state: dict[str, Any] = {
            "state": "running",
            "text": "",
            "process": os.getpid(),
            "host": platform.node(),
            "began": time.time(),
            "step": 0,
            "steps": None,
        }

    def on_step(self, stepped: Stepped) -> Sequence[Event]:
        """Learn from it; beat now and then; forecast once enough is known.

        A checkpoint between two steps counts as part of the second.
        """
        with_lessons = any(name.startswith("lesson") for name in stepped.parts)
        seconds = stepped.seconds
        if self._step_ended:  # what was before the first step is no step's
            between = time.perf_counter() - seconds - self._step_ended
            if self._has_validated:
                self._forecast.note_validation(between)
            else:
                seconds += between
        self._forecast.note_step(stepped.step, seconds, with_lessons=with_lessons)
        self._has_validated, self._step_ended = False, time.perf_counter()
        self._state["step"], self._state["steps"] = stepped.step, stepped.steps
        if time.perf_counter() >= self._beat_due:
            self._beat()
        if self._has_forecast or stepped.step <= REHEARSED_STEPS:
            return ()
        self._has_forecast = True
        left = self._forecast.left(stepped.step, stepped.steps)
        return () if left is None else (self._forecast_event(stepped, left),)

    def on_validation(
        self, step: int, validation: Validation, *, best: bool
    ) -> Sequence[Event]:
        """Write the summary and draw the curves.

        What it took, with all that is written after it, shows when the next step begins.
        """
        self._has_validated = True
        self._state["step"] = step
        if best:
            self._state["best"] = {"step": step, **validation.figures}
        self._state["last"] = {"step": step, **validation.figures}
        self._state["lesion_shares"] = lesion_shares(validation.details)
        self._write_all()
        return ()

    def on_checkpoint(self, step: int, saved: Saved) -> None:
        """Say where it is."""
        self._state["checkpoint"] = {
            "step": step,
            "file": saved.path.name,
            "mib": round(saved.n_bytes / 2**20, 1),
        }
        self._beat()

    def on_end(self, how: Ending, text: str) -> None:
        """Say how it ended, as far as the disk still takes it."""
        self._state |= {"state": how, "text": text}
        with suppress(OutputError):
            self._write_all()

    def _forecast_event(self, stepped: Stepped, left: Estimate) -> Event:
        free = self._monitor.newest.disk_free_mib
        return Event(
            "forecast",
            f"{stepped.steps} steps in all: {left} from now. On disk the run needs about "
            f"{self._monitor.disk_needed_mib:.0f} MiB; {free:.0f} are free.",
        )

    def _write_all(self) -> None:
        with explained(self._folder):
            self._beat()
            is_running = self._state["state"] == "running"
            text = str(read_status(self._folder, alive=is_running))
            if is_running:  # it may die without another word
                when = time.strftime("%Y-%m-%d %H:%M:%S")
                now = f"plantseg-next status {self._folder}"
                text += f"\n  as of      {when}; how it is now, {now} tells"
            write_atomically(self._folder / SUMMARY, f"{text}\n".encode())
            draw_curves(self._folder)

    def _beat(self) -> None:
        """Rewrite the progress; a reader finds the old one or the new one, whole."""
        self._beat_due = time.perf_counter() + BEAT_S
        left = None
        if self._state["steps"]:
            left = self._forecast.left(self._state["step"], self._state["steps"])
        newest = self._monitor.newest
        tree = self._state | {
            "time": time.time(),
            "left_s": None if left is None else [left.seconds, left.low, left.high],
            "ram_mib": round(newest.ram_mib),
            "ram_peak_mib": round(self._monitor.peak_mib),
            "gpu_peak_mib": round(newest.gpu_peak_mib),
            "ram_free_mib": round(newest.ram_free_mib),
            "disk_free_mib": round(newest.disk_free_mib),
            "gpu_mib": round(newest.gpu_mib),
        }
        with explained(self._folder):
            write_atomically(self._folder / PROGRESS, json.dumps(tree, indent=1).encode())
