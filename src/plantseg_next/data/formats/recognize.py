"""Recognize by itself how a folder is laid out, and read it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plantseg_next.data.formats.class_folders import (
    are_class_folders,
    color_folder,
    read_class_folders,
)
from plantseg_next.data.formats.coco import is_coco, read_coco
from plantseg_next.data.formats.coding import CLASS_FILES, stated_classes
from plantseg_next.data.formats.cvat import is_cvat, read_cvat
from plantseg_next.data.formats.folders import (
    SPLIT_NAMES,
    find_files,
    find_images,
    is_image,
    subfolders,
)
from plantseg_next.data.formats.image_mask import Pairs, find_pairs, read_image_mask
from plantseg_next.data.formats.index import INDEX_FILE
from plantseg_next.data.formats.labelme import is_labelme, read_labelme
from plantseg_next.data.formats.plain import read_plain
from plantseg_next.data.formats.plantseg import is_plantseg, read_plantseg
from plantseg_next.data.formats.yolo import label_files, read_yolo
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest, merge
from plantseg_next.errors import DataError, UsageError, missing_path
from plantseg_next.files import read_text


def read_folders(paths: Sequence[Path], *, classes: Path | None = None) -> Manifest:
    """Return the images of one data set or of many in one table.

    Data sets are called after their folders; where two have one name, the folder above
    is put in front.

    Args:
        paths: Each as for ``read_folder``.
        classes: What mask values mean; for one data set only.

    Raises:
        UsageError: If two data sets cannot be told apart, or as ``read_folder``.
        DataError: As ``read_folder``.
    """
    if len(paths) == 1:
        return read_folder(paths[0], classes=classes)
    if classes is not None:
        raise UsageError(
            f"--classes names one file, for {len(paths)} data sets.",
            needed="what mask values mean, for each data set",
            fix="put a classes.yaml into each folder",
        )
    count = Counter(path.resolve().name for path in paths)
    return merge(
        read_folder(path, source=_place(path) if count[path.resolve().name] > 1 else None)
        for path in paths
    )


def read_folder(
    path: Path, *, classes: Path | None = None, source: str | None = None
) -> Manifest:
    """Return the images of a folder with all that its layout says about them.

    Tried in this order; ``Manifest.origins`` says which it was:

    0. a manifest written before, ``manifest.json`` or a folder that holds one;
    1. the PlantSeg archive: ``images``, ``annotations``, ``Metadata.csv``;
    2. images and masks of equal names, also as Pascal VOC and CVAT lay them out;
    3. outlines: COCO, LabelMe, CVAT's XML, YOLO's text files; masks are drawn of them;
    4. images with an ``index.csv``;
    5. class folders, ``Plant___Disease`` or a folder a disease;
    6. images only, unlabeled; a single image too.

    Splits that the layout states are kept; other rows of labeled layouts have none
    yet. The data set is named after the folder.

    Args:
        path: A folder, an image or a manifest.
        classes: A file that says what mask values mean; the folder's own
            ``classes.yaml`` (``.yml``, ``.json``, ``.csv``) by default, and without
            one the meaning is inferred from the masks.

        source: What to call the data set; after its folder by default.

    Raises:
        UsageError: If there is no such path, no image in it, or its masks cannot be
            understood without a class file.
        DataError: If a class file, an index or a manifest cannot be understood.
    """
    if not path.exists():
        raise missing_path(path, "a folder of images, an image, or a manifest")
    if classes is not None and not classes.is_file():
        raise missing_path(classes, "a class file: mask values and their meanings")
    if path.is_file():
        return _read_file(path)
    if (path / MANIFEST_FILE).is_file():
        return Manifest.read(path / MANIFEST_FILE)

    source = source or path.resolve().name or "images"
    folder = color_folder(_unwrapped(path))
    images = find_images(folder)
    if not images:
        raise _no_images(path)
    return _read_masks(folder, images, source, classes) or _read_names(
        folder, images, source
    )


def _place(path: Path) -> str:
    whole = path.resolve()
    return f"{whole.parent.name}-{whole.name}"


def _read_masks(
    folder: Path, images: list[Path], source: str, classes: Path | None
) -> Manifest | None:
    """Return the images of a data set that has masks or outlines."""
    if is_plantseg(folder):
        return read_plantseg(folder, source, classes)
    if pairs := find_pairs(folder, images):
        return read_image_mask(folder, pairs, source, classes)
    return _read_outlined(folder, images, source, classes)


def _read_names(folder: Path, images: list[Path], source: str) -> Manifest:
    """Return the images of a data set that has names at most."""
    if (folder / INDEX_FILE).is_file():
        pairs = [Pairs(tuple(images), (), folder, folder)]
        return read_image_mask(folder, pairs, source)
    if are_class_folders(images, folder):
        return read_class_folders(images, folder, source)
    return read_plain(images, folder, source)


def _read_outlined(
    folder: Path, images: list[Path], source: str, classes: Path | None
) -> Manifest | None:
    """Return what an annotation tool left in a folder; ``None`` if there is nothing."""
    classes = classes or stated_classes(folder)
    trees = {
        path: _tree(path)
        for path in find_files(folder, ".json")
        if path.name not in (*CLASS_FILES, MANIFEST_FILE)
    }
    if coco := {path: tree for path, tree in trees.items() if is_coco(tree)}:
        return read_coco(folder, images, coco, source, classes)
    if labelme := {path: tree for path, tree in trees.items() if is_labelme(tree)}:
        return read_labelme(folder, images, labelme, source, classes)
    if cvat := [path for path in sorted(folder.glob("*.xml")) if is_cvat(path)]:
        return read_cvat(folder, images, cvat[0], source, classes)
    if yolo := label_files(folder):
        return read_yolo(folder, images, yolo, source, classes)
    return None


def _tree(path: Path) -> Any:  # noqa: ANN401
    """Return what a JSON file holds, without LabelMe's copy of the image.

    Raises:
        DataError: If it is no JSON: whatever outlines it held would be missed in silence.
    """
    try:
        tree = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"`{path}` is not JSON, or cut short: {error}.",
            needed="a whole file, as an annotation tool wrote it",
            fix="export it again; or take it out of the folder if it says nothing of "
            "the images",
        ) from error
    if isinstance(tree, dict):
        tree.pop("imageData", None)
    return tree


def _read_file(path: Path) -> Manifest:
    if path.suffix.lower() == ".json":
        return Manifest.read(path)
    if not is_image(path):
        raise UsageError(
            f"`{path}` is a file, but not an image by its name.",
            needed="a folder of images, an image, or a manifest (.json)",
            fix="point at the folder that the images are in",
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


def _no_images(path: Path) -> UsageError:
    kinds = sorted({p.suffix for p in path.rglob("*") if p.is_file() and p.suffix})
    holds = f"only files ending in {', '.join(kinds[:5])}" if kinds else "no files"
    return UsageError(
        f"`{path}` holds no images, {holds}.",
        needed="a folder with .jpg, .png, .tif or other images, at any depth",
        fix="check the path; unpack the archive if it is still packed",
    )
