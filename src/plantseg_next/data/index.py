"""An index of files: what an inspection of each found, kept on disk between commands.

It is a database in the cache folder of the user, because the folder of a data set may be
read-only. An entry holds as long as its file keeps its size, inode and times of change: the
time of the content alone is kept by tools that replace a file by another (``rsync``,
``cp -p``). Nothing depends on the database: where an entry fails its checksum, or the
database is missing or locked, files are inspected again, and a damaged one is replaced.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from plantseg_next.files import cache_folder

NAME = "index_1.sqlite"
"""File name of the database; the number changes with its table."""
MOST_KEPT = 100_000
"""Entries, of which the oldest are removed; one of an image takes 4 KB."""

_CHECKSUM_BYTES = 8  # before the content of an entry
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
_ERRORS = (sqlite3.Error, OSError, MemoryError, UnicodeDecodeError)
"""Of SQLite; it fails to decode its own messages about a damaged database."""
_UNDAMAGED = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}  # fmt: skip
"""Codes of errors that say nothing about the content of the database."""
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
        """Return what ``to_bytes`` wrote."""
        ...


class _Key(NamedTuple):
    """A file, in the state in which it was inspected."""

    kind: str
    path: bytes
    stamp: str

    def checksum(self, content: bytes) -> bytes:
        """Return the checksum of the entry with this content."""
        parts = (self.kind.encode(), self.path, self.stamp.encode(), content)
        return hashlib.blake2b(b"\0".join(parts), digest_size=_CHECKSUM_BYTES).digest()


class Index:
    """The index, as a context in which it is open; for any number of threads.

    Args:
        code: Version of what inspects the files; entries of another one are not used.
    """

    def __init__(self, code: str) -> None:
        self._code = code
        self._lock = Lock()
        self._pending: dict[_Key, bytes] = {}
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> "Index":
        with self._unless_broken():
            self._open()
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
                self._pending[key] = key.checksum(content) + content
                if len(self._pending) >= _WRITTEN_AT_ONCE:
                    self._write()
        return found

    def _key(self, kind: type[Kept], path: Path, variant: str) -> _Key | None:
        try:
            state = path.stat()
        except OSError:
            return None
        times = f"{state.st_mtime_ns} {state.st_ctime_ns}"
        stamp = f"{state.st_size} {times} {state.st_ino} {self._code}"
        return _Key(f"{kind.__name__} {variant}", os.fsencode(path.absolute()), stamp)

    def _read(self, kind: type[F], key: _Key) -> F | None:
        row = None
        with self._lock, self._unless_broken():
            if self._database is not None:
                row = self._database.execute(_READ, key).fetchone()
        if row is None or not isinstance(row[0], bytes):  # damaged: of another type
            return None
        checksum, content = row[0][:_CHECKSUM_BYTES], row[0][_CHECKSUM_BYTES:]
        return kind.from_bytes(content) if checksum == key.checksum(content) else None

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
        """Replace the database at an error if it is damaged, or else go on without it."""
        try:
            yield
        except _ERRORS as error:
            self._close()
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            if code & 0xFF in _UNDAMAGED:  # the low byte: the rest is a detail
                return
            try:
                for suffix in ("", "-journal", "-wal", "-shm"):
                    (cache_folder() / (NAME + suffix)).unlink(missing_ok=True)
                self._open()
            except _ERRORS:
                self._close()

    def _open(self) -> None:
        self._database = sqlite3.connect(
            cache_folder() / NAME, timeout=_WAIT_S, check_same_thread=False
        )
        self._database.execute(_CREATE)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = None
