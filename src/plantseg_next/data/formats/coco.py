"""COCO: one JSON file per split, with polygons or run lengths.

Lin et al. 2014, arXiv:1405.0312; the format is described at
https://cocodataset.org/#format-data. The COCO files of the published PlantSeg have
annotations of images of other splits, which are counted and not used, and no categories,
which are named "class N".
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plantseg_next.data.formats.annotations import (
    AnnotatedImage,
    Annotation,
    in_words,
    read_annotations,
)
from plantseg_next.data.formats.folders import (
    SPLIT_NAMES,
    split_of,
    unique_names,
)
from plantseg_next.data.manifest import Manifest, Origin, Split
from plantseg_next.errors import DataError


def is_coco(tree: object) -> bool:
    """Return whether the content of a JSON file is a COCO data set."""
    return isinstance(tree, dict) and all(
        isinstance(tree.get(name), list) for name in ("images", "annotations")
    )


def read_coco(
    folder: Path,
    images: Sequence[Path],
    trees: Mapping[Path, Any],
    source: str,
    classes: Path | None = None,
) -> Manifest:
    """Return the images of COCO files with their masks drawn.

    An image that is listed without an annotation counts as not annotated, because COCO
    does not distinguish healthy leaves from images not yet annotated. Several files may
    annotate one image.

    Args:
        folder: The data set.
        images: All images in it.
        trees: Content of its JSON files, each a COCO data set.
        source: Name of the data set.
        classes: A class file with the meaning of each category.

    Raises:
        DataError: If a file is not in the COCO format, or all its images are missing.
    """
    reader = _Reader(folder, images)
    for file, tree in trees.items():
        try:
            reader.add(file, tree)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"`{file}` is not in the COCO format: {error!r}.",
                needed="images with id, file_name, height and width; annotations with "
                "image_id, category_id and segmentation; categories with id and name",
                fix="export it again as COCO 1.0",
            ) from error
    annotated = reader.annotated()
    if not annotated:
        missing, first = reader.missing, next(iter(trees)).name
        raise DataError(
            f"None of the {len(missing)} images of `{first}` is in `{folder}`; "
            f"the first is `{missing[0] if missing else ''}`.",
            needed="the images in the folder of the file, or in `images`",
            fix="copy them there with the names in the file",
        )
    origin = Origin(
        "COCO: outlines and run lengths",
        (),
        tuple(reader.missing),
        in_words(reader.trouble),
    )
    return read_annotations(
        annotated, folder, source, origin, names=tuple(reader.names), classes=classes
    )


class _Reader:
    """Collect the annotations of the images of one data set from several files."""

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        self.names: dict[str, None] = {}
        self.missing: list[str] = []
        self.trouble = Counter[str]()
        self._folder = folder
        self._finder = _ImageFinder(folder, images)
        self._items: dict[Path, AnnotatedImage] = {}

    def add(self, file: Path, tree: dict[str, Any]) -> None:
        """Add the content of one file."""
        categories = {int(c["id"]): str(c["name"]) for c in tree.get("categories", [])}
        self.names |= dict.fromkeys(categories[i] for i in sorted(categories))
        areas: dict[Any, list[Annotation]] = {image["id"]: [] for image in tree["images"]}
        for entry in tree["annotations"]:
            if entry["image_id"] not in areas:
                self.trouble["annotations of images that the file does not list"] += 1
                continue
            number = int(entry["category_id"])
            if number not in categories:
                self.trouble["annotations whose category the file does not name"] += 1
            area = _area(entry, categories.get(number, f"class {number}"))
            if area is None:
                self.trouble["annotations with a box instead of an outline, not used"] += 1
            else:
                areas[entry["image_id"]].append(area)
        for image in tree["images"]:
            self._add_image(image, areas[image["id"]], file)

    def _add_image(
        self, entry: dict[str, Any], areas: list[Annotation], file: Path
    ) -> None:
        name = str(entry["file_name"])
        image = self._finder.find(name, file)
        if image is None:
            self.missing.append(name)
            return
        earlier = self._items.get(image)
        self._items[image] = AnnotatedImage(
            image,
            [*((earlier and earlier.annotations) or ()), *areas],
            (int(entry["height"]), int(entry["width"])),
            _split_of(image, file, self._folder),
        )

    def annotated(self) -> list[AnnotatedImage]:
        """Return all listed images; those without an annotation as not annotated."""
        items = [self._items[image] for image in sorted(self._items)]
        if bare := sum(not item.annotations for item in items):
            what = "images that are listed without an annotation, treated as unlabeled"
            self.trouble[what] = bare
        return [
            item if item.annotations else replace(item, annotations=None) for item in items
        ]


def _area(annotation: dict[str, Any], name: str) -> Annotation | None:
    area = annotation.get("segmentation")
    if annotation.get("iscrowd") and not area:
        return None
    if isinstance(area, dict):
        size = [int(n) for n in area["size"]]
        return Annotation(name, rle={"size": size, "counts": area["counts"]})
    if not area:
        return None
    polygons = [np.asarray(p, float)[: len(p) // 2 * 2].reshape(-1, 2) for p in area]
    return Annotation(name, tuple(polygons))


class _ImageFinder:
    """Find images by their file names in a COCO file."""

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        self._folder = folder
        self._known = set(images)
        self._by_name = unique_names(images)

    def find(self, name: str, file: Path) -> Path | None:
        """Return the image in the folder of the file, or anywhere if its name is unique."""
        relative = Path(name.replace("\\", "/"))
        parent = file.parent
        for place in (parent, parent / "images", self._folder, self._folder / "images"):
            if (path := place / relative) in self._known:
                return path
        return self._by_name.get(relative.name)


def _split_of(image: Path, file: Path, folder: Path) -> Split | None:
    """Return the split named by the folders of the image, or by the file."""
    words = re.split(r"[^a-z]+", file.relative_to(folder).as_posix().lower())
    named = (SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES)
    return split_of(image.relative_to(folder)) or next(named, None)
