"""An index of files: what an inspection of each found, kept on disk between commands.

It is a database in the cache folder of the user, because the folder of a data set may be
read-only. An entry holds as long as its file keeps size and time of change. Nothing depends
on the database: where it is missing, damaged or locked, files are inspected again.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from plantseg_next.files import cache_folder

NAME = "index_1.sqlite"
"""File name of the database; the number changes with its table."""
MOST_KEPT = 100_000
"""Entries, of which the oldest are removed; one of an image takes 4 KB."""

_MOST_BYTES = 2**16  # of an entry
_WAIT_S = 5.0  # for another process that is writing
_WRITTEN_AT_ONCE = 200  # so that an interrupted command keeps what it found
_CREATE = """
CREATE TABLE IF NOT EXISTS files (
    kind TEXT, path BLOB, stamp TEXT, content BLOB, PRIMARY KEY (kind, path)
)
"""
_READ = "SELECT content FROM files WHERE kind = ? AND path = ? AND stamp = ?"
_WRITE = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)"  # at the end: a new rowid
_REMOVE = "DELETE FROM files WHERE rowid <= (SELECT max(rowid) FROM files) - ?"


F = TypeVar("F", bound="Kept")


@runtime_checkable
class Kept(Protocol):
    """What was found in a file."""

    def to_bytes(self) -> bytes:
        """Return it as the index keeps it."""
        ...

    @classmethod
    def from_bytes(cls: type[F], content: bytes) -> F:
        """Return what ``to_bytes`` wrote.

        Raises:
            ValueError: If the bytes are damaged; also ``KeyError`` and ``TypeError``.
        """
        ...


class _Key(NamedTuple):
    """A file, in the state in which it was inspected."""

    kind: str
    path: bytes
    stamp: str


class Index:
    """The index, as a context in which it is open; for any number of threads.

    Args:
        code: Version of what inspects the files; entries of another one are not used.
    """

    def __init__(self, code: str) -> None:
        self._code = code
        self._lock = Lock()
        self._pending: dict[_Key, bytes] = {}
        self._file = cache_folder() / NAME
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> "Index":
        with self._unless_broken():
            self._database = sqlite3.connect(
                self._file, timeout=_WAIT_S, check_same_thread=False
            )
            self._database.execute(_CREATE)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._write()
            self._close()

    def known(self, kind: type[F], path: Path, variant: str = "") -> F | None:
        """Return what was found in a file, or ``None`` if it is unknown or has changed.

        Args:
            kind: Type of what was found.
            path: The file.
            variant: In which of several ways it was inspected.
        """
        key = self._key(kind, path, variant)
        return None if key is None else self._read(kind, key)

    def find(
        self, kind: type[F], path: Path, inspect: Callable[[], F], variant: str = ""
    ) -> F:
        """Return what is known of a file, or else inspect it and keep what was found.

        Args:
            kind: Type of what ``inspect`` returns.
            path: The file.
            inspect: Inspects it; its errors are raised, and not kept.
            variant: In which of several ways it is inspected.
        """
        key = self._key(kind, path, variant)  # before: it may change while it is read
        if key is not None and (found := self._read(kind, key)) is not None:
            return found
        found = inspect()
        content = found.to_bytes()
        if key is not None and len(content) <= _MOST_BYTES:
            with self._lock:
                self._pending[key] = content
                if len(self._pending) >= _WRITTEN_AT_ONCE:
                    self._write()
        return found

    def _key(self, kind: type[Kept], path: Path, variant: str) -> _Key | None:
        try:
            state = path.stat()
        except OSError:
            return None
        stamp = f"{state.st_size} {state.st_mtime_ns} {self._code}"
        return _Key(f"{kind.__name__} {variant}", os.fsencode(path.absolute()), stamp)

    def _read(self, kind: type[F], key: _Key) -> F | None:
        row = None
        with self._lock, self._unless_broken():
            if self._database is not None:
                row = self._database.execute(_READ, key).fetchone()
        with suppress(ValueError, KeyError, TypeError):
            return None if row is None else kind.from_bytes(row[0])
        return None

    def _write(self) -> None:
        """Write what is pending in one transaction; the lock is held."""
        with self._unless_broken():
            if self._pending and self._database is not None:
                with self._database as database:
                    entries = ((*key, found) for key, found in self._pending.items())
                    database.executemany(_WRITE, entries)
                    database.execute(_REMOVE, (MOST_KEPT,))
        self._pending.clear()

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """Close the database at its first error, and remove it if it is damaged."""
        try:
            yield
        except sqlite3.Error as error:
            self._close()
            if type(error) is sqlite3.DatabaseError:  # others: locked, full, read-only
                for suffix in ("", "-journal"):
                    with suppress(OSError):
                        self._file.with_name(NAME + suffix).unlink()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None
