"""The loop over images that every command shares: read, skip the unreadable, report."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.errors import DataError, PlantSegError
from plantseg_next.structures import SkippedImage

T = TypeVar("T")


def read_each(
    manifest: Manifest,
    read: Callable[[Row], T],
    *,
    skipped: list[SkippedImage],
    name: Callable[[Row], str] = lambda row: row.key,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[tuple[Row, T]]:
    """Yield every row with what was read from its files.

    Args:
        manifest: The images.
        read: Reads an image, or an image and its mask.
        skipped: Images that raised an error while they were read are appended.
        name: Returns what a skipped image is called.
        on_progress: Called after each row is dealt with, with the number done and the
            total.
    """
    for i, row in enumerate(manifest.rows):
        try:
            content = read(row)
        except PlantSegError as error:
            skipped.append(SkippedImage(name(row), error.came))
        else:
            yield row, content
        on_progress(i + 1, len(manifest))


def refuse_unreadable(manifest: Manifest, skipped: Sequence[SkippedImage]) -> None:
    """Refuse images of which none could be read.

    Raises:
        DataError: If every image of the manifest was skipped.
    """
    if skipped and len(skipped) == len(manifest):
        raise DataError(
            f"None of the {len(skipped)} images can be read; the first: "
            f"{skipped[0].reason}",
            needed="at least one image that can be read, with its mask",
            fix="repair or restore them; `plantseg-next check` reports what is wrong",
        )


def refuse_names(manifest: Manifest) -> Manifest:
    """Return the manifest, if tables and manifests can state its names.

    Raises:
        DataError: If the name of an image is not UTF-8.
    """
    for row in manifest.rows:
        refuse_name(
            row.image, "rename the file or its folder; `predict` measures it as it is"
        )
    return manifest


def refuse_name(path: Path, fix: str) -> None:
    """Refuse a path that is not UTF-8.

    Raises:
        DataError: With what to do about it.
    """
    if (escaped := _escaped(str(path))) != str(path):
        raise DataError(
            f"`{escaped}` has a name that is not UTF-8.",
            needed="names in UTF-8, so that a manifest can state them",
            fix=fix,
        )


def name_within(images: Path) -> Callable[[Row], str]:
    """Return a function that names an image: its path within ``images``, or its key."""
    root = images if images.is_dir() else images.parent

    def name(row: Row) -> str:
        if row.image.is_relative_to(root):
            path = row.image.relative_to(root).as_posix()
        else:
            path = f"{row.key}{row.image.suffix}"
        return _escaped(path)

    return name


def _escaped(path: str) -> str:
    r"""Return a path with bytes that are not UTF-8 escaped, as ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
