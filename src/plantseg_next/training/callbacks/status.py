"""The status of a run, read from its folder. This module does not import torch."""

import json
import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from plantseg_next.errors import OutputError, UsageError
from plantseg_next.names import printable
from plantseg_next.settings import Settings, flat_settings
from plantseg_next.training.callbacks.callback import describe
from plantseg_next.training.callbacks.diagnostics import SOURCE_DOMAIN
from plantseg_next.training.callbacks.eta import in_words
from plantseg_next.training.run_record import (
    EVENTS,
    PLAN,
    PROGRESS,
    RECORD,
    RunRecord,
    is_locked,
)
from plantseg_next.training.time_budget import PROFILE_STEPS, few_steps

FULL_MEMORY = 0.05
"""Free fraction of the memory below which a killed process likely ran out of it."""

State = Literal["running", "finished", "stopped", "failed", "died"]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False, lt=1e15)]


class _Checkpoint(BaseModel, extra="allow"):
    step: Count


class _Progress(BaseModel, extra="allow"):
    """The content of ``progress.json``, as far as it is shown."""

    state: Literal["running", "finished", "stopped", "failed"]
    text: str
    time: Finite
    step: Count
    steps: Count | None
    left_s: Finite | None
    ram_mib: Count
    ram_peak_mib: Count
    ram_free_mib: Count
    gpu_mib: Count
    gpu_peak_mib: Count
    disk_free_mib: Count
    best: dict[str, Finite] = {}
    last: dict[str, Finite] = {}
    lesion_fractions: dict[str, float] = {}
    checkpoint: _Checkpoint | None = None


class _Event(BaseModel):
    step: Count
    kind: str
    text: str


