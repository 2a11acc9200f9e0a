"""What a run costs: memory, processor, disk, and time spent waiting for images."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil
import torch

from plantseg_next.files import explained
from plantseg_next.training.callbacks.callback import Callback, Event, StepInfo, Validation
from plantseg_next.training.callbacks.csv_logger import write_table
from plantseg_next.training.checkpoints import Saved

RESOURCES = "resources.csv"
SAMPLE_S = 5.0
STARVED = 0.25
"""Share of the time spent waiting for images from which it is worth a word."""
MIB = 2**20


@dataclass(frozen=True)
class ResourceSample:
    """What a run uses at one moment.

    Args:
        time: Seconds of the system's clock.
        ram_mib: Of the run, its workers included.
        ram_free_mib: That any process could still have.
        cpu_pct: Of all cores, by all processes, since the last sample.
        disk_free_mib: Where the run is kept.
        gpu_mib: Reserved by the run; 0 without a GPU.
        gpu_peak_mib: Most of it so far.
        gpu_load_pct: NaN where it cannot be read.
    """

    time: float
    ram_mib: float
    ram_free_mib: float
    cpu_pct: float
    disk_free_mib: float
    gpu_mib: float = 0.0
    gpu_peak_mib: float = 0.0
    gpu_load_pct: float = float("nan")


def take_sample(folder: Path) -> ResourceSample:
    """Return what this process and its children use now."""
    process = psutil.Process()
    resident = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            used = child.memory_full_info()
            # On Linux, its part of what it shares: workers share what they import.
            resident += getattr(used, "pss", used.rss)
        except psutil.Error:  # it has just ended
            continue
    gpu = torch.cuda.is_available()
    return ResourceSample(
        time=time.time(),
        ram_mib=resident / MIB,
        ram_free_mib=psutil.virtual_memory().available / MIB,
        cpu_pct=psutil.cpu_percent(),
        disk_free_mib=shutil.disk_usage(folder).free / MIB,
        gpu_mib=torch.cuda.memory_reserved() / MIB if gpu else 0.0,
        gpu_peak_mib=torch.cuda.max_memory_reserved() / MIB if gpu else 0.0,
        gpu_load_pct=_gpu_load() if gpu else float("nan"),
    )


def _gpu_load() -> float:
    try:
        return float(torch.cuda.utilization())
    except (ModuleNotFoundError, RuntimeError):  # needs nvidia-ml-py, and a right to ask
        return float("nan")


class ResourceMonitor(Callback):
    """Measure what a run uses, a row a validation in ``resources.csv``, and warn in time.

    Args:
        folder: Of the run.
        cache_mib: Room that images may fill without it being a leak.
        budget_mb: What the processes may take, in 10^6 bytes; ``None`` if all there is.
    """

    def __init__(
        self, folder: Path, *, cache_mib: float, budget_mb: float | None = None
    ) -> None:
        self._folder = folder
        self._budget_mb = budget_mb
        self._cache_mib = cache_mib
        self._rows: list[dict[str, float | int]] = []
        self._told: set[str] = set()
        self._checkpoint_mib = 0.0
        self._seconds = self._waited_s = 0.0
        self._n_tiles = 0
        self.samples: list[ResourceSample] = []
        self.newest = take_sample(folder)
        self.peak_mib = self.newest.ram_mib

    def on_step(self, info: StepInfo) -> Sequence[Event]:
        """Add up; look at the machine now and then."""
        self._seconds += info.seconds
        self._waited_s += info.waited_s
        self._n_tiles += info.n_tiles
        if time.time() - self.newest.time >= SAMPLE_S:
            self._look()
            return self._fresh(self._over_budget())
        return ()

    def on_validation(
        self,
        step: int,
        validation: Validation,
        *,
        best: bool,  # noqa: ARG002
    ) -> Sequence[Event]:
        """Write a row, and return what should be known."""
        self._look()
        seconds = max(self._seconds, 1e-9)
        last = [s for s in self.samples if s.time >= self.newest.time - seconds] or [
            self.newest
        ]
        self._rows.append(
            {
                "step": step,
                "train_s": round(self._seconds, 2),
                "validate_s": round(validation.seconds, 2),
                "waited_pct": round(100 * self._waited_s / seconds, 2),
                "tiles_per_s": round(self._n_tiles / seconds, 2),
                "ram_mib": round(max(s.ram_mib for s in last)),
                "ram_free_mib": round(min(s.ram_free_mib for s in last)),
                "cpu_pct": round(fmean(s.cpu_pct for s in last), 1),
                "disk_free_mib": round(self.newest.disk_free_mib),
                "gpu_mib": round(self.newest.gpu_mib),
                "gpu_peak_mib": round(self.newest.gpu_peak_mib),
                "gpu_load_pct": round(float(np.nanmean([s.gpu_load_pct for s in last])), 1)
                if self.newest.gpu_mib
                else 0.0,
            }
        )
        with explained(self._folder):
            write_table(self._folder / RESOURCES, self._rows)
        alerts = [
            *self._starved(),
            *self._leak(),
            *self._disk(),
            *self._over_budget(),
        ]
        self._seconds = self._waited_s = 0.0
        self._n_tiles = 0
        return self._fresh(alerts)

    def on_checkpoint(self, step: int, saved: Saved) -> None:  # noqa: ARG002
        """Learn how large one is."""
        self._checkpoint_mib = saved.n_bytes / MIB

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"rows": self._rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the rows of the run so far."""
        self._rows = list(state["rows"])

    def _look(self) -> None:
        self.newest = take_sample(self._folder)
        self.samples.append(self.newest)
        self.peak_mib = max(self.peak_mib, self.newest.ram_mib)

    def _fresh(self, alerts: list[Event]) -> list[Event]:
        """Return those that were not told before."""
        new = [alert for alert in alerts if alert.kind not in self._told]
        self._told |= {alert.kind for alert in new}
        return new

    def _over_budget(self) -> list[Event]:
        used = self.newest.ram_mib * MIB / 1e6
        if self._budget_mb is None or used <= self._budget_mb:
            return []
        return [
            Event(
                "over-budget",
                f"The run uses {used:,.0f} MB, and was to use {self._budget_mb:,.0f}. "
                "It can be stopped, and goes on with a smaller training.micro_batch or "
                "data.cache_mib.",
            )
        ]

    def _starved(self) -> list[Event]:
        share = self._waited_s / max(self._seconds, 1e-9)
        if share < STARVED or len(self._rows) < 2:  # at first everything is read anew
            return []
        cores = os.cpu_count() or 1
        return [
            Event(
                "starved",
                f"{share:.0%} of the time went into waiting for images. Raise "
                f"data.cache_mib, or data.workers (this machine has {cores} cores), or "
                "shrink the images to data.long_side_px once, on disk.",
            )
        ]

    def _leak(self) -> list[Event]:
        """Warn if memory grows beyond what the cache explains, and would run out."""
        later = self.samples[len(self.samples) // 2 :]
        if len(later) < 8:
            return []
        grown = later[-1].ram_mib - self.samples[0].ram_mib - self._cache_mib
        seconds = np.array([s.time for s in later]) - later[0].time
        slope = float(np.polyfit(seconds, [s.ram_mib for s in later], 1)[0])
        if grown < 256 or slope <= 0:
            return []
        hours = later[-1].ram_free_mib / slope / 3600
        if hours > 24:
            return []
        return [
            Event(
                "memory-leak",
                f"Memory grows by {60 * slope:.0f} MiB a minute beyond the cache, and is "
                f"full in {hours:.1f} h. The run can be stopped and goes on with less; "
                "please report it, with resources.csv.",
            )
        ]

    def _disk(self) -> list[Event]:
        free, needed = self.newest.disk_free_mib, 2 * self._checkpoint_mib
        if free >= needed:
            return []
        return [
            Event(
                "disk-low",
                f"{free:.0f} MiB are free where the run is kept, and a checkpoint takes "
                f"{self._checkpoint_mib:.0f}. Free some, or the run will stop.",
            )
        ]
