import hashlib
import io
import threading
import zipfile
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


class Server(ThreadingHTTPServer):
    """A server that can close connections early, ignore ranges, or return an error."""

    closes_after: int | None = None
    supports_ranges = True
    error_code = 0
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
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
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
