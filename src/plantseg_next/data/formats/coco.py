"""COCO: one JSON file per split or batch, with polygons or run lengths.

Lin et al. 2014, arXiv:1405.0312; the format is described at
https://cocodataset.org/#format-data. Read too, where there is one reading: ids as text,
images without a size, one outline without its outer list. The COCO files of the published
PlantSeg have annotations of images of other splits, which are counted and not used, and no
categories, which are named "class N".
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from plantseg_next.data.formats.annotations import (
    IN_SEVERAL_FILES,
    AnnotatedImage,
    in_words,
    read_annotations,
)
from plantseg_next.data.formats.folders import SPLIT_NAMES, FolderFiles, split_of
from plantseg_next.data.formats.names import ImageNames
from plantseg_next.data.formats.numbers import finite_array, whole
from plantseg_next.data.formats.rasterize import Annotation, Polygon
from plantseg_next.data.formats.run_lengths import decode_rle
from plantseg_next.data.manifest import Exif, Manifest, Origin, Split
from plantseg_next.errors import DataError

_BOX = "annotations with a box instead of an outline, not used"


def read_coco(
    files: FolderFiles,
    trees: Mapping[Path, Any],
    source: str,
    classes: Path | None = None,
    exif: Exif | None = None,
) -> Manifest:
    """Return the images of COCO files with their masks drawn.

    An image that is listed without an annotation counts as not annotated, because COCO
    does not distinguish healthy leaves from images not yet annotated. Several files may
    annotate one image. A super-category that labels nothing is no class.

    Args:
        files: The data set.
        trees: Content of its JSON files, each a COCO data set.
        source: Name of the data set.
        classes: A class file with the meaning of each category.
        exif: Which way images were annotated whose size is not stated.

    Raises:
        DataError: If a file is not in the COCO format, contradicts itself or another one,
            or all its images are missing.
        UsageError: If a name fits several images.
    """
    reader = _Reader(files)
    for file, tree in trees.items():
        files.used.add(file)
        try:
            reader.add(file, tree)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"`{file}` is not in the COCO format: {error!r}.",
                needed="images with id and file_name; annotations with image_id, "
                "category_id and segmentation; categories with id and name",
                fix="export it again as COCO 1.0",
            ) from error
    reader.names_of_images.refuse_ambiguous()
    if not reader.items:
        missing, first = reader.names_of_images.missing, next(iter(trees)).name
        raise DataError(
            f"None of the {len(missing)} images of `{first}` is in `{files.root}`; "
            f"the first is `{missing[0] if missing else ''}`.",
            needed="the images in the folder of the file, or in `images`",
            fix="copy them there with the names in the file",
        )
    bare = sum(not (item.areas or item.unusable) for item in reader.items.values())
    if bare:
        what = "images that are listed without an annotation, treated as unlabeled"
        reader.noticed[what] = bare
    if twice := sum(len(item.files) > 1 for item in reader.items.values()):
        reader.noticed[IN_SEVERAL_FILES] = twice
    origin = Origin(
        "COCO: outlines and run lengths",
        (),
        tuple(reader.names_of_images.missing),
        in_words(reader.noticed),
    )
    return read_annotations(
        reader.annotated(),
        files.root,
        source,
        origin,
        names=tuple(reader.class_names),
        classes=classes,
        upright=exif != "as-stored",
    )


@dataclass
class _Item:
    """What the files say about one image."""

    size_hw: tuple[int, int] | None
    split: Split | None
    file: Path
    areas: list[Annotation] = field(default_factory=list)
    unusable: Counter[str] = field(default_factory=Counter)
    files: set[Path] = field(default_factory=set)
    """Files with annotations of the image."""


class _Reader:
    """Collects the annotations of the images of one data set from several files."""

    def __init__(self, files: FolderFiles) -> None:
        self.class_names: dict[str, None] = {}
        self.noticed = Counter[str]()
        self.names_of_images = ImageNames(files.images, files.root)
        self.items: dict[Path, _Item] = {}
        self._images = files.images
        self._root = files.root

    def add(self, file: Path, tree: dict[str, Any]) -> None:
        """Add the content of one file."""
        categories = _categories(file, tree)
        used = {_id(entry.get("category_id")) for entry in tree["annotations"]}
        groups = {str(c.get("supercategory")) for c in tree.get("categories") or []}
        self.class_names |= dict.fromkeys(
            name for i, name in categories.items() if i in used or name not in groups
        )
        items: dict[str, _Item | None] = {}
        for entry in tree["images"]:
            key = _id(entry["id"])
            if items.setdefault(key, item := self._item(entry, file)) is not item:
                raise DataError(
                    f"`{file}` has two images of the id {entry['id']}: one is "
                    f"`{entry['file_name']}`.",
                    needed="one image for each id",
                    fix="export it again, or give one of them another id",
                )
        for entry in tree["annotations"]:
            key = _id(entry["image_id"])
            if key not in items:
                self.noticed["annotations of images that the file does not list"] += 1
            elif (listed := items[key]) is not None:
                listed.files.add(file)
                self._add_area(listed, entry, categories)

    def _item(self, entry: dict[str, Any], file: Path) -> _Item | None:
        """Return the item of a listed image; ``None`` if there is no such image."""
        image = self.names_of_images.find(str(entry["file_name"]), file.parent)
        if image is None:
            return None
        size = (entry.get("height"), entry.get("width"))
        size_hw = None
        if None not in size:
            height, width = (whole(n, "a size", -(2**31)) for n in size)
            size_hw = height, width
        split = _split_of(image, file, self._root)
        known = self.items.setdefault(image, _Item(size_hw, split, file))
        for what, first, second in (
            ("split", known.split, split),
            ("size (rows, columns)", known.size_hw, size_hw),
        ):
            if first and second and first != second:
                raise DataError(
                    f"`{image.relative_to(self._root)}` has the {what} {first} by "
                    f"`{known.file.name}`, and {second} by `{file.name}`.",
                    needed="files that agree about an image",
                    fix="remove it from one of the files",
                )
        known.size_hw, known.split = known.size_hw or size_hw, known.split or split
        return known

    def _add_area(
        self, item: _Item, entry: dict[str, Any], categories: Mapping[str, str]
    ) -> None:
        number = _id(entry.get("category_id"))
        unnamed = "annotations whose category the file does not name"
        if number not in categories and (categories or number == "None"):
            item.unusable[f"{unnamed}, not used"] += 1
            return
        if number not in categories:
            self.noticed[unnamed] += 1
        area = _area(entry, categories.get(number, f"class {number}"))
        if isinstance(area, str):
            item.unusable[area] += 1
        else:
            item.areas.append(area)

    def annotated(self) -> Iterator[AnnotatedImage]:
        """Yield all listed images; those without an annotation as not annotated."""
        for image in self._images:
            if (item := self.items.pop(image, None)) is None:
                yield AnnotatedImage(
                    image, None, None, split_of(image.relative_to(self._root))
                )
                continue
            yield AnnotatedImage(
                image, item.areas or None, item.size_hw, item.split, None, item.unusable
            )


def _id(value: object) -> str:
    """Return an id for comparison: 1, 1.0 and "1" are the same one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _categories(file: Path, tree: dict[str, Any]) -> dict[str, str]:
    """Return the name of every category id, in the order of the ids."""
    named: dict[str, str] = {}
    for entry in tree.get("categories") or []:
        name = str(entry["name"])
        if named.setdefault(_id(entry["id"]), name) != name:
            raise DataError(
                f"`{file}` gives the category {entry['id']} two names: "
                f"`{named[_id(entry['id'])]}` and `{name}`.",
                needed="one name for each id",
                fix="export it again, or correct one of the ids",
            )

    def order(key: str) -> tuple[bool, int, str]:
        return not key.isdecimal(), int(key) if key.isdecimal() else 0, key

    return {key: named[key] for key in sorted(named, key=order)}


