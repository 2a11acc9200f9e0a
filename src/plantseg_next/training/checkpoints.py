"""Checkpoints: everything needed to resume a run, in files verified by a digest.

    checkpoints/000007-step-1200.safetensors         tensors; the rest as JSON in its header
    checkpoints/000007-step-1200.safetensors.sha256  its digest, in ``sha256sum``'s format

A file is written under a temporary name, synced, renamed, read back and compared. Then its
digest is written, and then older files are removed. Whenever a process is killed, the
newest file that matches its digest is complete. Loading a file executes no code.

Files are numbered in the order of writing: after a rollback a run writes a newer file of a
lower step.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from torch import Tensor

from plantseg_next.errors import DataError, OutputError
from plantseg_next.files import explained, sha256_of, write_atomically
from plantseg_next.json_files import JsonFormat
from plantseg_next.models.tensor_files import write_tensors
from plantseg_next.training.run_record import CHECKPOINTS

KEPT = 3
"""Number of newest checkpoints that are kept."""
_KEY = "plantseg_next"
_NAME = re.compile(r"\d+-step-\d+\.safetensors")
"""Key of the head among the metadata of the tensors."""


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
        number = 1 + max((_number(path) for path in self._files()), default=0)
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
        log: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any] | None:
        """Return the state of the newest intact checkpoint; ``None`` if there is none.

        Args:
            step: Load this step only.
            before: Load steps before this one only.
            log: Receives a message for every damaged one that is skipped.

        Raises:
            DataError: If all are damaged, or a newer version wrote them.
        """
        damaged = 0
        for path in self._newest_first():
            is_wanted = step is None or _step(path) == step
            is_wanted &= before is None or _step(path) < before
            if not is_wanted or not _sidecar(path).exists():
                continue  # without a digest it is incomplete
            try:
                expected = _sidecar(path).read_text("utf-8", errors="replace").split()
                digest = sha256_of(path)
            except OSError as error:
                why = f"it cannot be read ({error.strerror})"
            else:
                if [digest] == expected[:1]:
                    return read_state(path)
                why = "its SHA-256 does not match its digest file"
            damaged += 1
            log(f"`{path}` is damaged and skipped: {why}.")
        if damaged and step is None and before is None:
            raise DataError(
                f"All {damaged} checkpoints in `{self.folder}` are damaged.",
                needed="one whose SHA-256 matches its digest file",
                fix="start again with --restart; the models of the run are kept",
            )
        return None

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in the order of writing."""
        complete = [path for path in self._newest_first() if _sidecar(path).exists()]
        return [_step(path) for path in reversed(complete)]

    def _prune(self, also_keep: int) -> None:
        files = self._newest_first()
        keep = set(files[:KEPT])
        keep |= set([path for path in files if _step(path) == also_keep][:1])
        for path in files:
            if path not in keep:
                # The file first: a digest left without its file is harmless.
                path.unlink()
                _sidecar(path).unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self._files(), key=_number, reverse=True)

    def _files(self) -> Iterator[Path]:
        paths = self.folder.glob("*.safetensors")
        return (path for path in paths if _NAME.fullmatch(path.name))


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
    """
    try:
        with path.open("rb") as file:
            n = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(n))["__metadata__"][_KEY]
    except (ValueError, KeyError, TypeError, MemoryError):
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


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _number(path: Path) -> int:
    return int(path.name.split("-")[0])


def _step(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])
