"""Recognise by itself how a folder is laid out, and read it."""

from pathlib import Path

from plantseg_next.data.layouts.class_folders import (
    are_class_folders,
    colour_folder,
    read_class_folders,
)
from plantseg_next.data.layouts.folders import (
    SPLIT_NAMES,
    find_pictures,
    is_picture,
    subfolders,
)
from plantseg_next.data.layouts.image_mask import Pairs, find_pairs, read_image_mask
from plantseg_next.data.layouts.index import INDEX_FILE
from plantseg_next.data.layouts.plain import read_plain
from plantseg_next.data.layouts.plantseg import is_plantseg, read_plantseg
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.errors import UsageError, missing_path


def read_folder(path: Path, *, classes: Path | None = None) -> Manifest:
    """Return the pictures of a folder with all that its layout says about them.

    Tried in this order; ``Manifest.origins`` says which it was:

    0. a manifest written before, ``manifest.json`` or a folder that holds one;
    1. the PlantSeg archive: ``images``, ``annotations``, ``Metadata.csv``;
    2. pictures and masks of equal names, or pictures with an ``index.csv``;
    3. class folders, ``Plant___Disease`` or a folder a disease;
    4. pictures only, unlabelled; a single picture too.

    Splits that the layout states are kept; other rows of labelled layouts have none
    yet. The data set is named after the folder.

    Args:
        path: A folder, a picture or a manifest.
        classes: A file that says what mask values mean; the folder's own
            ``classes.yaml`` (``.yml``, ``.json``, ``.csv``) by default, and without
            one the meaning is inferred from the masks.

    Raises:
        UsageError: If there is no such path, no picture in it, or its masks cannot be
            understood without a class file.
        DataError: If a class file, an index or a manifest cannot be understood.
    """
    if not path.exists():
        raise missing_path(path, "a folder of pictures, a picture, or a manifest")
    if classes is not None and not classes.is_file():
        raise missing_path(classes, "a class file: mask values and their meanings")
    if path.is_file():
        return _read_file(path)
    if (path / MANIFEST_FILE).is_file():
        return Manifest.read(path / MANIFEST_FILE)

    source = path.resolve().name or "pictures"
    folder = colour_folder(_unwrapped(path))
    if is_plantseg(folder):
        return read_plantseg(folder, source, classes)
    pictures = find_pictures(folder)
    if not pictures:
        raise _no_pictures(path)
    pairs = find_pairs(folder, pictures)
    if not pairs and (folder / INDEX_FILE).is_file():
        pairs = [Pairs(tuple(pictures), (), folder, folder)]
    if pairs:
        return read_image_mask(folder, pairs, source, classes)
    if are_class_folders(pictures, folder):
        return read_class_folders(pictures, folder, source)
    return read_plain(pictures, folder, source)


def _read_file(path: Path) -> Manifest:
    if path.suffix.lower() == ".json":
        return Manifest.read(path)
    if not is_picture(path):
        raise UsageError(
            f"`{path}` is a file, but not a picture by its name.",
            needed="a folder of pictures, a picture, or a manifest (.json)",
            fix="point at the folder that the pictures are in",
        )
    return read_plain([path], path.parent, path.stem)


def _unwrapped(folder: Path) -> Path:
    """Return the data set inside the one folder that unpacking an archive adds."""
    inside = subfolders(folder)
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    if len(inside) != 1 or files or not subfolders(inside[0]):
        return folder
    name = inside[0].name.lower()
    return folder if "___" in name or name in SPLIT_NAMES else inside[0]


def _no_pictures(path: Path) -> UsageError:
    kinds = sorted({p.suffix for p in path.rglob("*") if p.is_file() and p.suffix})
    holds = f"only files ending in {', '.join(kinds[:5])}" if kinds else "no files"
    return UsageError(
        f"`{path}` holds no pictures, {holds}.",
        needed="a folder with .jpg, .png, .tif or other pictures, at any depth",
        fix="check the path; unpack the archive if it is still packed",
    )
