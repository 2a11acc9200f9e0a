"""Checkpoints: everything needed to resume a run, in files verified by a digest.

    checkpoints/000007-step-1200.safetensors         tensors; the rest as JSON in its header
    checkpoints/000007-step-1200.safetensors.sha256  its digest, in ``sha256sum``'s format

A file is written under a temporary name, synced, renamed, read back and compared. Then its
digest is written, and then older files are removed. Whenever a process is killed, the
newest file that matches its digest is complete. One with the content of something else is
skipped like a damaged one. Where files are left and none can be used, the run is not
started again unasked. Loading a file executes no code.

Files are numbered in the order of writing: after a rollback a run writes a newer file of a
lower step.
"""

import hashlib
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from torch import Tensor

from plantseg_next.errors import DataError, OutputError, is_out_of_memory
from plantseg_next.files import explained, sha256_of, write_atomically
from plantseg_next.json_files import JsonFormat
from plantseg_next.models.tensor_files import read_header, write_tensors
from plantseg_next.training.run_record import CHECKPOINTS, has_trained

KEPT = 3
"""Number of newest checkpoints that are kept."""
_NO_DIGEST = "it has no digest file, so it may be incomplete"
_KEY = "plantseg_next"
"""Key of the head among the metadata of the tensors."""
_NAME = re.compile(r"\d+-step-\d+\.safetensors")


@dataclass(frozen=True)
class _Head:
    state: Any


