"""The record of a run: settings, images, machine. This module does not import torch.

    RUN/settings.yaml   every setting        RUN/manifest.json   every image, its split
    RUN/run.json        where the images came from, and the machine

``run.json`` is written first and ``manifest.json`` last: in a folder with the first and
without the other, training had not started.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, Field

from plantseg_next import __version__
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.errors import DataError, OutputError, UsageError
from plantseg_next.files import explained, prepare_output, remove_partials
from plantseg_next.json_files import JsonFormat
from plantseg_next.settings import Mark, Settings, flat_settings, setting_names

RECORD = "run.json"
HISTORY = "history.csv"
EVENTS = "events.jsonl"
SETTINGS = "settings.yaml"
LOCK = ".lock"
PLAN = "plan.json"
PROGRESS = "progress.json"
SUMMARY = "summary.txt"
RESOURCES = "resources.csv"
CHECKPOINTS = "checkpoints"
BEST = "best"
"""Folder of the best model, written at a validation."""
FIRST_STEPS = "first_steps.json"
_RECORD_FILES = (RECORD, MANIFEST_FILE, SETTINGS)
_WRITTEN = (LOCK, EVENTS, HISTORY, RESOURCES, PROGRESS, PLAN, SUMMARY, FIRST_STEPS)
MASKS = "masks"
"""Folder of masks that were rasterized from outlines."""


class _RunFile(BaseModel, extra="allow"):
    """The content of ``run.json``; other fields are the environment."""

    sources: dict[str, Any]
    pixels: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...]
    threads: Annotated[int, Field(ge=1, le=4096)]
    command: tuple[str, ...] = ()


_FORMAT = JsonFormat(
    _RunFile,
    "the record of a run",
    version=3,
    fix="restore it from a copy, or start again with --restart",
    oldest=3,
    fix_older="its models can be used; to train, choose another --out",
)


@dataclass(frozen=True)
class RunRecord:
    """The record of a run.

    Args:
        settings: The whole tree.
        sources: Absolute paths of its images, by the name of the option.
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        environment: Version, start, command and machine.
    """

    settings: Settings
    sources: Mapping[str, Any]
    pixels: tuple[int, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, manifest: Manifest) -> None:
        """Write the record, before the first step.

        Raises:
            OutputError: If the folder cannot be written.
        """
        self.announce(folder)
        with explained(folder):
            self.settings.write(folder / SETTINGS)
            manifest.write(folder / MANIFEST_FILE)

    def announce(self, folder: Path) -> None:
        """Write ``run.json`` alone: the other files of a folder with it are of a run.

        Raises:
            OutputError: If the folder cannot be written.
        """
        record = _RunFile(
            sources=dict(self.sources),
            pixels=self.pixels,
            **{"plantseg_next": __version__, **self.environment},
        )
        with explained(folder):
            _FORMAT.write(folder / RECORD, record)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """Return the record of the run in a folder; ``None`` if the folder holds no run.

        Raises:
            DataError: If it cannot be read, or was written by another version.
        """
        path = folder / RECORD
        if path.is_symlink() or path.exists():
            _refuse_no_files(folder, _RECORD_FILES)
        if not path.is_file():
            return None
        if not (folder / MANIFEST_FILE).is_file():
            if (folder / CHECKPOINTS).exists() or has_trained(folder):
                raise DataError(
                    f"`{folder}` was trained, but has no `{MANIFEST_FILE}`: which images "
                    "the run learns from is not known.",
                    needed="the manifest that the run wrote",
                    fix="restore it from a copy, or start again with --restart",
                )
            return None
        record = _FORMAT.read(path)
        return cls(
            Settings.read(folder / SETTINGS),
            record.sources,
            record.pixels,
            record.model_dump(exclude={"sources", "pixels"}),
        )

    def planned(self, settings: Settings, memory: int) -> Settings:
        """Return the settings with the run's memory plan.

        Raises:
            UsageError: If the run started with another budget.
        """
        budget = self.settings.memory.budget_mb
        if budget != memory / 1e6:
            started = "without --memory" if budget is None else f"with {budget:,.0f} MB"
            raise UsageError(
                f"The run started {started}; --memory is now {memory / 1e6:,.0f} MB.",
                needed="the budget that it started with",
                fix="use that one; to use less memory from here on, omit --memory and use "
                "the settings of RUN/settings.yaml with a smaller training.micro_batch",
            )
        values = flat_settings(self.settings)
        planned = setting_names(Mark.PLANNED)
        return settings.with_settings([f"{n}={json.dumps(values[n])}" for n in planned])

    def differences(
        self, settings: Settings, sources: Mapping[str, Any]
    ) -> tuple[list[str], list[str]]:
        """Return how settings and sources differ from the run's, as lines of text.

        Returns:
            Differences that prevent resuming, and those that do not.
        """
        old, new = flat_settings(self.settings), flat_settings(settings)
        old |= {f"--{name}": value for name, value in self.sources.items()}
        new |= {f"--{name}": value for name, value in sources.items()}
        may_change = setting_names(Mark.MAY_CHANGE)
        lines: tuple[list[str], list[str]] = [], []
        for name in old | new:
            if old.get(name) != new.get(name):
                line = (
                    f"{name}: {_shown(old.get(name))} in the run, {_shown(new.get(name))}"
                )
                lines[name in may_change].append(f"{line} now")
        return lines


def refuse_other_configuration(folder: Path, differences: list[str]) -> None:
    """Refuse to resume a run with other settings.

    Raises:
        UsageError: If there are differences; the message lists them.
    """
    if differences:
        raise UsageError(
            f"`{folder}` holds a run of another configuration:\n    "
            + "\n    ".join(differences),
            needed="the settings and images that the run started with",
            fix="use the same ones to resume it, another --out for a new run, or "
            "--restart to archive it and start again"
            + "; if a folder was moved, --data-moved OLD=NEW"
            * any(line.startswith("--") for line in differences),
        )


def has_trained(folder: Path) -> bool:
    """Return whether a run has results of steps, which only a checkpoint can resume."""
    return any((folder / name).exists() for name in (BEST, FIRST_STEPS))


def prepare_run(folder: Path) -> None:
    """Make the folder of a new run, or reuse one in which training had not started.

    Raises:
        OutputError: If it holds other files or cannot be written.
    """
    if not (folder / RECORD).is_file():
        prepare_output(folder)


def archive_run(folder: Path) -> Path | None:
    """Rename a folder that is not empty; return its new path, ``None`` if empty.

    Raises:
        UsageError: If a process is training in it.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if is_locked(folder):
        raise _locked(folder)
    n = 1
    while (archive := folder.with_name(f"{folder.name}.{n}")).exists():
        n += 1
    with explained(folder):
        folder.rename(archive)
    return archive


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run's folder: no other process may train in it meanwhile.

    The system releases the lock when the process ends, however it ends. Incomplete files
    of a killed process are removed.

    Raises:
        UsageError: If another process holds the lock.
    """
    from filelock import FileLock, Timeout

    _refuse_no_files(folder, (*_RECORD_FILES, *_WRITTEN))
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


def _refuse_no_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse what has the name of a file of a run and is none: a folder, a pipe, a link.

    Raises:
        OutputError: It names the first.
    """
    for path in (folder / name for name in names):
        is_link = path.is_symlink() and (path.name == LOCK or not path.exists())
        if is_link or (path.exists() and not path.is_file()):
            raise OutputError(
                f"`{path}` is {'a link' if is_link else 'not a file'}.",
                needed="the file of that name that the run writes",
                fix="move it out of the folder, then give the same command again",
            )


