"""Results of the scripts beside it: a CSV, a row a run."""

import csv
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of earlier runs; none where there is no table yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows, in the columns of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row at the end: two scripts may write to one table.

    Raises:
        ValueError: If the table has other columns.
    """
    earlier = read(path)
    if not earlier:
        write(path, [row])
        return
    if list(earlier[0]) != list(row):
        raise ValueError(f"{path} has columns {list(earlier[0])}, the row {list(row)}.")
    with path.open("a", newline="") as file:
        csv.DictWriter(file, list(row), lineterminator="\n").writerow(row)


def stamp() -> dict[str, str]:
    """Return which code ran, and when."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {"commit": commit, "date": time.strftime("%Y-%m-%d %H:%M")}
