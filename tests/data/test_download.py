import hashlib
import io
import threading
import warnings
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from plantseg_next.data import download as module
from plantseg_next.data.download import ARCHIVES, Archive, archive_named, download
from plantseg_next.errors import DataError, OutputError, UsageError


def packed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("set/images/a.png", bytes(range(256)) * 40)
        file.writestr("set/Metadata.csv", "Name,Index")
    return buffer.getvalue()


CONTENT = packed()


def zip_of(files) -> bytes:
    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in files:
            file.writestr(name, content)
    return buffer.getvalue()


def link(name, mode=0o120777):
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


class Server(ThreadingHTTPServer):
    """A server that can close connections early, ignore ranges, or return an error."""

    closes_after: int | None = None
    supports_ranges = True
    error_code = 0
    content = CONTENT
    ranges: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.server.error_code:
            self.send_error(self.server.error_code)
            return
        start = int(wanted[6:-1]) if wanted and self.server.supports_ranges else 0
        self.send_response(206 if start else 200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # the client may have read enough
            self.wfile.write(body[: self.server.closes_after])

    def log_message(self, *_):
        """Log nothing."""


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as http:
        http.ranges = []
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield http
        http.shutdown()
        thread.join()


@pytest.fixture
def archive(server):
    return Archive(
        f"http://127.0.0.1:{server.server_port}/set.zip",
        len(CONTENT),
        "sha256",
        hashlib.sha256(CONTENT).hexdigest(),
        "CC0",
        "nobody",
    )


def test_download_checks_and_unpacks_archive(archive, tmp_path):
    progress = []
    folder = download(archive, tmp_path / "set", on_progress=lambda *n: progress.append(n))
    assert (folder / "set/Metadata.csv").read_text() == "Name,Index"
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_download_closed_connection_is_resumed(archive, server, tmp_path):
    server.closes_after = 4000
    download(archive, tmp_path / "set")
    starts = [int(ranges[6:-1]) for ranges in server.ranges]
    assert starts == list(range(0, len(CONTENT), 4000))


def test_download_partial_file_is_kept_and_resumed(archive, server, tmp_path):
    server.closes_after = 4000
    part = tmp_path / "set.zip.part"
    part.write_bytes(CONTENT[:7000])
    server.error_code = 503
    with pytest.raises(DataError, match="could not be downloaded: 503") as caught:
        download(archive, tmp_path / "set")
    assert "run the same command again: it resumes the download" in str(caught.value)
    assert part.read_bytes() == CONTENT[:7000]
    server.error_code = 0
    download(archive, tmp_path / "set")
    assert server.ranges[1] == "bytes=7000-"


def test_download_without_range_support_starts_again(archive, server, tmp_path):
    server.supports_ranges = False
    (tmp_path / "set.zip.part").write_bytes(b"x" * 100)
    download(archive, tmp_path / "set")
    assert len(server.ranges) == 1


def test_download_wrong_digest_is_refused_and_removed(archive, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(b"x" * len(CONTENT))
    with pytest.raises(DataError, match="has the sha256 ") as caught:
        download(archive, tmp_path / "set")
    assert archive.digest in str(caught.value)
    assert not (tmp_path / "set.zip.part").exists()
    assert not any((tmp_path / "set").iterdir())


def test_download_without_data_fails_after_retries(archive, server, tmp_path):
    server.closes_after = 0
    with pytest.raises(DataError, match="could not be downloaded"):
        download(archive, tmp_path / "set")
    assert len(server.ranges) == module.TRIES


def test_download_full_disk_or_used_folder_is_refused_before_request(
    archive, server, tmp_path, monkeypatch
):
    usage = type("Usage", (), {"free": 10})
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OutputError, match=r"0.0 GB are free for"):
            download(archive, tmp_path / "set")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(OutputError):
        download(archive, tmp_path / "used")
    assert server.ranges == []


def test_archives_are_known_and_unknown_name_is_refused():
    assert set(ARCHIVES) == {"plantseg", "plantvillage"}
    for archive in ARCHIVES.values():
        assert len(archive.digest) == {"md5": 32, "sha256": 64}[archive.algorithm]
    with pytest.raises(UsageError, match="no data set `plantdoc` to download"):
        archive_named("plantdoc")


def archive_of(server, content, n_bytes=None):
    server.content = content
    return Archive(
        f"http://127.0.0.1:{server.server_port}/set.zip",
        n_bytes or len(content),
        "sha256",
        hashlib.sha256(content).hexdigest(),
        "CC0",
        "nobody",
    )


def test_archive_members_stay_inside_the_folder(server, tmp_path):
    """After volcengine/OpenViking#89 and omkarcloud/botasaurus#303."""
    files = [
        ("../up.png", b"1"), ("/opt/absolute.png", b"2"), ("C:\\drive.png", b"3"),
        ("a/../../b.png", b"4"), ("con.png", b"5"), ("n" * 300 + ".png", b"6"),
        ("line\r\nbreak.png", b"7"), (link("d/link"), "/etc"), ("d/link/x.png", b"8"),
        ("windows\\folder\\c.png", b"9"), ("plain/c.png", b"10"),
        (link("pipe", 0o010644), b""),
    ]  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    folder = download(archive_of(server, zip_of(files)), out / "set")
    written = [path for path in folder.rglob("*") if not path.is_dir()]
    assert sorted(path.read_bytes() for path in written) == sorted(
        content for _, content in files if isinstance(content, bytes) and content
    )
    assert all(path.suffix == ".png" and not path.is_symlink() for path in written)
    assert (folder / "windows/folder/c.png").is_file()
    assert (folder / "plain/c.png").is_file()
    assert [path.name for path in out.iterdir()] == ["set"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no zip file at all", "File is not a zip file"),
        (CONTENT[:-40], "File is not a zip file"),
        (zip_of([("bomb", b"0" * 10**6)]), "it holds over 20 times its size"),
        (zip_of([("a.png", b"1"), ("a.png", b"2")]), "it holds `a.png` twice"),
        (CONTENT.replace(bytes(range(50)), bytes(50), 1), "Bad CRC-32 for file"),
    ],
    ids=["text", "cut", "bomb", "twice", "damaged"],
)
def test_archive_that_cannot_be_unpacked_is_refused(server, tmp_path, content, why):
    with pytest.raises(DataError, match=f"cannot be unpacked: {why}") as caught:
        download(archive_of(server, content), tmp_path / "set")
    assert caught.value.needed == "a ZIP file of images"
    assert caught.value.fix == "inspect it, unpack it yourself, and give its folder"
    assert not (tmp_path / "set.unpacking").exists()
    assert list((tmp_path / "set").iterdir()) == []


def test_download_takes_no_more_than_stated(server, tmp_path):
    with pytest.raises(DataError, match="has the sha256 "):
        download(archive_of(server, bytes(10**7), n_bytes=1000), tmp_path / "set")
    assert not (tmp_path / "set.zip.part").exists()
