"""The meaning of mask values in the tables that tools export beside masks."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plantseg_next.data.formats.coding import (
    LABEL_MAP,
    read_label_map,
    role_of,
)
from plantseg_next.data.formats.folders import FolderFiles, tidy_name
from plantseg_next.data.formats.json_trees import read_tree
from plantseg_next.data.image_io import read_mask
from plantseg_next.data.manifest import MAX_CLASSES, MaskCoding
from plantseg_next.errors import DataError, PlantSegError, shorten
from plantseg_next.files import read_text

Meaning = dict[int | str, str]

NNUNET_FILE = "dataset.json"
_VALUE_LISTS = ("class_names.txt", "label_names.txt")
"""Lists of LabelMe's programs: line n names value n, and 255 is ignored."""
_LINE_LISTS = ("classes.txt", "labels.txt", "label.txt", "names.txt", "class.txt")
_VALUE_COLUMNS = ("pixel value", "value", "id", "index", "class id", "label id")
_NAME_COLUMNS = ("class", "name", "label", "class name", "label name", "category")
_COLOR_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))
_NUMBERED = re.compile(r"(\d{1,5})\s*[:;,=\t ]\s*(\S.*)")
_IGNORED = 255
_MOST_TABLES = 200
_MOST_BYTES = 1 << 20
_SAMPLED = 24


def read_table(
    files: FolderFiles, masks: Sequence[Path], doubts: list[str]
) -> MaskCoding | None:
    """Return what the table of an export states about masks; ``None`` without one.

    Names decide roles: "leaf" is the leaf, "background" or "unlabeled" the background.
    Tables of one kind in several folders must agree. The files are added to ``files.used``.

    Args:
        files: All files of the data set.
        masks: Its masks.
        doubts: Receives, in words, why a list of names was not used.

    Raises:
        DataError: If a table is invalid, names no class, or differs from another one.
    """
    for read in (_label_maps, _color_tables, _value_tables, _value_lists, _nnunet):
        if tables := read(files):
            return _agreed(tables, files)
    return _line_list(files, masks, doubts)


def is_nnunet(files: FolderFiles) -> bool:
    """Return whether nnU-Net's description of a data set is among the files."""
    return any(True for _ in _labels(files))


def _label_maps(files: FolderFiles) -> dict[Path, Meaning]:
    return {
        path: dict(read_label_map(path).meaning)
        for path in files.named(LABEL_MAP)[:_MOST_TABLES]
    }


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a small CSV file, with column names in lower case."""
    if path.stat().st_size > _MOST_BYTES:
        return []
    try:
        lines = read_text(path).splitlines()
        header = lines[0] if lines else ""
        separator = max(",;\t", key=header.count)
        rows = csv.DictReader(lines, delimiter=separator, restval="", skipinitialspace=True)
        return [
            {tidy_name(k): str(v).strip() for k, v in row.items() if k is not None}
            for row in rows
        ]
    except (PlantSegError, csv.Error) as error:
        if "class" in path.stem.lower():
            raise _invalid(path, f"it cannot be read as a table: {error}") from error
        return []  # a table of something else, which is named among the unused files


def _color_tables(files: FolderFiles) -> dict[Path, Meaning]:
    """Return tables of names and colors, as CamVid and its followers have them."""

    def meaning(rows: list[dict[str, str]], path: Path) -> Meaning | None:
        columns = next((c for c in _COLOR_COLUMNS if set(c) <= rows[0].keys()), None)
        name = next((c for c in _NAME_COLUMNS if c in rows[0]), None)
        if columns is None or name is None:
            return None
        return _stated(
            path,
            (
                (f"#{bytes(_byte(row[c]) for c in columns).hex()}", row[name])
                for row in rows
            ),
        )

    return _csv_tables(files, meaning)


def _value_tables(files: FolderFiles) -> dict[Path, Meaning]:
    """Return tables of values and names, as Roboflow's ``_classes.csv``."""

    def meaning(rows: list[dict[str, str]], path: Path) -> Meaning | None:
        value = next((c for c in _VALUE_COLUMNS if c in rows[0]), None)
        name = next((c for c in _NAME_COLUMNS if c in rows[0]), None)
        is_table = value == "pixel value" or (
            "class" in path.stem.lower() and len(rows[0]) == 2
        )
        if value is None or name is None or not is_table:
            return None
        return _stated(path, ((int(row[value]), row[name]) for row in rows))

    return _csv_tables(files, meaning)


def _csv_tables(
    files: FolderFiles,
    meaning: Callable[[list[dict[str, str]], Path], Meaning | None],
) -> dict[Path, Meaning]:
    tables = {}
    for path in files.ending(".csv")[:_MOST_TABLES]:
        if path in files.used:
            continue
        rows = _rows(path)
        try:
            if rows and (stated := meaning(rows, path)):
                tables[path] = stated
        except ValueError as error:
            raise _invalid(path, str(error)) from error
    return tables


