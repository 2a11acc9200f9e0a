"""Download of published data sets from their original sources.

An interrupted download is kept and resumed; an archive is unpacked only if its digest is
the published one.
"""

import hashlib
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from plantseg_next.errors import DataError, OutputError, UsageError
from plantseg_next.files import explained, prepare_output
from plantseg_next.names import OutputPaths

BLOCK = 2**20
TRIES = 5
"""Consecutive connections without any data after which a download fails."""
TIMEOUT_S = 30
MAX_RATIO = 20
"""Times its own size that an archive of images may hold: they hardly compress."""
_BAD_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError),
    *(NotImplementedError, RuntimeError),  # of a compression, or a password
)
_RANGE_DONE = 416
_PARTIAL = 206


@dataclass(frozen=True)
class Archive:
    """A published ZIP file.

    Args:
        url: Its URL.
        n_bytes: Its size.
        algorithm: Algorithm of the published digest.
        digest: In hexadecimal digits.
        license: License of the images.
        citation: What to cite.
        about: Description and limitations.
    """

    url: str
    n_bytes: int
    algorithm: Literal["md5", "sha256"]
    digest: str
    license: str
    citation: str
    about: str = ""


ARCHIVES = {
    "plantseg": Archive(
        "https://zenodo.org/records/17719108/files/plantseg.zip",
        1_057_281_724,
        "md5",
        "9358a66dff88cdd15c4fe009763c40a3",
        "CC BY-NC 4.0: no commercial use, which includes models trained on it",
        "Wei et al. 2026, Scientific Data 13:205, doi:10.1038/s41597-025-06513-4",
        "7,774 images of diseased plants, 115 diseases. Leaves are not annotated and "
        "none is healthy: severity cannot be learned from it alone.",
    ),
    # The copy that TensorFlow Datasets uses: the original source is offline.
    "plantvillage": Archive(
        "https://data.mendeley.com/public-files/datasets/tywbtsjrjv/files/"
        "d5652a28-c1d8-4b76-97f3-72fb80f94efc/file_downloaded",
        868_032_562,
        "sha256",
        "ac3432453984d02a86197987e775a5429d0d59e7cc7c35bcf5a8f50349b90ff0",
        "CC0 1.0",
        "Hughes and Salathe 2015, arXiv:1511.08060; this copy: Arun Pandian and Gopal "
        "2019, doi:10.17632/tywbtsjrjv.1",
        "55,448 images in 39 class folders, no masks. Leaves were photographed several "
        "times, and this copy does not state which: metrics on it are too high.",
    ),
}


