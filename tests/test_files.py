import os
from pathlib import Path

import pytest

from plantseg_next.errors import (
    DataError,
    OutputError,
    PlantSegError,
    UsageError,
    missing_path,
)
from plantseg_next.files import (
    parse_bytes,
    prepare_output,
    remove_partials,
    write_atomically,
)


def test_write_atomically_failure_keeps_old_file(tmp_path):
    path = tmp_path / "a" / "table.csv"
    write_atomically(path, b"old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("name", ["a" * 255, "葉" * 85], ids=["ascii", "utf-8"])
def test_write_atomically_of_the_longest_name(tmp_path, name):
    names = []

    def write(file):
        names.extend(path.name for path in tmp_path.iterdir())
        file.write(b"content")

    write_atomically(tmp_path / name, write)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (partial,) = names
    assert len(partial) < 30
    (tmp_path / partial).touch()
    remove_partials(tmp_path)
    assert (tmp_path / name).read_bytes() == b"content"
    assert not (tmp_path / partial).exists()


def test_prepare_output_read_only_folder_is_refused(tmp_path, monkeypatch):
    if os.geteuid() == 0:  # root may write anywhere: raise the error instead

        def refuse(*_args, **_kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.touch", refuse)
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        prepare_output(tmp_path)


def test_error_has_three_parts_and_survives_pickling():
    import pickle

    error = DataError("`a.jpg` is empty.", needed="an image", fix="take another copy")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert str(again) == str(error)
    assert type(again) is DataError
    assert "needed: an image" in str(error)
    assert isinstance(missing_path(Path("x"), "a folder"), PlantSegError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GB", 2e9), ("1.5 GiB", 1.5 * 2**30), ("900mb", 9e8), (".5kib", 512)],
)
def test_parse_bytes_reads_units(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["2", "2 G", "-1GB", "0GB", "two GB", ""])
def test_parse_bytes_without_a_unit_is_refused(text):
    with pytest.raises(UsageError, match=r"The memory is") as refused:
        parse_bytes(text)
    assert "--memory 2GB" in refused.value.fix
