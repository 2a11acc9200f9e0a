"""LabelMe: one JSON file for every annotated image.

The program is https://github.com/wkentaro/labelme (GPL-3.0; none of it is used here). Its
shapes are polygons, rectangles, circles, masks, lines and points; the last two are read
as scribbles. Files of versions before 2018 lack the size of the image and the kind of a
shape: the first is read from the image, the second is a polygon. X-AnyLabeling writes the
same files, with further kinds of polygons.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from plantseg_next.data.formats.annotations import AnnotatedImage, read_annotations
from plantseg_next.data.formats.folders import FolderFiles, split_of
from plantseg_next.data.formats.json_trees import read_tree
from plantseg_next.data.formats.names import ImageNames, one_file_each
from plantseg_next.data.formats.numbers import finite_array, whole
from plantseg_next.data.formats.rasterize import (
    Annotation,
    Polygon,
    ellipse,
    rectangle,
)
from plantseg_next.data.formats.run_lengths import decode_png_mask, place
from plantseg_next.data.manifest import Exif, Manifest, Origin
from plantseg_next.errors import DataError

_SCRIBBLES = ("point", "points", "line", "linestrip")
_POLYGONS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")
_MANY = 1 << 31
_N_POINTS = {
    **dict.fromkeys(_POLYGONS, range(1, _MANY)),
    **dict.fromkeys(_SCRIBBLES, range(1, _MANY)),
    "rectangle": (2, 4),  # 4 of X-AnyLabeling: the corners, perhaps rotated
    "circle": (2,),
    "mask": range(1, 3),
}
"""The kinds of shapes that are read, with the possible numbers of points."""


def read_labelme(
    files: FolderFiles,
    trees: Sequence[Path],
    source: str,
    classes: Path | None = None,
    exif: Exif | None = None,
) -> Manifest:
    """Return images with masks drawn from LabelMe files.

    An image without a file is not annotated; a file without shapes means no lesions. A
    file is of the image of its own name, or else of the one that its ``imagePath`` names.

    Args:
        files: The data set.
        trees: Its LabelMe files.
        source: Name of the data set.
        classes: A class file with the meaning of each label.
        exif: Which way images were annotated whose size is not stated.

    Raises:
        DataError: If a file is not in the LabelMe format.
        UsageError: If a file fits several images, or an image several files.
    """
    names = ImageNames(files.images, files.root)
    files.used.update(trees)
    found = ((file, _image_of(file, names)) for file in trees)
    file_of = one_file_each(
        found, files.root, "annotate", "one LabelMe file for each image"
    )
    names.refuse_ambiguous()
    origin = Origin("LabelMe: one JSON file per image", (), tuple(names.missing))
    annotated = _annotated(files, file_of, names)
    return read_annotations(
        annotated,
        files.root,
        source,
        origin,
        classes=classes,
        upright=exif != "as-stored",
    )


def _image_of(file: Path, names: ImageNames) -> Path | None:
    """Return the image of a file by its name, or else by what it states."""
    own = names.candidates(file.stem, file.parent)
    if len(own) == 1:
        return own[0]
    image = _stated_image(read_tree(file), file, names)
    if image is not None and (not own or image in own):
        return image
    return names.find(file.stem, file.parent)


def _stated_image(tree: dict[str, Any], file: Path, names: ImageNames) -> Path | None:
    """Return the image that a file states, if there is one of that name."""
    stated = tree.get("imagePath")
    images = names.candidates(stated, file.parent) if isinstance(stated, str) else []
    return images[0] if len(images) == 1 else None


def _annotated(
    files: FolderFiles, file_of: Mapping[Path, Path], names: ImageNames
) -> Iterator[AnnotatedImage]:
    for image in files.images:
        split = split_of(image.relative_to(files.root))
        file = file_of.get(image)
        if file is None:
            yield AnnotatedImage(image, None, None, split)
            continue
        try:
            tree = read_tree(file)
            size = (tree.get("imageHeight"), tree.get("imageWidth"))
            size_hw = None
            if None not in size:
                size_hw = whole(size[0], "the height", 1), whole(size[1], "the width", 1)
            areas: list[Annotation] = []
            unusable = Counter[str]()
            for shape in tree["shapes"]:
                area = _area(shape)
                if isinstance(area, str):
                    unusable[area] += 1
                else:
                    areas.append(area)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"`{file}` is not in the LabelMe format: {error!r}.",
                needed="shapes with label, points and shape_type; imageHeight, imageWidth",
                fix="open the image in LabelMe and save it again, or remove the file",
            ) from error
        noticed = Counter[str]()
        if _stated_image(tree, file, names) not in {None, image}:
            noticed["files whose imagePath names another image; their own name counts"] = 1
        yield AnnotatedImage(image, areas, size_hw, split, None, unusable, noticed)


def _area(shape: dict[str, Any]) -> Annotation | str:
    """Return the area of a shape, or why it cannot be used."""
    name, kind = shape["label"], shape.get("shape_type") or "polygon"
    if not isinstance(name, str | int) or not str(name).strip():
        return "shapes without a label, not used"
    if kind not in _N_POINTS:
        return f"shapes of the kind {kind}, not used"
    numbers = finite_array([n for point in shape["points"] for n in point], "a shape")
    if len(numbers) != 2 * len(shape["points"]):
        return "shapes whose points are not pairs of numbers, not used"
    points = numbers.reshape(-1, 2)
    if len(points) not in _N_POINTS[kind]:
        return f"shapes of the kind {kind} with {len(points)} points, not used"
    return _annotation(str(name), kind, points, shape)


def _annotation(name: str, kind: str, points: Polygon, shape: dict[str, Any]) -> Annotation:
    if kind in _SCRIBBLES:
        return Annotation(name, scribbles=(points,))
    if kind == "mask":
        left, top = (round(v) for v in points[0])

        def bitmap(size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
            part = decode_png_mask(shape.get("mask"))
            if part.shape == size_hw:
                return part
            across = np.ptp(points, axis=0)[::-1] + 1
            if len(points) == 2 and (abs(across - part.shape) > 1).any():
                raise ValueError("a mask of another size than its box")
            return place(part, left, top, size_hw)

        return Annotation(name, bitmap=bitmap)
    if kind == "circle":
        (x, y), rim = points[0], points[1] - points[0]
        radius = float(np.hypot(*rim))
        points = ellipse(x, y, radius, radius)
    elif kind == "rectangle" and len(points) == 2:
        points = rectangle(*points.min(0), *points.max(0))
    return Annotation(name, (points,))
