"""The index of a data set, a table of its images: ``index.csv``."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from plantseg_next.data.formats.folders import (
    SPLIT_NAMES,
    same_name,
    tidy_name,
)
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
    by_name: dict[str, dict[str, str]] = {}
    for entry in entries:
        if by_name.setdefault(same_name(entry[column]), entry) != entry:
            raise _two_rows(path, entry[column])
    image_of: dict[str, Row] = {}
    updated = []
    for row in rows:
        names = [n for n in (row.key, same_name(row.image.name)) if n in by_name]
        if not names:
            updated.append(row)
            continue
        if len({id(by_name[name]) for name in names}) == 2:
            raise _two_rows(path, row.key)
        if (other := image_of.setdefault(names[0], row)) is not row:
            raise DataError(
                f"`{path}` has one row `{by_name[names[0]][column]}` for two images, "
                f"`{other.image}` and `{row.image}`.",
                needed="one row for each image",
                fix="state the path of each image inside the data set, as `a/leaf.jpg`",
            )
        updated.append(_update(row, by_name[names[0]], path))
    return updated, [entry[column] for n, entry in by_name.items() if n not in image_of]


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
