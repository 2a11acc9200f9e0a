"""CVAT for images 1.1: one XML file for all images.

The format is described at https://docs.cvat.ai/docs/dataset_management/formats/. CVAT's
"Segmentation mask 1.1" is the Pascal VOC layout, which is read as images and masks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from plantseg_next.data.formats.annotations import (
    AnnotatedImage,
    Annotation,
    ellipse,
    in_words,
    patch,
    read_annotations,
    rectangle,
)
from plantseg_next.data.formats.folders import SPLIT_NAMES, split_of, unique_names
from plantseg_next.data.manifest import Manifest, Origin
from plantseg_next.errors import DataError

HEAD_BYTES = 300
_KINDS = {"polygon", "box", "ellipse", "mask", "polyline", "points"}


def is_cvat(file: Path) -> bool:
    """Return whether an XML file begins like one of CVAT."""
    with file.open("rb") as opened:
        return b"<annotations>" in opened.read(HEAD_BYTES)


def read_cvat(
    folder: Path,
    images: Sequence[Path],
    file: Path,
    source: str,
    classes: Path | None = None,
) -> Manifest:
    """Return images with masks drawn from the shapes of a CVAT file.

    An image that is listed without a shape counts as not annotated, because CVAT lists
    every image of a task. A tag is an image-level label.

    Args:
        folder: The data set.
        images: All images in it.
        file: The XML file of CVAT.
        source: Name of the data set.
        classes: A class file with the meaning of each label.

    Raises:
        DataError: If the file is not in the CVAT format.
    """
    trouble = Counter[str]()
    try:
        tree = ET.parse(file).getroot()  # noqa: S314 - expat limits entity expansion
        names = [label.findtext("name", "") for label in tree.iterfind("meta//label")]
        entries = {}
        for entry in tree.iterfind("image"):
            size_hw = (int(entry.attrib["height"]), int(entry.attrib["width"]))
            areas = []
            for shape in entry:
                if shape.tag == "tag":
                    continue
                if shape.tag in _KINDS:
                    areas.append(_area(shape, size_hw))
                else:
                    trouble[f"shapes of the kind {shape.tag}, not used"] += 1
            entries[entry.attrib["name"]] = (entry, areas, size_hw)
    except (ET.ParseError, LookupError, ValueError) as error:
        raise DataError(
            f"`{file}` is not in the CVAT format: {error!r}.",
            needed="images with name, width and height, and shapes with label and points",
            fix='export the task again as "CVAT for images 1.1"',
        ) from error

    by_path = {p.relative_to(folder).as_posix(): p for p in images}
    by_name = unique_names(images)
    annotated: dict[Path, AnnotatedImage] = {}
    missing = []
    for name, (entry, areas, size_hw) in entries.items():
        image = by_path.get(name) or by_path.get(f"images/{name}")
        image = image or by_name.get(Path(name).name)
        if image is None:
            missing.append(name)
            continue
        tag = entry.find("tag")
        annotated[image] = AnnotatedImage(
            image,
            areas or None,
            size_hw,
            SPLIT_NAMES.get(entry.get("subset", "").lower())
            or split_of(image.relative_to(folder)),
            None if tag is None else tag.get("label"),
        )
    rows = [annotated.get(image, AnnotatedImage(image, None)) for image in images]
    if bare := sum(row.annotations is None for row in rows):
        trouble["images without a shape, treated as unlabeled"] = bare
    origin = Origin("CVAT for images: an XML file", (), tuple(missing), in_words(trouble))
    return read_annotations(rows, folder, source, origin, names=names, classes=classes)


def _area(shape: ET.Element, size_hw: tuple[int, int]) -> Annotation:
    name = shape.attrib["label"]

    def numbers(*names: str) -> list[float]:
        return [float(shape.attrib[name]) for name in names]

    match shape.tag:
        case "polygon":
            return Annotation(name, (_points(shape),))
        case "box":
            return Annotation(name, (rectangle(*numbers("xtl", "ytl", "xbr", "ybr")),))
        case "ellipse":
            return Annotation(name, (ellipse(*numbers("cx", "cy", "rx", "ry")),))
        case "mask":
            return Annotation(name, rle=_painted(shape, size_hw))
        case "points":
            return Annotation(name, scribbles=tuple(_points(shape)[:, None]))
        case _:
            return Annotation(name, scribbles=(_points(shape),))


def _painted(shape: ET.Element, size_hw: tuple[int, int]) -> Mapping[str, Any]:
    """Return a brush mask: row-wise run lengths, beginning with background."""
    left, top, width, height = (
        int(shape.attrib[name]) for name in ("left", "top", "width", "height")
    )
    runs = [int(text) for text in shape.attrib["rle"].split(",")]
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return patch(inside, left, top, size_hw)


def _points(shape: ET.Element) -> np.ndarray:
    pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
    return np.array(pairs, float)
