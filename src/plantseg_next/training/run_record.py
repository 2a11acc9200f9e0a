"""What a run is: its settings, its images, and what it was run on. No torch here.

    RUN/settings.yaml   every setting        RUN/manifest.json   every image, its split
    RUN/run.json        where the images came from, and the machine

``run.json`` is written first and ``manifest.json`` last: a folder with the first and not
the other was left before anything was learned.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plantseg_next import __version__
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.errors import DataError, UsageError
from plantseg_next.files import (
    explained,
    prepare_output,
    remove_partials,
    write_atomically,
)
from plantseg_next.settings import MemorySettings, Settings, flat_settings

FORMAT = 2
RECORD = "run.json"
HISTORY = "history.csv"
EVENTS = "events.jsonl"
SETTINGS = "settings.yaml"
LOCK = ".lock"
PLAN = "plan.json"
MASKS = "masks"
"""Folder of those that were drawn from outlines."""

PLANNED = (
    "data.tile_px",
    "data.cache_mib",
    "data.workers",
    "data.prefetch",
    "training.micro_batch",
    *(f"memory.{name}" for name in MemorySettings.model_fields),
)
"""Settings that a memory plan chooses."""
FREE = frozenset(
    {
        "device",
        "deterministic",
        "data.workers",
        "data.prefetch",
        "data.cache_mib",
        "training.micro_batch",
        "training.checkpoint_minutes",
        "training.on_collapse",
        "memory.budget_mb",
        "memory.activation_checkpointing",
        "memory.loss_chunk_rows",
        "memory.ema_offload",
    }
)
"""Settings that a run may go on with another value of: what it learns stays the same,
rounding aside."""


@dataclass(frozen=True)
class RunRecord:
    """What a run is.

    Args:
        settings: The whole tree.
        sources: Where its images came from: absolute paths, by the name of the option.
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        environment: Version, start, command and machine.
    """

    settings: Settings
    sources: Mapping[str, Any]
    pixels: tuple[int, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, manifest: Manifest) -> None:
        """Write what is known before the first step.

        Raises:
            OutputError: If the folder cannot be written.
        """
        tree = {
            "format": FORMAT,
            "plantseg_next": __version__,
            **self.environment,
            "sources": self.sources,
            "pixels": self.pixels,
        }
        text = json.dumps(tree, indent=1, ensure_ascii=False)
        with explained(folder):
            write_atomically(folder / RECORD, text.encode())
            self.settings.write(folder / SETTINGS)
            manifest.write(folder / MANIFEST_FILE)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """Return what the run in a folder is; ``None`` if the folder holds none.

        Raises:
            DataError: If it cannot be read, or was written by another version.
        """
        path = folder / RECORD
        if not path.is_file() or not (folder / MANIFEST_FILE).is_file():
            return None
        try:
            tree = json.loads(path.read_text("utf-8"))
            written_as = tree.pop("format", 1)
            if written_as != FORMAT:
                newer = written_as > FORMAT
                raise DataError(
                    f"`{folder}` holds a run of {'a newer' if newer else 'an older'} "
                    f"version (format {written_as}).",
                    needed=f"a run of format {FORMAT}",
                    fix="update plantseg-next"
                    if newer
                    else "its models can be used; to train, name another --out",
                )
            sources, pixels = tree.pop("sources"), tuple(tree.pop("pixels"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"`{path}` cannot be read: {error!r}.",
                needed="the file that training wrote",
                fix="restore it from a copy, or train anew with --restart",
            ) from error
        return cls(Settings.read(folder / SETTINGS), sources, pixels, tree)

    def planned(self, settings: Settings, memory: int) -> Settings:
        """Return the settings with those that were planned when the run began.

        Raises:
            UsageError: If it began with another budget.
        """
        budget = self.settings.memory.budget_mb
        if budget != memory / 1e6:
            began = "without --memory" if budget is None else f"with {budget:,.0f} MB"
            raise UsageError(
                f"The run began {began}, and is now to have {memory / 1e6:,.0f} MB.",
                needed="the budget that it began with",
                fix="give that one; for less memory from here on, leave --memory out and "
                "give the settings of RUN/settings.yaml with a smaller "
                "training.micro_batch",
            )
        mine = flat_settings(self.settings)
        return settings.with_settings([f"{n}={json.dumps(mine[n])}" for n in PLANNED])

    def differences(
        self, settings: Settings, sources: Mapping[str, Any]
    ) -> tuple[list[str], list[str]]:
        """Return how settings and sources differ from the run's, in words.

        Returns:
            What the run cannot go on with, and what it can.
        """
        old, new = flat_settings(self.settings), flat_settings(settings)
        old |= {f"--{name}": value for name, value in self.sources.items()}
        new |= {f"--{name}": value for name, value in sources.items()}
        other: tuple[list[str], list[str]] = [], []
        for name in old | new:
            if old.get(name) != new.get(name):
                line = (
                    f"{name}: {_shown(old.get(name))} in the run, {_shown(new.get(name))}"
                )
                other[name in FREE].append(f"{line} now")
        return other


def refuse_other_configuration(folder: Path, differences: list[str]) -> None:
    """Refuse to go on with a run under other settings.

    Raises:
        UsageError: If there are differences; it shows them.
    """
    if differences:
        raise UsageError(
            f"`{folder}` holds a run of another configuration:\n    "
            + "\n    ".join(differences),
            needed="the settings and images that the run began with",
            fix="give the same ones to go on with it, another --out for a new run, or "
            "--restart to set it aside and begin anew",
        )


def prepare_run(folder: Path) -> None:
    """Make the folder of a new run, or take one that was left before anything was learned.

    Raises:
        OutputError: If it holds something else or cannot be written.
    """
    if not (folder / RECORD).is_file():
        prepare_output(folder)


def archive_run(folder: Path) -> Path | None:
    """Rename a folder that holds something; return its new name, ``None`` if empty.

    Raises:
        UsageError: If a process is training in it.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if is_locked(folder):
        raise _locked(folder)
    n = 1
    while (other := folder.with_name(f"{folder.name}.{n}")).exists():
        n += 1
    with explained(folder):
        folder.rename(other)
    return other


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder: no other process may train in it meanwhile.

    The system lets go when the process ends, however it ends. What a process left half
    written when it was killed is removed.

    Raises:
        UsageError: If another process holds it.
    """
    from filelock import FileLock, Timeout

    with explained(folder):
        lock = FileLock(folder / LOCK, timeout=2)
        try:
            lock.acquire()
        except Timeout:
            raise _locked(folder) from None
    try:
        remove_partials(folder)
        yield
    finally:
        lock.release()


def _locked(folder: Path) -> UsageError:
    return UsageError(
        f"Another process is training in `{folder}`.",
        needed="one process a run",
        fix=f"watch it: plantseg-next watch {folder}",
    )


def is_locked(folder: Path) -> bool:
    """Return whether a process is training in a folder now."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def environment_info(device: str, threads: int) -> dict[str, Any]:
    """Return when, how and on what a run was started."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        # To go on with the run, and --restart would begin it anew.
        "command": [
            Path(sys.argv[0]).name,
            *(word for word in sys.argv[1:] if word != "--restart"),
        ],
        "directory": str(Path.cwd()),
        "device": device,
        "threads": threads,
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {name: _version_of(name) for name in ("torch", "timm", "numpy")},
        "code": _commit(),
    }


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Return the commit of our own code, "" where it is no checkout."""
    try:
        found = subprocess.run(  # noqa: S603
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def _shown(value: object) -> str:
    return "nothing" if value in (None, [], ()) else f"{value}"
