"""Common class names: mapping the names of each data set to those of a run.

Data sets share a class only if it has the same name in all of them. A YAML file maps the
names, one per line; a proposal is made from their spelling.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from plantseg_next.data.formats.folders import tidy_name
from plantseg_next.data.manifest import ROLES, Manifest, common_classes
from plantseg_next.errors import DataError, unknown_name
from plantseg_next.files import read_text, write_atomically
from plantseg_next.yaml_files import MAX_YAML_BYTES, load_yaml

Names = Mapping[str, Mapping[str, str]]
"""For each data set, a mapping from its names to those of the run."""

ALIKE = 0.8
"""Similarity of two words from which one may be a misspelling of the other."""
SHORT = 4
"""Shorter words are never reported as misspelled: rot is not spot."""
_HEAD = (
    "# Names of classes and labels: name in the data set: name in the run.\n"
    "# A lesion class may also become leaf, background or ignore; a label, ignore.\n"
)


def names_of(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Return the lesion classes and image-level labels of every data set."""
    by_source: dict[str, dict[str, None]] = {}
    for row in manifest.rows:
        names = by_source.setdefault(row.source, {})
        if not names and row.source in manifest.codings:
            names |= dict.fromkeys(manifest.codings[row.source].lesions)
        if row.disease is not None:
            names[row.disease] = None
    return {source: tuple(names) for source, names in by_source.items()}


def propose(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Return a mapping that gives one name to names that differ only in spelling.

    Case, punctuation, word breaks and a leading plant name are ignored; the spelling is
    that of the first data set. Names with different words stay separate, see ``alike``.
    """
    plants = {tidy_name(row.plant) for row in manifest.rows if row.plant}
    spelling: dict[str, str] = {}
    return {
        source: {n: spelling.setdefault(_core(n, plants), tidy_name(n)) for n in names}
        for source, names in names_of(manifest).items()
    }


def alike(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield pairs of similar names, of which one may be misspelled."""
    names = dict.fromkeys(n for names in names_of(manifest).values() for n in names)
    for one, other in combinations(names, 2):
        if _alphanumeric(one) == _alphanumeric(other) or _differ_by_spelling(one, other):
            yield one, other


def renamed(manifest: Manifest, names: Names) -> Manifest:
    """Return the manifest with the names of the run.

    Args:
        manifest: Of one or many data sets.
        names: Names that are missing here are kept. A label that becomes a role is
            removed.

    Raises:
        UsageError: If ``names`` contains an unknown data set or an unknown name.
    """
    known = names_of(manifest)
    for source, pairs in names.items():
        _refuse_unknown("data set", source, list(known))
        for name in pairs:
            _refuse_unknown(f"name in {source}", name, list(known[source]))
    codings = {}
    for source, coding in manifest.codings.items():
        new = names.get(source, {})
        meaning = {value: new.get(role, role) for value, role in coding.meaning.items()}
        marks_leaf = "leaf" in meaning.values()
        codings[source] = replace(coding, meaning=meaning, marks_leaf=marks_leaf)
    rows = []
    for row in manifest.rows:
        label = row.disease
        if label is not None:
            label = names.get(row.source, {}).get(label, label)
            label = None if label in ROLES else label
        rows.append(replace(row, disease=label))
    return Manifest(tuple(rows), common_classes(rows, codings), codings, manifest.origins)


def read_names(path: Path) -> dict[str, dict[str, str]]:
    """Return the content of a file of class names.

    Raises:
        DataError: If it is not such a file.
    """
    try:
        tree: Any = load_yaml(read_text(path, MAX_YAML_BYTES))
        mappings = [tree, *tree.values()] if isinstance(tree, dict) else [tree]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise ValueError("it does not state names under each data set")
        return {
            str(source): {str(name): str(new).strip() for name, new in pairs.items()}
            for source, pairs in tree.items()
        }
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"`{path}` is not a file of class names: {error}.",
            needed="under each data set, lines such as `early_blight: early blight`",
            fix="create one: `plantseg-next data class-names DATA ... --out names.yaml`",
        ) from error


def names_in_words(names: Names) -> str:
    """Return the text of a file of class names."""
    tree = {source: dict(pairs) for source, pairs in names.items()}
    return _HEAD + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def write_names(names: Names, path: Path) -> None:
    """Write a file of class names."""
    write_atomically(path, names_in_words(names).encode())


def _core(name: str, plants: set[str]) -> str:
    tidy = tidy_name(name)
    plant = next((p for p in plants if tidy.startswith(f"{p} ")), "")
    return _alphanumeric(tidy[len(plant) :])


def _alphanumeric(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _differ_by_spelling(one: str, other: str) -> bool:
    """Return whether exactly one pair of words differs, and is similar."""
    words, others = one.split(), other.split()
    if len(words) != len(others):
        return False
    different = [(a, b) for a, b in zip(words, others, strict=True) if a != b]
    if len(different) != 1 or min(map(len, different[0])) < SHORT:
        return False
    return difflib.SequenceMatcher(None, *different[0]).ratio() >= ALIKE


def _refuse_unknown(what: str, name: str, known: list[str]) -> None:
    if name not in known:
        came = f"The file of class names has `{name}`; there is no such {what}."
        raise unknown_name(came, name, known)
