"""CVAT for images 1.1: one XML file for all pictures.

The format is described at https://docs.cvat.ai/docs/dataset_management/formats/. CVAT's
"Segmentation mask 1.1" is Pascal VOC's layout, and read as pictures and masks.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from plantseg_next.data.layouts.folders import SPLIT_NAMES, split_of
from plantseg_next.data.layouts.outlines import (
    Annotated,
    Area,
    ellipse,
    in_words,
    patch,
    read_outlines,
    rectangle,
)
from plantseg_next.data.manifest import Manifest, Origin
from plantseg_next.errors import DataError

HEAD_BYTES = 300


def is_cvat(file: Path) -> bool:
    """Return whether an XML file begins as CVAT's do."""
    with file.open("rb") as opened:
        return b"<annotations>" in opened.read(HEAD_BYTES)


def read_cvat(
    folder: Path,
    pictures: Sequence[Path],
    file: Path,
    source: str,
    classes: Path | None = None,
) -> Manifest:
    """Return pictures with the masks that CVAT's file outlines.

    A picture that is listed without a shape counts as not annotated: every picture of a
    task is listed. A tag is an image-level label.

    Args:
        folder: The data set.
        pictures: All pictures in it.
        file: CVAT's.
        source: Name of the data set.
        classes: A file that says what each label means.

    Raises:
        DataError: If the file is not as CVAT has it.
    """
    trouble = Counter[str]()
    try:
        tree = ET.parse(file).getroot()  # noqa: S314 - expat bounds what entities expand to
        names = [label.findtext("name", "") for label in tree.iterfind("meta//label")]
        said = {}
        for image in tree.iterfind("image"):
            size_hw = (int(image.attrib["height"]), int(image.attrib["width"]))
            areas = []
            for shape in image:
                if shape.tag == "tag":
                    continue
                read = _SHAPES.get(shape.tag)
                if read is None:
                    trouble[f"shapes of the kind {shape.tag}, not used"] += 1
                else:
                    areas.append(read(shape, size_hw))
            said[image.attrib["name"]] = (image, areas, size_hw)
    except (ET.ParseError, KeyError, ValueError) as error:
        raise DataError(
            f"`{file}` is not as CVAT has it: {error!r}.",
            needed="images with name, width and height, and shapes with label and points",
            fix='export the task again as "CVAT for images 1.1"',
        ) from error

    by_path = {p.relative_to(folder).as_posix(): p for p in pictures}
    count = Counter(p.name for p in pictures)
    by_name = {p.name: p for p in pictures if count[p.name] == 1}
    annotated, missing = [], []
    for name, (image, areas, size_hw) in said.items():
        picture = by_path.get(name) or by_path.get(f"images/{name}")
        picture = picture or by_name.get(Path(name).name)
        if picture is None:
            missing.append(name)
            continue
        tag = image.find("tag")
        annotated.append(
            Annotated(
                picture,
                areas or None,
                size_hw,
                SPLIT_NAMES.get(image.get("subset", "").lower())
                or split_of(picture.relative_to(folder)),
                None if tag is None else tag.get("label"),
            )
        )
    known = {one.picture for one in annotated}
    annotated += [Annotated(picture, None) for picture in pictures if picture not in known]
    bare = sum(one.areas is None for one in annotated)
    if bare:
        trouble["pictures without a shape, taken as unlabelled"] = bare
    origin = Origin("CVAT for images: an XML file", (), tuple(missing), in_words(trouble))
    return read_outlines(
        sorted(annotated, key=lambda one: one.picture),
        folder,
        source,
        origin,
        names=names,
        classes=classes,
    )


def _polygon(shape: ET.Element, size_hw: tuple[int, int]) -> Area:
    del size_hw
    return Area(shape.attrib["label"], (_points(shape),))


def _box(shape: ET.Element, size_hw: tuple[int, int]) -> Area:
    del size_hw
    sides = (float(shape.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
    return Area(shape.attrib["label"], (rectangle(*sides),))


def _ellipse(shape: ET.Element, size_hw: tuple[int, int]) -> Area:
    del size_hw
    numbers = (float(shape.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
    return Area(shape.attrib["label"], (ellipse(*numbers),))


def _mask(shape: ET.Element, size_hw: tuple[int, int]) -> Area:
    """Return a painted mask: run lengths row by row, of what is off first."""
    left, top, width, height = (
        int(shape.attrib[name]) for name in ("left", "top", "width", "height")
    )
    runs = [int(text) for text in shape.attrib["rle"].split(",")]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    inside = flat.reshape(height, width)
    return Area(shape.attrib["label"], rle=patch(inside, left, top, size_hw))


def _stroke(shape: ET.Element, size_hw: tuple[int, int]) -> Area:
    del size_hw
    points = _points(shape)
    lone = shape.tag == "points"
    return Area(
        shape.attrib["label"], strokes=tuple(points[:, None]) if lone else (points,)
    )


def _points(shape: ET.Element) -> np.ndarray:
    pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
    return np.array(pairs, float)


_SHAPES: dict[str, Callable[[ET.Element, tuple[int, int]], Area]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
    "polyline": _stroke,
    "points": _stroke,
}
