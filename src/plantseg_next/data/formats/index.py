"""The index of a data set, a table of its images: ``index.csv``."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from plantseg_next.data.formats.folders import (
    SPLIT_NAMES,
    tidy_name,
)
from plantseg_next.data.formats.names import ImageNames
from plantseg_next.data.formats.tables import read_index
from plantseg_next.data.manifest import Row, Split
from plantseg_next.errors import DataError

INDEX_FILE = "index.csv"

_NAME_COLUMNS = ("name", "file", "filename", "file_name", "image", "picture")
_USED_COLUMNS = {*_NAME_COLUMNS, "split", "disease", "group", "plant"}


def add_index(rows: Iterable[Row], path: Path) -> tuple[list[Row], list[str]]:
    """Return the rows with the values of the index, and its names without an image.

    The columns name, split, disease, group and plant are used; others are kept in
    ``Row.stated``. A name may be the path inside the data set or the file name, with or
    without its ending.

    Args:
        rows: Rows of one data set.
        path: The index.

    Raises:
        DataError: If it has no column of names, an unknown split, two different rows for
            one image, or one row for two images.
    """
    entries = read_index(path)
    column = next((c for c in _NAME_COLUMNS if entries and c in entries[0]), None)
    if column is None:
        raise DataError(
            f"`{path}` has the columns {', '.join(entries[0]) if entries else 'none'}.",
            needed="a column `name` with the names of the images",
            fix="name the column, or rename the file if it has another purpose",
        )
    rows = list(rows)
    names = ImageNames([row.image for row in rows], path.parent)
    entry_of: dict[Path | str, dict[str, str]] = {}
    for entry in entries:
        name = entry[column]
        images = names.candidates(name)
        if len(images) > 1:
            raise DataError(
                f"`{path}` has one row `{name}` for {len(images)} images, `{images[0]}` "
                f"and `{images[1]}`.",
                needed="one row for each image",
                fix="state the path of each image inside the data set, as `a/leaf.jpg`",
            )
        if entry_of.setdefault(images[0] if images else name, entry) != entry:
            raise _two_rows(path, name)
    missing = [key for key in entry_of if isinstance(key, str)]
    return [
        _update(row, entry_of[row.image], path) if row.image in entry_of else row
        for row in rows
    ], missing


def _two_rows(path: Path, name: str) -> DataError:
    return DataError(
        f"`{path}` has two different rows for `{name}`.",
        needed="one row for each image",
        fix="remove one of them; if two images share the name, state their paths",
    )


def split_named(text: str, path: Path) -> Split | None:
    """Return the split in a cell of an index; ``None`` for an empty cell.

    Raises:
        DataError: If the split is unknown.
    """
    if not text:
        return None
    if text.lower() not in SPLIT_NAMES:
        raise DataError(
            f"`{path}` has the split `{text}`.",
            needed=f"one of {', '.join(SPLIT_NAMES)}, or an empty cell",
            fix="rename the split, or remove the column to have splits drawn",
        )
    return SPLIT_NAMES[text.lower()]


def _update(row: Row, entry: dict[str, str], path: Path) -> Row:
    stated = {name: text for name, text in entry.items() if name not in _USED_COLUMNS}
    return replace(
        row,
        split=split_named(entry.get("split", ""), path) or row.split,
        disease=tidy_name(entry.get("disease", "")) or row.disease,
        group=entry.get("group", "") or row.group,
        plant=tidy_name(entry.get("plant", "")) or row.plant,
        stated={**row.stated, **stated},
    )
