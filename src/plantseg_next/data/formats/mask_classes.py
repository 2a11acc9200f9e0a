"""Several masks of one image, one for each class or lesion, drawn as one mask."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from plantseg_next.data.formats.annotations import AnnotatedImage
from plantseg_next.data.formats.class_folders import can_be_class
from plantseg_next.data.formats.coding import read_meanings, role_of
from plantseg_next.data.formats.folders import FolderFiles, tidy_name
from plantseg_next.data.formats.mask_pairs import TaggedMask
from plantseg_next.data.formats.names import words_of
from plantseg_next.data.formats.rasterize import Annotation
from plantseg_next.data.image_io import read_mask
from plantseg_next.data.manifest import ROLES, Split
from plantseg_next.errors import DataError, PlantSegError, UsageError, shorten

Area = Bool[np.ndarray, "h w"]

LESION = "lesion"
_PEOPLE_WORDS = frozenset(
    ("annotator", "expert", "rater", "observer", "reader", "reviewer", "doctor")
)
"""Who drew a mask; several of them drew the same lesions, not several classes."""
_SAMPLED = 12
_INSIDE = 0.98
_MOST = 0.8
_MOST_BETWEEN = 0.05
_NEAR = 16


@dataclass(frozen=True)
class ClassMasks:
    """The masks of each image, with the class of each.

    Args:
        of: Classes and masks of every image.
        names: All classes.
        doubts: What was assumed, in words.
    """

    of: Mapping[Path, Sequence[tuple[str, Path]]]
    names: tuple[str, ...]
    doubts: tuple[str, ...]


def class_masks(
    of: Mapping[Path, Sequence[TaggedMask]], files: FolderFiles, classes: Path | None
) -> ClassMasks | None:
    """Return the classes of masks that say them; ``None`` for a mask with class ids.

    Args:
        of: The masks of each image.
        files: All files of the data set.
        classes: A class file, which may give numbers a meaning.

    Raises:
        UsageError: If the masks are those of several people, a number seems to be the
            leaf, or one of several masks holds class ids.
        DataError: If the class file is invalid.
    """
    if not _say_classes(of):
        return None
    _refuse_people(of, files)
    _refuse_alike(of, files)
    numbers = _numbers_that_are_classes(of, classes)
    named: dict[Path, list[tuple[str, Path]]] = {}
    for image, masks in of.items():
        named[image] = [(_name(mask, numbers), mask.path) for mask in masks]
    _refuse_class_ids([mask for masks in named.values() for _, mask in masks], files)
    around = None if classes else _around(_numbered(of) if numbers else named)
    if numbers and around is not None:
        raise _seems_leaf(around, files)
    count = Counter(name for masks in named.values() for name, _ in masks)
    doubts: list[str] = []
    if numbers == "classes":
        doubts.append(
            "masks have numbers and no names, which are read as classes of lesions; if one "
            "is the leaf, name the folders, or write a classes.yaml with lines such as "
            f"`{next(iter(count))}: leaf`"
        )
    elif numbers == "instances":
        doubts.append(
            "images have several masks with numbers and no names, which are read as the "
            f"lesions of one class, `{LESION}`"
        )
    if around is not None and role_of(around) not in ROLES:
        doubts.append(
            f"the masks of `{around}` contain the other masks of most images; if it is the "
            f"leaf, write a classes.yaml that says `{around}: leaf`"
        )
    for name in count:
        lacking = sum(name not in {n for n, _ in masks} for masks in named.values())
        if lacking and role_of(name) not in ROLES and len(count) > 1:
            doubts.append(
                f"images with other masks and without one of `{name}`, read as without it: "
                f"{lacking}"
            )
    return ClassMasks(named, tuple(count), tuple(doubts))


def draw_class_masks(
    images: Sequence[Path],
    masks: ClassMasks,
    empty: Sequence[Path],
    split_of: Callable[[Path], Split | None],
    disease_of: Callable[[Path], str | None],
) -> Iterator[AnnotatedImage]:
    """Yield every image with the areas of its masks, decoded one image at a time.

    Args:
        images: All images.
        masks: The masks of those that have some.
        empty: Images that were annotated, without a mask.
        split_of: The split of an image.
        disease_of: The image-level label of an image.

    Raises:
        DataError: If the masks of an image differ in size.
    """
    nothing = set(empty)
    for image in images:
        split, disease = split_of(image), disease_of(image)
        if image not in masks.of:
            areas = () if image in nothing else None
            yield AnnotatedImage(image, areas, split=split, disease=disease)
            continue
        drawn: list[Annotation] = []
        unusable = Counter[str]()
        size: tuple[int, int] | None = None
        first = image
        for name, path in masks.of[image]:
            try:
                area = read_area(path)
            except (PlantSegError, ValueError):
                unusable["masks of one class that cannot be used"] += 1
                continue
            if size is not None and area.shape != size:
                raise DataError(
                    f"The masks of `{image}` differ in size: `{first.name}` has "
                    f"{size[1]} x {size[0]} pixels, `{path.name}` "
                    f"{area.shape[1]} x {area.shape[0]}.",
                    needed="masks of one size, that of the image",
                    fix="export the masks of this image again",
                )
            size, first = (area.shape[0], area.shape[1]), path
            if area.any():
                drawn.append(Annotation(name, bitmap=lambda _, area=area: area))  # type: ignore[misc]
        yield AnnotatedImage(image, drawn, size, split, disease, unusable)


def read_area(path: Path) -> Area:
    """Return where a mask of one class is marked.

    Raises:
        PlantSegError: If it cannot be read.
        ValueError: If it holds more than two levels.
    """
    values = read_mask(path)
    if values.ndim == 3:
        values = values.max(axis=2)
    levels = np.unique(values)
    if len(levels) <= 2 and levels[0] == 0:
        return values > 0
    if len(levels) == 1:
        return np.ones(values.shape, bool)
    low, high = int(levels[0]), int(levels[-1])
    between = (values > low + _NEAR) & (values < high - _NEAR)
    if low > _NEAR or high < 4 * _NEAR or between.mean() > _MOST_BETWEEN:
        raise ValueError(f"it holds {len(levels)} values")
    return values > (low + high) // 2  # smoothed edges


def hold_two_values(masks: Sequence[Path]) -> bool:
    """Return whether masks mark one class each, as far as some of them show."""
    return all(_holds_two_values(masks[i]) for i in _spread(len(masks)))


def _say_classes(of: Mapping[Path, Sequence[TaggedMask]]) -> bool:
    """Return whether there are several masks of an image, or one whose name is a class."""
    if any(len(masks) > 1 for masks in of.values()):
        return True
    masks = [mask for own in of.values() for mask in own]
    names = {mask.tag.name for mask in masks}
    if any(name and role_of(name) in ROLES for name in names):
        return True
    if not all(name and can_be_class(name) for name in names):
        return False
    if len(names) == 1 and not masks[0].tag.by_word and _is_beside_name(masks[0]):
        return False
    return hold_two_values([mask.path for mask in masks])


def _is_beside_name(mask: TaggedMask) -> bool:
    """Return whether a class is in the name of the file, not in that of its folder."""
    return mask.tag.name in tidy_name(mask.path.stem)


def _holds_two_values(path: Path) -> bool:
    try:
        read_area(path)
    except PlantSegError:
        return True  # it is reported by ``check``
    except ValueError:
        return False
    return True


def _numbered(
    of: Mapping[Path, Sequence[TaggedMask]],
) -> dict[Path, list[tuple[str, Path]]]:
    return {
        image: [(mask.tag.name or mask.tag.number, mask.path) for mask in masks]
        for image, masks in of.items()
    }


def _name(mask: TaggedMask, numbers: str) -> str:
    tag = mask.tag
    if tag.name:
        return tag.name
    if tag.number and numbers == "stated":
        return tag.number
    return f"class {tag.number}" if tag.number and numbers == "classes" else LESION


def _numbers_that_are_classes(
    of: Mapping[Path, Sequence[TaggedMask]], classes: Path | None
) -> str:
    """Return how numbers without names are meant: "stated", "classes", "instances"."""
    masks = [mask for own in of.values() for mask in own]
    numbered = [mask for mask in masks if not mask.tag.name and mask.tag.number]
    if not numbered:
        return ""
    if classes is not None:
        stated = read_meanings(classes)
        if any(mask.tag.number in stated for mask in numbered):
            return "stated"
    several = [[m.path for m in own] for own in of.values() if len(own) > 1]
    in_folders = all(len({path.parent for path in own}) == len(own) for own in several)
    by_class = all("class" in words_of(mask.path.stem) for mask in numbered)
    return "classes" if in_folders or by_class else "instances"


def _refuse_alike(of: Mapping[Path, Sequence[TaggedMask]], files: FolderFiles) -> None:
    for image, masks in of.items():
        alike = [m for m in masks if not m.tag.name and not m.tag.number]
        if len(alike) > 1:
            shown = [mask.path.relative_to(files.root).as_posix() for mask in alike]
            raise UsageError(
                f"The image `{image.relative_to(files.root).as_posix()}` of `{files.root}` "
                f"has {len(alike)} masks that do not say a class: {shorten(shown)}.",
                needed="one mask for each image, or one for each class, named after it",
                fix="move the masks that are not meant out of the data set",
            )


def _refuse_people(of: Mapping[Path, Sequence[TaggedMask]], files: FolderFiles) -> None:
    for masks in of.values():
        by = [m for m in masks if _PEOPLE_WORDS & set(m.tag.name.split())]
        if len(by) > 1:
            shown = [mask.path.relative_to(files.root).as_posix() for mask in by]
            raise UsageError(
                f"An image of `{files.root}` has the masks {shorten(shown)}, which seem to "
                "be of several people.",
                needed="one mask of each image, or masks of different classes",
                fix="move all but those of one person out of the data set",
            )


def _refuse_class_ids(masks: Sequence[Path], files: FolderFiles) -> None:
    for path in (masks[i] for i in _spread(len(masks))):
        try:
            read_area(path)
        except PlantSegError:
            continue
        except ValueError as error:
            raise UsageError(
                f"`{path.relative_to(files.root).as_posix()}` of `{files.root}` is one of "
                f"several masks, each of one class, but {error}.",
                needed="one mask of class ids for each image, or masks of two values for "
                "each class",
                fix="move the masks of the other kind out of the data set",
            ) from error


def _around(named: Mapping[Path, Sequence[tuple[str, Path]]]) -> str | None:
    """Return the class whose masks contain the others in most images, if there is one."""
    several = [masks for masks in named.values() if len(masks) > 1]
    counts = Counter[str]()
    n_read = 0
    for i in _spread(len(several)):
        try:
            areas = [(name, read_area(path)) for name, path in several[i]]
        except (PlantSegError, ValueError):
            continue
        areas = sorted((a for a in areas if a[1].any()), key=lambda a: -int(a[1].sum()))
        if len(areas) < 2 or len({area.shape for _, area in areas}) > 1:
            continue
        n_read += 1
        (name, largest), *others = areas
        inside = np.logical_or.reduce([area for _, area in others])
        if (inside & largest).sum() >= _INSIDE * inside.sum():
            counts[name] += 1
    for name, count in counts.most_common(1):
        if count >= max(2, _MOST * n_read):
            return name
    return None


def _seems_leaf(number: str, files: FolderFiles) -> UsageError:
    return UsageError(
        f"In `{files.root}` mask {number} of most images contains their other masks: it "
        "seems to be the leaf.",
        needed="masks whose names say which is the leaf and which a lesion",
        fix="name the masks or their folders after the class, as in masks/leaf and "
        "masks/rust; or write a classes.yaml with a line for each number: "
        f"`{number}: leaf`",
    )


def _spread(count: int) -> list[int]:
    """Return positions of a few of many things, evenly spread."""
    places = np.linspace(0, count - 1, min(count, _SAMPLED)).astype(int).tolist()
    return list(dict.fromkeys(places))
