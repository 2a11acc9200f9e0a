"""The loop over images that every command shares: read, skip the unreadable, report."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.errors import PlantSegError

T = TypeVar("T")


class Skipped(NamedTuple):
    """An image that could not be read.

    Args:
        row: Of the manifest.
        error: States what is wrong with which file.
    """

    row: Row
    error: PlantSegError


def read_each(
    manifest: Manifest,
    read: Callable[[Row], T],
    *,
    skipped: list[Skipped],
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[tuple[Row, T]]:
    """Yield every row with what was read from its files.

    Args:
        manifest: The images.
        read: Reads an image, or an image and its mask.
        skipped: Rows that raised an error while they were read are appended.
        on_progress: Called after each row is dealt with, with the number done and the
            total.
    """
    for i, row in enumerate(manifest.rows):
        try:
            content = read(row)
        except PlantSegError as error:
            skipped.append(Skipped(row, error))
        else:
            yield row, content
        on_progress(i + 1, len(manifest))


def name_within(images: Path) -> Callable[[Row], str]:
    """Return a function that names an image: its path within ``images``, or its key."""
    root = images if images.is_dir() else images.parent

    def name(row: Row) -> str:
        if row.image.is_relative_to(root):
            path = row.image.relative_to(root).as_posix()
        else:
            path = f"{row.key}{row.image.suffix}"
        # Bytes that are not UTF-8 are escaped in tables, as `\xff`.
        return os.fsencode(path).decode("utf-8", "backslashreplace")

    return name
