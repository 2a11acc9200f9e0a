"""Images with masks: in folders of their own, or beside each other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from plantseg_next.data.formats.annotations import read_annotations
from plantseg_next.data.formats.class_folders import are_class_folders, class_of
from plantseg_next.data.formats.class_tables import is_nnunet, read_table
from plantseg_next.data.formats.coding import (
    find_coding,
    role_of,
    stated_classes,
    with_channel,
)
from plantseg_next.data.formats.folders import FolderFiles, keys_of, split_of, tidy_name
from plantseg_next.data.formats.index import INDEX_FILE, add_index
from plantseg_next.data.formats.label_studio import BrushMasks, read_brush_masks
from plantseg_next.data.formats.mask_classes import (
    ClassMasks,
    class_masks,
    draw_class_masks,
    hold_two_values,
)
from plantseg_next.data.formats.mask_folders import Places, Roles, find_roles
from plantseg_next.data.formats.mask_names import bare, brush_name
from plantseg_next.data.formats.mask_pairs import Pairs, TaggedMask, pair
from plantseg_next.data.formats.names import words_of
from plantseg_next.data.formats.split_lists import read_split_lists
from plantseg_next.data.manifest import (
    Manifest,
    MaskCoding,
    Origin,
    Row,
    Split,
    common_classes,
)
from plantseg_next.errors import UsageError, shorten
from plantseg_next.files import is_stated

LAYOUT = "images and masks of equal names"


@dataclass
class MaskedImages:
    """The images of a data set and their masks.

    Args:
        images: All images, sorted.
        of: The masks of each image that has some.
        left: Masks without an image.
        roles: Which files are images and masks.
        brush: What Label Studio's export states; empty without one.
    """

    images: list[Path]
    of: dict[Path, list[TaggedMask]]
    left: list[Path]
    roles: Roles
    brush: BrushMasks = field(default_factory=BrushMasks)


def find_masks(files: FolderFiles) -> MaskedImages | None:
    """Return the images and masks of a data set; ``None`` if it has no masks.

    Raises:
        UsageError: If no mask has the name of an image, two images would share a mask, or
            an image has masks that are not distinguished.
    """
    roles = find_roles(files)
    found = _paired(files, roles) if roles.masks else None
    if found is not None and found.of:
        return found
    if roles.folder_of:  # the words of the folders may mean another thing
        plain = find_roles(files, by_folders=False)
        beside = _paired(files, plain) if plain.masks else None
        if beside is not None and beside.of:
            return beside
    if found is not None:
        raise _no_pair(files, found)
    return None


def read_image_mask(
    files: FolderFiles, found: MaskedImages, source: str, classes: Path | None = None
) -> Manifest:
    """Return images with their masks; images without one are kept.

    Splits come from the ``split`` column of ``index.csv``, or else from folders named
    ``train``, ``val``, ``test``, or from Pascal VOC's lists in ``ImageSets``. The meaning
    of values is stated in a class file, or else in a table of the export, or inferred.

    Args:
        files: All files of the data set.
        found: Its images and masks.
        source: Name of the data set.
        classes: A class file that takes precedence over that of the folder.

    Raises:
        DataError: If a class file, a table or the index is invalid.
        UsageError: If the masks require a class file.
    """
    classes = classes or stated_classes(files.root)
    splits, missing = _splits(files, found)
    root = _key_root(files, found)
    brush = found.brush
    files.used.update([*brush.tables, *brush.replaced])
    doubts = _doubts_of_brush(brush)
    by_class = class_masks(found.of, files, classes)
    if by_class is None:
        manifest = _with_ids(files, found, source, classes, splits, doubts, root)
    else:
        manifest = _with_classes(files, found, by_class, source, classes, splits, root)
        doubts += by_class.doubts
    origin = manifest.origins[source]
    origin = replace(
        origin,
        masks_without_image=tuple(map(str, sorted([*found.left, *brush.unknown]))),
        names_without_image=(*origin.names_without_image, *missing),
        doubts=(*origin.doubts, *doubts),
    )
    return replace(manifest, origins={source: origin})


def without_shown(files: FolderFiles) -> list[Path]:
    """Return the images of a folder without masks, except those that show annotations."""
    return list(find_roles(files).images) or files.images


def read_indexed(files: FolderFiles, source: str) -> Manifest:
    """Return images without masks, with what the index says about them.

    Raises:
        DataError: If the index is invalid.
    """
    images = without_shown(files)
    keys = keys_of(images, files.root)
    plain = [
        Row(keys[image], image, source, split=split_of(image.relative_to(files.root)))
        for image in images
    ]
    rows, missing = add_index(plain, files.root / INDEX_FILE)
    origin = Origin("images and an index", names_without_image=tuple(missing))
    return Manifest(tuple(rows), common_classes(rows, {}), {}, {source: origin})


def match_masks(
    images: Iterable[Path], masks: Iterable[Path], root: Path
) -> dict[Path, Path]:
    """Return the mask of each image that has one, in folders below ``root``.

    Raises:
        UsageError: As ``pair``.
    """
    pairs = pair(images, masks, Places(root))
    return {image: own[0].path for image, own in pairs.of.items() if len(own) == 1}


def _paired(files: FolderFiles, roles: Roles) -> MaskedImages:
    brush_masks = [mask for mask in roles.masks if brush_name(mask)]
    masks = [mask for mask in roles.masks if not brush_name(mask)]
    images = [image for image in roles.images if image in roles.certain]
    images = images or list(roles.images)
    brush = read_brush_masks(files, brush_masks, images) if brush_masks else BrushMasks()
    channels = is_nnunet(files)
    if channels:
        _refuse_channels(files, images)
    pairs = pair(
        [image for image in images if image not in brush.of],
        masks,
        roles.places,
        channels=channels,
    )
    others = sorted(set(roles.images) - set(images))
    more = (
        pair(others, pairs.left, roles.places, only_in_place=True)
        if others
        else Pairs({}, pairs.left)
    )
    of = brush.of | pairs.of | more.of
    left = _add_leaves(of, more.left, roles.places)
    return MaskedImages(sorted([*images, *more.of], key=str), of, left, roles, brush)


def _add_leaves(
    of: dict[Path, list[TaggedMask]], left: list[Path], places: Places
) -> list[Path]:
    """Add masks of the leaf to the masks of lesions; return those that are left.

    The lesions are in masks/x.png, for example, and the leaf in leaf_masks/x.png.
    """
    of_leaf = [mask for mask in left if _says_leaf(mask, places)]
    if not of_leaf or not hold_two_values([own[0].path for own in of.values()]):
        return left
    leaves = pair(of, of_leaf, places)
    used = set()
    for image, masks in leaves.of.items():
        for mask in masks:
            if role_of(mask.tag.name) == "leaf":
                of[image].append(mask)
                used.add(mask.path)
    return [mask for mask in left if mask not in used]


def _says_leaf(mask: Path, places: Places) -> bool:
    words = words_of(" ".join([*places.of(mask), mask.stem]))
    return any(role_of(word) == "leaf" for word in words)


def _splits(
    files: FolderFiles, found: MaskedImages
) -> tuple[dict[Path, Split | None], list[str]]:
    """Return the split of every image, and names in lists that are of none."""
    places = found.roles.places
    listed = read_split_lists(files, found.images)
    splits: dict[Path, Split | None] = {}
    for image in found.images:
        split = split_of(image.relative_to(files.root)) or places.split(image)
        if split is None:
            of_masks = {places.split(mask.path) for mask in found.of.get(image, ())}
            split = of_masks.pop() if len(of_masks) == 1 else None
        splits[image] = split or listed.of.get(image)
    return splits, listed.missing


def _key_root(files: FolderFiles, found: MaskedImages) -> Path:
    """Return the folder of all images, if one says that it is, or else the data set."""
    folders = {found.roles.folder_of.get(image) for image in found.images}
    folder = folders.pop() if len(folders) == 1 else None
    return folder or files.root


def _with_ids(
    files: FolderFiles,
    found: MaskedImages,
    source: str,
    classes: Path | None,
    splits: dict[Path, Split | None],
    doubts: list[str],
    root: Path,
) -> Manifest:
    """Return images with one mask of class ids each."""
    disease = _disease_of(files, found)
    rows = [
        Row(
            key,
            image,
            source,
            found.of[image][0].path if image in found.of else None,
            splits[image],
            disease=disease.get(image),
        )
        for image, key in keys_of(found.images, root).items()
    ]
    missing: list[str] = []
    if is_stated(files.root / INDEX_FILE):
        rows, missing = add_index(rows, files.root / INDEX_FILE)
    image_of = {row.mask: row.image for row in rows if row.mask is not None}
    codings = {source: _coding(files, image_of, classes, doubts)}
    origin = Origin(LAYOUT, names_without_image=tuple(missing))
    return Manifest(tuple(rows), common_classes(rows, codings), codings, {source: origin})


def _coding(
    files: FolderFiles,
    image_of: Mapping[Path, Path],
    classes: Path | None,
    doubts: list[str],
) -> MaskCoding:
    """Return the meaning of the values of masks, each with its image."""
    masks = sorted(image_of)
    if classes is None and (coding := read_table(files, masks, doubts)):
        return with_channel(coding, masks)
    return find_coding(files.root, masks, classes, image_of)


def _with_classes(
    files: FolderFiles,
    found: MaskedImages,
    by_class: ClassMasks,
    source: str,
    classes: Path | None,
    splits: dict[Path, Split | None],
    root: Path,
) -> Manifest:
    """Return images with several masks each, drawn as one."""
    files.used.update(mask for masks in by_class.of.values() for _, mask in masks)
    disease = _disease_of(files, found)
    manifest = read_annotations(
        draw_class_masks(
            found.images, by_class, found.brush.empty, splits.__getitem__, disease.get
        ),
        files.root,
        source,
        Origin("images and several masks of each, by class"),
        names=by_class.names,
        classes=classes,
    )
    codings = manifest.codings
    if classes is None:
        names = shorten(by_class.names, 8)
        stated = f"by the names of the files or folders of the masks: {names}"
        codings = {s: replace(coding, origin=stated) for s, coding in codings.items()}
    keys = keys_of(found.images, root)
    rows = [replace(row, key=keys[row.image]) for row in manifest.rows]
    return replace(manifest, rows=tuple(rows), codings=codings)


def _disease_of(files: FolderFiles, found: MaskedImages) -> dict[Path, str]:
    """Return the labels of images in class folders with their masks beside them."""
    names = {bare(image.name) for image in found.images}
    by_ending = names & {bare(mask.name) for mask in found.roles.beside}
    if not by_ending or not are_class_folders(found.images, files.root):
        return {}
    return {image: tidy_name(class_of(image, files.root)) for image in found.images}


def _doubts_of_brush(brush: BrushMasks) -> list[str]:
    doubts = []
    if brush.replaced:
        doubts.append(
            "masks of earlier annotations of a task, of which the last one counts: "
            f"{len(brush.replaced)}"
        )
    if brush.missing:
        doubts.append(
            f"tasks of Label Studio whose image is not here: {len(brush.missing)}"
        )
    return doubts


def _refuse_channels(files: FolderFiles, images: list[Path]) -> None:
    """Refuse images that are one file for each channel."""
    others = [image for image in images if image.stem.endswith(("_0001", "_0002"))]
    names = {image.stem for image in images}
    for image in others:
        first = image.stem[: -len("_0001")] + "_0000"
        if first in names:
            raise UsageError(
                f"`{image.relative_to(files.root).as_posix()}` of `{files.root}` is a "
                "channel of its image, in a file of its own.",
                needed="one file for each image, in color or gray",
                fix="join the channels as RGB, as nnU-Net's reader for natural images has "
                "them",
            )


def _no_pair(files: FolderFiles, found: MaskedImages) -> UsageError:
    images, masks = found.images, found.left or found.brush.unknown
    fix = "rename the masks after their images"
    if len(masks) > len(images):
        fix = "name the masks after their images, with the class behind: x_rust.png"
    return UsageError(
        f"In `{files.root}` no mask has the name of an image: the first image is "
        f"`{images[0].name}`, the first mask `{masks[0].name}`.",
        needed="equal names, except for the ending or a suffix such as `_mask`",
        fix=fix,
    )
