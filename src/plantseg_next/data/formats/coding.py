"""The mask coding of a folder: stated in a class file, or inferred from the values."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from plantseg_next.data.formats.folders import SPLIT_NAMES, tidy_name
from plantseg_next.data.formats.mask_reading import nearest_of_two, read_masks
from plantseg_next.data.formats.mask_statistics import find_channel
from plantseg_next.data.manifest import (
    ROLES,
    MaskCoding,
    class_count,
    refuse_many_classes,
)
from plantseg_next.errors import DataError
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
_LEAF = {
    *("leaf", "leaves", "healthy leaf", "healthy", "leaf area", "plant", "whole leaf"),
    *("leaf blade", "healthy tissue", "lamina", "blatt", "feuille", "hoja", "foglia"),
    *("folha", "叶", "叶片", "葉"),
}
_UNLABELED = {name for name, split in SPLIT_NAMES.items() if split == "unlabeled"}
_BACKGROUND = {"background", "bg", "ground", "hole", *_UNLABELED}
_IGNORE = {"ignore", "ignored", "void", "unknown", "unsure"}
LEAF_ONLY = ("lesion", "not annotated")
SMOOTHED = ("edges", "smoothed")


def find_coding(
    folder: Path,
    masks: Sequence[Path],
    classes: Path | None = None,
    images: Mapping[Path, Path] | None = None,
) -> MaskCoding:
    """Return the coding stated for a folder, or else inferred from its masks.

    Args:
        folder: May hold one of ``CLASS_FILES``, or a ``LABEL_MAP``.
        masks: All masks of the folder.
        classes: A class file that takes precedence.
        images: The image of each mask, to distinguish plants and lesions.

    Raises:
        DataError: If the class file is not a flat map of values to meanings.
        UsageError: If nothing is stated and the masks have no single meaning, or mark the
            plant.
    """
    stated = classes or stated_classes(folder)
    if stated:
        return with_channel(read_coding(stated), masks)
    if is_stated(folder / LABEL_MAP):
        return with_channel(read_label_map(folder / LABEL_MAP), masks)
    return infer_coding(folder, masks, images)


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
    ``ignore`` or the name of a lesion class: as YAML, JSON, or CSV of two columns. The
    line ``lesion: not annotated`` states that the masks mark the leaf only; ``edges:
    smoothed`` that a value between the two stated ones means what the nearer one means.

    Raises:
        DataError: If it has another form, states a value twice, two names that differ
            only in spelling, or contradicts such a line.
    """
    try:
        pairs, statements = _without_statements(_read_pairs(path), LEAF_ONLY, SMOOTHED)
        meaning: dict[int | str, str] = {}
        for key, text in pairs:
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
    if LEAF_ONLY in statements:
        _refuse_lesions(path, meaning)
    coding = _coding(meaning, f"stated in {path.name}", path)
    if SMOOTHED not in statements:
        return coding
    if coding.by_color or len(meaning) != 2:
        raise DataError(
            f"`{path}` states smoothed edges, and the meaning of {len(meaning)} "
            f"{'colors' if coding.by_color else 'values'}.",
            needed="two values: between more, a value on an edge may be another class",
            fix="export the masks again without smoothing, and remove the line",
        )
    return replace(coding, meaning=nearest_of_two(meaning), channel="gray")


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
    unnumbered = re.sub(r"[ #-]*\d+$", "", tidy)
    for role, words in (("leaf", _LEAF), ("background", _BACKGROUND), ("ignore", _IGNORE)):
        if tidy in words or unnumbered in words:  # "leaf 2" is a second leaf
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
        pairs, statements = _without_statements(_read_pairs(path), LEAF_ONLY)
        meanings: dict[str, str] = {}
        for key, text in pairs:
            name, meaning = tidy_name(str(key)), _meaning(text)
            if meanings.setdefault(name, meaning) != meaning:
                raise ValueError(f"`{name}` is stated with two meanings")
        _refuse_alike(meanings.values())
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"`{path}` is not a list of names and their meanings: {error}.",
            needed="lines such as `Early_Blight: early blight`, `leaf: leaf`",
            fix="write one line for each name that occurs in the annotations",
        ) from error
    if LEAF_ONLY in statements:
        _refuse_lesions(path, meanings)
    return meanings


def infer_coding(
    folder: Path, masks: Sequence[Path], images: Mapping[Path, Path] | None = None
) -> MaskCoding:
    """Return a coding inferred from the values that occur, as its origin states.

    At most ``SCANNED_MASKS`` masks are read. Unreadable masks are skipped; ``check``
    reports them.

    Args:
        folder: The data set.
        masks: All its masks.
        images: The image of each mask, to distinguish plants and lesions.

    Raises:
        UsageError: If the masks have no single meaning, or mark the plant.
    """
    reading = read_masks(folder, _chosen(masks), images or {})
    coding = _coding(reading.meaning, reading.origin, None)
    return replace(coding, channel=reading.channel)


def _chosen(masks: Sequence[Path]) -> Sequence[Path]:
    if len(masks) <= SCANNED_MASKS:
        return masks
    places = np.random.default_rng(0).choice(len(masks), SCANNED_MASKS, False)
    return [masks[i] for i in sorted(places)]


def with_channel(coding: MaskCoding, masks: Sequence[Path]) -> MaskCoding:
    """Return a stated coding with where the values of the masks are."""
    channel = find_channel(_chosen(masks))
    if channel in {"stored", "gray"}:
        return coding
    if channel == "alpha" and coding.by_color:
        channel = "painted"
    return replace(coding, channel=channel)


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


def _without_statements(
    pairs: Iterable[tuple[Any, object]], *statements: tuple[str, str]
) -> tuple[list[tuple[Any, object]], set[tuple[str, str]]]:
    """Return the lines of a class file without these statements, and those it makes."""
    rest, made = [], set()
    for key, text in pairs:
        line = tidy_name(str(key)), tidy_name(str(text))
        if line in statements:
            made.add(line)
        else:
            rest.append((key, text))
    return rest, made


def _refuse_lesions(path: Path, meaning: Mapping[Any, str]) -> None:
    for key, name in meaning.items():
        if name not in ROLES:
            raise DataError(
                f"`{path}` states that lesions are not annotated, and `{key}: {name}`.",
                needed="background, leaf and ignore only, if lesions are not annotated",
                fix="remove the line `lesion: not annotated`, or the class",
            )


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
    return name.lower() if name.lower() in ROLES else name