def _area(entry: dict[str, Any], name: str) -> Annotation | str:
    """Return the area of an annotation, or why it cannot be used."""
    area = entry.get("segmentation")
    if not area:
        return _BOX
    if isinstance(area, dict):
        return Annotation(name, bitmap=partial(decode_rle, area))
    what = f"the outline of annotation {entry.get('id')}"
    rings = area if isinstance(area[0], list) else [area]
    if all(isinstance(ring, list) and len(ring) == 2 for ring in rings) and len(rings) > 2:
        rings = [[number for point in rings for number in point]]  # points as pairs
    polygons: list[Polygon] = []
    for ring in rings:
        if ring and isinstance(ring[0], list):
            numbers = finite_array([n for point in ring for n in point], what)
        else:
            numbers = finite_array(ring, what)
        if len(numbers) % 2:
            return "outlines with an odd number of coordinates, not used"
        polygons.append(numbers.reshape(-1, 2))
    return Annotation(name, tuple(polygons))


def _split_of(image: Path, file: Path, folder: Path) -> Split | None:
    """Return the split named by the folders of the image, or by the file."""
    words = re.split(r"[^a-z]+", file.relative_to(folder).as_posix().lower())
    named = (SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES)
    return split_of(image.relative_to(folder)) or next(named, None)