def _locked(folder: Path) -> UsageError:
    return UsageError(
        f"Another process is training in `{folder}`.",
        needed="one process for each run",
        fix=f"watch it: plantseg-next watch {folder}",
    )


def is_locked(folder: Path) -> bool:
    """Return whether a process is training in a folder now.

    Of a lock that cannot be written, such as one of another user, it is read.

    Raises:
        OutputError: If its lock cannot be read either.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        with explained(path), path.open("rb") as lock:
            return _is_held(lock)


def _is_held(lock: BinaryIO) -> bool:
    """Return whether another process holds a lock, by asking for a shared one."""
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # closing the file releases it
    except BlockingIOError:
        return True
    return False


def environment_info(device: str, threads: int) -> dict[str, Any]:
    """Return when, how and on what a run was started."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **command_info(),
        "device": device,
        "threads": threads,
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": {name: version_of(name) for name in ("torch", "timm", "numpy")},
        "code": code_commit(),
    }


def command_info() -> dict[str, Any]:
    """Return the command that resumes the run, and where it was given."""
    # With --restart it would start again.
    arguments = [argument for argument in sys.argv[1:] if argument != "--restart"]
    return {
        "command": [Path(sys.argv[0]).name, *arguments],
        "directory": str(Path.cwd()),
    }


def version_of(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def code_commit() -> str:
    """Return the commit of this package, "" outside a git checkout."""
    try:
        described = subprocess.run(  # noqa: S603
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()


def _shown(value: object) -> str:
    return "nothing" if value in (None, [], ()) else f"{value}"
