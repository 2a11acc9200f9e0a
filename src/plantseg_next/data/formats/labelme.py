"""LabelMe: one JSON file next to every annotated image.

The program is https://github.com/wkentaro/labelme (GPL-3.0; none of it is used here). Its
shapes are polygons, rectangles, circles, masks, lines and points; the last two are read
as scribbles.
"""

import base64
import binascii
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from plantseg_next.data.formats.annotations import (
    AnnotatedImage,
    Annotation,
    ellipse,
    every,
    in_words,
    patch,
    read_annotations,
    rectangle,
)
from plantseg_next.data.formats.folders import same_name, unique_names
from plantseg_next.data.manifest import Manifest, Origin
from plantseg_next.errors import DataError


def is_labelme(tree: object) -> bool:
    """Return whether the content of a JSON file is in the LabelMe format."""
    return isinstance(tree, dict) and isinstance(tree.get("shapes"), list)


def read_labelme(
    folder: Path,
    images: Sequence[Path],
    trees: Mapping[Path, Any],
    source: str,
    classes: Path | None = None,
) -> Manifest:
    """Return images with masks drawn from LabelMe files.

    An image without a file is not annotated; a file without shapes means no lesions.

    Args:
        folder: The data set.
        images: All images in it.
        trees: Content of its JSON files.
        source: Name of the data set.
        classes: A class file with the meaning of each label.

    Raises:
        DataError: If a file is not in the LabelMe format.
    """
    trouble = Counter[str]()
    by_place = {(p.parent, same_name(p.name)): p for p in images}
    anywhere = unique_names(images, same_name)
    annotations: dict[Path, AnnotatedImage] = {}
    missing = []
    for file, tree in trees.items():
        image = by_place.get((file.parent, file.stem)) or anywhere.get(file.stem)
        if image is None:
            missing.append(file.name)
            continue
        try:
            size_hw = (int(tree["imageHeight"]), int(tree["imageWidth"]))
            areas = []
            for shape in tree["shapes"]:
                area = _area(shape, size_hw)
                if area is None:
                    trouble[f"shapes of the kind {shape.get('shape_type')}, not used"] += 1
                else:
                    areas.append(area)
        except (
            *(ValueError, KeyError, TypeError, IndexError, binascii.Error),
            UnidentifiedImageError,
        ) as error:
            raise DataError(
                f"`{file}` is not in the LabelMe format: {error!r}.",
                needed="shapes with label, points and shape_type; imageHeight, imageWidth",
                fix="open the image in LabelMe and save it again, or remove the file",
            ) from error
        annotations[image] = AnnotatedImage(image, areas, size_hw)
    annotated = every(images, annotations, folder)
    origin = Origin(
        "LabelMe: one JSON file per image", (), tuple(missing), in_words(trouble)
    )
    return read_annotations(annotated, folder, source, origin, classes=classes)


def _area(shape: dict[str, Any], size_hw: tuple[int, int]) -> Annotation | None:
    name = str(shape["label"])
    points = np.asarray(shape["points"], float).reshape(-1, 2)
    match shape.get("shape_type", "polygon"):
        case "polygon":
            return Annotation(name, (points,))
        case "rectangle":
            return Annotation(name, (rectangle(*points.min(0), *points.max(0)),))
        case "circle":
            (x, y), rim = points[0], points[1] - points[0]
            radius = float(np.hypot(*rim))
            return Annotation(name, (ellipse(x, y, radius, radius),))
        case "mask":
            inside = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
            left, top = (round(v) for v in points[0])
            return Annotation(name, rle=patch(inside > 0, left, top, size_hw))
        case "point" | "points" | "line" | "linestrip":
            return Annotation(name, scribbles=(points,))
        case _:
            return None
