"""Files: atomic writes, output folders that overwrite nothing, reading text, caches."""

import codecs
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import BinaryIO

from plantseg_next.errors import DataError, OutputError, UsageError, shorten

MAX_BYTES = 1e15
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MAX_TEXT_BYTES = 256 * 2**20
"""Largest table or list that is read: 100 bytes for each of two million images."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
AnyPath = str | Path
"""A path as users give it."""


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file completely or not at all; its folder is created if needed.

    The content is synced to a temporary file, which then replaces ``path``, so a reader
    never sees half a file, even after a crash.

    Args:
        path: Replaced if it exists.
        content: The bytes, or a function that writes them.

    Raises:
        OSError: If the file cannot be written. An existing file is then kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The length of the name of ``path`` does not matter; other machines may write here too.
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise _about(error, path, partial) from None
    finally:
        with suppress(OSError):  # of a disk that has become read-only
            partial.unlink(missing_ok=True)


def parse_bytes(text: str) -> int:
    """Return a size in bytes.

    Raises:
        UsageError: If it is no positive number with a unit.

    Example:
        >>> parse_bytes("1.5GB"), parse_bytes("2 GiB")
        (1500000000, 2147483648)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    size = float(match[1]) * UNITS[match[2].upper()] if match else 0.0
    if not 1 <= size <= MAX_BYTES:
        raise UsageError(
            f"The memory is {text!r}.",
            needed="a number with a unit (KB, MB, GB, KiB, MiB or GiB), below a million GB",
            fix="for example --memory 2GB",
        )
    return round(size)


def remove_partials(folder: Path) -> None:
    """Remove the partial files of killed processes.

    Args:
        folder: No other process may be writing into it.
    """
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)


def regular_file(path: Path, needed: str = "a regular file") -> int:
    """Return the size of a file in bytes, without opening it.

    A pipe would be waited for, a device may have no end, and opening some changes them.

    Args:
        path: As a user gave it, or as it was found in a folder.
        needed: What it should be, for the error.

    Raises:
        DataError: If it is anything but a regular file, or a link to one.
    """
    fix = "restore it, or remove it"
    try:
        status = path.stat()
    except OSError as error:
        came = f"cannot be read: {error.strerror}"
        if error.errno == errno.ENOENT and path.is_symlink():
            came = "is a link that leads nowhere"
        if error.errno == errno.ELOOP:
            came = "is a link that leads to itself"
    except ValueError as error:  # a NUL in the name
        came = f"cannot be read: {error}"
    else:
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        kind = stat.S_IFMT(status.st_mode)
        came = f"is {_KINDS.get(kind, 'of an unknown kind')}, not a file"
        fix = "move it away, or rename it"
    raise DataError(f"`{path}` {came}.", needed=needed, fix=fix)


