"""Status files: progress, summary and curves of a run, in its folder.

RUN/progress.json   rewritten every few seconds
RUN/summary.txt     the same as text, at every validation and at the end
RUN/curves.png      losses and scores, at the same times
"""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from plantseg_next.errors import OutputError
from plantseg_next.files import explained, write_atomically
from plantseg_next.training.callbacks.callback import (
    Callback,
    EndReason,
    Event,
    StepInfo,
    Validation,
)
from plantseg_next.training.callbacks.curves import draw_curves
from plantseg_next.training.callbacks.diagnostics import lesion_fractions
from plantseg_next.training.callbacks.eta import EtaEstimator
from plantseg_next.training.callbacks.resources import ResourceMonitor
from plantseg_next.training.callbacks.status import read_status
from plantseg_next.training.checkpoints import Saved
from plantseg_next.training.run_record import PROGRESS, SUMMARY

INTERVAL_S = 3.0
KEPT = ("step", "steps", "best", "last", "lesion_fractions")
"""Entries that a resumed run starts with."""


class StatusFile(Callback):
    """Write the status files of a run.

    Args:
        folder: Of the run.
        monitor: Source of the memory and disk values.
        eta: Receives the time of every step and validation.
    """

    key = "status"

    def __init__(self, folder: Path, monitor: ResourceMonitor, eta: EtaEstimator) -> None:
        self._folder = folder
        self._monitor = monitor
        self._eta = eta
        self._write_due = 0.0
        self._elapsed_s = 0.0
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

    def on_step(self, info: StepInfo) -> Sequence[Event]:
        """Add the step to the ETA, and rewrite the progress every few seconds.

        A checkpoint between two steps counts as part of the second.
        """
        with_unlabeled = any(name.startswith("unsup") for name in info.losses)
        seconds = info.seconds
        if self._step_ended:  # time before the first step is not counted
            between = time.perf_counter() - seconds - self._step_ended
            if self._has_validated:
                self._eta.add_validation(between)
            else:
                seconds += between
        self._eta.add_step(seconds, unsupervised=with_unlabeled)
        self._elapsed_s = info.elapsed_s
        self._has_validated, self._step_ended = False, time.perf_counter()
        self._state["step"], self._state["steps"] = info.step, info.steps
        if time.perf_counter() >= self._write_due:
            self._write_progress()
        return ()

    def on_validation(
        self, step: int, validation: Validation, *, best: bool
    ) -> Sequence[Event]:
        """Write the summary and draw the curves.

        The time of a validation, with the files written after it, is known when the next
        step starts.
        """
        self._has_validated = True
        self._state["step"] = step
        self._state["last"] = {"step": step, **validation.values()}
        if best:
            self._state["best"] = self._state["last"]
        self._state["lesion_fractions"] = lesion_fractions(validation.extra_metrics)
        self._write_all()
        return ()

    def on_checkpoint(self, step: int, saved: Saved) -> None:
        """Store the newest checkpoint."""
        self._state["checkpoint"] = {
            "step": step,
            "file": saved.path.name,
            "mib": round(saved.n_bytes / 2**20, 1),
        }
        self._write_progress()

    def on_end(self, reason: EndReason, text: str) -> None:
        """Write how the run ended, if the disk has space."""
        self._state |= {"state": reason, "text": text}
        with suppress(OutputError):
            self._write_all()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {name: self._state[name] for name in KEPT if name in self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state; a finished run that is called again keeps its scores."""
        self._state |= state

    def _write_all(self) -> None:
        with explained(self._folder):
            self._write_progress()
            is_running = self._state["state"] == "running"
            text = str(read_status(self._folder, alive=is_running))
            if is_running:  # the process may be killed before the next write
                when = time.strftime("%Y-%m-%d %H:%M:%S")
                command = f"plantseg-next status {self._folder}"
                text += f"\n  as of      {when}; for the current state run: {command}"
            write_atomically(self._folder / SUMMARY, f"{text}\n".encode())
            draw_curves(self._folder)

    def _write_progress(self) -> None:
        """Rewrite the progress atomically."""
        self._write_due = time.perf_counter() + INTERVAL_S
        left = None
        if self._state["steps"]:
            step, steps = self._state["step"], self._state["steps"]
            left = self._eta.left_s(step, steps, self._elapsed_s)
        newest = self._monitor.newest
        tree = self._state | {
            "time": time.time(),
            "left_s": left,
            "ram_mib": round(newest.ram_mib),
            "ram_peak_mib": round(self._monitor.peak_mib),
            "gpu_peak_mib": round(newest.gpu_peak_mib),
            "ram_free_mib": round(newest.ram_free_mib),
            "disk_free_mib": round(newest.disk_free_mib),
            "gpu_mib": round(newest.gpu_mib),
        }
        with explained(self._folder):
            write_atomically(self._folder / PROGRESS, json.dumps(tree, indent=1).encode())