@dataclass(frozen=True)
class Status:
    """The status of a run.

    Args:
        folder: Of the run.
        state: "died" means that the process ended without reporting why.
        record: Of the run.
        progress: The last content of ``progress.json``.
        events: Its events, oldest first.
        notes: What limits this status, or what may be done with the run.
        unreadable: Files of the run that are not as they were written.
    """

    folder: Path
    state: State
    record: RunRecord
    progress: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the status as text."""
        return "\n".join(map(printable, self._lines()))

    def _lines(self) -> Iterator[str]:
        yield f"{self.folder}: {self._headline()}"
        if self.progress:
            yield f"  step       {self.progress['step']} of {self._steps()}"
        if self.state == "running" and self.progress.get("left_s") is not None:
            yield f"  left       about {in_words(self.progress['left_s'])}"
        for name in ("best", "last"):
            if row := self.progress.get(name):
                values = {n: v for n, v in row.items() if n != "step"}
                yield f"  {name:<9}  {describe(values)}, at step {row['step']}"
        yield from self._few_steps_lines()
        yield from self._lines_without_masks()
        if self.progress:
            yield f"  uses       {self._resources()}"
            yield from self._budget_lines()
        yield f"  device     {self.record.environment.get('device', 'unknown')}"
        yield f"  images     {self.record.sources.get('data')}"
        if changed := _changed_settings(self.record.settings):
            yield f"  settings   {', '.join(changed)}"
        yield from self._event_lines()
        yield from (f"  note       {note}" for note in self.notes)
        for name in self.unreadable:
            yield f"  damaged    {name} is not as it was written, and is not shown"
        yield f"  to do      {self._advice()}"

    def _headline(self) -> str:
        text = self.progress.get("text", "")
        match self.state:
            case "running":
                return "running"
            case "finished" | "failed":
                return f"{self.state}. {text}"
            case "stopped":
                return f"stopped on request. {text}"
            case "died":
                if not self.progress:
                    is_unknown = "not running; how far it came is not known"
                    return is_unknown if self.unreadable else "died before its first step"
                ago = in_words(max(0.0, time.time() - self.progress["time"]))
                return (
                    f"died without a message {ago} ago: the process was killed, or the "
                    f"machine went down.{self._memory_note()}"
                )

    def _memory_note(self) -> str:
        free, used = self.progress["ram_free_mib"], self.progress["ram_mib"]
        if free > FULL_MEMORY * (free + used):
            return ""
        return (
            f" Memory was nearly full ({used} MiB in use, {free} free): the system "
            "then kills processes."
        )

    def _resources(self) -> str:
        p = self.progress
        gpu = f", GPU {p['gpu_mib']} MiB" if p["gpu_mib"] else ""
        return f"memory {p['ram_mib']} MiB{gpu}; free on disk {p['disk_free_mib']} MiB"

    def _budget_lines(self) -> Iterator[str]:
        """Yield the memory budget, the planned memory and the peak."""
        budget = self.record.settings.memory.budget_mb
        plan = _read_json(self.folder / PLAN)
        if budget is None or not isinstance(plan.get("needs_mb"), int | float):
            return
        p = self.progress
        peak = p.get("gpu_peak_mib") or p.get("ram_peak_mib") or 0
        yield (
            f"  budget     {budget:,.0f} MB, planned {plan['needs_mb']:,.0f}, peak "
            f"{peak * 2**20 / 1e6:,.0f}"
        )

    def _lines_without_masks(self) -> Iterator[str]:
        """Yield the lesion fractions predicted in data sets without masks."""
        fractions = dict(self.progress.get("lesion_fractions", {}))
        source = fractions.pop(SOURCE_DOMAIN, math.nan)
        for name, fraction in fractions.items():
            yield (
                f"  no masks   {name}: {fraction:.1%} is predicted as lesion; of the "
                f"labeled images, {source:.1%}. Without masks the accuracy is unknown"
            )

    def _steps(self) -> str:
        """Return the number of steps of the run, as far as it is known."""
        steps, training = self.progress["steps"], self.record.settings.training
        if training.minutes is not None and steps == training.steps:
            return f"?, known after {PROFILE_STEPS} steps"
        return str(steps or "?")

    def _few_steps_lines(self) -> Iterator[str]:
        """Yield a line if the run has too few steps to learn much."""
        steps = self.progress.get("steps")
        if steps and (few := few_steps(steps, self.record.settings.model.start)):
            yield f"  few steps  {few}"

    def _event_lines(self) -> Iterator[str]:
        counts = Counter(event["kind"] for event in self.events)
        newest: dict[str, Mapping[str, Any]] = {}
        for event in self.events:
            newest.pop(event["kind"], None)  # to the end: sorted by time
            newest[event["kind"]] = event
        for kind, event in newest.items():
            times = f" ({counts[kind]} times, last)" if counts[kind] > 1 else ""
            yield f"  event      step {event['step']}, {kind}{times}: {event['text']}"

    def _advice(self) -> str:
        command = self.record.environment.get("command") or []
        if Path(command[0] if command else "").name == "plantseg-next":
            resume = shlex.join(["plantseg-next", *command[1:]])
            resume += f"   (in {self.record.environment.get('directory')})"
        else:
            resume = "the call that started it"
        match self.state:
            case "running":
                return f"nothing; to follow it: plantseg-next watch {self.folder}"
            case "finished":
                return f"plantseg-next evaluate {self.folder}"
            case "failed":
                return f"follow the message, then resume with: {resume}"
            case _:
                saved = self.progress.get("checkpoint")
                where = f" from step {saved['step']}" if saved else ""
                return f"resume{where} with: {resume}"


def read_status(folder: Path, *, alive: bool | None = None) -> Status:
    """Return the status of the run in a folder.

    Args:
        folder: Of the run.
        alive: Whether its process is alive; by default its lock is checked.

    Raises:
        UsageError: If there is no run in the folder.
    """
    record = RunRecord.read(folder)
    if record is None:
        raise UsageError(
            f"`{folder}` holds no run.",
            needed=f"a folder that `train` wrote; it has a `{RECORD}`",
            fix="check the path, or start one: plantseg-next train DATA --out RUN",
        )
    progress = _read_json(folder / PROGRESS)
    unreadable: tuple[str, ...] = ()
    if _text(folder / PROGRESS).strip():  # a crash of the machine may empty it
        try:
            _Progress.model_validate(progress)
        except ValidationError:
            progress, unreadable = {}, (PROGRESS,)
    state: State = progress.get("state", "running")
    notes = []
    if alive is None:
        try:
            alive = is_locked(folder)
        except OutputError as error:
            notes.append(f"whether it is still running is not known: {error.came}")
    if alive:
        state = "running"
    elif state == "running" and alive is not None:
        state = "died"
    if not os.access(folder, os.W_OK):
        notes.append("you may not write into this folder, so you cannot resume the run")
    return Status(
        folder, state, record, progress, tuple(_events(folder)), tuple(notes), unreadable
    )


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the events; a line truncated by a crash is skipped."""
    for line in _text(folder / EVENTS).splitlines():
        with suppress(ValueError, RecursionError):
            yield _Event.model_validate(json.loads(line)).model_dump()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_text(path)))
    except (ValueError, TypeError, RecursionError):
        return {}


def _text(path: Path) -> str:
    """Return the text of a file, "" if it cannot be read."""
    try:
        # A pipe would be read for ever.
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def _changed_settings(settings: Settings) -> list[str]:
    defaults = flat_settings(Settings())
    return [f"{n}={v}" for n, v in flat_settings(settings).items() if v != defaults[n]]
