"""File formats of images: which are lossy, and what is wrong with a file that is none."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from plantseg_next.errors import DataError
from plantseg_next.files import read_head

LOSSY_FORMATS = {"JPEG": "a JPEG", "MPO": "a JPEG", "JPEG2000": "a JPEG 2000"}
"""Formats of Pillow that are always taken as lossy, with their names in sentences."""


def lossy_format(image: Image.Image, path: Path) -> str:
    """Return "a JPEG" or another lossy format, empty for a lossless one.

    An AVIF does not say whether it is lossless.
    """
    if image.format == "AVIF":
        return "an AVIF"
    if image.format == "WEBP":
        return "a lossy WebP" if path.is_file() and _is_lossy_webp(path) else ""
    return LOSSY_FORMATS.get(image.format or "", "")


def _is_lossy_webp(path: Path) -> bool:
    """Return whether the first frame is compressed by VP8, not by VP8L."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, size = head[:4], int.from_bytes(head[4:], "little")
            if kind in {b"VP8 ", b"VP8L"}:
                return kind == b"VP8 "
            # The chunks of a frame follow its 16 bytes; other chunks have even lengths.
            file.seek(16 if kind == b"ANMF" else size + size % 2, 1)
    return False


def not_an_image(path: Path, error: Exception) -> DataError:
    """Return the error for a file that cannot be opened as an image."""
    needed = "an image such as JPEG, PNG or TIFF"
    if not isinstance(error, UnidentifiedImageError):
        return DataError(
            f"`{path}` cannot be opened: {error}.",
            needed=needed,
            fix="check the file in an image viewer, and its permissions",
        )
    head = read_head(path, 256)
    if not head:
        came, fix = "is empty (0 bytes)", "copy the file again, or remove it"
    elif head.startswith(b"version https://git-lfs"):
        came, fix = "is a Git LFS pointer, not the file itself", "run `git lfs pull`"
    elif head[4:8] == b"ftyp" and head[8:11] in {b"hei", b"hev", b"mif"}:
        came, fix = "is a HEIC image, the format of some phones", "export it as JPEG"
    elif b"\0" not in head and head.isascii():
        came, fix = "holds text, not an image", "remove it, or replace it by the image"
    else:
        came = "is not an image of a known format"
        fix = "open it in an image viewer and export it as JPEG or PNG"
    return DataError(f"`{path}` {came}.", needed=needed, fix=fix)


def undecodable(path: Path, error: Exception) -> DataError:
    """Return the error for an image that cannot be decoded."""
    return DataError(
        f"`{path}` is damaged or truncated: {error}.",
        needed="an image that can be decoded completely",
        fix="copy or download the file again, or remove it",
    )
