"""The pulse of a run: where it is and when it will end, for whoever looks into its folder.

RUN/progress.json   rewritten every few seconds
RUN/summary.txt     the same for people, at every validation and at the end
RUN/curves.png      losses and scores, at the same moments
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
from plantseg_next.training.callbacks.status import PROGRESS, SUMMARY, read_status
from plantseg_next.training.checkpoints import Saved

BEAT_S = 3.0
KEPT = ("step", "steps", "best", "last", "lesion_fractions")
"""What a resumed run says of itself until it knows better."""


class StatusFile(Callback):
    """Say how a run goes, in its folder.

    Args:
        folder: Of the run.
        monitor: Whose measures are told of.
        eta: Which counts the steps and validations that this hears of.
    """

    def __init__(self, folder: Path, monitor: ResourceMonitor, eta: EtaEstimator) -> None:
        self._folder = folder
        self._monitor = monitor
        self._eta = eta
        self._beat_due = 0.0
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
        """Count it, and rewrite the progress now and then.

        A checkpoint between two steps counts as part of the second.
        """
        with_unlabeled = any(name.startswith("unsup") for name in info.losses)
        seconds = info.seconds
        if self._step_ended:  # what was before the first step is no step's
            between = time.perf_counter() - seconds - self._step_ended
            if self._has_validated:
                self._eta.add_validation(between)
            else:
                seconds += between
        self._eta.add_step(seconds, unsupervised=with_unlabeled)
        self._elapsed_s = info.elapsed_s
        self._has_validated, self._step_ended = False, time.perf_counter()
        self._state["step"], self._state["steps"] = info.step, info.steps
        if time.perf_counter() >= self._beat_due:
            self._beat()
        return ()

    def on_validation(
        self, step: int, validation: Validation, *, best: bool
    ) -> Sequence[Event]:
        """Write the summary and draw the curves.

        What it took, with all that is written after it, shows when the next step begins.
        """
        self._has_validated = True
        self._state["step"] = step
        if best:
            self._state["best"] = {"step": step, **validation.metrics}
        self._state["last"] = {"step": step, **validation.metrics}
        self._state["lesion_fractions"] = lesion_fractions(validation.extra_metrics)
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

    def on_end(self, how: EndReason, text: str) -> None:
        """Say how it ended, as far as the disk still takes it."""
        self._state |= {"state": how, "text": text}
        with suppress(OutputError):
            self._write_all()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {name: self._state[name] for name in KEPT if name in self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the run was: a finished one that is called again keeps its scores."""
        self._state |= state

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
