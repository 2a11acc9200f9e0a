"""Statistics of every file of a manifest; each file is decoded once, and then indexed."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import PIL
from jaxtyping import Int, Integer, UInt8

from plantseg_next.data import file_formats, image_io
from plantseg_next.data.image_io import (
    mask_orientation,
    read_header,
    read_image,
    read_mask,
)
from plantseg_next.data.index import Index
from plantseg_next.data.manifest import Channel, Manifest, MaskCoding, Row, digest
from plantseg_next.data.mask_values import decode_mask
from plantseg_next.data.quality import lesion_sizes, near_duplicates
from plantseg_next.data.quality.lesion_sizes import Components, components_of, merged
from plantseg_next.data.quality.near_duplicates import Fingerprint, fingerprint
from plantseg_next.errors import DataError, PlantSegError, is_out_of_memory
from plantseg_next.files import is_temporary, sha256_of
from plantseg_next.structures import IGNORE, NO_LESION, ClassMap, is_lesion

# Decoding releases the GIL; a third thread gains little, because the disk limits.
_THREADS = 2

HARDLY_GREEN = 0.02
"""Fraction of green pixels below which an image may show no plant.

0 to 1.3 % of the images of coffee, potato, rice, cardamom, tomato, soybean and mixed
leaves, diseased ones included, are below it; of non-plant images, 86 %.
"""
SPARSE = 0.05
"""Labeled fraction of an image below which its mask counts as points or scribbles."""
_MIN_SATURATION = 0.15
_SAMPLED_PX = 128


@dataclass(frozen=True)
class ImageFile:
    """What is found in an image file.

    Args:
        sha256: Digest of the file.
        size_hw: Rows and columns of the upright image.
        exif_orientation: EXIF orientation, 1 for none.
        green: Fraction of green pixels.
        print_: Fingerprint of the upright image.
    """

    sha256: str
    size_hw: tuple[int, int]
    exif_orientation: int
    green: float
    print_: Fingerprint

    @classmethod
    def inspect(cls, path: Path) -> "ImageFile":
        """Return what is in a file; errors are those of ``read_image``."""
        image = read_image(path)
        return cls(
            digest(path),
            image.shape[:2],
            read_header(path).exif_orientation,
            green_fraction(image),
            fingerprint(image),
        )

    def to_bytes(self) -> bytes:
        """Return it as the index keeps it: JSON, then the fingerprint."""
        numbers = (self.sha256, self.size_hw, self.exif_orientation, self.green)
        return json.dumps(numbers).encode() + b"\n" + self.print_.to_bytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "ImageFile":
        """Return what ``to_bytes`` wrote."""
        text, _, print_ = content.partition(b"\n")
        sha256, (height, width), orientation, green = json.loads(text)
        return cls(
            sha256, (height, width), orientation, green, Fingerprint.from_bytes(print_)
        )


@dataclass(frozen=True)
class MaskFile:
    """What is found in a mask file, whatever its values mean.

    Args:
        mode: Pillow's name of its pixel layout.
        size_hw: Rows and columns, as stored.
        values: The values that occur, or the colors.
        counts: Pixels of each of them.
        components: Connected components of each of them.
        exif_orientation: EXIF orientation of the mask itself, 1 for none.
    """

    mode: str
    size_hw: tuple[int, int]
    values: Integer[np.ndarray, " n *c"]
    counts: Int[np.ndarray, " n"]
    components: tuple[Components, ...]
    exif_orientation: int = 1

    @classmethod
    def inspect(cls, path: Path, *, as_colors: bool, channel: Channel) -> "MaskFile":
        """Return what is in a file; arguments and errors are those of ``read_mask``."""
        mask = read_mask(path, as_colors=as_colors, channel=channel)
        ids = mask
        if mask.ndim == 2:
            of_value = np.bincount(mask.ravel())
            (values,) = of_value.nonzero()
            counts = of_value[values]
            packed = values
        else:
            ids = mask.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
            packed, counts = np.unique(ids, return_counts=True)
            values = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
        header = read_header(path)
        return cls(
            header.mode,
            (mask.shape[0], mask.shape[1]),
            values.astype(mask.dtype),
            counts,
            components_of(ids, packed.tolist(), counts),
            header.exif_orientation,
        )

    def to_bytes(self) -> bytes:
        """Return it as the index keeps it: JSON."""
        values = (self.values.dtype.name, self.values.tolist(), self.counts.tolist())
        components = [(part.n, part.areas) for part in self.components]
        numbers = (self.mode, self.size_hw, *values, components, self.exif_orientation)
        return json.dumps(numbers).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "MaskFile":
        """Return what ``to_bytes`` wrote."""
        mode, (height, width), dtype, values, counts, parts, orientation = json.loads(
            content
        )
        return cls(
            mode,
            (height, width),
            np.array(values, dtype),
            np.array(counts),
            tuple(Components(n, tuple(areas)) for n, areas in parts),
            orientation,
        )


@dataclass(frozen=True)
class MaskStats:
    """Statistics of a mask.

    Args:
        mode: Pillow's name of its pixel layout.
        was_rotated: Whether it is rotated by an EXIF orientation to lie on its image.
        lies_either_way: Whether it fits its image before and after the EXIF orientation,
            and nothing says which way the image was annotated.
        lesion_px: Pixels of each lesion class that occurs, by name.
        annotated_px: Pixels with a known lesion label, "no lesion" included.
        lesions: Connected lesions of each of these classes.
        leaf_px: Pixels of leaf without lesions; ``None`` if the leaf is not annotated.
        leaf_is_marked: Whether leaf or background is known beside the lesions.
        is_sparse: Whether less than ``SPARSE`` of the pixels have a known label, of
            lesions as of the leaf.
    """

    mode: str
    was_rotated: bool
    lies_either_way: bool
    lesion_px: dict[str, int]
    lesions: dict[str, Components]
    annotated_px: int
    leaf_px: int | None
    leaf_is_marked: bool
    is_sparse: bool


@dataclass(frozen=True)
class Failure:
    """Why a file cannot be used.

    Args:
        code: As in ``Issue.code``.
        error: The exception.
    """

    code: str
    error: PlantSegError


@dataclass(frozen=True)
class ImageStats:
    """Statistics of the files of one row.

    Args:
        row: The row.
        file: The image; ``None`` if unreadable.
        mask: The mask; ``None`` without one, if it failed, or was not inspected.
        failures: Why image or mask cannot be used.
    """

    row: Row
    file: ImageFile | None = None
    mask: MaskStats | None = None
    failures: list[Failure] = field(default_factory=list)


def inspect(
    manifest: Manifest,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    *,
    masks: bool = True,
) -> list[ImageStats]:
    """Return the statistics of each row, in order; files in the index are not read.

    Args:
        manifest: The rows.
        on_progress: Called after each row with the number done and the total.
        masks: Whether to inspect the masks too.
    """
    all_stats = []
    with Index(_code()) as index, ThreadPoolExecutor(_THREADS) as pool:
        for stats in pool.map(
            lambda row: _inspect_row(row, manifest, index, masks=masks), manifest.rows
        ):
            all_stats.append(stats)
            on_progress(len(all_stats), len(manifest))
    return all_stats


def shown_mask(row: Row) -> Path:
    """Return the mask of a row, or its image if the mask was drawn from annotations."""
    mask = row.mask
    return row.image if mask is None or is_temporary(mask) else mask


def of_rows(inspected: Sequence[ImageStats], rows: Sequence[Row]) -> list[ImageStats]:
    """Return the statistics of rows that were inspected before, perhaps in other splits."""
    by_key = {stats.row.key: stats for stats in inspected}
    return [replace(by_key[row.key], row=row) for row in rows]


def with_digests(manifest: Manifest) -> Manifest:
    """Return the manifest with all digests; of images in the index, they are known.

    Raises:
        DataError: If a file cannot be read.
    """
    with Index(_code()) as index:
        files = [index.known(ImageFile, row.image) for row in manifest.rows]
    return manifest.only(
        replace(row, sha256=file.sha256) if file and not row.sha256 else row
        for row, file in zip(manifest.rows, files, strict=True)
    ).digested()


def green_fraction(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Return the fraction of green pixels of an image.

    Green: no channel is larger, and the smallest channel is at least 15 % smaller.
    """
    step = max(1, max(image.shape[:2]) // _SAMPLED_PX)
    pixels = image[::step, ::step].reshape(-1, 3).astype(np.int64)
    red, green, blue = pixels.T
    is_green = (green >= red) & (green > blue)
    is_green &= green - pixels.min(1) > _MIN_SATURATION * green
    return float(is_green.mean())


@cache
def _code() -> str:
    """Return the digest of the code that inspects files, and the versions of libraries."""
    paths = (
        __file__,
        file_formats.__file__,
        image_io.__file__,
        lesion_sizes.__file__,
        near_duplicates.__file__,
    )
    digests = [sha256_of(Path(path)) for path in paths]
    return " ".join([*digests, PIL.__version__, cv2.__version__])


def _inspect_row(row: Row, manifest: Manifest, index: Index, *, masks: bool) -> ImageStats:
    file = None
    failures: list[Failure] = []
    try:
        file = index.find(ImageFile, row.image, lambda: ImageFile.inspect(row.image))
    except PlantSegError as error:
        failures.append(Failure("unreadable-image", error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failures.append(Failure("unreadable-image", image_io.too_large(row.image)))
    mask = _inspect_mask(row, manifest, file, failures, index) if masks else None
    return ImageStats(row, file, mask, failures)


def _inspect_mask(
    row: Row,
    manifest: Manifest,
    image: ImageFile | None,
    failures: list[Failure],
    index: Index,
) -> MaskStats | None:
    path = row.mask
    if path is None:
        return None
    coding, classes = manifest.codings[row.source], manifest.classes
    code, as_colors, channel = "unreadable-mask", coding.by_color, coding.channel
    try:
        file = index.find(
            MaskFile,
            path,
            lambda: MaskFile.inspect(path, as_colors=as_colors, channel=channel),
            variant=f"{channel} {as_colors}",
        )
        code = "size-mismatch"
        orientation = 1
        if image is not None:
            orientation = mask_orientation(
                *(row.image, path, image.size_hw, file.size_hw, file.exif_orientation),
                coding.exif,
            )
        code = "unknown-mask-value"
        lesion, leaf = _decode_values(file, path, coding, classes)
    except PlantSegError as error:
        if code == "unreadable-mask" and _is_lossy(path):
            code = "jpeg-mask"
        failures.append(Failure(code, error))
        return None
    pixels = np.bincount(lesion, file.counts, minlength=256).astype(int)
    annotated_px, size = int(pixels[:IGNORE].sum()), int(file.counts.sum())
    leaf_known_px = int(file.counts[leaf != IGNORE].sum())
    healthy = (lesion == NO_LESION) & (leaf == 1)
    shown = {name: i for i, name in enumerate(classes.lesions, start=1) if pixels[i]}
    return MaskStats(
        mode=file.mode,
        was_rotated=orientation != 1,
        lies_either_way=image is not None
        and file.exif_orientation == 1
        and coding.exif is None
        and _lies_either_way(image, manifest, row),
        lesion_px={name: int(pixels[i]) for name, i in shown.items()},
        lesions={
            name: merged([file.components[j] for j in np.flatnonzero(lesion == i)])
            for name, i in shown.items()
        },
        annotated_px=annotated_px,
        leaf_px=int(file.counts[healthy].sum()) if coding.marks_leaf else None,
        leaf_is_marked=bool((file.counts[~is_lesion(lesion) & (leaf != IGNORE)] > 0).any()),
        is_sparse=max(annotated_px, leaf_known_px) < SPARSE * size,
    )


def _decode_values(
    file: MaskFile, path: Path, coding: MaskCoding, classes: ClassMap
) -> tuple[UInt8[np.ndarray, " n"], UInt8[np.ndarray, " n"]]:
    """Return the target of every value for either head; see ``decode_mask``."""
    try:
        lesion, leaf = decode_mask(file.values[None], coding, classes, name=str(path))
    except DataError:  # its text states the fraction of pixels
        mask = read_mask(path, as_colors=coding.by_color, channel=coding.channel)
        decode_mask(mask, coding, classes, name=str(path))
        raise
    return lesion[0], leaf[0]


def _lies_either_way(image: ImageFile, manifest: Manifest, row: Row) -> bool:
    """Return whether a mask would fit an image as stored and upright alike."""
    origin = manifest.origins.get(row.source)
    height, width = image.size_hw
    fits = image.exif_orientation < 5 or height == width
    return image.exif_orientation != 1 and (
        fits or (origin is not None and origin.relative)
    )


def _is_lossy(path: Path) -> bool:
    with suppress(PlantSegError):
        return bool(read_header(path).lossy)
    return False
