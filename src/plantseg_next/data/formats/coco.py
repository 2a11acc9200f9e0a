"""COCO: one JSON file a split, with polygons or run lengths.

Lin et al. 2014, arXiv:1405.0312; the format is described at
https://cocodataset.org/#format-data. The COCO files of the published PlantSeg hold
annotations of images of other splits and no categories: the former are counted and left
out, the latter become "class N".
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
    """Return whether what a JSON file holds is a COCO data set."""
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

    An image that is listed and has no annotation counts as not annotated: nobody can
    tell a healthy leaf from one that was not looked at. Several files may speak of one
    image.

    Args:
        folder: The data set.
        images: All images in it.
        trees: What its JSON files hold, each a COCO data set.
        source: Name of the data set.
        classes: A file that says what each category means.

    Raises:
        DataError: If a file is not as COCO has it, or none of its images is there.
    """
    reader = _Reader(folder, images)
    for file, tree in trees.items():
        try:
            reader.take(file, tree)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"`{file}` is not as COCO has it: {error!r}.",
                needed="images with id, file_name, height and width; annotations with "
                "image_id, category_id and segmentation; categories with id and name",
                fix="export it again as COCO 1.0",
            ) from error
    annotated = reader.annotated()
    if not annotated:
        missing, first = reader.missing, next(iter(trees)).name
        raise DataError(
            f"None of the {len(missing)} images of `{first}` is in `{folder}`; "
            f"the first is called `{missing[0] if missing else ''}`.",
            needed="the images beside the file, or in `images`",
            fix="copy them there under the names that the file has",
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
    """Gather what several files say of the images of one data set."""

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        self.names: dict[str, None] = {}
        self.missing: list[str] = []
        self.trouble = Counter[str]()
        self._folder = folder
        self._places = _Places(folder, images)
        self._said: dict[Path, AnnotatedImage] = {}

    def take(self, file: Path, tree: dict[str, Any]) -> None:
        """Take in one file."""
        categories = {int(c["id"]): str(c["name"]) for c in tree.get("categories", [])}
        self.names |= dict.fromkeys(categories[i] for i in sorted(categories))
        areas: dict[Any, list[Annotation]] = {image["id"]: [] for image in tree["images"]}
        for one in tree["annotations"]:
            if one["image_id"] not in areas:
                self.trouble["annotations of images that the file does not list"] += 1
                continue
            number = int(one["category_id"])
            if number not in categories:
                self.trouble["annotations whose category the file does not name"] += 1
            area = _area(one, categories.get(number, f"class {number}"))
            if area is None:
                self.trouble["annotations that are a box and no outline, not used"] += 1
            else:
                areas[one["image_id"]].append(area)
        for image in tree["images"]:
            self._take_image(image, areas[image["id"]], file)

    def _take_image(
        self, entry: dict[str, Any], areas: list[Annotation], file: Path
    ) -> None:
        name = str(entry["file_name"])
        image = self._places.find(name, file)
        if image is None:
            self.missing.append(name)
            return
        earlier = self._said.get(image)
        self._said[image] = AnnotatedImage(
            image,
            [*((earlier and earlier.annotations) or ()), *areas],
            (int(entry["height"]), int(entry["width"])),
            _split_of(image, file, self._folder),
        )

    def annotated(self) -> list[AnnotatedImage]:
        """Return every image; those without an annotation as not annotated."""
        found = [self._said[image] for image in sorted(self._said)]
        if bare := sum(not one.annotations for one in found):
            what = "images that are listed without an annotation, taken as unlabeled"
            self.trouble[what] = bare
        return [one if one.annotations else replace(one, annotations=None) for one in found]


def _area(annotation: dict[str, Any], name: str) -> Annotation | None:
    found = annotation.get("segmentation")
    if annotation.get("iscrowd") and not found:
        return None
    if isinstance(found, dict):
        size = [int(n) for n in found["size"]]
        return Annotation(name, rle={"size": size, "counts": found["counts"]})
    if not found:
        return None
    polygons = [np.asarray(p, float)[: len(p) // 2 * 2].reshape(-1, 2) for p in found]
    return Annotation(name, tuple(polygons))


class _Places:
    """Find images by the name that a COCO file gives them."""

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        self._folder = folder
        self._known = set(images)
        self._by_name = unique_names(images)

    def find(self, name: str, file: Path) -> Path | None:
        """Return the image, beside the file or anywhere if its name is unique."""
        relative = Path(name.replace("\\", "/"))
        near = file.parent
        for place in (near, near / "images", self._folder, self._folder / "images"):
            if (path := place / relative) in self._known:
                return path
        return self._by_name.get(relative.name)


def _split_of(image: Path, file: Path, folder: Path) -> Split | None:
    """Return the split by the folders of the image, or by the name of the file."""
    words = re.split(r"[^a-z]+", file.relative_to(folder).as_posix().lower())
    named = (SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES)
    return split_of(image.relative_to(folder)) or next(named, None)
