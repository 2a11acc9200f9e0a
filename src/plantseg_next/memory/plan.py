"""A memory plan: the settings that fit, the concessions made, and its file."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from plantseg_next.errors import UsageError
from plantseg_next.json_files import JsonFormat
from plantseg_next.memory.allocation_tracker import KINDS, Footprint
from plantseg_next.settings import Settings, flat_settings


class _PlanFile(BaseModel, extra="allow"):
    """The content of the file; the other fields are for the user."""

    settings: dict[str, Any]


_FORMAT = JsonFormat(
    _PlanFile,
    "a plan",
    version=1,
    fix="plantseg-next plan DATA --memory 2GB",
    error=UsageError,
)


@dataclass(frozen=True)
class MemoryPlan:
    """Settings that fit, and the concessions made.

    Args:
        requested: The settings before.
        settings: The settings that fit.
        limit: The budget, in bytes.
        before: Memory of a step as requested.
        after: Memory of a step as planned.
        needs: Bytes of the budget that the run needs, as planned.
        room: Bytes of the budget available to a step at its peak.
        slower: Time of a step as planned over that as requested; an estimate.
        concessions: What was changed and why, in words.
        reading: Bytes of main memory that the run needs to load images, and their
            limit; ``None`` without a limit.
    """

    requested: Settings
    settings: Settings
    limit: int
    before: Footprint
    after: Footprint
    needs: int
    room: int
    slower: float
    concessions: tuple[str, ...]
    reading: tuple[int, int] | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that differ from those requested, by dotted name."""
        before, after = flat_settings(self.requested), flat_settings(self.settings)
        return {name: value for name, value in after.items() if value != before[name]}

    def to_text(self) -> str:
        """Return the plan as text: memory of a step by kind, requested and planned."""
        lines = [f"{'in MB':14s}{'requested':>10s}{'planned':>10s}"]
        for kind in KINDS:
            before, after = self.before.peak[kind], self.after.peak[kind]
            if before or after:
                lines.append(f"{kind:14s}{before / 1e6:10,.1f}{after / 1e6:10,.1f}")
        totals = (
            ("at the peak", self.before.peak_bytes, self.after.peak_bytes),
            ("between steps", self.before.resident_bytes, self.after.resident_bytes),
            ("reserved", self.before.reserved, self.after.reserved),
        )
        lines += [f"{n:14s}{b / 1e6:10,.1f}{a / 1e6:10,.1f}" for n, b, a in totals]
        needs = f"The run needs {in_mb(self.needs)} of {in_mb(self.limit)}."
        beside = in_mb(max(0, self.needs - self.after.reserved))
        lines += ["", needs, f"{beside} of it are for libraries, and for decoded images."]
        lines += self.concessions
        if self.reading is not None:
            needs, limit = map(in_mb, self.reading)
            lines.append(f"Loading images needs {needs} of {limit} of main memory.")
        if self.slower > 1.005:
            lines.append(f"A step takes an estimated {self.slower:.1f} times as long.")
        changes = [
            f"--set {shlex.quote(f'{name}={json.dumps(value)}')}"
            for name, value in self.changes.items()
        ]
        return "\n".join([*lines, "", *changes])

    def write(self, path: Path) -> None:
        """Write the plan; its ``settings`` may be edited."""
        plan = _PlanFile(
            settings=self.changes,
            budget_mb=round(self.limit / 1e6, 1),
            needs_mb=round(self.needs / 1e6, 1),
            before_mb=_peaks(self.before),
            after_mb=_peaks(self.after),
            slower=round(self.slower, 2),
            given=list(self.concessions),
        )
        _FORMAT.write(path, plan)


def read_plan(path: Path, settings: Settings) -> Settings:
    """Return the settings with those of a plan applied.

    Raises:
        UsageError: If the file is no plan, or contains an unknown setting.
    """
    changes = _FORMAT.read(path).settings
    pairs = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    return settings.with_settings(pairs, origin=str(path))


def in_mb(n_bytes: int) -> str:
    """Return bytes as text, in MB."""
    return f"{n_bytes / 1e6:,.0f} MB"


def _peaks(step: Footprint) -> dict[str, Any]:
    return {
        "peak": round(step.peak_bytes / 1e6, 1),
        "resident": round(step.resident_bytes / 1e6, 1),
        "reserved": round(step.reserved / 1e6, 1),
        "peak_by_kind": {kind: round(step.peak[kind] / 1e6, 1) for kind in KINDS},
    }
