"""Resources of a run: memory, CPU, GPU, disk, and time spent waiting for images."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
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
from plantseg_next.training.run_record import RESOURCES

SAMPLE_S = 5.0
STARVED = 0.25
"""Fraction of the time spent waiting for images from which an event is emitted."""
MIB = 2**20


@dataclass(frozen=True)
class ResourceSample:
    """Resources in use at one time.

    Args:
        time: Unix time, in seconds.
        ram_mib: Memory of the run, its workers included.
        ram_free_mib: Memory available to any process.
        cpu_pct: Load of all cores, by all processes, since the last sample.
        disk_free_mib: Free space on the disk of the run.
        gpu_mib: Reserved by the run; 0 without a GPU.
        gpu_peak_mib: Peak of that so far.
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
            # On Linux, PSS counts shared pages once: workers share imported modules.
            resident += getattr(used, "pss", used.rss)
        except psutil.Error:  # the child has ended meanwhile
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
    except (ModuleNotFoundError, RuntimeError):  # needs nvidia-ml-py and permission
        return float("nan")


class ResourceMonitor(Callback):
    """Write a row of resources at each validation to ``resources.csv``, and warn.

    Args:
        folder: Of the run.
        cache_mib: Memory that the image cache may fill without counting as a leak.
        budget_mb: Memory budget of the processes, in 10^6 bytes; ``None`` for no limit.
    """

    key = "resources"

    def __init__(
        self, folder: Path, *, cache_mib: float, budget_mb: float | None = None
    ) -> None:
        self._folder = folder
        self._budget_mb = budget_mb
        self._cache_mib = cache_mib
        self._rows: list[dict[str, float | int]] = []
        self._emitted: set[str] = set()
        self._checkpoint_mib = 0.0
        self._seconds = self._waited_s = 0.0
        self._n_tiles = 0
        self.samples: list[ResourceSample] = []
        self.newest = take_sample(folder)
        self.peak_mib = self.newest.ram_mib

    def on_step(self, info: StepInfo) -> Sequence[Event]:
        """Sum up times and tiles; sample the machine every ``SAMPLE_S`` seconds."""
        self._seconds += info.seconds
        self._waited_s += info.waited_s
        self._n_tiles += info.n_tiles
        if time.time() - self.newest.time >= SAMPLE_S:
            self._sample()
            return self._new_only(self._over_budget())
        return ()

    def on_validation(
        self,
        step: int,
        validation: Validation,
        *,
        best: bool,  # noqa: ARG002
    ) -> Sequence[Event]:
        """Write a row, and return new events."""
        self._sample()
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
        alerts = self._new_only(
            chain(self._starved(), self._leak(), self._disk(), self._over_budget())
        )
        self._seconds = self._waited_s = 0.0
        self._n_tiles = 0
        return alerts

    def on_checkpoint(self, step: int, saved: Saved) -> None:  # noqa: ARG002
        """Store the size of a checkpoint."""
        self._checkpoint_mib = saved.n_bytes / MIB

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"rows": self._rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._rows = list(state["rows"])

    def _sample(self) -> None:
        self.newest = take_sample(self._folder)
        self.samples.append(self.newest)
        self.peak_mib = max(self.peak_mib, self.newest.ram_mib)

    def _new_only(self, alerts: Iterable[Event]) -> list[Event]:
        """Return the alerts whose kind was not emitted before."""
        new = [alert for alert in alerts if alert.kind not in self._emitted]
        self._emitted |= {alert.kind for alert in new}
        return new

    def _over_budget(self) -> Iterator[Event]:
        used = self.newest.ram_mib * MIB / 1e6
        if self._budget_mb is not None and used > self._budget_mb:
            yield Event(
                "over-budget",
                f"The run uses {used:,.0f} MB, more than its budget of "
                f"{self._budget_mb:,.0f}. Stop it, and resume it with a smaller "
                "training.micro_batch or data.cache_mib.",
            )

    def _starved(self) -> Iterator[Event]:
        fraction = self._waited_s / max(self._seconds, 1e-9)
        if fraction >= STARVED and len(self._rows) > 1:  # the cache is empty at first
            cores = os.cpu_count() or 1
            yield Event(
                "starved",
                f"{fraction:.0%} of the time was spent waiting for images. Raise "
                f"data.cache_mib, or data.workers (this machine has {cores} cores), or "
                "shrink the images to data.long_side_px once, on disk.",
            )

    def _leak(self) -> Iterator[Event]:
        """Warn if memory grows by more than the cache, and would run out within a day."""
        later = self.samples[len(self.samples) // 2 :]
        if len(later) < 8:
            return
        grown = later[-1].ram_mib - self.samples[0].ram_mib - self._cache_mib
        seconds = np.array([s.time for s in later]) - later[0].time
        slope = float(np.polyfit(seconds, [s.ram_mib for s in later], 1)[0])
        if grown < 256 or slope <= 0:
            return
        hours = later[-1].ram_free_mib / slope / 3600
        if hours <= 24:
            yield Event(
                "memory-leak",
                f"Memory grows by {60 * slope:.0f} MiB a minute beyond the cache, and "
                f"will be full in {hours:.1f} h. Stop and resume the run to free it; "
                "please report this, with resources.csv.",
            )

    def _disk(self) -> Iterator[Event]:
        free = self.newest.disk_free_mib
        if free < 2 * self._checkpoint_mib:
            yield Event(
                "disk-low",
                f"{free:.0f} MiB are free on the disk of the run, and a checkpoint takes "
                f"{self._checkpoint_mib:.0f}. Free some space, or the run will stop.",
            )
