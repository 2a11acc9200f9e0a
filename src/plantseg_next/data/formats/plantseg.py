"""The PlantSeg archive: official splits, lesion masks, a table of metadata.

Wei et al. 2026, Scientific Data 13:205, doi 10.1038/s41597-025-06513-4; the files are
Zenodo 10.5281/zenodo.17719108. In a mask, 0 is background and a disease is its
``Index`` in ``Metadata.csv`` plus 1; leaves are not annotated, and no image is healthy.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from plantseg_next.data.formats.coding import read_coding
from plantseg_next.data.formats.folders import (
    FolderFiles,
    keys_of,
    split_of,
    subfolder,
    tidy_name,
)
from plantseg_next.data.formats.image_mask import match_masks
from plantseg_next.data.formats.index import split_named
from plantseg_next.data.formats.numbers import whole
from plantseg_next.data.formats.tables import read_index
from plantseg_next.data.image_io import read_mask
from plantseg_next.data.manifest import (
    MAX_CLASSES,
    Manifest,
    MaskCoding,
    Origin,
    Row,
    common_classes,
)
from plantseg_next.errors import DataError, PlantSegError, UsageError

_COLUMNS = {"name", "index", "plant", "disease"}


def is_plantseg(folder: Path) -> bool:
    """Return whether a folder has the layout of the PlantSeg archive."""
    return _parts(folder) is not None


def read_plantseg(files: FolderFiles, source: str, classes: Path | None = None) -> Manifest:
    """Return the images of the archive in their official splits.

    The class of an index is the most frequent name of its rows; 12 rows of the published
    table have an index that differs from their mask, and the mask is correct. An index
    without rows is named "class N". An image with two different rows is read as if it had
    none.

    Args:
        files: The archive: ``images``, ``annotations`` and ``Metadata.csv``.
        source: Name of the data set.
        classes: A class file that takes precedence over the table.

    Raises:
        DataError: If the table lacks one of its columns, or an index is out of range.
        UsageError: If the folder is not such an archive.
    """
    folder = files.root
    parts = _parts(folder)
    if parts is None:
        raise UsageError(
            f"`{folder}` does not have the layout of the PlantSeg archive.",
            needed="the folders images and annotations, and Metadata.csv",
            fix="unpack the archive again, or let `read_folder` recognize the layout",
        )
    image_root, mask_root, table = parts
    images, masks = files.below(image_root).images, files.below(mask_root).images
    files.used.add(table)
    mask_of = match_masks(images, masks, folder)
    entries, doubts = _entries(table)
    names = _class_names(entries.values(), table)
    not_in_table = [mask for i, mask in mask_of.items() if i.name not in entries]
    _add_missing_names(names, not_in_table)

    rows = []
    for image, key in keys_of(images, image_root).items():
        entry = entries.get(image.name, {})
        index = _index(entry, table)
        split = split_of(image.relative_to(image_root))
        rows.append(
            Row(
                key=key,
                image=image,
                source=source,
                mask=mask_of.get(image),
                split=split or split_named(entry.get("split", ""), table),
                disease=None if index is None else names[index],
                plant=tidy_name(entry.get("plant", "")) or None,
                stated=entry,
            )
        )
    coding = read_coding(classes) if classes else _coding(names)
    used, present = set(mask_of.values()), {image.name for image in images}
    origin = Origin(
        "PlantSeg archive: official splits, one disease per image",
        tuple(str(mask) for mask in masks if mask not in used),
        tuple(name for name in entries if name not in present),
        doubts,
    )
    codings = {source: coding}
    return Manifest(tuple(rows), common_classes(rows, codings), codings, {source: origin})


def _parts(folder: Path) -> tuple[Path, Path, Path] | None:
    images = subfolder(folder, ["images"])
    masks = subfolder(folder, ["annotations"])
    tables = [p for p in folder.iterdir() if p.name.lower() == "metadata.csv"]
    return (images, masks, tables[0]) if images and masks and tables else None


def _entries(table: Path) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Return the row of each name, and the doubts about names with different rows."""
    rows = read_index(table)
    if not rows or not rows[0].keys() >= _COLUMNS:
        raise DataError(
            f"`{table}` has the columns {', '.join(rows[0]) if rows else 'none'}.",
            needed="the columns Name, Index, Plant and Disease of the PlantSeg archive",
            fix="copy the file from the archive again (Zenodo 17719108)",
        )
    entries: dict[str, dict[str, str]] = {}
    twice = {r["name"] for r in rows if entries.setdefault(r["name"], r) != r}
    if not twice:
        return entries, ()
    what = "images with two different rows in the table, read as if they had none"
    kept = {name: row for name, row in entries.items() if name not in twice}
    return kept, (f"{what}: {len(twice)}, for example {min(twice)}",)


def _index(entry: dict[str, str], table: Path) -> int | None:
    """Return the index of a disease; ``None`` if the row states none."""
    text = entry.get("index", "")
    if not text.isdecimal():
        return None
    try:
        return whole(text, f"the index of {entry['name']}", 0, MAX_CLASSES - 1)
    except ValueError as error:
        raise DataError(
            f"`{table}`: {error}.",
            needed=f"indices of 0 to {MAX_CLASSES - 1}: a mask value is the index plus 1",
            fix="correct it, or copy the file from the archive again (Zenodo 17719108)",
        ) from error


def _class_names(entries: Iterable[dict[str, str]], table: Path) -> dict[int, str]:
    votes: dict[int, Counter[str]] = {}
    for entry in entries:
        if (index := _index(entry, table)) is not None:
            name = _full_name(entry["plant"], entry["disease"])
            votes.setdefault(index, Counter())[name] += 1
    named = {index: names.most_common(1)[0][0] for index, names in votes.items()}
    return {i: named.get(i, f"class {i}") for i in range(max(named, default=-1) + 1)}


def _full_name(plant: str, disease: str) -> str:
    plant, disease = tidy_name(plant), tidy_name(disease)
    return disease if disease.startswith(plant) else f"{plant} {disease}"


def _add_missing_names(names: dict[int, str], masks: list[Path]) -> None:
    """Add names for indices that occur in masks but not in the table."""
    for mask in masks:
        try:
            top = int(np.max(read_mask(mask)))
        except PlantSegError:
            continue
        for index in range(len(names), top if top < 255 else 0):
            names[index] = f"class {index}"


def _coding(names: dict[int, str]) -> MaskCoding:
    meaning: dict[int | str, str] = {0: "background"}
    meaning |= {index + 1: name for index, name in names.items()}
    if 255 not in meaning:
        meaning[255] = "ignore"
    return MaskCoding(
        meaning, False, "PlantSeg: a mask value is the Index of Metadata.csv plus 1"
    )
