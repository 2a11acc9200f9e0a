"""Published data sets, fetched from where their authors put them.

What was loaded is kept when the line breaks, and gone on with; an archive is unpacked only
if its digest is the published one.
"""

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from plantseg_next.errors import DataError, OutputError, UsageError
from plantseg_next.files import explained, prepare_output

BLOCK = 2**20
TRIES = 5
"""Times in a row that a line may break without a byte having come."""
TIMEOUT_S = 30
_RANGE_DONE = 416
_PARTIAL = 206


@dataclass(frozen=True)
class Archive:
    """A published ZIP file.

    Args:
        url: Where it is.
        n_bytes: Its size.
        algorithm: Of the digest that was published.
        digest: In hexadecimal digits.
        license: Of the images.
        citation: What to cite.
        about: What to know before learning from it.
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
        "CC BY-NC 4.0: no commercial use, of models that learned from it either",
        "Wei et al. 2026, Scientific Data 13:205, doi:10.1038/s41597-025-06513-4",
        "7,774 images of diseased plants, 115 diseases. Leaves are not marked and none "
        "is healthy: no severity can be learned from it alone.",
    ),
    # As TensorFlow Datasets has it: the original source is gone.
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
        "times, and this copy does not say which: scores on it flatter.",
    ),
}


def download(
    archive: Archive,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Return a folder with the unpacked archive, loaded now or earlier in part.

    Args:
        archive: What to fetch.
        folder: New, or of a fetch that broke off.
        on_progress: Hears how many bytes there are, and of how many.

    Raises:
        DataError: If the server does not answer, or sends something else.
        OutputError: If the disk is full, or ``folder`` holds something.
    """
    part = folder.with_name(f"{folder.name}.zip.part")
    prepare_output(folder)
    with explained(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        _refuse_full_disk(archive, part)
        _load(archive, part, on_progress)
    _refuse_other(archive, part)
    _unpack(part, folder)
    part.unlink()
    return folder


def _load(archive: Archive, part: Path, told: Callable[[int, int], None]) -> None:
    """Load what is missing of a file; a line that breaks is taken up again.

    Raises:
        DataError: If nothing comes any longer; what came is kept.
    """
    tries = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before >= archive.n_bytes:
            return
        try:
            with part.open("ab") as file:
                _take(archive, file, before, told)
            cause = "the line broke"
        except HTTPError as error:
            error.close()
            if error.code != _RANGE_DONE:
                raise _no_answer(archive, part, f"{error.code} {error.reason}") from error
            part.unlink()
            cause = "the server has another file"
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            cause = str(getattr(error, "reason", error)) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        tries = 0 if after > before else tries + 1
        if tries == TRIES:
            raise _no_answer(archive, part, cause)


def _take(
    archive: Archive, file: BinaryIO, start: int, told: Callable[[int, int], None]
) -> None:
    """Append what one answer of the server brings."""
    request = Request(  # noqa: S310 - the scheme is ours
        archive.url,
        headers={"Range": f"bytes={start}-", "User-Agent": "plantseg-next"},
    )
    with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
        if answer.status != _PARTIAL and start:
            file.truncate(0)
            start = 0
        done = start
        while block := answer.read(BLOCK):
            file.write(block)
            done += len(block)
            told(done, archive.n_bytes)


def _refuse_full_disk(archive: Archive, part: Path) -> None:
    there = part.stat().st_size if part.exists() else 0
    needed = 2 * archive.n_bytes - there  # packed and unpacked: images do not shrink
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise OutputError(
            f"{free / 1e9:.1f} GB are free for `{part.parent}`.",
            needed=f"{needed / 1e9:.1f} GB: the archive and what is in it",
            fix="make room, or name another --out",
        )


def _refuse_other(archive: Archive, part: Path) -> None:
    """Refuse a file that is not the published one; it is removed.

    Raises:
        DataError: If its digest is another.
    """
    with part.open("rb") as file:
        found = hashlib.file_digest(file, archive.algorithm).hexdigest()
    if found != archive.digest:
        part.unlink()
        raise DataError(
            f"What came from {archive.url} has the {archive.algorithm} {found}.",
            needed=f"{archive.digest}, as published",
            fix="fetch it again; if it stays so, the file was changed: load it by hand "
            "and look at it",
        )


def _unpack(part: Path, folder: Path) -> None:
    """Unpack whole or not at all."""
    half = folder.with_name(f"{folder.name}.unpacking")
    shutil.rmtree(half, ignore_errors=True)
    with explained(half), zipfile.ZipFile(part) as packed:
        packed.extractall(half)
        if folder.exists():
            folder.rmdir()  # empty, or it would have been refused
        half.rename(folder)


def archive_named(name: str) -> Archive:
    """Return a published archive.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in ARCHIVES:
        raise UsageError(
            f"There is no data set `{name}` to fetch.",
            needed=f"one of {', '.join(ARCHIVES)}",
            fix="load any other by hand, and name its folder",
        )
    return ARCHIVES[name]


def _no_answer(archive: Archive, part: Path, cause: str) -> DataError:
    there = part.stat().st_size if part.exists() else 0
    return DataError(
        f"{archive.url} could not be loaded: {cause}. {there / 1e6:.0f} of "
        f"{archive.n_bytes / 1e6:.0f} MB are there.",
        needed="a way to that server",
        fix="run the same command again: it goes on where it was. Or load the file in a "
        f"browser and save it as `{part}`",
    )
