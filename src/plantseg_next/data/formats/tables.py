"""Tables that describe images: CSV files, read so that no row or cell is lost."""

import csv
import io
from collections import Counter
from pathlib import Path

from plantseg_next.errors import DataError
from plantseg_next.files import read_text

SHOWN = 60
"""Letters of a cell that are shown in an error."""


def read_index(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, column names in lower case.

    The separator may be a comma, a semicolon or a tab. Empty lines, and columns without a
    name and without content, are skipped.

    Raises:
        DataError: If the file is no text, or not a table; if two columns have one name, a
            column with content has none, or a row has more or fewer cells than there are
            columns: one comma too many would give every cell another meaning.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        lines = [(reader.line_num, [c.strip() for c in cells]) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(
            f"`{path}` is not a table: {error} (line {reader.line_num}).",
            needed="one line per image, every quotation mark closed",
            fix="open it in a spreadsheet and save it again",
        ) from error
    if not lines:
        return []
    names = [name.lower() for name in lines[0][1]]
    repeated = [name for name, n in Counter(names).items() if n > 1 and name]
    if repeated:
        raise DataError(
            f"`{path}` has more than one column `{repeated[0][:SHOWN]}`.",
            needed="a different name for each column",
            fix="rename or remove one of them",
        )
    return [_row(names, cells, f"`{path}`, line {line}") for line, cells in lines[1:]]


def _row(names: list[str], cells: list[str], where: str) -> dict[str, str]:
    if len(cells) != len(names):
        raise DataError(
            f"{where}, has {len(cells)} cells, for {len(names)} columns: "
            f"{', '.join(cells)[:SHOWN]}.",
            needed="as many cells in each row as columns, also if they are empty",
            fix="add or remove a separator; put text that contains one into quotes",
        )
    unnamed = [c for name, c in zip(names, cells, strict=True) if c and not name]
    if unnamed:
        raise DataError(
            f"{where}, has {unnamed[0][:SHOWN]!r} in a column without a name.",
            needed="a name for each column",
            fix="name the column in the first line, or empty it",
        )
    return {name: cell for name, cell in zip(names, cells, strict=True) if name}
