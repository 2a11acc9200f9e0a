"""The loop over images that every command shares: read, skip the unreadable, report."""

from collections.abc import Callable, Iterator
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
