"""What each data set calls a thing, and what a run calls it.

Two data sets teach one class only if it has one name in both. A small file says so, a
name a line; a proposal for it is made from the names themselves.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import yaml

from plantseg_next.data.formats.folders import tidy_name
from plantseg_next.data.manifest import Manifest, Role, common_classes
from plantseg_next.errors import DataError, unknown_name
from plantseg_next.files import write_atomically

Names = Mapping[str, Mapping[str, str]]
"""From a data set, and from a name there, to the run's name."""

ALIKE = 0.8
"""Likeness of two words from which one may be a misspelling of the other."""
SHORT = 4
"""Shorter words are never called misspelt: rot is not spot."""
_ROLES = get_args(Role)
_HEAD = (
    "# What each data set calls a class or a label: what the run is to call it.\n"
    "# A lesion class may also become leaf, background or ignore; a label, ignore.\n"
)


def names_of(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Return the lesion classes and image-level labels of every data set."""
    found: dict[str, dict[str, None]] = {}
    for row in manifest.rows:
        names = found.setdefault(row.source, {})
        if not names and row.source in manifest.codings:
            names |= dict.fromkeys(manifest.codings[row.source].lesions)
        if row.disease is not None:
            names[row.disease] = None
    return {source: tuple(names) for source, names in found.items()}


def propose(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Return one name for what is called the same but for spelling.

    Case, signs, word breaks and a plant's name in front do not count; the first data set
    decides how it is written. Words that differ stay apart: ``alike`` names those.
    """
    plants = {tidy_name(row.plant) for row in manifest.rows if row.plant}
    written: dict[str, str] = {}
    return {
        source: {n: written.setdefault(_core(n, plants), tidy_name(n)) for n in names}
        for source, names in names_of(manifest).items()
    }


def alike(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that differ, but hardly: one may be misspelt."""
    names = dict.fromkeys(n for names in names_of(manifest).values() for n in names)
    for one, other in combinations(names, 2):
        if _squeezed(one) == _squeezed(other) or _differ_by_spelling(one, other):
            yield one, other


def renamed(manifest: Manifest, names: Names) -> Manifest:
    """Return the manifest under the run's names.

    Args:
        manifest: Of one or many data sets.
        names: What is not mentioned keeps its name.

    Raises:
        UsageError: If a data set or a name is mentioned that there is not, or a label
            becomes a part of a mask.
    """
    known = names_of(manifest)
    for source, pairs in names.items():
        _refuse_unknown("data set", source, list(known))
        for name in pairs:
            _refuse_unknown(f"name in {source}", name, list(known[source]))
    codings = {}
    for source, coding in manifest.codings.items():
        new = names.get(source, {})
        meaning = {value: new.get(meant, meant) for value, meant in coding.meaning.items()}
        marks_leaf = "leaf" in meaning.values()
        codings[source] = replace(coding, meaning=meaning, marks_leaf=marks_leaf)
    rows = []
    for row in manifest.rows:
        label = row.disease
        if label is not None:
            label = names.get(row.source, {}).get(label, label)
            label = None if label in _ROLES else label
        rows.append(replace(row, disease=label))
    return Manifest(tuple(rows), common_classes(rows, codings), codings, manifest.origins)


def read_names(path: Path) -> dict[str, dict[str, str]]:
    """Return what a file of names says.

    Raises:
        DataError: If it is no such file.
    """
    try:
        tree: Any = yaml.safe_load(path.read_text("utf-8-sig"))
        return {
            str(source): {str(name): str(new).strip() for name, new in pairs.items()}
            for source, pairs in tree.items()
        }
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise DataError(
            f"`{path}` is no file of names: {error}.",
            needed="under each data set, lines such as `early_blight: early blight`",
            fix="let `plantseg-next data names DATA ... --out names.yaml` write one",
        ) from error


def names_in_words(names: Names) -> str:
    """Return a file of names, as text."""
    tree = {source: dict(pairs) for source, pairs in names.items()}
    return _HEAD + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def write_names(names: Names, path: Path) -> None:
    """Write a file of names."""
    write_atomically(path, names_in_words(names).encode())


def _core(name: str, plants: set[str]) -> str:
    tidy = tidy_name(name)
    plant = next((p for p in plants if tidy.startswith(f"{p} ")), "")
    return _squeezed(tidy[len(plant) :])


def _squeezed(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _differ_by_spelling(one: str, other: str) -> bool:
    """Return whether all words agree but one pair, and that nearly does."""
    words, others = one.split(), other.split()
    if len(words) != len(others):
        return False
    apart = [(a, b) for a, b in zip(words, others, strict=True) if a != b]
    if len(apart) != 1 or min(map(len, apart[0])) < SHORT:
        return False
    return difflib.SequenceMatcher(None, *apart[0]).ratio() >= ALIKE


def _refuse_unknown(what: str, name: str, known: list[str]) -> None:
    if name not in known:
        came = f"The file of names has `{name}`; there is no such {what}."
        raise unknown_name(came, name, known)
