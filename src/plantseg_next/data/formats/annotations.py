"""Rasterizing annotations to masks: common code for the layouts of annotation tools.

Annotations are named areas. They are drawn when the layout is read, one mask file per
image, so the rest of the package reads only mask files and memory does not grow with the
number of annotations. Masks are in a temporary folder, which is removed when the process
ends; a run saves its own copy (``save_rasterized_masks``).

Axes: h row, w column; points are (x, y) in pixels, from the upper left corner of the
upper left pixel.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image
from pycocotools import mask as run_lengths

from plantseg_next.data.formats.coding import read_meanings, role_of
from plantseg_next.data.formats.folders import keys_of, split_of, tidy_name
from plantseg_next.data.formats.index import INDEX_FILE, add_index
from plantseg_next.data.image_io import MAX_PIXELS, read_size
from plantseg_next.data.manifest import (
    Manifest,
    MaskCoding,
    Origin,
    Row,
    Split,
    common_classes,
)
from plantseg_next.errors import DataError
from plantseg_next.files import is_temporary, short_names, temporary_folder

STROKE_PX = 3
"""Width of a drawn scribble or point."""
FAR_SIZES = 10
FAR = f"outlines that extend {FAR_SIZES} times the size of their image beyond it, not used"
BEYOND_PX = 1.0
"""Outlines up to this far beyond their image are not reported: rounding."""

Polygon = Float[np.ndarray, "n 2"]


class Annotation(NamedTuple):
    """One annotation.

    Args:
        name: Name in the file.
        polygons: Outlines; the area is their union.
        rle: The area as COCO run lengths of the whole image.
        scribbles: Points and lines on it; pixels around them are not annotated.
    """

    name: str
    polygons: tuple[Polygon, ...] = ()
    rle: Mapping[str, Any] | None = None
    scribbles: tuple[Polygon, ...] = ()


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotations.

    Args:
        image: The file.
        annotations: Empty: annotated, without areas. ``None``: not annotated.
        size_hw: Size of the annotated image; default: that of the upright image.
        split: Stated split.
        disease: Image-level label.
    """

    image: Path
    annotations: Sequence[Annotation] | None
    size_hw: tuple[int, int] | None = None
    split: Split | None = None
    disease: str | None = None


def rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    """Return the outline of an upright rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def ellipse(x: float, y: float, rx: float, ry: float) -> Polygon:
    """Return the outline of an upright ellipse, with 64 corners."""
    angle = np.arange(64) * (2 * np.pi / 64)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def patch(
    mask: Bool[np.ndarray, "h w"], left: int, top: int, size_hw: tuple[int, int]
) -> Mapping[str, Any]:
    """Return the run lengths of a small mask at its position in the image."""
    whole = np.zeros(size_hw, np.uint8, order="F")
    mask = mask[max(0, -top) :, max(0, -left) :]
    top, left = max(0, top), max(0, left)
    visible = mask[: max(0, size_hw[0] - top), : max(0, size_hw[1] - left)]
    whole[top : top + visible.shape[0], left : left + visible.shape[1]] = visible
    encoded: Mapping[str, Any] = run_lengths.encode(whole)
    return encoded


def read_annotations(
    annotated: Sequence[AnnotatedImage],
    root: Path,
    source: str,
    origin: Origin,
    *,
    names: Sequence[str] = (),
    classes: Path | None = None,
) -> Manifest:
    """Return the manifest of annotated images, with their masks drawn.

    Names such as leaf, background or ignore denote that role; others are lesion classes.
    Small areas are drawn over large ones, lesions over the leaf. If an image has only
    points and scribbles, its other pixels are ``IGNORE`` and its split is "train".

    Args:
        annotated: The images.
        root: The folder that keys are relative to.
        source: Name of the data set.
        origin: Origin of the layout, to be completed here.
        names: Names in the order of their ids, if the layout states one.
        classes: A class file with the meaning of each name.

    Raises:
        DataError: If the class file lacks a name, or the index is invalid.
    """
    used = Counter(area.name for item in annotated for area in item.annotations or ())
    values = {n: i + 1 for i, n in enumerate(dict.fromkeys([*names, *used]))}
    meaning, coding_origin = _meanings(values, used, classes)
    ignore, unmarked = _spare_values(len(values))
    coding = MaskCoding(
        {
            0: "background",
            **{values[name]: meant for name, meant in meaning.items()},
            unmarked: "no lesion",
            ignore: "ignore",
        },
        "leaf" in meaning.values(),
        coding_origin,
    )
    folder = temporary_folder() / source
    keys = keys_of([item.image for item in annotated], root)
    rows, trouble = [], Counter[str]()
    for item in annotated:
        row = Row(keys[item.image], item.image, source, split=item.split)
        if item.disease:
            row = replace(row, disease=tidy_name(item.disease))
        if item.annotations is not None:
            fill = _fill_value(item.annotations, meaning, coding, ignore, unmarked)
            size_hw = _size_of(item)
            mask, problems = rasterize(item.annotations, size_hw, values, meaning, fill)
            trouble += problems
            row = replace(row, mask=_write(mask, folder / short_names(row.key)))
            row = replace(row, split="train") if fill == ignore else row
        rows.append(row)
    missing: list[str] = []
    if (root / INDEX_FILE).is_file():
        rows, missing = add_index(rows, root / INDEX_FILE)
    codings = {source: coding} if any(row.mask for row in rows) else {}
    origin = replace(
        origin,
        names_without_image=(*origin.names_without_image, *missing),
        doubts=(*origin.doubts, *in_words(trouble)),
    )
    return Manifest(tuple(rows), common_classes(rows, codings), codings, {source: origin})


def every(
    images: Sequence[Path], annotated: Mapping[Path, AnnotatedImage], root: Path
) -> list[AnnotatedImage]:
    """Return each image with its annotations, if any, and the split of its folder."""
    return [
        replace(
            annotated.get(image, AnnotatedImage(image, None)),
            split=split_of(image.relative_to(root)),
        )
        for image in images
    ]


def in_words(trouble: Mapping[str, int]) -> tuple[str, ...]:
    """Return the counts as text, for ``Origin.doubts``."""
    return tuple(f"{what}: {n}" for what, n in trouble.items())


def rasterize(
    areas: Sequence[Annotation],
    size_hw: tuple[int, int],
    values: Mapping[str, int],
    meaning: Mapping[str, str],
    ground: int = 0,
) -> tuple[UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"], Counter[str]]:
    """Return the mask of an image, and the counts of problems with its areas.

    Polygons are filled by the rule of the COCO tools, which preserves their area; a rim
    of half a pixel would enlarge small lesions.

    Args:
        areas: Areas to draw.
        size_hw: Rows and columns.
        values: Mask value of every name.
        meaning: Meaning of every name.
        ground: Mask value outside all areas.
    """
    trouble = Counter[str]()
    mask = np.full(size_hw, ground, np.uint8 if ground < 256 else np.uint16)
    if max([ground, *values.values()]) > 255:
        mask = mask.astype(np.uint16)
    rank = {"leaf": 0, "background": 1, "no lesion": 1, "ignore": 3}
    encoded = []
    for area in areas:
        runs, problems = _rle(area, size_hw)
        trouble += problems
        if runs is not None:
            encoded.append((area.name, runs))
    # Large areas first. Consecutive areas of one name are drawn together.
    encoded.sort(key=lambda e: (rank.get(meaning[e[0]], 2), -int(run_lengths.area(e[1]))))
    for name, same in groupby(encoded, key=lambda e: e[0]):
        inside = run_lengths.decode(run_lengths.merge([runs for _, runs in same]))
        mask[inside.astype(bool)] = values[name]
    for area in areas:
        for stroke in _near(area.scribbles, size_hw, trouble):
            points = np.floor(stroke).astype(np.int32)
            line = np.concatenate([points, points[-1:]])  # a single point is a short line
            cv2.polylines(mask, [line], False, values[area.name], STROKE_PX)
    return mask, trouble


def save_rasterized_masks(manifest: Manifest, folder: Path) -> Manifest:
    """Return the manifest with all masks that this process drew copied into a folder."""
    rows = []
    for row in manifest.rows:
        if row.mask is not None and is_temporary(row.mask):
            path = folder / row.mask.relative_to(temporary_folder())
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.mask.read_bytes())
            row = replace(row, mask=path)  # noqa: PLW2901
        rows.append(row)
    return manifest.only(rows)


def _meanings(
    values: Mapping[str, int], used: Counter[str], classes: Path | None
) -> tuple[dict[str, str], str]:
    """Return the meaning of every name, and the origin of the coding."""
    if classes is None:
        return {name: role_of(name) for name in values}, "by the names of the annotations"
    stated = read_meanings(classes)
    unknown = sorted(name for name in used if tidy_name(name) not in stated)
    if unknown:
        raise DataError(
            f"`{classes}` does not state the meaning of `{unknown[0]}`, the name of "
            f"{used[unknown[0]]} annotations"
            + (f", nor {len(unknown) - 1} other names." if len(unknown) > 1 else "."),
            needed="a line for every name that occurs",
            fix=f"add `{unknown[0]}: {role_of(unknown[0])}`, or another class, "
            "background, leaf or ignore",
        )
    meaning = {name: stated.get(tidy_name(name), "ignore") for name in values}
    return meaning, f"stated in {classes.name}"


def _spare_values(n_names: int) -> tuple[int, int]:
    """Return the mask values of "ignore" and "no lesion"."""
    return (255, 254) if n_names < 254 else (65535, 65534)


def _fill_value(
    areas: Sequence[Annotation],
    meaning: Mapping[str, str],
    coding: MaskCoding,
    ignore: int,
    unmarked: int,
) -> int:
    """Return the mask value outside all areas.

    It is "ignore" if all areas are points and scribbles. If other images of the data set
    have a leaf annotation and this one has none, it is "no lesion", leaf or not.
    """
    if areas and all(area.scribbles for area in areas):
        return ignore
    has_leaf = any(meaning[area.name] == "leaf" for area in areas)
    return unmarked if coding.marks_leaf and not has_leaf else 0


def _size_of(item: AnnotatedImage) -> tuple[int, int]:
    """Return rows and columns of an image as it was annotated.

    Raises:
        DataError: If the size is not valid for an image.
    """
    h, w = item.size_hw or read_size(item.image)
    if not (h > 0 < w and h * w <= MAX_PIXELS):
        raise DataError(
            f"`{item.image}` has {h} rows and {w} columns according to its annotation.",
            needed=f"the size of the image, of at most {MAX_PIXELS:,} pixels",
            fix="correct the height and the width in the annotation file",
        )
    return h, w


def _near(
    lines: Sequence[Polygon], size_hw: tuple[int, int], trouble: Counter[str]
) -> list[Polygon]:
    """Return the lines without points so far outside that drawing exhausts memory."""
    reach = FAR_SIZES * np.array(size_hw[::-1])
    near = [line for line in lines if ((line >= -reach) & (line <= reach)).all()]
    if len(near) < len(lines):
        trouble[FAR] += 1
    return near


def _rle(
    area: Annotation, size_hw: tuple[int, int]
) -> tuple[Mapping[str, Any] | None, Counter[str]]:
    """Return an area as COCO run lengths; ``None`` if it is outside the image."""
    h, w = size_hw
    trouble = Counter[str]()
    parts: list[Mapping[str, Any]] = []
    if area.rle is not None:
        if tuple(area.rle["size"]) != size_hw:
            return None, Counter({"annotations of another size than their image": 1})
        rle = _compressed_rle(area.rle, size_hw)
        if rle is None:
            return None, Counter({"run lengths that do not fill their image": 1})
        parts.append(rle)
    near = _near(area.polygons, size_hw, trouble)
    outlines = [p for p in near if len(p) >= 3]
    if len(outlines) < len(near):
        trouble["outlines of fewer than three points, not used"] += 1
    if outlines:
        corners = np.concatenate(outlines)
        if (corners < -BEYOND_PX).any() or (corners > (w + BEYOND_PX, h + BEYOND_PX)).any():
            trouble["outlines that extend beyond their image, clipped"] += 1
        parts += run_lengths.frPyObjects([p.ravel().tolist() for p in outlines], h, w)
    if not parts:
        return None, trouble
    merged = run_lengths.merge(parts)
    if not run_lengths.area(merged):
        trouble["annotations without a pixel in their image, not used"] += 1
        return None, trouble
    return merged, trouble


def _compressed_rle(
    rle: Mapping[str, Any], size_hw: tuple[int, int]
) -> Mapping[str, Any] | None:
    """Return compressed run lengths, or ``None`` if they do not fit the image size."""
    try:
        compressed: Mapping[str, Any] = (
            run_lengths.frPyObjects(dict(rle), *size_hw)
            if isinstance(rle["counts"], list)
            else dict(rle)
        )
        # If they are too short, the decoder leaves the rest of the memory uninitialized.
        fills = int(run_lengths.decode(compressed).sum()) == int(
            run_lengths.area(compressed)
        )
    except (ValueError, TypeError, OverflowError):
        return None
    return compressed if fills else None


def _write(mask: np.ndarray, path: Path) -> Path:
    path = path.with_name(f"{path.name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path
