"""Writing: whole files or nothing, and never over something worth keeping."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from plantseg_next.errors import OutputError


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file whole or not at all, making its folder first.

    The content is on the disk before the name points to it, so a reader never sees half
    a file, not even after a crash.

    Args:
        path: Replaced if it is there.
        content: The bytes, or a function that writes them.

    Raises:
        OSError: If the file cannot be written. What was there before is then kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def prepare_output(folder: Path, *, marker: str, what: str) -> None:
    """Make an output folder, or refuse it before anything is computed.

    Args:
        folder: Where results are to go.
        marker: File by which a folder of earlier results is known.
        what: What such results are called, for the error.

    Raises:
        OutputError: If the folder holds earlier results, is a file, or cannot be
            written.
    """
    if (folder / marker).exists():
        raise OutputError(
            f"`{folder}` already holds {what}.",
            needed="a new or an empty folder, so that nothing is lost",
            fix="choose another --out, or move the old folder away",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"`{folder}` cannot be written: {error.strerror}.",
            needed="a folder in which you may create files",
            fix="choose another --out, or change the folder's permissions",
        ) from error
