"""The mask coding of a folder: stated in a class file, or inferred from the values."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml

from plantseg_next.data.formats.folders import tidy_name
from plantseg_next.data.image_io import read_mask
from plantseg_next.data.manifest import (
    MaskCoding,
    Role,
    class_count,
    refuse_many_classes,
)
from plantseg_next.errors import DataError, PlantSegError, UsageError
from plantseg_next.files import is_stated, read_text
from plantseg_next.json_files import load_json
from plantseg_next.yaml_files import load_yaml

CLASS_FILES = ("classes.yaml", "classes.yml", "classes.json", "classes.csv")
LABEL_MAP = "labelmap.txt"
"""File of CVAT in the Pascal VOC layout: one color per label."""
SCANNED_MASKS = 200
"""Masks that are read to infer a coding; a seeded random choice if there are more."""

MAX_CLASS_FILE_BYTES = 2**20
"""Largest class file: a line for each of 65,536 values has some 20 bytes."""
_LEAF = {"leaf", "leaves", "healthy leaf", "healthy", "leaf area", "plant"}
_BACKGROUND = {"background", "bg", "ground"}
_IGNORE = {"ignore", "ignored", "void", "unknown", "unsure"}
_MAX_IDS_IN_A_MASK = 32
_ROLES = get_args(Role)
_TWO: dict[int | str, str] = {0: "background", 1: "lesion"}
_THREE: dict[int | str, str] = {0: "background", 1: "leaf", 2: "lesion"}
_CONVENTIONS: Mapping[frozenset[int], Mapping[int | str, str]] = {
    frozenset({0}): _TWO,
    frozenset({0, 1}): _TWO,
    frozenset({0, 255}): {0: "background", 255: "lesion"},
    frozenset({0, 1, 255}): _TWO | {255: "ignore"},
    frozenset({0, 2}): _THREE,
    frozenset({1, 2}): _THREE,
    frozenset({0, 1, 2}): _THREE,
    frozenset({0, 1, 2, 255}): _THREE | {255: "ignore"},
    frozenset({0, 128, 255}): {0: "background", 128: "leaf", 255: "lesion"},
    frozenset({0, 127, 255}): {0: "background", 127: "leaf", 255: "lesion"},
}


def find_coding(
    folder: Path, masks: Sequence[Path], classes: Path | None = None
) -> MaskCoding:
    """Return the coding stated for a folder, or else inferred from its masks.

    Args:
        folder: May hold one of ``CLASS_FILES``, or a ``LABEL_MAP``.
        masks: All masks of the folder.
        classes: A class file that takes precedence.

    Raises:
        DataError: If the class file is not a flat map of values to meanings.
        UsageError: If nothing is stated and the masks are colored, or have too many
            values for class ids.
    """
    stated = classes or stated_classes(folder)
    if stated:
        return read_coding(stated)
    if (folder / LABEL_MAP).is_file():
        return read_label_map(folder / LABEL_MAP)
    return infer_coding(folder, masks)


def stated_classes(folder: Path) -> Path | None:
    """Return the class file of a folder, if it has one.

    Raises:
        DataError: If something else has its name; the meaning of the values is then
            stated somewhere, and must not be inferred.
    """
    for path in (folder / name for name in CLASS_FILES):
        if is_stated(path, "a class file: mask values and their meanings"):
            return path
    return None


def read_coding(path: Path) -> MaskCoding:
    """Return the coding in a class file.

    The file maps each mask value, or color ``"#rrggbb"``, to ``background``, ``leaf``,
    ``ignore`` or the name of a lesion class: as YAML, JSON, or CSV of two columns.

    Raises:
        DataError: If it has another form, states a value twice, or two names that differ
            only in spelling.
    """
    try:
        meaning: dict[int | str, str] = {}
        for key, text in _read_pairs(path):
            if (value := _value(key)) in meaning:
                raise ValueError(f"`{value}` is stated twice")
            meaning[value] = _meaning(text)
        _refuse_alike(meaning.values())
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"`{path}` is not a list of mask values and their meanings: {error}.",
            needed='lines such as `0: background`, `1: leaf`, `"#ff0000": rust` '
            "(colors in quotes)",
            fix="write one line for each value that occurs in the masks",
        ) from error
    return _coding(meaning, f"stated in {path.name}", path)


def read_label_map(path: Path) -> MaskCoding:
    """Return the coding of lines such as ``rust:128,0,0::``.

    Raises:
        DataError: If a line has another form, or two labels have one color, or names that
            differ only in spelling.
    """
    meaning: dict[int | str, str] = {}
    names: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, color, *_ = line.split(":")
            red, green, blue = (int(part) for part in color.split(","))
            value = f"#{bytes((red, green, blue)).hex()}"
            if value in meaning:
                raise ValueError(f"a second label of the color {value}")
            meaning[value] = role_of(name)
            names.append(name)
            _refuse_alike(names)
        except ValueError as error:
            raise DataError(
                f"`{path}`, line {number}: {line[:60]!r} ({error}).",
                needed="a label and its color, as in `rust:128,0,0::`",
                fix="export the masks again, or write a classes.yaml instead",
            ) from error
    return _coding(meaning, f"stated in {path.name}", path)


def role_of(name: str) -> str:
    """Return the role that a name denotes, or else the tidy name of a lesion class."""
    tidy = tidy_name(name)
    for role, words in (("leaf", _LEAF), ("background", _BACKGROUND), ("ignore", _IGNORE)):
        if tidy in words:
            return role
    return tidy


def read_meanings(path: Path) -> dict[str, str]:
    """Return the meaning of each annotation name in a class file.

    Like ``read_coding``, with names instead of values; they are compared in tidy form.

    Raises:
        DataError: If it has another form, states two meanings of one name, or two classes
            that differ only in spelling.
    """
    try:
        meanings: dict[str, str] = {}
        for key, text in _read_pairs(path):
            name, meaning = tidy_name(str(key)), _meaning(text)
            if meanings.setdefault(name, meaning) != meaning:
                raise ValueError(f"`{name}` is stated with two meanings")
        _refuse_alike(meanings.values())
        return meanings
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"`{path}` is not a list of names and their meanings: {error}.",
            needed="lines such as `Early_Blight: early blight`, `leaf: leaf`",
            fix="write one line for each name that occurs in the annotations",
        ) from error


def infer_coding(folder: Path, masks: Sequence[Path]) -> MaskCoding:
    """Return a coding inferred from the values that occur, as its origin states.

    At most ``SCANNED_MASKS`` masks are read. Unreadable masks are skipped; ``check``
    reports them.

    Raises:
        UsageError: If the masks are colored, or have too many values for class ids.
    """
    chosen: Sequence[Path] = masks
    if len(masks) > SCANNED_MASKS:
        places = np.random.default_rng(0).choice(len(masks), SCANNED_MASKS, False)
        chosen = [masks[i] for i in sorted(places)]
    values: set[int] = set()
    for path in chosen:
        try:
            mask = read_mask(path)
        except PlantSegError:
            continue
        if mask.ndim == 3:
            raise _needs_colors(folder, path)
        ids = np.unique(mask)
        if len(ids) > _MAX_IDS_IN_A_MASK:
            raise _not_ids(path, len(ids))
        values.update(ids.tolist())
    return _infer(values or {0, 1})


def _infer(values: set[int]) -> MaskCoding:
    named = dict(_CONVENTIONS.get(frozenset(values), {}))
    if not named:
        named[0] = "background"
        named.update((i, f"class {i}") for i in sorted(values - {0, 255}))
        named.update({255: "ignore"} if 255 in values else {})
    seen = ", ".join(str(value) for value in sorted(values))
    read = ", ".join(dict.fromkeys(named.values()))
    return _coding(
        named,
        f"inferred: mask values {seen} read as {read}; to change it, write a classes.yaml",
        None,
    )


def _coding(meaning: Mapping[int | str, str], origin: str, path: Path | None) -> MaskCoding:
    coding = MaskCoding(meaning, "leaf" in meaning.values(), origin)
    refuse_many_classes(coding.lesions, f"`{path or 'the masks'}`")
    if not (coding.lesions or coding.marks_leaf):
        raise class_count(f"`{path or 'the masks'}`", 0)
    return coding


def _refuse_alike(names: Iterable[str]) -> None:
    """Refuse names that denote one class by their spelling, but would become two."""
    spelled: dict[str, str] = {}
    for name in names:
        if (other := spelled.setdefault(tidy_name(name), name)) != name:
            raise ValueError(f"`{other}` and `{name}` differ only in spelling")


def _read_pairs(path: Path) -> Iterator[tuple[Any, object]]:
    """Yield the keys and values of a class file, in its order.

    Raises:
        ValueError: If it is no flat map, or states a key twice as it is written.
        yaml.YAMLError: If it is not YAML, as ``load_yaml``.
        DataError: If the file cannot be read as text.
    """
    text = read_text(path, MAX_CLASS_FILE_BYTES)
    if path.suffix.lower() == ".csv":
        yield from _read_two_columns(text)
        return
    table = load_json(text) if path.suffix.lower() == ".json" else load_yaml(text)
    if not isinstance(table, dict) or not table:
        raise ValueError(f"its top level is {type(table).__name__}")
    yield from table.items()


def _read_two_columns(text: str) -> Iterator[tuple[str, str]]:
    try:
        lines = [line for line in csv.reader(text.splitlines(), strict=True) if line]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if any(len(line) != 2 for line in lines):
        raise ValueError("a line does not have two columns")
    first = lines[0][0].strip() if lines else ""
    has_header = not re.fullmatch(r"\d+|#[0-9a-fA-F]{6}", first)
    yield from ((key, meaning) for key, meaning in lines[1 if has_header else 0 :])


def _value(key: object) -> int | str:
    if isinstance(key, str):
        key = key.strip().lower()
        if re.fullmatch(r"#[0-9a-f]{6}", key):
            return key
        key = int(key) if key.isdecimal() else key
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key <= 65535:
        return key
    raise ValueError(f"{key!r} is neither a value of 0 to 65535 nor a color #rrggbb")


def _meaning(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{text!r} is not a name")
    name = text.strip()
    return name.lower() if name.lower() in _ROLES else name


def _needs_colors(folder: Path, path: Path) -> UsageError:
    colors, counts = np.unique(
        read_mask(path, as_colors=True).reshape(-1, 3), axis=0, return_counts=True
    )
    order = counts.argsort()[::-1][:8]
    percent = 100 * counts / counts.sum()
    lines = [
        f'    "#{bytes(colors[i]).hex()}": {"background" if i == order[0] else "?"}'
        f"    # {percent[i]:.1f} % of the pixels"
        for i in order
    ]
    more = f" and {len(colors) - 8} more" if len(colors) > 8 else ""
    return UsageError(
        f"The masks in `{folder}` are colored; `{path.name}` has {len(colors)} colors.",
        needed="the meaning of each color: background, leaf, ignore or a lesion class",
        fix=f"save these lines{more} as `{folder / 'classes.yaml'}`, with each ? "
        "replaced:\n" + "\n".join(lines),
    )


def _not_ids(path: Path, n_values: int) -> UsageError:
    return UsageError(
        f"The mask `{path}` holds {n_values} different values.",
        needed="a map of class ids, with few values; this may be a photograph, or a mask "
        "that was resized with smoothing",
        fix="export the masks again without smoothing, or state what the values mean "
        "in classes.yaml",
    )