def is_stated(path: Path, needed: str = "a regular file") -> bool:
    """Return whether a folder has a file of a name that means something, as `index.csv`.

    Args:
        path: The file.
        needed: What it should be, for the error.

    Raises:
        DataError: If something else has that name. What it states is then not known, which
            is not the same as nothing stated.
    """
    if not os.path.lexists(path):
        return False
    regular_file(path, needed)
    return True


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a file, in memory as a whole.

    Args:
        path: The file.
        limit: Largest size in bytes.

    Raises:
        DataError: If it is no regular file, too large, or cannot be read.
    """
    size = regular_file(path)
    if size > limit:
        raise DataError(
            f"`{path}` has {size / 2**20:,.0f} MiB.",
            needed=f"a file of its kind, of at most {limit / 2**20:,.0f} MiB",
            fix="split it, or move it away if it is something else",
        )
    return read_head(path, size)


def read_head(path: Path, length: int) -> bytes:
    """Return the first bytes of a file.

    Raises:
        DataError: If it is no regular file, or cannot be read.
    """
    size = regular_file(path)
    try:
        with path.open("rb") as file:
            return file.read(min(length, size))  # memory is taken for all that is asked
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {error.strerror}.",
            needed="a file that you may read",
            fix="change its permissions, or copy it again",
        ) from error


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Spreadsheets write UTF-16 as "Unicode text". No other encoding states what it is, so
    none is guessed. Line ends are those of Unix.

    Args:
        path: The file.
        limit: Largest size in bytes.

    Raises:
        DataError: If it is in another encoding, no regular file, too large, or cannot be
            read.
    """
    content = read_bytes(path, limit)
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    is_utf32 = content.startswith(codecs.BOM_UTF32_LE)
    try:
        text = content.decode("utf-16" if is_utf16 and not is_utf32 else "utf-8-sig")
    except UnicodeDecodeError as error:
        is_table = path.suffix.lower() in {".csv", ".tsv", ".txt"}
        raise DataError(
            f"`{path}` is not text in UTF-8 (byte {error.start}).",
            needed="a text file in UTF-8",
            fix="save it again as UTF-8"
            + ('; spreadsheets call that "CSV UTF-8"' if is_table else " in a text editor"),
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare_output(folder: Path) -> None:
    """Create an output folder, or raise an error before anything is computed.

    Raises:
        OutputError: If the folder holds anything, is a file, or cannot be written.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        existing = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if existing:
            raise OutputError(
                f"`{folder}` already holds {shorten(existing)}.",
                needed="a new or an empty folder, so that nothing is overwritten",
                fix="choose another --out, or move the old folder away",
            )
    refuse_unwritable(folder)


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder in which no file can be made.

    Raises:
        OutputError: If the folder cannot be written.
    """
    probe = folder / f".{os.getpid()}.probe"
    with explained(folder):
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _about(error, folder, probe) from None


@contextmanager
def explained(folder: Path, to_do: str = "choose another --out") -> Iterator[None]:
    """Convert errors of the file system into ``OutputError``.

    Args:
        folder: What is written, for errors that name no file.
        to_do: What to do where nothing can be done about the cause.

    Raises:
        OutputError: In place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        path = _path_of(error) or folder
        needed, fix = _remedy(error, path, to_do)
        raise OutputError(
            f"`{path}` cannot be written: {_reason(error, path)}.",
            needed=needed,
            fix=fix,
        ) from error


@contextmanager
def explained_temporary() -> Iterator[None]:
    """Convert errors of the file system about temporary files into ``OutputError``.

    Raises:
        OutputError: In place of any ``OSError``; names the folder of temporary files.
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            raise OutputError(
                f"Temporary files cannot be written in `{gettempdir()}`: {error.strerror}.",
                needed="free space there, about 10 kB for each mask that is drawn",
                fix="free some space, or set TMPDIR to a folder on another disk",
            ) from error
        raise OutputError(
            "There is no folder for temporary files.",
            needed="a folder with free space, where you may write",
            fix="set TMPDIR to one",
        ) from error


def refused_by_system(error: OSError) -> UsageError:
    """Return an error of the file system as one of the user, wherever it came from."""
    path = _path_of(error)
    needed, fix = _remedy(error, path, "choose another path")
    if path is None:
        came = f"The operating system reports: {error.strerror}."
    else:
        came = f"`{path}` cannot be read or written: {_reason(error, path)}."
    return UsageError(came, needed=needed, fix=fix)


def _about(error: OSError, path: Path, temporary: Path) -> OSError:
    """Return an error with the path that is written in place of a temporary one."""
    if error.errno is None or error.filename not in (None, str(temporary)):
        return error
    return OSError(error.errno, error.strerror, str(path))


def _path_of(error: OSError) -> Path | None:
    name = error.filename2 or error.filename  # of a renamed file, the new name
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None


def _reason(error: OSError, path: Path) -> str:
    if error.errno == errno.EEXIST and path.is_symlink():
        return f"it is a link to `{path.readlink()}`, where nothing is"
    return error.strerror or str(error)


_NEEDED = {
    errno.ENOSPC: "free space on the disk",
    errno.EDQUOT: "free space, by your quota",
    errno.EROFS: "a disk that is not read-only",
    errno.EACCES: "your permission to use it",
    errno.EPERM: "your permission to use it",
    errno.EEXIST: "a folder, or a path where nothing is",
    errno.EISDIR: "a path for a file; this is a folder",
    errno.ENOTDIR: "folders above it; one of them is a file",
    errno.ENAMETOOLONG: "names of up to 255 bytes, in a path of up to 4,096",
    errno.ELOOP: "links that end somewhere",
    errno.EMFILE: "fewer open files",
    errno.ENFILE: "fewer open files",
    errno.ENOENT: "files and folders that exist",
}
_FIX = {
    errno.ENOSPC: "free some space, or ",
    errno.EDQUOT: "free some space, or ",
    errno.EACCES: "ask its owner for it, or ",
    errno.EPERM: "ask its owner for it, or ",
    errno.ELOOP: "remove the link, or ",
    errno.EMFILE: "close other programs, raise the limit (ulimit -n), or ",
    errno.ENFILE: "close other programs, or ",
    errno.ENOENT: "check the spelling, or ",
}


def _remedy(error: OSError, path: Path | None, otherwise: str) -> tuple[str, str]:
    """Return what is needed and what to do about an error of the file system."""
    number = error.errno or 0
    fix = _FIX.get(number, "")
    if number == errno.EEXIST and path is not None and path.is_symlink():
        fix = "remove the link, or "
    return _NEEDED.get(number, "a file system without errors"), fix + otherwise


def cache_folder() -> Path:
    """Return the folder of what commands keep, in ``XDG_CACHE_HOME`` or ``~/.cache``.

    If that cannot be written, it is a temporary folder, until the process ends.
    """
    with suppress(OSError, RuntimeError):  # a user may have no home
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = folder / "plantseg-next"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(_temporary_cache().name)


@cache
def _temporary_cache() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="plantseg-next-")


def temporary_folder() -> Path:
    """Return the folder of masks that are drawn; it is removed when the process ends."""
    return Path(_temporary_folder().name)


def is_temporary(path: Path) -> bool:
    """Return whether a file is in that folder, where no user looks for it."""
    exists = _temporary_folder.cache_info().currsize > 0
    return exists and path.is_relative_to(temporary_folder())


@cache
def _temporary_folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="plantseg-next-")
