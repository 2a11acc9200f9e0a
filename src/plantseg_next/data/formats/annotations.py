"""Annotations of images as a manifest: common code for the layouts of annotation tools.

Annotations are named areas. They are drawn when the layout is read, one mask file per
image, so the rest of the package reads only mask files and memory does not grow with the
number of annotations. Masks are in a temporary folder, which is removed when the process
ends; a run saves its own copy (``save_rasterized_masks``).

What cannot be used is not "no lesion": an image of which any annotation cannot be drawn
has no mask, and counts as unlabeled.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

from plantseg_next.data.formats.coding import read_meanings, role_of
from plantseg_next.data.formats.folders import keys_of, tidy_name
from plantseg_next.data.formats.index import INDEX_FILE, add_index
from plantseg_next.data.formats.rasterize import Annotation, Doubts, is_box, rasterize
from plantseg_next.data.image_io import MAX_PIXELS, read_size
from plantseg_next.data.manifest import (
    MAX_CLASSES,
    Manifest,
    MaskCoding,
    Origin,
    Row,
    Split,
    common_classes,
)
from plantseg_next.errors import DataError, PlantSegError, shorten
from plantseg_next.files import (
    explained_temporary,
    is_stated,
    is_temporary,
    temporary_folder,
)
from plantseg_next.names import OutputPaths

IGNORED, UNMARKED = 255, 254
"""Mask values of "ignore" and "no lesion"."""
IN_SEVERAL_FILES = "images annotated in several files, whose areas are drawn together"
MANY_BOXES = 10
"""Number of areas from which it is doubted that they are all boxes."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotations.

    Args:
        image: The file.
        annotations: Empty: annotated, without areas. ``None``: not annotated.
        size_hw: Size of the annotated image; default: that of the upright image.
        split: Stated split.
        disease: Image-level label.
        unusable: Counts of annotations that could not be read, by the reason.
        noticed: Counts of what is worth a look.
    """

    image: Path
    annotations: Sequence[Annotation] | None
    size_hw: tuple[int, int] | None = None
    split: Split | None = None
    disease: str | None = None
    unusable: Mapping[str, int] = field(default_factory=dict)
    noticed: Mapping[str, int] = field(default_factory=dict)


def read_annotations(
    annotated: Iterable[AnnotatedImage],
    root: Path,
    source: str,
    origin: Origin,
    *,
    names: Sequence[str] = (),
    classes: Path | None = None,
    upright: bool = True,
) -> Manifest:
    """Return the manifest of annotated images, with their masks drawn.

    Names such as leaf, background or ignore denote that role; others are lesion classes.
    How areas that overlap are drawn: see ``rasterize``. If an image has only points and
    scribbles, its other pixels are ``IGNORE`` and its split is "train".

    Args:
        annotated: The images; each is drawn before the next one is asked for.
        root: The folder that keys are relative to.
        source: Name of the data set.
        origin: Origin of the layout, to be completed here.
        names: Names in the order of their ids, if the layout states one.
        classes: A class file with the meaning of each name.
        upright: Whether images whose annotated size is not stated were annotated upright,
            or else as stored, before their EXIF orientation is applied.

    Raises:
        DataError: If the class file lacks a name, there are too many classes, or the
            index is invalid.
    """
    meanings = _Meanings(names, classes)
    folder, paths = _folder_for_masks(root.resolve()), OutputPaths()
    items: list[AnnotatedImage] = []
    masks: dict[Path, tuple[Path, bool]] = {}
    doubts, without_mask = Doubts(), list[Path]()
    boxes = areas = 0
    for item in annotated:
        areas += len(item.annotations or ())
        boxes += sum(map(is_box, item.annotations or ()))
        items.append(replace(item, annotations=None))
        doubts.noticed.update(item.noticed)
        if item.unusable:
            doubts.unusable.update(item.unusable)
            without_mask.append(item.image)
        elif item.annotations is not None:
            meanings.add(area.name for area in item.annotations)
            mask, own = _drawn(item, meanings, upright=upright)
            doubts.unusable.update(own.unusable)
            doubts.noticed.update(own.noticed)
            if own.unusable:
                without_mask.append(item.image)
            else:
                name = item.image.relative_to(root).as_posix()
                path = folder / paths.path(source, name, ".png", keep_ending=False)
                with explained_temporary():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(path)
                masks[item.image] = path, _is_sparse(item.annotations)
    if boxes == areas >= MANY_BOXES:
        what = "areas that are all boxes: drawn as they are, but lesions are rarely boxes"
        doubts.noticed[what] = boxes
    coding = meanings.coding()
    keys = keys_of([item.image for item in items], root)
    rows = []
    for item in items:
        mask_path, sparse = masks.get(item.image, (None, False))
        rows.append(
            Row(
                keys[item.image],
                item.image,
                source,
                mask_path,
                "train" if sparse else item.split,
                disease=tidy_name(item.disease) if item.disease else None,
            )
        )
    missing: list[str] = []
    if is_stated(root / INDEX_FILE):
        rows, missing = add_index(rows, root / INDEX_FILE)
    codings = {source: coding} if any(row.mask for row in rows) else {}
    origin = replace(
        origin,
        names_without_image=(*origin.names_without_image, *missing),
        doubts=(
            *origin.doubts,
            *in_words(doubts.unusable),
            *in_words(doubts.noticed),
            *_unlabeled(without_mask, root),
        ),
    )
    return Manifest(tuple(rows), common_classes(rows, codings), codings, {source: origin})


def in_words(trouble: Mapping[str, int]) -> tuple[str, ...]:
    """Return the counts as text, for ``Origin.doubts``."""
    return tuple(f"{what}: {n}" for what, n in trouble.items())


def save_rasterized_masks(manifest: Manifest, folder: Path) -> Manifest:
    """Return the manifest with all masks that this process drew copied into a folder."""
    written = set[str]()
    rows = []
    for row in manifest.rows:
        if row.mask is not None and is_temporary(row.mask):
            path = folder.joinpath(*row.mask.relative_to(temporary_folder()).parts[1:])
            while str(path).casefold() in written:  # of data sets `a/b` and `a`
                path = path.with_stem(f"{path.stem}-2")
            written.add(str(path).casefold())
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.mask.read_bytes())
            row = replace(row, mask=path)  # noqa: PLW2901
        rows.append(row)
    return manifest.only(rows)


@cache
def _folder_for_masks(_root: Path) -> Path:
    """Return a folder for the masks of a data set: another of the same name has its own."""
    with explained_temporary():
        return Path(mkdtemp(dir=temporary_folder()))


class _Meanings:
    """The names of a data set, with their meaning and mask values; it learns new ones."""

    def __init__(self, names: Iterable[str], classes: Path | None) -> None:
        self._classes = classes
        self._stated = None if classes is None else read_meanings(classes)
        self._unknown = Counter[str]()
        self.of: dict[str, str] = {}
        self.values: dict[str, int] = {}
        self._value_of: dict[str, int] = {
            "background": 0, "ignore": IGNORED, "no lesion": UNMARKED
        }  # fmt: skip
        self._free = 1
        self._add_new(dict.fromkeys(names), unknown="ignore")

    def add(self, names: Iterable[str]) -> None:
        """Add the names of the areas of an image."""
        count = Counter(names)
        self._add_new(count)
        for name in count:
            if self._stated is not None and tidy_name(name) not in self._stated:
                self._unknown[name] += count[name]

    def _add_new(self, names: Iterable[str], unknown: str | None = None) -> None:
        for name in names:
            if name in self.of:
                continue
            stated = self._stated
            role = role_of(name)
            meant = role if stated is None else stated.get(tidy_name(name), unknown or role)
            if meant not in self._value_of:
                if self._free == UNMARKED:
                    raise DataError(
                        f"The annotations have more than {self._free - 1} classes; the "
                        f"last ones are {shorten([*self.of][-3:])}, {name}.",
                        needed=f"at most {MAX_CLASSES - 1} names with a meaning of their "
                        "own",
                        fix="write a classes.yaml that gives names the same class, one "
                        "line for each name",
                    )
                self._value_of[meant] = self._free
                self._free += 1
            self.of[name] = meant
            self.values[name] = self._value_of[meant]

    def coding(self) -> MaskCoding:
        """Return the coding of the masks drawn so far.

        Raises:
            DataError: If the class file lacks a name that was added.
        """
        if self._unknown:
            unknown = sorted(self._unknown)
            first = unknown[0]
            more = f", nor {len(unknown) - 1} other names." if len(unknown) > 1 else "."
            raise DataError(
                f"`{self._classes}` does not state the meaning of `{first}`, the name of "
                f"{self._unknown[first]} annotations{more}",
                needed="a line for every name that occurs",
                fix=f"add `{first}: {role_of(first)}`, or another class, "
                "background, leaf or ignore",
            )
        meaning: dict[int | str, str] = {v: meant for meant, v in self._value_of.items()}
        origin = (
            "by the names of the annotations"
            if self._classes is None
            else f"stated in {self._classes.name}"
        )
        return MaskCoding(dict(sorted(meaning.items())), "leaf" in self.of.values(), origin)


def _drawn(
    item: AnnotatedImage, meanings: _Meanings, *, upright: bool
) -> tuple[np.ndarray, Doubts]:
    """Return the mask of an image.

    Outside all areas, it is "ignore" if they are all points and scribbles. Without a leaf
    annotation it is "no lesion", leaf or not: other images may mark the leaf.
    """
    areas = item.annotations or ()
    if _is_sparse(areas):
        ground = IGNORED
    else:
        has_leaf = any(meanings.of[area.name] == "leaf" for area in areas)
        ground = 0 if has_leaf else UNMARKED
    try:
        size_hw = item.size_hw or read_size(item.image, upright=upright)
    except PlantSegError:  # `check` reports the image
        unreadable = Counter({"annotations of images that cannot be read, not used": 1})
        return np.zeros((1, 1), np.uint8), Doubts(unreadable)
    _refuse_size(item.image, size_hw)
    return rasterize(areas, size_hw, meanings.values, meanings.of, ground)


def _is_sparse(areas: Sequence[Annotation]) -> bool:
    return bool(areas) and all(area.scribbles for area in areas)


def _refuse_size(image: Path, size_hw: tuple[int, int]) -> None:
    """Refuse a size that is not valid for an image.

    Raises:
        DataError: If it is not.
    """
    h, w = size_hw
    if not (h > 0 < w and h * w <= MAX_PIXELS):
        raise DataError(
            f"`{image}` has {h} rows and {w} columns according to its annotation.",
            needed=f"the size of the image, of at most {MAX_PIXELS:,} pixels",
            fix="correct the height and the width in the annotation file",
        )


def _unlabeled(images: Sequence[Path], root: Path) -> tuple[str, ...]:
    if not images:
        return ()
    names = [image.relative_to(root).as_posix() for image in images]
    return (
        f"images with an annotation that could not be used, treated as unlabeled: "
        f"{len(names)} ({shorten(names)})",
    )
