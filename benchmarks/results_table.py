"""Results of the scripts beside it: a CSV, a row a run."""

import csv
import subprocess
import time
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of earlier runs; none where there is no table yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def holds(rows: list[dict[str, Any]], name: dict[str, str]) -> bool:
    """Return whether a row has all these values."""
    return any(all(row[key] == value for key, value in name.items()) for row in rows)


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row at the end: two scripts may write to one table.

    Raises:
        ValueError: If the table has other columns.
    """
    earlier = read(path)
    if earlier and list(earlier[0]) != list(row):
        raise ValueError(f"{path} has columns {list(earlier[0])}, the row {list(row)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if not earlier:
            writer.writeheader()
        writer.writerow(row)


def stamp() -> dict[str, str]:
    """Return which code ran, and when."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {"commit": commit, "date": time.strftime("%Y-%m-%d %H:%M")}
