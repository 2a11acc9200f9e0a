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
    """A server that may break off, know no ranges, or refuse."""

    breaks_after: int | None = None
    knows_ranges = True
    refuses = 0
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.refuses:
            self.send_error(self.server.refuses)
            return
        start = int(wanted[6:-1]) if wanted and self.server.knows_ranges else 0
        self.send_response(206 if start else 200)
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks_after])

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as found:
        found.asked = []
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
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


def test_an_archive_is_fetched_checked_and_unpacked(archive, tmp_path):
    told = []
    folder = download(archive, tmp_path / "set", on_progress=lambda *n: told.append(n))
    assert (folder / "set/Metadata.csv").read_text() == "Name,Index"
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_line_that_breaks_is_taken_up_where_it_was(archive, server, tmp_path):
    server.breaks_after = 4000
    download(archive, tmp_path / "set")
    starts = [int(asked[6:-1]) for asked in server.asked]
    assert starts == list(range(0, len(CONTENT), 4000))


def test_what_came_is_kept_for_the_next_time(archive, server, tmp_path):
    server.breaks_after = 4000
    part = tmp_path / "set.zip.part"
    part.write_bytes(CONTENT[:7000])
    server.refuses = 503
    with pytest.raises(DataError, match="could not be loaded: 503") as caught:
        download(archive, tmp_path / "set")
    assert "run the same command again: it goes on where it was" in str(caught.value)
    assert part.read_bytes() == CONTENT[:7000]
    server.refuses = 0
    download(archive, tmp_path / "set")
    assert server.asked[1] == "bytes=7000-"


def test_a_server_without_ranges_sends_it_anew(archive, server, tmp_path):
    server.knows_ranges = False
    (tmp_path / "set.zip.part").write_bytes(b"x" * 100)
    download(archive, tmp_path / "set")
    assert len(server.asked) == 1


def test_another_file_is_refused_and_removed(archive, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(b"x" * len(CONTENT))
    with pytest.raises(DataError, match="has the sha256 ") as caught:
        download(archive, tmp_path / "set")
    assert archive.digest in str(caught.value)
    assert not (tmp_path / "set.zip.part").exists()
    assert not any((tmp_path / "set").iterdir())


def test_a_server_that_sends_nothing_is_given_up(archive, server, tmp_path):
    server.breaks_after = 0
    with pytest.raises(DataError, match="could not be loaded"):
        download(archive, tmp_path / "set")
    assert len(server.asked) == module.TRIES


def test_a_full_disk_and_a_folder_in_use_are_refused_before(
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
    assert server.asked == []


def test_the_published_archives():
    assert set(ARCHIVES) == {"plantseg", "plantvillage"}
    for archive in ARCHIVES.values():
        assert len(archive.digest) == {"md5": 32, "sha256": 64}[archive.algorithm]
    with pytest.raises(UsageError, match="no data set `plantdoc` to fetch"):
        archive_named("plantdoc")
