"""Outlines become masks: what the layouts of annotation tools have in common.

A tool keeps areas under names. They are drawn when the layout is read, a mask an image;
from there on nobody asks whether a mask was a file or an outline, and memory does not grow
with the number of annotations. Masks lie in a temporary folder, which is gone when the
process ends; a run keeps its own (``keep_drawn``).

Axes: h row, w column; points are (x, y) in pixels, from the upper left corner of the
upper left pixel.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
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

STROKE_PX = 3
"""Width of a scribble, and of a point."""
FAR_SIZES = 10
FAR = f"outlines that reach {FAR_SIZES} times an image's size beyond it, not used"
BEYOND_PX = 1.0
"""So far beyond its image, an outline is merely rounded."""

Polygon = Float[np.ndarray, "n 2"]


class Annotation(NamedTuple):
    """One annotation.

    Args:
        name: As the file has it.
        polygons: Outlines; what lies inside any of them belongs to it.
        rle: The area as run lengths of the whole image, as COCO has them.
        scribbles: Points and lines that lie on it: they say nothing of what is around.
    """

    name: str
    polygons: tuple[Polygon, ...] = ()
    rle: Mapping[str, Any] | None = None
    scribbles: tuple[Polygon, ...] = ()


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and what a tool says of it.

    Args:
        image: The file.
        annotations: Empty: looked at, and nothing was there. ``None``: not annotated.
        size_hw: Of the image as it was annotated; by default the upright image's.
        split: As stated.
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
    """Return the outline of an upright ellipse about a center, in 64 corners."""
    turn = np.arange(64) * (2 * np.pi / 64)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)


def patch(
    mask: Bool[np.ndarray, "h w"], left: int, top: int, size_hw: tuple[int, int]
) -> Mapping[str, Any]:
    """Return the run lengths of a small mask at its place in the image."""
    whole = np.zeros(size_hw, np.uint8, order="F")
    mask = mask[max(0, -top) :, max(0, -left) :]
    top, left = max(0, top), max(0, left)
    seen = mask[: max(0, size_hw[0] - top), : max(0, size_hw[1] - left)]
    whole[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
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
    """Return rows whose masks have been drawn.

    A name such as leaf, background or ignore has that role; any other is a lesion class.
    Small areas lie on large ones, lesions on the leaf. An image that has strokes alone
    is ignored beside them, and only learned from.

    Args:
        annotated: The images.
        root: The folder that keys are relative to.
        source: Name of the data set.
        origin: How they were read, as far as the layout knows.
        names: In the order of their ids, as far as the layout states one.
        classes: A file that says what each name means.

    Raises:
        DataError: If the class file leaves out a name, or the index cannot be understood.
    """
    used = Counter(area.name for one in annotated for area in one.annotations or ())
    values = {n: i + 1 for i, n in enumerate(dict.fromkeys([*names, *used]))}
    meaning, known_by = _meanings(values, used, classes)
    ignore, unmarked = _spare_values(len(values))
    coding = MaskCoding(
        {
            0: "background",
            **{values[name]: meant for name, meant in meaning.items()},
            unmarked: "no lesion",
            ignore: "ignore",
        },
        "leaf" in meaning.values(),
        known_by,
    )
    folder = Path(_drawn_here().name) / source
    keys = keys_of([one.image for one in annotated], root)
    rows, trouble = [], Counter[str]()
    for one in annotated:
        row = Row(keys[one.image], one.image, source, split=one.split)
        if one.disease:
            row = replace(row, disease=tidy_name(one.disease))
        if one.annotations is not None:
            ground = _ground(one.annotations, meaning, coding, ignore, unmarked)
            size_hw = _size_of(one)
            values_hw, found = rasterize(one.annotations, size_hw, values, meaning, ground)
            trouble += found
            row = replace(row, mask=_write(values_hw, folder / row.key))
            row = replace(row, split="train") if ground == ignore else row
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
    images: Sequence[Path], said: Mapping[Path, AnnotatedImage], root: Path
) -> list[AnnotatedImage]:
    """Return what is said of each image, in the split of its folder."""
    return [
        replace(
            said.get(image, AnnotatedImage(image, None)),
            split=split_of(image.relative_to(root)),
        )
        for image in images
    ]


def in_words(trouble: Mapping[str, int]) -> tuple[str, ...]:
    """Return what was counted, for ``Origin.doubts``."""
    return tuple(f"{what}: {n}" for what, n in trouble.items())


def rasterize(
    areas: Sequence[Annotation],
    size_hw: tuple[int, int],
    values: Mapping[str, int],
    meaning: Mapping[str, str],
    ground: int = 0,
) -> tuple[UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"], Counter[str]]:
    """Return the mask of an image, and what was wrong with its areas.

    A pixel belongs to an outline by the rule of COCO's own tools, which keeps the area:
    there is no rim of half pixels, which would make small lesions larger.

    Args:
        areas: To draw.
        size_hw: Rows and columns.
        values: Of every name.
        meaning: Of every name.
        ground: The value where no area is.
    """
    trouble = Counter[str]()
    mask = np.full(size_hw, ground, np.uint8 if ground < 256 else np.uint16)
    if max([ground, *values.values()]) > 255:
        mask = mask.astype(np.uint16)
    rank = {"leaf": 0, "background": 1, "no lesion": 1, "ignore": 3}
    encoded = []
    for area in areas:
        runs, wrong = _rle(area, size_hw)
        trouble += wrong
        if runs is not None:
            encoded.append((area.name, runs))
    # Large ones first. Neighbors of one name are painted together.
    encoded.sort(key=lambda e: (rank.get(meaning[e[0]], 2), -int(run_lengths.area(e[1]))))
    for name, same in groupby(encoded, key=lambda one: one[0]):
        inside = run_lengths.decode(run_lengths.merge([runs for _, runs in same]))
        mask[inside.astype(bool)] = values[name]
    for area in areas:
        for stroke in _near(area.scribbles, size_hw, trouble):
            points = np.floor(stroke).astype(np.int32)
            line = np.concatenate([points, points[-1:]])  # a point alone is a short line
            cv2.polylines(mask, [line], False, values[area.name], STROKE_PX)
    return mask, trouble


def save_rasterized_masks(manifest: Manifest, folder: Path) -> Manifest:
    """Return the manifest with every mask that was drawn here moved into a folder."""
    if not _drawn_here.cache_info().currsize:
        return manifest  # nothing was drawn
    here = Path(_drawn_here().name)
    rows = []
    for row in manifest.rows:
        if row.mask is not None and row.mask.is_relative_to(here):
            path = folder / row.mask.relative_to(here)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.mask.read_bytes())
            row = replace(row, mask=path)  # noqa: PLW2901
        rows.append(row)
    return manifest.only(rows)


@cache
def _drawn_here() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="plantseg-next-")


def _meanings(
    values: Mapping[str, int], used: Counter[str], classes: Path | None
) -> tuple[dict[str, str], str]:
    """Return what every name means, and how that is known."""
    if classes is None:
        return {name: role_of(name) for name in values}, "by the names of the annotations"
    stated = read_meanings(classes)
    unknown = sorted(name for name in used if tidy_name(name) not in stated)
    if unknown:
        raise DataError(
            f"`{classes}` does not say what `{unknown[0]}` means, which "
            f"{used[unknown[0]]} annotations are called"
            + (f", nor {len(unknown) - 1} other names." if len(unknown) > 1 else "."),
            needed="a line for every name that occurs",
            fix=f"add `{unknown[0]}: {role_of(unknown[0])}`, or another class, "
            "background, leaf or ignore",
        )
    meaning = {name: stated.get(tidy_name(name), "ignore") for name in values}
    return meaning, f"stated in {classes.name}"


def _spare_values(n_names: int) -> tuple[int, int]:
    """Return the values of "ignore" and of "no lesion, whatever it is"."""
    return (255, 254) if n_names < 254 else (65535, 65534)


def _ground(
    areas: Sequence[Annotation],
    meaning: Mapping[str, str],
    coding: MaskCoding,
    ignore: int,
    unmarked: int,
) -> int:
    """Return what lies where no area is: nothing is said of it where strokes stand alone.

    Where others of the data set outline the leaf and this image does not, its ground is
    no lesion, and perhaps leaf.
    """
    if areas and all(area.scribbles for area in areas):
        return ignore
    has_leaf = any(meaning[area.name] == "leaf" for area in areas)
    return unmarked if coding.marks_leaf and not has_leaf else 0


def _size_of(one: AnnotatedImage) -> tuple[int, int]:
    """Return rows and columns of an image as it was annotated.

    Raises:
        DataError: If no image is of that size.
    """
    h, w = one.size_hw or read_size(one.image)
    if not (h > 0 < w and h * w <= MAX_PIXELS):
        raise DataError(
            f"`{one.image}` has {h} rows and {w} columns, says its annotation.",
            needed=f"the size of the image, of at most {MAX_PIXELS:,} pixels",
            fix="mend the height and the width in that file",
        )
    return h, w


def _near(
    lines: Sequence[Polygon], size_hw: tuple[int, int], trouble: Counter[str]
) -> list[Polygon]:
    """Return those of which no point is so far that drawing would take all memory."""
    reach = FAR_SIZES * np.array(size_hw[::-1])
    near = [line for line in lines if ((line >= -reach) & (line <= reach)).all()]
    if len(near) < len(lines):
        trouble[FAR] += 1
    return near


def _rle(
    area: Annotation, size_hw: tuple[int, int]
) -> tuple[Mapping[str, Any] | None, Counter[str]]:
    """Return an area in COCO's run lengths; ``None`` if none of it is in the image."""
    h, w = size_hw
    trouble = Counter[str]()
    parts: list[Mapping[str, Any]] = []
    if area.rle is not None:
        if tuple(area.rle["size"]) != size_hw:
            return None, Counter({"annotations of another size than their image": 1})
        whole = _whole(area.rle, size_hw)
        if whole is None:
            return None, Counter({"run lengths that do not fill their image": 1})
        parts.append(whole)
    near = _near(area.polygons, size_hw, trouble)
    outlines = [p for p in near if len(p) >= 3]
    if len(outlines) < len(near):
        trouble["outlines of fewer than three points, not used"] += 1
    if outlines:
        corners = np.concatenate(outlines)
        if (corners < -BEYOND_PX).any() or (corners > (w + BEYOND_PX, h + BEYOND_PX)).any():
            trouble["outlines that reach beyond their image, cut off there"] += 1
        parts += run_lengths.frPyObjects([p.ravel().tolist() for p in outlines], h, w)
    if not parts:
        return None, trouble
    merged = run_lengths.merge(parts)
    if not run_lengths.area(merged):
        trouble["annotations without a pixel in their image, not used"] += 1
        return None, trouble
    return merged, trouble


def _whole(rle: Mapping[str, Any], size_hw: tuple[int, int]) -> Mapping[str, Any] | None:
    """Return run lengths compressed, ``None`` if they are not those of such an image."""
    try:
        found: Mapping[str, Any] = (
            run_lengths.frPyObjects(dict(rle), *size_hw)
            if isinstance(rle["counts"], list)
            else dict(rle)
        )
        # Where they end too soon, the decoder leaves the rest as memory happens to be.
        fills = int(run_lengths.decode(found).sum()) == int(run_lengths.area(found))
    except (ValueError, TypeError, OverflowError):
        return None
    return found if fills else None


def _write(mask: np.ndarray, path: Path) -> Path:
    path = path.with_name(f"{path.name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path
