"""CVAT for images 1.1: an XML file for all images of a task.

The format is described at https://docs.cvat.ai/docs/dataset_management/formats/. CVAT's
"Segmentation mask 1.1" is the Pascal VOC layout, which is read as images and masks.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from jaxtyping import Bool

from plantseg_next.data.formats.annotations import (
    IN_SEVERAL_FILES,
    AnnotatedImage,
    in_words,
    read_annotations,
)
from plantseg_next.data.formats.folders import SPLIT_NAMES, FolderFiles, split_of
from plantseg_next.data.formats.names import ImageNames
from plantseg_next.data.formats.numbers import finite, finite_array, whole
from plantseg_next.data.formats.rasterize import Annotation, Polygon, ellipse, rectangle
from plantseg_next.data.formats.run_lengths import decode_row_runs
from plantseg_next.data.manifest import Manifest, Origin, Split
from plantseg_next.errors import DataError


@dataclass
class _Item:
    """What the files say about one image."""

    size_hw: tuple[int, int]
    split: Split | None
    areas: list[Annotation] = field(default_factory=list)
    unusable: Counter[str] = field(default_factory=Counter)
    tags: list[str] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    """Files with annotations of the image."""


def read_cvat(
    files: FolderFiles,
    trees: Mapping[Path, ET.Element],
    source: str,
    classes: Path | None = None,
) -> Manifest:
    """Return images with masks drawn from the shapes of CVAT files.

    An image that is listed without a shape counts as not annotated, because CVAT lists
    every image of a task. A tag is an image-level label. Several files may list an image.

    Args:
        files: The data set.
        trees: Content of its CVAT files.
        source: Name of the data set.
        classes: A class file with the meaning of each label.

    Raises:
        DataError: If a file is not in the CVAT format.
        UsageError: If a name fits several images.
    """
    names = ImageNames(files.images, files.root)
    labels: dict[str, None] = {}
    items: dict[Path, _Item] = {}
    for file, root in trees.items():
        files.used.add(file)
        try:
            labels |= dict.fromkeys(
                label.findtext("name", "") for label in root.iterfind("meta//label")
            )
            for entry in root.iterfind("image"):
                if image := names.find(entry.attrib["name"], file.parent):
                    item = _add(items, image, entry)
                    if len(entry):
                        item.files.add(file)
        except (LookupError, ValueError) as error:
            raise DataError(
                f"`{file}` is not in the CVAT format: {error!r}.",
                needed="images with name, width and height, and shapes with label and "
                "points",
                fix='export the task again as "CVAT for images 1.1"',
            ) from error
    names.refuse_ambiguous()
    noticed = Counter[str]()
    bare = sum(
        image not in items or not (items[image].areas or items[image].unusable)
        for image in files.images
    )
    if bare:
        noticed["images without a shape, treated as unlabeled"] = bare
    if twice := sum(len(item.files) > 1 for item in items.values()):
        noticed[IN_SEVERAL_FILES] = twice
    if several := sum(len(set(item.tags)) > 1 for item in items.values()):
        noticed["images with several different tags, of which the first is used"] = several
    origin = Origin(
        "CVAT for images: an XML file", (), tuple(names.missing), in_words(noticed)
    )
    return read_annotations(
        _annotated(files, items),
        files.root,
        source,
        origin,
        names=tuple(labels),
        classes=classes,
    )


def _add(items: dict[Path, _Item], image: Path, entry: ET.Element) -> _Item:
    """Add what a file says about an image, and return all that is known of it."""
    size_hw = (
        whole(entry.attrib["height"], "the height", 1),
        whole(entry.attrib["width"], "the width", 1),
    )
    split = SPLIT_NAMES.get(entry.get("subset", "").lower())
    item = items.setdefault(image, _Item(size_hw, split))
    if item.size_hw != size_hw:
        raise ValueError(f"`{entry.attrib['name']}` has another size in another file")
    for shape in entry:
        if shape.tag == "tag":
            item.tags.append(shape.attrib["label"])
        elif not shape.get("label"):
            item.unusable["shapes without a label, not used"] += 1
        elif (area := _area(shape, len(item.areas))) is None:
            item.unusable[f"shapes of the kind {shape.tag}, not used"] += 1
        else:
            item.areas.append(area)
    return item


def _annotated(files: FolderFiles, items: Mapping[Path, _Item]) -> Iterator[AnnotatedImage]:
    for image in files.images:
        folder_split = split_of(image.relative_to(files.root))
        if (item := items.get(image)) is None:
            yield AnnotatedImage(image, None, None, folder_split)
            continue
        yield AnnotatedImage(
            image,
            item.areas or None,
            item.size_hw,
            item.split or folder_split,
            next(iter(item.tags), None),
            item.unusable,
        )


def _area(shape: ET.Element, place: int) -> Annotation | None:
    """Return the area of a shape; ``None`` for a kind that is not read.

    Of shapes with the same ``z_order``, CVAT draws later ones over earlier ones.
    """
    name, z = shape.attrib["label"], whole(shape.get("z_order", 0), "z", -(2**31))
    match shape.tag:
        case "polygon" | "box" | "ellipse":
            return Annotation(name, (_outline(shape),), z=z, place=place)
        case "mask":
            bitmap = partial(_painted, dict(shape.attrib))
            return Annotation(name, bitmap=bitmap, z=z, place=place)
        case "points":
            return Annotation(name, scribbles=tuple(_points(shape)[:, None]))
        case "polyline":
            return Annotation(name, scribbles=(_points(shape),))
        case _:
            return None


def _outline(shape: ET.Element) -> Polygon:
    """Return the outline of a shape, rotated as CVAT shows it."""
    if shape.tag == "polygon":
        return _points(shape)
    sides = ("xtl", "ytl", "xbr", "ybr") if shape.tag == "box" else ("cx", "cy", "rx", "ry")
    one, two, three, four = (finite(shape.attrib[name], name) for name in sides)
    degrees = finite(shape.get("rotation", 0), "the rotation")
    draw = rectangle if shape.tag == "box" else ellipse
    return draw(one, two, three, four, degrees)


def _painted(
    attributes: Mapping[str, str], size_hw: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """Return a brush mask: run lengths by rows, beginning with background."""
    missing = {"rle", "left", "top", "width", "height"} - attributes.keys()
    if missing:
        raise ValueError(f"a mask without {', '.join(sorted(missing))}")
    left, top, width, height = (attributes[n] for n in ("left", "top", "width", "height"))
    return decode_row_runs(attributes["rle"], left, top, width, height, size_hw)


def _points(shape: ET.Element) -> Polygon:
    pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"points of {shape.attrib['label']} that are not pairs")
    numbers = finite_array([number for pair in pairs for number in pair], "the points")
    return numbers.reshape(-1, 2)
