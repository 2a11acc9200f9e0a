"""A run whose data folders were moved: its record and manifest get the new paths.

The files must be those that the run learned from, by their SHA-256.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from plantseg_next.data.manifest import MANIFEST_FILE, Manifest, Row
from plantseg_next.errors import DataError, UsageError, count_of, missing_path, shorten
from plantseg_next.files import AnyPath, explained
from plantseg_next.training.run_record import RunRecord, command_info, run_lock
from plantseg_next.workflows.training_data import DataSources

Moves = Mapping[Path, Path]
"""From every old folder to where it is now, both absolute."""


def parse_moves(pairs: list[str]) -> dict[str, str]:
    """Return the folders of ``OLD=NEW``; a path may hold ``=`` itself.

    Raises:
        UsageError: If one has no ``=``, or two name the same folder.

    Example:
        >>> parse_moves(["/data/leaves=/mnt/leaves"])
        {'/data/leaves': '/mnt/leaves'}
    """
    moves: dict[str, str] = {}
    for pair in pairs:
        parts = pair.split("=")
        cuts = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
        cuts = [(old, new) for old, new in cuts if old and new]
        if not cuts:
            raise UsageError(
                f"--data-moved got {pair!r}.",
                needed="OLD=NEW: where a folder was, and where it is now",
                fix="for example --data-moved /data/leaves=/mnt/leaves",
            )
        old, new = next((c for c in cuts if Path(c[1]).exists()), cuts[0])
        if old in moves:
            raise UsageError(
                f"--data-moved names `{old}` twice.",
                needed="one new place for each folder",
                fix="leave one of the two out",
            )
        moves[old] = new
    return moves


def _absolute(moved: Mapping[Any, AnyPath]) -> Moves:
    moves = {}
    for old, new in moved.items():
        if not Path(new).exists():
            raise missing_path(Path(new), "the folder where the data are now")
        # A run records where links lead; where OLD led is not known any longer.
        for path in (os.path.abspath(old), os.path.realpath(old)):  # noqa: PTH100
            moves[Path(path)] = Path(new).resolve()
    return moves


def _moved_sources(sources: DataSources, moves: Moves) -> DataSources:

    def new(path: AnyPath) -> Path:
        return _moved(Path(path).resolve(), moves)

    return DataSources(
        [new(path) for path in sources.folders],
        sources.classes and new(sources.classes),
        [new(path) for path in sources.unlabeled],
        [new(path) for path in sources.pseudo_labels],
        sources.names and new(sources.names),
    )


def follow_moved_data(
    out: Path, sources: DataSources, moved: Mapping[Any, AnyPath], *, restart: bool
) -> DataSources:
    """Write the new paths into the run in a folder, if the files there are the same.

    Args:
        out: Folder of the run.
        sources: Of the command; it may name the old folders or the new ones.
        moved: From old folders to new ones.
        restart: Whether the command starts a new run, which is refused.

    Returns:
        The sources, with the new paths.

    Raises:
        UsageError: If the folder holds no run, the run has nothing in an old folder, or a
            new one does not exist.
        DataError: If a file is missing in a new folder, or differs.
    """
    if restart:
        raise UsageError(
            "train got --data-moved and --restart.",
            needed="one of them: a run to resume, or a new one",
            fix="leave --data-moved out to start again",
        )
    moves = _absolute(moved)
    _follow(out, moves)
    return _moved_sources(sources, moves)


def _follow(out: Path, moves: Moves) -> None:
    record = RunRecord.read(out)
    if record is None:
        raise UsageError(
            f"`{out}` holds no run whose data could have moved.",
            needed="the folder of a run that `train` started",
            fix="check --out, or leave --data-moved out",
        )
    manifest = Manifest.read(out / MANIFEST_FILE)
    _refuse_unknown(record, manifest, moves)
    sources = {name: _moved_value(value, moves) for name, value in record.sources.items()}
    followed = manifest.only(_moved_row(row, moves) for row in manifest.rows)
    if sources == record.sources and followed == manifest:
        return  # by an earlier command
    _refuse_others(followed, moves)
    with run_lock(out), explained(out):
        followed.write(out / MANIFEST_FILE)
        environment = {**record.environment, **command_info()}
        replace(record, sources=sources, environment=environment).announce(out)


def _refuse_unknown(record: RunRecord, manifest: Manifest, moves: Moves) -> None:
    named = [Path(path) for value in record.sources.values() for path in _paths(value)]
    files = [path for row in manifest.rows for path in (row.image, row.mask) if path]
    for new in set(moves.values()):
        old = [folder for folder, target in moves.items() if target == new]
        if not any(
            _is_in(path, folder) for path in named + files for folder in (*old, new)
        ):
            raise UsageError(
                f"Nothing of the run was in `{old[0]}`.",
                needed=f"a folder of the run: {shorten(sorted(set(named)))}",
                fix="--data-moved OLD=NEW, with OLD as `run.json` states it",
            )


def _refuse_others(manifest: Manifest, moves: Moves) -> None:
    rows = [
        row
        for row in manifest.rows
        if any(
            _is_in(path, new)
            for path in (row.image, row.mask)
            if path
            for new in moves.values()
        )
    ]
    changed = manifest.only(rows).changed().rows
    if not changed:
        return
    missing = [
        path
        for row in changed
        for path in (row.image, row.mask)
        if path and not path.is_file()
    ]
    what = f"{len(missing)} missing, as {missing[0]}" if missing else "none is missing"
    raise DataError(
        f"{count_of(len(changed), 'image')} of {len(rows)} in the new place, or their "
        f"masks, are not those of the run ({what}): {shorten([r.key for r in changed])}.",
        needed="every image and mask that the run learns from, unchanged (SHA-256)",
        fix="copy the folder again, or name another one; to learn from other images, start "
        "again with --restart",
    )


def _moved_row(row: Row, moves: Moves) -> Row:
    mask = row.mask and _moved(row.mask, moves)
    return replace(row, image=_moved(row.image, moves), mask=mask)


def _moved_value(value: Any, moves: Moves) -> Any:  # noqa: ANN401 - a path, or a list
    if isinstance(value, list | tuple):
        return [_moved_value(path, moves) for path in value]
    return str(_moved(Path(value), moves)) if value else value


def _paths(value: Any) -> list[str]:  # noqa: ANN401 - as above
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


def _moved(path: Path, moves: Moves) -> Path:
    """Return where a file is now; what is in a new folder already stays there."""
    if any(_is_in(path, new) for new in moves.values()):
        return path
    for old in sorted(moves, key=lambda folder: -len(folder.parts)):
        if _is_in(path, old):
            return moves[old] / path.relative_to(old)
    return path


def _is_in(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder)
