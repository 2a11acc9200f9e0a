import errno
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
    explained,
    explained_temporary,
    parse_bytes,
    prepare_output,
    read_bytes,
    read_head,
    read_text,
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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("é\r\nb\rc\n".encode(), "é\nb\nc\n"),
        ("é".encode("utf-8-sig"), "é"),
        ("é\r\nb".encode("utf-16"), "é\nb"),
        (b"\xfe\xff" + "é".encode("utf-16-be"), "é"),
        (b"", ""),
    ],
)
def test_text_is_read_with_or_without_a_byte_order_mark(tmp_path, content, text):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert read_text(path) == text


@pytest.mark.parametrize(
    "content",
    [
        "Möhre".encode("cp1252"),
        "叶片病".encode("gbk"),
        b"\xff\xfea",
        "é".encode("utf-32"),
    ],
)
def test_text_in_another_encoding_is_refused_and_not_guessed(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"a\.csv` is not text in UTF-8 \(byte \d"
    ) as refused:
        read_text(path)
    assert refused.value.needed == "a text file in UTF-8"


def make(path, kind):
    """Make what has the name of a file and is none."""
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            import socket

            # Its address must be short.
            folder = os.open(path.parent, os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(f"/proc/self/fd/{folder}/{path.name}")
            os.close(folder)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "nul":
            return Path(f"{path}\0")
        case "long":
            return path / ("a" * 300)
    return path


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of Unix")
@pytest.mark.parametrize(
    ("kind", "came"),
    [
        ("folder", "is a folder, not a file"),
        ("pipe", "is a pipe, not a file"),
        ("socket", "is a socket, not a file"),
        ("device", "is a device, not a file"),
        ("loop", "is a link that leads to itself"),
        ("dangling", "is a link that leads nowhere"),
        ("nul", "cannot be read: embedded null byte"),
        ("long", "cannot be read: "),
        ("nothing", "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_not_opened(tmp_path, kind, came):
    path = make(tmp_path / "a", kind)
    for read in (read_text, read_bytes, lambda p: read_head(p, 3)):
        with pytest.raises(DataError, match=f"` {came}") as refused:
            read(path)
        assert refused.value.needed == "a regular file"
        assert refused.value.fix.endswith(("remove it", "rename it"))


def test_a_file_above_the_limit_of_its_kind_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(3 * 2**20 + 1)
    with pytest.raises(DataError, match=r"a\.csv` has 3 MiB") as refused:
        read_text(path, 3 * 2**20)
    assert refused.value.needed == "a file of its kind, of at most 3 MiB"
    assert len(read_bytes(path, 4 * 2**20)) == 3 * 2**20 + 1
    assert read_head(path, 4) == bytes(4)


def test_a_file_without_permission_is_refused_in_words(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("a")
    if os.geteuid() == 0:  # root may read anything: raise the error instead

        def refuse(*_args, **_kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.open", refuse)
    path.chmod(0)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied") as refused:
        read_text(path)
    assert refused.value.fix == "change its permissions, or copy it again"


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "1e400GB", "9999999GB", "0.0001KB"])
def test_parse_bytes_beyond_any_machine_is_refused(text):
    with pytest.raises(UsageError, match=r"The memory is") as refused:
        parse_bytes(text)
    assert refused.value.needed.endswith("below a million GB")


@pytest.mark.parametrize(
    ("number", "needed", "fix"),
    [
        (errno.ENOSPC, "free space on the disk",
         "free some space, or choose another --out"),
        (errno.EDQUOT, "free space, by your quota",
         "free some space, or choose another --out"),
        (errno.EROFS, "a disk that is not read-only", "choose another --out"),
        (errno.EACCES, "your permission to use it",
         "ask its owner for it, or choose another --out"),
        (errno.EISDIR, "a path for a file; this is a folder", "choose another --out"),
        (errno.ENOTDIR, "folders above it; one of them is a file", "choose another --out"),
        (errno.ENAMETOOLONG, "names of up to 255 bytes, in a path of up to 4,096",
         "choose another --out"),
        (errno.ELOOP, "links that end somewhere",
         "remove the link, or choose another --out"),
        (errno.EIO, "a file system without errors", "choose another --out"),
    ],
)  # fmt: skip
def test_error_of_the_file_system_is_explained_by_its_number(number, needed, fix):
    with pytest.raises(OutputError) as caught, explained(Path("out")):
        raise OSError(number, os.strerror(number))
    assert caught.value.came == f"`out` cannot be written: {os.strerror(number)}."
    assert (caught.value.needed, caught.value.fix) == (needed, fix)


def test_output_that_is_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(OutputError, match="it is a link to `nowhere`, where nothing") as e:
        prepare_output(tmp_path / "out")
    assert e.value.needed == "a folder, or a path where nothing is"
    assert e.value.fix == "remove the link, or choose another --out"


def test_error_names_the_file_and_not_a_temporary_one(tmp_path, monkeypatch):
    def refuse(path, *_args, **_kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_atomically(tmp_path / "n.yaml", b"")
    assert caught.value.filename == str(tmp_path / "n.yaml")
    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(OutputError) as refused:
        prepare_output(tmp_path)
    assert refused.value.came == f"`{tmp_path}` cannot be written: Read-only file system."


def test_error_about_temporary_files_names_their_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("plantseg_next.files.gettempdir", lambda: str(tmp_path))
    with pytest.raises(OutputError) as full, explained_temporary():
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x/y.png")  # noqa: S108
    assert full.value.came == (
        f"Temporary files cannot be written in `{tmp_path}`: No space left on device."
    )
    assert full.value.fix == "free some space, or set TMPDIR to a folder on another disk"

    def no_folder():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("plantseg_next.files.gettempdir", no_folder)
    with pytest.raises(OutputError) as none, explained_temporary():
        no_folder()
    assert none.value.came == "There is no folder for temporary files."
    assert none.value.fix == "set TMPDIR to one"


def test_error_shows_names_escaped_and_keeps_its_own_lines():
    error = DataError("`a\nb\x1b[31m\udcff`:\n    x: 1", needed="an image", fix="copy it")
    assert str(error) == (
        "`a\\nb\\x1b[31m\\xff`:\n    x: 1\n  needed: an image\n  to do:  copy it"
    )