_FORMAT = JsonFormat(
    _Head, "a checkpoint of plantseg-next", version=1, fix="move it out of the folder"
)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was written.

    Args:
        path: The checkpoint.
        n_bytes: Its size.
        seconds: Time of writing and reading back.
    """

    path: Path
    n_bytes: int
    seconds: float


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / CHECKPOINTS

    def save(self, state: dict[str, Any], *, step: int, also_keep: int = -1) -> Saved:
        """Write a checkpoint, read it back, and remove old ones.

        Args:
            state: Nested dicts, lists and tuples of tensors and plain values.
            step: Optimizer steps taken.
            also_keep: Step of an older one to keep too, that of the best model.

        Raises:
            OutputError: If it cannot be written, or reads back with other content. Older
                ones are then untouched.
        """
        began = time.perf_counter()
        number = 1 + max(map(_number, self._newest_first()), default=0)
        path = self.folder / f"{number:06d}-step-{step}.safetensors"
        digest = hashlib.sha256()
        with explained(self.folder):
            write_atomically(path, lambda file: write_state(file, state, digest))
            if sha256_of(path) != digest.hexdigest():
                path.unlink()
                raise OutputError(
                    f"`{path}` reads back with other content than was written.",
                    needed="a disk that stores data reliably",
                    fix="check the disk; the previous checkpoint is intact",
                )
            line = f"{digest.hexdigest()}  {path.name}\n"
            write_atomically(_sidecar(path), line.encode())
            self._prune(also_keep)
            n_bytes = path.stat().st_size
        return Saved(path, n_bytes, time.perf_counter() - began)

    def load(
        self,
        *,
        step: int | None = None,
        before: int | None = None,
        use: Callable[[dict[str, Any]], None] = lambda _: None,
        log: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any] | None:
        """Return the state of the newest usable checkpoint; ``None`` if there is none.

        Args:
            step: Load this step only.
            before: Load steps before this one only.
            use: Restores the state. What it raises makes the one before be tried.
            log: Receives a message for every one that is skipped, with the reason.

        Raises:
            DataError: If the run was trained and no checkpoint of it can be used, or
                a newer version wrote one.
        """
        skipped: dict[Path, str] = {}
        for path in self._newest_first():
            is_wanted = step is None or _step(path) == step
            is_wanted &= before is None or _step(path) < before
            if not is_wanted:
                continue
            skipped[path] = _defect(path)
            if not skipped[path]:
                try:
                    state = read_state(path)
                    use(state)
                except Exception as error:
                    skipped[path] = _misfit(error)
                else:
                    return state
            log(f"`{path}` is skipped: {skipped[path]}.")
        if step is None and before is None:
            self._refuse_lost(skipped)
        return None

    def _refuse_lost(self, skipped: Mapping[Path, str]) -> None:
        """Refuse to start again a run that was trained.

        Raises:
            DataError: Unless it was killed while it wrote its first checkpoint, or before.
        """
        lost = [p for p, why in skipped.items() if _step(p) or why != _NO_DIGEST]
        if not lost and not has_trained(self.folder.parent):
            return
        came = f"The run was trained, but `{self.folder}` holds no checkpoint."
        if lost:
            reasons = [f"{path.name}: {skipped[path]}" for path in lost]
            came = f"No checkpoint in `{self.folder}` can be used:\n    "
            came += "\n    ".join(reasons)
        raise DataError(
            came,
            needed="a checkpoint of the run, with a digest file (.sha256) that matches it",
            fix="restore both from a copy, or start again with --restart; the models of "
            "the run are kept",
        )

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in the order of writing."""
        names = self._names()
        complete = [p for p in self._newest_first() if _sidecar(p).name in names]
        return [_step(path) for path in reversed(complete)]

    def has_progress(self) -> bool:
        """Return whether the run took a step that is not lost when it starts again."""
        return any(self.steps()) or has_trained(self.folder.parent)

    def _prune(self, also_keep: int) -> None:
        files = list(filter(_is_file, self._newest_first()))
        keep = set(files[:KEPT])
        keep |= set([path for path in files if _step(path) == also_keep][:1])
        for path in files:
            if path not in keep:
                # The file first: a digest left without its file is harmless.
                path.unlink()
                _sidecar(path).unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        paths = [self.folder / name for name in self._names() if _NAME.fullmatch(name)]
        return sorted(paths, key=_number, reverse=True)

    def _names(self) -> set[str]:
        """Return the names of all files in the folder.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            return {path.name for path in self.folder.iterdir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise DataError(
                f"`{self.folder}` cannot be read: {error.strerror}.",
                needed="the folder with the checkpoints of the run",
                fix="make it readable, or start again with --restart",
            ) from error


def write_state(file: BinaryIO, state: dict[str, Any], digest: "hashlib._Hash") -> None:
    """Write a state as a safetensors file, with values other than tensors in its header.

    Args:
        file: Open for writing.
        state: Nested dicts, lists and tuples of tensors and plain values.
        digest: Updated with every byte that is written.

    Raises:
        TypeError: If the state holds anything but dicts, lists, tuples, tensors, numbers,
            strings and None.
    """
    tensors: dict[str, Tensor] = {}
    head = _FORMAT.to_bytes(_Head(_packed(state, "", tensors)), Path(), indent=None)

    def write(content: bytes | memoryview) -> None:
        file.write(content)
        digest.update(content)

    write_tensors(write, tensors, {_KEY: head.decode()})


def read_state(path: Path) -> dict[Any, Any]:
    """Return the state that ``write_state`` wrote, with tensors on the CPU.

    Raises:
        DataError: If another program or a newer version wrote it.
        Exception: Of any other kind, if it was made by hand.
    """
    try:
        head = read_header(path)["__metadata__"][_KEY]
    except (ValueError, KeyError, TypeError):
        head = ""  # another program wrote it
    state = _FORMAT.parse(head, path).state
    return _unpacked(state, safetensors.torch.load_file(path))


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    """Return a value as JSON; its tensors are put into the dict, by their path."""
    if isinstance(value, Tensor):
        if name in tensors:  # keys 1 and "1" give the same path
            name = f"{name}#{len(tensors)}"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[k, _packed(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__} at {name}")


def _unpacked(packed: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _unpacked(v, tensors) for k, v in content}
    parts = [_unpacked(v, tensors) for v in content]
    return tuple(parts) if kind == "tuple" else parts


def _defect(path: Path) -> str:
    """Return why a checkpoint cannot be used, "" if it can."""
    for file in (path, _sidecar(path)):
        if stat.S_ISFIFO(_mode(file)):  # it would be read for ever
            return "it is a pipe"
    try:
        expected = _sidecar(path).read_text("utf-8", errors="replace").split()
        digest = sha256_of(path)
    except FileNotFoundError:
        return _NO_DIGEST
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return "" if [digest] == expected[:1] else "its SHA-256 does not match its digest file"


def _misfit(error: Exception) -> str:
    """Return why the content of a whole checkpoint cannot be used.

    Raises:
        Exception: The error itself, if it does not come from the content.
    """
    if is_out_of_memory(error):
        raise error
    why = f"{type(error).__name__}: {error}"
    if isinstance(error, DataError):
        if "newer version" in error.came:
            raise error
        why = error.came
    return f"its content is not that of this run ({' '.join(why.split())[:200]})"


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _number(path: Path) -> int:
    return int(path.name.split("-")[0])


def _step(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])