def _byte(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 255:
        raise ValueError(f"{value} is no value of a color")
    return value


def _value_lists(files: FolderFiles) -> dict[Path, Meaning]:
    tables = {}
    for path in files.named(*_VALUE_LISTS)[:_MOST_TABLES]:
        names = _lines(path)
        first = -1 if names and role_of(names[0]) == "ignore" else 0
        pairs: list[tuple[int | str, str]] = [
            (_IGNORED if value < 0 else value, name)
            for value, name in enumerate(names, first)
        ]
        if meaning := _stated(path, pairs):
            meaning.setdefault(_IGNORED, "ignore")
            tables[path] = meaning
    return tables


def _nnunet(files: FolderFiles) -> dict[Path, Meaning]:
    """Return the labels of nnU-Net: from name to value, or in version 1 the reverse."""
    return {path: _stated(path, _pairs(labels, path)) for path, labels in _labels(files)}


def _labels(files: FolderFiles) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in files.named(NNUNET_FILE)[:_MOST_TABLES]:
        tree = read_tree(path)
        labels = tree.get("labels") if isinstance(tree, dict) else None
        if isinstance(labels, dict) and labels:
            yield path, labels


def _pairs(labels: Mapping[str, Any], path: Path) -> Iterable[tuple[int, str]]:
    for key, stated in labels.items():
        text, value = (stated, key) if isinstance(stated, str) else (key, stated)
        if isinstance(stated, str) and not key.isdecimal() and stated.isdecimal():
            text, value = key, stated
        if isinstance(value, list):  # of nnU-Net's regions, which overlap
            raise _invalid(
                path, f"`{text}` is a region of {len(value)} values, not a class"
            )
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,5}", str(value)):
            raise _invalid(path, f"`{text}` has the value {value!r}")
        yield int(value), text


def _line_list(
    files: FolderFiles, masks: Sequence[Path], doubts: list[str]
) -> MaskCoding | None:
    """Return what a list of names states, if their number fits the values of the masks."""
    tables = {path: _lines(path) for path in files.named(*_LINE_LISTS)[:_MOST_TABLES]}
    tables = {path: names for path, names in tables.items() if len(names) > 1}
    if not tables:
        return None
    values = _values(masks)
    if values is None:
        return None
    stated = {path: _fitting(path, names, values) for path, names in tables.items()}
    if all(stated.values()):
        return _agreed({path: m for path, m in stated.items() if m}, files)
    path = next(path for path, meaning in stated.items() if not meaning)
    names = tables[path]
    files.used.update(tables)
    doubts.append(
        f"`{path.relative_to(files.root).as_posix()}` names {len(names)} classes "
        f"({shorten(names)}), but the masks hold the values "
        f"{shorten(sorted(values), 8)}: which value is which class is not clear, so the "
        "names are not used. State it in a classes.yaml"
    )
    return None


def _fitting(path: Path, names: Sequence[str], values: set[int]) -> Meaning | None:
    """Return the meaning of values by a list of names, if there is one that fits."""
    if names[0] == "__ignore__":  # LabelMe's own list, in which it is 255
        names = names[1:]
    numbered = [_NUMBERED.fullmatch(name) for name in names]
    if all(numbered):
        return _stated(path, ((int(m[1]), m[2]) for m in numbered if m))
    first = 0 if role_of(names[0]) in {"background", "ignore"} else 1
    foreground = values - {0, _IGNORED}
    last = first + len(names) - 1
    if max(foreground, default=0) > last:
        return None
    if first == 1 and foreground != set(range(1, last + 1)):
        return None
    meaning = _stated(path, enumerate(names, first))
    return {0: "background", _IGNORED: "ignore"} | meaning


def _values(masks: Sequence[Path]) -> set[int] | None:
    """Return the values that occur in some of the masks; ``None`` if they are colored."""
    values: set[int] = set()
    places = np.linspace(0, len(masks) - 1, min(len(masks), _SAMPLED)).astype(int)
    for i in places:
        try:
            mask = read_mask(masks[i])
        except PlantSegError:
            continue
        if mask.ndim == 3:
            return None
        values.update(np.unique(mask).tolist())
    return values


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > _MOST_BYTES:
        return []
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _stated(path: Path, pairs: Iterable[tuple[int | str, str]]) -> Meaning:
    meaning: Meaning = {}
    for value, name in pairs:
        if isinstance(value, int) and not 0 <= value <= 65535:
            raise _invalid(path, f"{value} is no value of a mask")
        if not name.strip():
            raise _invalid(path, f"the value {value} has no name")
        if meaning.setdefault(value, role_of(name)) != role_of(name):
            raise _invalid(
                path, f"the value {value} is both `{meaning[value]}` and `{role_of(name)}`"
            )
    return meaning


def _agreed(tables: Mapping[Path, Meaning], files: FolderFiles) -> MaskCoding:
    """Return the coding of tables that agree.

    Raises:
        DataError: If they do not, or name no class.
    """
    files.used.update(tables)
    (first, meaning), *others = tables.items()
    for path, other in others:
        for value in sorted({*meaning, *other}, key=str):
            if meaning.get(value) != other.get(value):
                raise DataError(
                    f"`{first}` and `{path}` disagree: the value {value} is "
                    f"`{meaning.get(value, 'not stated')}` in the first, and "
                    f"`{other.get(value, 'not stated')}` in the second.",
                    needed="one meaning of each value in the whole data set",
                    fix="read the folders as data sets of their own, or state the meaning "
                    "in a classes.yaml",
                )
    coding = MaskCoding(
        meaning,
        "leaf" in meaning.values(),
        f"stated in {first.relative_to(files.root).as_posix()}",
    )
    if len(coding.lesions) > MAX_CLASSES or not (coding.lesions or coding.marks_leaf):
        raise _invalid(first, f"it names {len(coding.lesions)} lesion classes")
    return coding


def _invalid(path: Path, what: str) -> DataError:
    return DataError(
        f"`{path}`: {what}.",
        needed="one name for each value of the masks, and at least one class of lesions "
        "or the leaf",
        fix="correct the file, or state the meaning of the values in a classes.yaml, which "
        "takes precedence",
    )
