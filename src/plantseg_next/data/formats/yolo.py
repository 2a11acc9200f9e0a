"""YOLO segmentation: one text file per image, one polygon per line, in relative units.

The format is described at https://docs.ultralytics.com/datasets/segment/. A line of five
numbers is a box: it does not give the shape of a lesion and is not used.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from plantseg_next.data.formats.annotations import (
    AnnotatedImage,
    Annotation,
    every,
    in_words,
    read_annotations,
)
from plantseg_next.data.formats.folders import find_files, same_name
from plantseg_next.data.image_io import read_size
from plantseg_next.data.manifest import Exif, Manifest, Origin
from plantseg_next.errors import DataError
from plantseg_next.files import read_text
from plantseg_next.yaml_files import load_yaml

NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")
_BOX_NUMBERS = 5


def label_files(folder: Path) -> list[Path]:
    """Return the label files of a YOLO data set; empty if it is another layout.

    They are in folders named ``labels`` and have the names of the images.
    """
    files = [
        path
        for path in find_files(folder, ".txt")
        if "labels" in (part.lower() for part in path.relative_to(folder).parts[:-1])
    ]
    return [path for path in files if path.name != "classes.txt"]


def read_yolo(
    folder: Path,
    images: Sequence[Path],
    files: Sequence[Path],
    source: str,
    classes: Path | None = None,
    exif: Exif | None = None,
) -> Manifest:
    """Return images with masks drawn from YOLO label files.

    An image without a label file is not annotated; an empty file means no lesions.

    Args:
        folder: The data set; its ``data.yaml`` or ``classes.txt`` names the classes.
        images: All images in it.
        files: Label files.
        source: Name of the data set.
        classes: A class file with the meaning of each name.
        exif: "as-stored" if the labels are relative to the images as they are stored,
            before their EXIF orientation is applied.

    Raises:
        DataError: If a line is not in the YOLO format.
    """
    names = _names(folder)
    trouble = Counter[str]()
    by_name: dict[str, list[Path]] = {}
    for image in images:
        by_name.setdefault(same_name(image.name), []).append(image)
    annotations: dict[Path, AnnotatedImage] = {}
    missing = []
    for file in files:
        place = tuple(p for p in file.parent.parts if p.lower() != "labels")
        same = [
            image
            for image in by_name.get(file.stem, ())
            if tuple(p for p in image.parent.parts if p.lower() != "images") == place
        ] or by_name.get(file.stem, [])
        if len(same) != 1:
            missing.append(file.name)
            continue
        size_hw = read_size(same[0], upright=exif != "as-stored")
        areas = []
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if not line.strip():
                continue
            area = _area(line, names, size_hw, f"`{file}`, line {number}")
            if area is None:
                trouble["lines with a box instead of a polygon, not used"] += 1
            else:
                areas.append(area)
        annotations[same[0]] = AnnotatedImage(same[0], areas, size_hw)
    annotated = every(images, annotations, folder)
    origin = Origin(
        "YOLO segmentation: one text file per image",
        (),
        tuple(missing),
        in_words(trouble),
        relative=True,
    )
    return read_annotations(
        annotated,
        folder,
        source,
        origin,
        names=[names[i] for i in sorted(names)],
        classes=classes,
    )


def _names(folder: Path) -> dict[int, str]:
    path = next((folder / n for n in NAMES_FILES if (folder / n).is_file()), None)
    if path is None:
        return {}
    try:
        text = read_text(path)
        if path.suffix == ".txt":
            return dict(enumerate(line.strip() for line in text.splitlines() if line))
        names = load_yaml(text)["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(i): str(name) for i, name in pairs}
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(
            f"`{path}` does not name the classes: {error!r}.",
            needed="`names:` with a name for each number",
            fix="use the file that the annotation tool wrote",
        ) from error


def _area(
    line: str, names: dict[int, str], size_hw: tuple[int, int], where: str
) -> Annotation | None:
    words = line.split()
    try:
        number, values = int(float(words[0])), np.array(words[1:], float)
        if len(words) == _BOX_NUMBERS:
            return None
        points = values.reshape(-1, 2) * (size_hw[1], size_hw[0])
    except ValueError as error:
        raise DataError(
            f"{where}: {line[:60]!r}.",
            needed="the number of a class and pairs of x and y relative to the image size",
            fix="export the labels again for segmentation, or remove the line",
        ) from error
    return Annotation(names.get(number, f"class {number}"), (points,))
