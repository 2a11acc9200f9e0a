"""Images and masks of equal names, in two folders or side by side."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from plantseg_next.data.formats.coding import find_coding
from plantseg_next.data.formats.folders import (
    SPLIT_NAMES,
    find_images,
    keys_of,
    same_name,
    split_of,
    subfolder,
    subfolders,
)
from plantseg_next.data.formats.index import INDEX_FILE, add_index
from plantseg_next.data.manifest import Manifest, Origin, Row, Split, common_classes
from plantseg_next.errors import UsageError
from plantseg_next.files import read_text

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "pictures", "jpegimages")
MASK_FOLDERS = (
    *("masks", "mask", "annotations", "annotation", "labels", "label"),
    *("ground_truth", "groundtruth", "gt", "segmentationclass"),
)
_SUFFIX = re.compile(r"[_\-. ](masks?|labels?|gt|seg|segmentation)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pairs:
    """Images and mask candidates of two folders.

    Args:
        images: Images, each below ``image_root``.
        masks: Masks, each below ``mask_root``.
        image_root: Folder of the images.
        mask_root: Folder of the masks; the same one if they are side by side.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    image_root: Path
    mask_root: Path


def find_pairs(folder: Path, images: list[Path]) -> list[Pairs]:
    """Return the folders of images and masks; empty if this is another layout.

    Either two folders, ``images`` and ``masks`` or similar, directly inside or in each
    of ``train``, ``val``...; or the masks in a folder below their images; or side by
    side, ``leaf.jpg`` and ``leaf_mask.png``.

    Args:
        folder: The data set.
        images: All images below it.
    """
    places = [folder, *(p for p in subfolders(folder) if p.name.lower() in SPLIT_NAMES)]
    pairs = []
    for place in places:
        mask_root = subfolder(place, MASK_FOLDERS)
        if mask_root is None:
            continue
        masks = find_images(mask_root)
        image_root = subfolder(place, IMAGE_FOLDERS) or place
        image_files = [p for p in find_images(image_root) if mask_root not in p.parents]
        if image_files and masks:
            pairs.append(Pairs(tuple(image_files), tuple(masks), image_root, mask_root))
    return pairs or _side_by_side(folder, images)


def read_image_mask(
    folder: Path, pairs: list[Pairs], source: str, classes: Path | None = None
) -> Manifest:
    """Return images with the masks of the same names; images without one are kept.

    Splits come from the ``split`` column of ``index.csv``, or else from folders named
    ``train``, ``val``, ``test``, or from Pascal VOC's lists in ``ImageSets``.

    Args:
        folder: The data set; may contain ``index.csv`` and a class file.
        pairs: The folders of its images and masks.
        source: Name of the data set.
        classes: A class file that takes precedence over that of the folder.

    Raises:
        DataError: If the class file or the index is invalid.
        UsageError: If no mask has the name of an image, or the masks require a class
            file.
    """
    mask_of: dict[Path, Path] = {}
    for pair in pairs:
        mask_of |= match_masks(pair)
    images = [image for pair in pairs for image in pair.images]
    masks = [mask for pair in pairs for mask in pair.masks]
    if masks and not mask_of:
        raise UsageError(
            f"In `{folder}` no mask has the name of an image: the first image is "
            f"`{images[0].name}`, the first mask `{masks[0].name}`.",
            needed="equal names, except for the ending or a suffix such as `_mask`",
            fix="rename the masks after their images",
        )

    root = pairs[0].image_root if len(pairs) == 1 else folder
    listed = _listed_splits(folder)
    rows = [
        Row(
            key,
            image,
            source,
            mask_of.get(image),
            split_of(image.relative_to(folder)) or listed.get(same_name(image.name)),
        )
        for image, key in keys_of(images, root).items()
    ]
    missing: list[str] = []
    if (folder / INDEX_FILE).is_file():
        rows, missing = add_index(rows, folder / INDEX_FILE)
    used = set(mask_of.values())
    codings = {}
    if used:
        image_of = {mask: image for image, mask in mask_of.items()}
        codings = {source: find_coding(folder, sorted(used), classes, image_of)}
    origin = Origin(
        "images and masks of equal names" if used else "images and an index",
        tuple(str(mask) for mask in masks if mask not in used),
        tuple(missing),
    )
    return Manifest(tuple(rows), common_classes(rows, codings), codings, {source: origin})


def match_masks(pair: Pairs) -> dict[Path, Path]:
    """Return the mask of each image that has one.

    Names are compared without ending and without a suffix such as ``_mask``. A mask in
    the folder of the same name is preferred; one elsewhere is used if its name and that
    of the image are unique.
    """
    exact = {(_place(m, pair.mask_root), same_name(m.name)): m for m in pair.masks}
    suffixed = {(place, _base(name)): mask for (place, name), mask in exact.items()}
    by_place = suffixed | exact
    count = Counter(name for _, name in by_place)
    anywhere = {name: mask for (_, name), mask in by_place.items() if count[name] == 1}
    images = Counter(same_name(image.name) for image in pair.images)

    mask_of = {}
    for image in pair.images:
        name = same_name(image.name)
        mask = by_place.get((_place(image, pair.image_root), name))
        if mask is None and images[name] == 1:
            mask = anywhere.get(name)
        if mask is not None:
            mask_of[image] = mask
    return mask_of


def _listed_splits(folder: Path) -> dict[str, Split]:
    """Return the split of every name in Pascal VOC's ``ImageSets/Segmentation/*.txt``."""
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    return {
        same_name(line.strip()): SPLIT_NAMES[path.stem.lower()]
        for path in lists
        if path.stem.lower() in SPLIT_NAMES
        for line in read_text(path).splitlines()
        if line.strip()
    }


def _side_by_side(folder: Path, images: list[Path]) -> list[Pairs]:
    names = {(p.parent, same_name(p.name)) for p in images}
    masks = []
    for image in images:
        name = same_name(image.name)
        if _base(name) != name and (image.parent, _base(name)) in names:
            masks.append(image)
    if not masks:
        return []
    others = sorted(set(images) - set(masks))
    return [Pairs(tuple(others), tuple(masks), folder, folder)]


def _base(name: str) -> str:
    return _SUFFIX.sub("", name)


def _place(path: Path, root: Path) -> str:
    return path.parent.relative_to(root).as_posix().lower()
