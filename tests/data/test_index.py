import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from plantseg_next import files
from plantseg_next.data import index
from plantseg_next.data.index import NAME, Index
from plantseg_next.errors import DataError


@dataclass(frozen=True)
class Text:
    text: str

    def to_bytes(self):
        return self.text.encode()

    @classmethod
    def from_bytes(cls, content):
        return cls(content.decode())


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    return tmp_path / "a.txt"


@pytest.fixture
def database(own_cache):
    return own_cache / "plantseg-next" / NAME


class Reader:
    """Read files through the index, counting how often they are read."""

    def __init__(self):
        self.n_read = 0

    def __call__(self, path, variant="", code="1"):
        def inspect():
            self.n_read += 1
            return Text(path.read_text())

        with Index(code) as opened:
            return opened.find(Text, path, inspect, variant).text


def test_find_known_file_is_not_read_again(file):
    read = Reader()
    assert [read(file), read(file)] == ["first", "first"]
    assert read.n_read == 1
    with Index("1") as opened:
        assert opened.known(Text, file) == Text("first")
        assert opened.known(Text, file, "colors") is None
        assert opened.known(Text, file.with_name("missing")) is None


@pytest.mark.parametrize(
    "change", ["size", "time", "content", "file", "code", "variant", "path"]
)
def test_find_changed_file_is_read_again(file, change):
    read, arguments = Reader(), {}
    read(file)
    state = file.stat()
    if change == "size":
        file.write_text("second one")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    if change == "time":
        file.write_text("other")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    while change == "content" and file.stat().st_ctime_ns == state.st_ctime_ns:
        file.write_text("other")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    if change == "file":
        other = file.with_name("other")
        other.write_text("other")
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        other.replace(file)
    if change in ("code", "variant"):
        arguments = {change: "2"}
    if change == "path":
        file = file.rename(file.with_name("b.txt"))
    assert read(file, **arguments) == file.read_text()
    assert read.n_read == 2


def test_find_error_is_raised_and_not_kept(file):
    def fail():
        raise DataError("broken", needed="a file", fix="repair it")

    with Index("1") as opened, pytest.raises(DataError, match="broken"):
        opened.find(Text, file, fail)
    assert Reader()(file) == "first"


def test_find_after_an_interruption_keeps_what_was_found(file):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Index("1") as opened:
        opened.find(Text, file, lambda: Text("kept")) and fail()
    assert Reader()(file) == "kept"


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_damaged_database_is_replaced(file, database, content):
    database.parent.mkdir(parents=True)
    database.write_bytes(content)
    read = Reader()
    assert [read(file), read(file), read(file)] == ["first"] * 3
    assert read.n_read == 1


@pytest.mark.parametrize("name", [b"files", b"stamp", b"CREATE", b"table"])
def test_database_with_a_damaged_schema_is_replaced(file, database, name):
    read = Reader()
    read(file)
    database.write_bytes(database.read_bytes().replace(name, b"\xff" * len(name)))
    assert [read(file), read(file)] == ["first", "first"]
    assert read.n_read == 2


def test_database_with_another_table_is_replaced(file, database):
    database.parent.mkdir(parents=True)
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE files (kind TEXT)")
    connection.close()
    read = Reader()
    assert [read(file), read(file), read(file)] == ["first"] * 3
    assert read.n_read == 1


def test_randomly_damaged_database_never_gives_another_content(tmp_path, database):
    paths = [tmp_path / f"{i}" for i in range(8)]
    for path in paths:
        path.write_text(path.name * 1500)
    read = Reader()
    right = [read(path) for path in paths]
    intact = database.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = np.frombuffer(intact, np.uint8).copy()
        where = rng.integers(len(damaged), size=rng.integers(1, 40))
        damaged[where] = rng.integers(256, size=len(where))
        database.write_bytes(damaged[: rng.choice([len(damaged), 9000])].tobytes())
        assert [read(path) for path in paths] == right


@pytest.mark.parametrize("content", ["x'ff'", "'text'", "NULL", "content || '.'"])
def test_damaged_entry_is_read_again(file, database, content):
    read = Reader()
    read(file)
    with sqlite3.connect(database) as connection:
        connection.execute(f"UPDATE files SET content = {content}")  # noqa: S608
    connection.close()
    assert [read(file), read(file)] == ["first", "first"]
    assert read.n_read == 2


def test_locked_database_is_not_waited_for_again(file, database, monkeypatch):
    monkeypatch.setattr(index, "_WAIT_S", 0)
    read = Reader()
    read(file)
    connection = sqlite3.connect(database)
    connection.execute("BEGIN EXCLUSIVE")
    assert read(file) == "first"
    connection.close()
    assert read(file) == "first"
    assert read.n_read == 2


def test_without_a_writable_cache_the_index_lasts_as_long_as_the_process(
    file, tmp_path, monkeypatch
):
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    files._temporary_cache.cache_clear()
    read = Reader()
    assert [read(file), read(file)] == ["first", "first"]
    assert read.n_read == 1
    temporary = files._temporary_cache()
    assert files.cache_folder().samefile(temporary.name)
    temporary.cleanup()
    files._temporary_cache.cache_clear()


def test_without_any_writable_folder_files_are_read(file, monkeypatch):
    def fail():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(index, "cache_folder", fail)
    read = Reader()
    assert [read(file), read(file)] == ["first", "first"]
    assert read.n_read == 2


def test_read_only_database_is_read(file, database, monkeypatch):
    read = Reader()
    read(file)
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options),
    )
    assert read(file) == "first"
    assert read.n_read == 1
    assert read(file, code="2") == "first"
    assert database.is_file()


def test_oldest_entries_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MOST_KEPT", 3)
    read = Reader()
    for i in range(5):
        (tmp_path / f"{i}").write_text(f"{i}")
        read(tmp_path / f"{i}")
    assert [read(tmp_path / f"{i}") for i in (4, 3, 2)] == ["4", "3", "2"]
    assert read.n_read == 5
    read(tmp_path / "0")
    assert read.n_read == 6


def test_concurrent_writers_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_WRITTEN_AT_ONCE", 5)
    paths = [tmp_path / f"{i}" for i in range(80)]
    for path in paths:
        path.write_text(path.name)

    def write(start):
        with Index("1") as opened:
            for path in paths[start::4]:
                opened.find(Text, path, lambda path=path: Text(path.read_text()))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with Index("1") as opened:
        assert [opened.known(Text, path) for path in paths] == [Text(p.name) for p in paths]