def download(
    archive: Archive,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Download and unpack an archive; return its folder.

    Args:
        archive: What to download.
        folder: A new folder, or that of an interrupted download, which is resumed.
        on_progress: Called with the bytes downloaded and the total.

    Raises:
        DataError: If the server does not respond, or sends another file.
        OutputError: If the disk is full, or ``folder`` is not empty.
    """
    part = folder.with_name(f"{folder.name}.zip.part")
    prepare_output(folder)
    with explained(part):
        _refuse_full_disk(archive, part)
        _fetch(archive, part, on_progress)
    _refuse_other(archive, part)
    _unpack(archive, part, folder)
    part.unlink()
    return folder


def _fetch(archive: Archive, part: Path, on_progress: Callable[[int, int], None]) -> None:
    """Download the rest of a file; reconnect when the connection is closed.

    Raises:
        DataError: If no more data arrives; the partial file is kept.
    """
    tries = 0
    while True:
        before = _size(part)
        if before >= archive.n_bytes:
            return
        try:
            with part.open("ab") as file:
                _append(archive, file, before, on_progress)
            cause = "the connection was closed"
        except HTTPError as error:
            error.close()
            if error.code != _RANGE_DONE:
                raise _no_answer(archive, part, f"{error.code} {error.reason}") from error
            part.unlink()
            cause = "the file on the server has another size"
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            cause = str(getattr(error, "reason", error)) or type(error).__name__
        tries = 0 if _size(part) > before else tries + 1
        if tries == TRIES:
            raise _no_answer(archive, part, cause)


def _append(
    archive: Archive, file: BinaryIO, start: int, on_progress: Callable[[int, int], None]
) -> None:
    """Append the data of one response of the server."""
    request = Request(  # noqa: S310 - the scheme is fixed
        archive.url,
        headers={"Range": f"bytes={start}-", "User-Agent": "plantseg-next"},
    )
    with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        if response.status != _PARTIAL and start:
            file.truncate(0)
            start = 0
        done = start
        # At most one byte more than stated: enough to see that it is another file.
        while block := response.read(min(BLOCK, archive.n_bytes + 1 - done)):
            file.write(block)
            done += len(block)
            on_progress(done, archive.n_bytes)


def _refuse_full_disk(archive: Archive, part: Path) -> None:
    needed = 2 * archive.n_bytes - _size(part)  # the archive and its content
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise OutputError(
            f"{free / 1e9:.1f} GB are free for `{part.parent}`.",
            needed=f"{needed / 1e9:.1f} GB: the archive and its content",
            fix="free some space, or choose another --out",
        )


def _refuse_other(archive: Archive, part: Path) -> None:
    """Remove a file that is not the published one.

    Raises:
        DataError: If its digest differs.
    """
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, archive.algorithm).hexdigest()
    if digest != archive.digest:
        part.unlink()
        raise DataError(
            f"The file from {archive.url} has the {archive.algorithm} {digest}.",
            needed=f"{archive.digest}, as published",
            fix="download it again; if the digest is still different, the file was "
            "changed: download it yourself and inspect it",
        )


def _unpack(archive: Archive, part: Path, folder: Path) -> None:
    """Unpack completely or not at all, at names that are safe.

    Raises:
        DataError: If the file is no ZIP file, is damaged, or holds more than it should.
        OutputError: If the disk is full.
    """
    unpacking = folder.with_name(f"{folder.name}.unpacking")
    shutil.rmtree(unpacking, ignore_errors=True)
    try:
        with explained(folder), zipfile.ZipFile(part) as zipped:
            _extract(archive, zipped, unpacking)
            if folder.exists():
                folder.rmdir()  # it is empty, see `prepare_output`
            unpacking.rename(folder)
    except _BAD_ZIP as error:
        raise _not_unpacked(archive, str(error) or type(error).__name__) from error
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


def _extract(archive: Archive, zipped: zipfile.ZipFile, folder: Path) -> None:
    """Write the files of an archive into a folder; links are left out.

    Raises:
        DataError: If they are larger than ``MAX_RATIO`` times the archive, or two have
            one name.
    """
    paths = OutputPaths()
    left = MAX_RATIO * archive.n_bytes
    for member in zipped.infolist():
        kind = member.external_attr >> 16  # of Unix, 0 where it is not stated
        if member.is_dir() or stat.S_IFMT(kind) not in (0, stat.S_IFREG):
            continue
        path = folder / _path_in_archive(paths, member.filename)
        if path.exists():
            raise _not_unpacked(archive, f"it holds `{member.filename}` twice")
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipped.open(member) as content, path.open("xb") as file:
            while block := content.read(BLOCK):
                left -= len(block)
                if left < 0:
                    raise _not_unpacked(
                        archive, f"it holds over {MAX_RATIO} times its size"
                    )
                file.write(block)


def _path_in_archive(paths: OutputPaths, name: str) -> str:
    """Return a safe path that keeps the ending of the name."""
    name = name.replace("\\", "/")  # of archives that Windows programs wrote
    stem, _, ending = name.rpartition(".")
    if stem and ending.isalnum() and len(ending) <= 8:
        return paths.path("", stem, f".{ending}")
    return paths.path("", name)


def _not_unpacked(archive: Archive, why: str) -> DataError:
    return DataError(
        f"The archive from {archive.url} cannot be unpacked: {why}.",
        needed="a ZIP file of images",
        fix="inspect it, unpack it yourself, and give its folder",
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def archive_named(name: str) -> Archive:
    """Return a published archive.

    Raises:
        UsageError: If the name is unknown.
    """
    if name not in ARCHIVES:
        raise UsageError(
            f"There is no data set `{name}` to download.",
            needed=f"one of {', '.join(ARCHIVES)}",
            fix="download any other data set yourself, and give its folder",
        )
    return ARCHIVES[name]


def _no_answer(archive: Archive, part: Path, cause: str) -> DataError:
    return DataError(
        f"{archive.url} could not be downloaded: {cause}. {_size(part) / 1e6:.0f} of "
        f"{archive.n_bytes / 1e6:.0f} MB are downloaded.",
        needed="a connection to that server",
        fix="run the same command again: it resumes the download. Or download the file "
        f"in a browser and save it as `{part}`",
    )
