"""Recognition of the layout of a folder, and reading it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from plantseg_next.data.formats.class_folders import (
    are_class_folders,
    color_folder,
    read_class_folders,
)
from plantseg_next.data.formats.coco import read_coco
from plantseg_next.data.formats.coding import CLASS_FILES, stated_classes
from plantseg_next.data.formats.cvat import read_cvat
from plantseg_next.data.formats.folders import (
    RESULTS,
    SPLIT_NAMES,
    FolderFiles,
    holds_results,
    is_image,
    scan,
    subfolders,
)
from plantseg_next.data.formats.image_mask import (
    find_masks,
    read_image_mask,
    read_indexed,
    without_shown,
)
from plantseg_next.data.formats.index import INDEX_FILE
from plantseg_next.data.formats.json_trees import read_tree
from plantseg_next.data.formats.labelme import read_labelme
from plantseg_next.data.formats.plain import read_plain
from plantseg_next.data.formats.plantseg import is_plantseg, read_plantseg
from plantseg_next.data.formats.tools import (
    COCO,
    CVAT,
    LABELME,
    tool_of_json,
    tool_of_xml,
)
from plantseg_next.data.formats.unused import unused_files
from plantseg_next.data.formats.yolo import label_files, read_yolo
from plantseg_next.data.manifest import MANIFEST_FILE, Exif, Manifest, merge
from plantseg_next.errors import UsageError, missing_path, unknown_name
from plantseg_next.files import is_stated
from plantseg_next.xml_files import read_xml


def read_folders(
    paths: Sequence[Path], *, classes: Path | None = None, exif: Sequence[str] = ()
) -> Manifest:
    """Return the images of one or many data sets in one manifest.

    Data sets are named after their folders; if two have the same name, the parent folder
    is prepended.

    Args:
        paths: Each as for ``read_folder``.
        classes: A class file; for one data set only.
        exif: Which way images were annotated: "as-stored" or "upright" for all data sets,
            or "NAME=as-stored" for one.

    Raises:
        UsageError: If ``exif`` names no such way or data set, two data sets have the same
            name, or as ``read_folder``.
        DataError: As ``read_folder``.
    """
    for path in paths:
        _refuse_missing(path)
    count = Counter(path.resolve().name for path in paths)
    names = [
        _name_with_parent(path) if count[path.resolve().name] > 1 else path.resolve().name
        for path in paths
    ]
    ways = _exif_of(exif, names)
    if len(paths) == 1:
        return read_folder(paths[0], classes=classes, exif=ways.get(names[0]))
    if classes is not None:
        raise UsageError(
            f"--classes names one file, for {len(paths)} data sets.",
            needed="the meaning of the mask values of each data set",
            fix="put a classes.yaml into each folder",
        )
    return merge(
        read_folder(
            path,
            source=name if count[path.resolve().name] > 1 else None,
            exif=ways.get(name),
        )
        for path, name in zip(paths, names, strict=True)
    )


def _exif_of(stated: Sequence[str], names: Sequence[str]) -> dict[str, Exif]:
    """Return the stated way of each data set; a later statement precedes an earlier one."""
    ways: dict[str, Exif] = {}
    for text in stated:
        name, _, word = text.rpartition("=")
        way = next((known for known in get_args(Exif) if known == word), None)
        if way is None:
            raise unknown_name(f"--exif is `{text}`.", word, get_args(Exif))
        if name and name not in names:
            raise unknown_name(f"--exif names the data set `{name}`.", name, names)
        ways |= dict.fromkeys([name] if name else names, way)
    return ways


def read_folder(
    path: Path,
    *,
    classes: Path | None = None,
    source: str | None = None,
    exif: Exif | None = None,
) -> Manifest:
    """Return the images of a folder with the labels that its layout contains.

    Layouts are tried in this order; ``Manifest.origins`` states the one that was found:

    0. a manifest, ``manifest.json`` or a folder that contains one;
    1. the PlantSeg archive: ``images``, ``annotations``, ``Metadata.csv``;
    2. images and masks of equal names, also in the layouts of Pascal VOC and CVAT;
    3. annotations: COCO, LabelMe, XML of CVAT, YOLO text files; masks are drawn from them;
    4. images with an ``index.csv``;
    5. class folders, ``Plant___Disease`` or one folder per disease;
    6. images only, unlabeled; also a single image.

    Splits of the layout are kept; other rows of labeled layouts have none yet. The data
    set is named after the folder.

    Args:
        path: A folder, an image or a manifest.
        classes: A class file with the meaning of the mask values. Default: the
            ``classes.yaml`` (``.yml``, ``.json``, ``.csv``) of the folder; without
            one, the coding is inferred from the masks.
        source: Name of the data set; default: the name of its folder.
        exif: Which way images with an EXIF orientation were annotated; by default as the
            sizes show, and upright where both ways fit.

    Raises:
        UsageError: If there is no such path, no image in it, or its masks require a
            class file.
        DataError: If a class file, an index or a manifest is invalid.
    """
    _refuse_missing(path)
    if classes is not None and not classes.is_file():
        raise missing_path(classes, "a class file: mask values and their meanings")
    if path.is_file():
        return _annotated(_read_file(path), exif)
    if is_stated(path / MANIFEST_FILE):
        return _annotated(Manifest.read(path / MANIFEST_FILE), exif)

    if holds_results(path):
        raise UsageError(
            f"`{path}` holds results of plantseg-next, no data set.",
            needed="a folder of images",
            fix="name the folder of the images that were measured",
        )
    source = source or path.resolve().name or "images"
    files = scan(color_folder(_unwrapped(path)))
    if not files.images:
        raise _no_images(path, files)
    manifest = _read_masks(files, source, classes, exif) or _read_labels(files, source)
    origin = replace(manifest.origins[source], unused=unused_files(manifest, files))
    return _annotated(replace(manifest, origins={source: origin}), exif)


def _annotated(manifest: Manifest, exif: Exif | None) -> Manifest:
    """Return a manifest that states which way its images were annotated."""
    if exif is None:
        return manifest
    codings = {
        name: replace(coding, exif=exif) for name, coding in manifest.codings.items()
    }
    return replace(manifest, codings=codings)


def _refuse_missing(path: Path) -> None:
    needed = "a folder of images, an image, or a manifest"
    if not path.exists():
        raise missing_path(path, needed)
    if not (path.is_dir() or path.is_file()):
        raise UsageError(
            f"`{path}` is neither a folder nor a regular file.",
            needed=needed,
            fix="copy what it gives to a file, and name that",
        )


def _name_with_parent(path: Path) -> str:
    absolute = path.resolve()
    return f"{absolute.parent.name}-{absolute.name}"


def _read_masks(
    files: FolderFiles, source: str, classes: Path | None, exif: Exif | None
) -> Manifest | None:
    """Return the images of a data set with masks or annotations, else ``None``."""
    folder = files.root
    _use_class_files(files)
    if is_plantseg(folder):
        return read_plantseg(files, source, classes)
    if found := find_masks(files):
        return read_image_mask(files, found, source, classes)
    return _read_annotated(files, source, classes, exif)


def _read_labels(files: FolderFiles, source: str) -> Manifest:
    """Return the images of a data set with image-level labels or without labels."""
    folder, images = files.root, without_shown(files)
    if is_stated(folder / INDEX_FILE):
        return read_indexed(files, source)
    if are_class_folders(images, folder):
        return read_class_folders(images, folder, source)
    return read_plain(images, folder, source)


def _use_class_files(files: FolderFiles) -> None:
    names = (*CLASS_FILES, INDEX_FILE)
    files.used.update(files.root / name for name in names)


def _read_annotated(
    files: FolderFiles, source: str, classes: Path | None, exif: Exif | None
) -> Manifest | None:
    """Return images with the files of an annotation tool; ``None`` if there are none."""
    classes = classes or stated_classes(files.root)
    coco: dict[Path, Any] = {}
    labelme: list[Path] = []
    for path in files.ending(".json"):
        if path.name in (*CLASS_FILES, MANIFEST_FILE):
            continue
        tree = read_tree(path)
        tool = tool_of_json(tree)
        if tool == COCO and tree["images"]:  # an empty one is named as unused
            coco[path] = tree
        elif tool == LABELME:
            labelme.append(path)
    if coco:
        return read_coco(files, coco, source, classes, exif)
    if labelme:
        return read_labelme(files, labelme, source, classes, exif)
    xml = {path: read_xml(path) for path in files.ending(".xml")}
    if cvat := {path: tree for path, tree in xml.items() if tool_of_xml(tree) == CVAT}:
        return read_cvat(files, cvat, source, classes)
    if texts := label_files(files):
        return read_yolo(files, texts, source, classes, exif)
    return None


def _read_file(path: Path) -> Manifest:
    if path.suffix.lower() == ".json":
        return Manifest.read(path)
    if not is_image(path):
        raise UsageError(
            f"`{path}` is a file, but not an image by its name.",
            needed="a folder of images, an image, or a manifest (.json)",
            fix="use the folder of the images",
        )
    return read_plain([path], path.parent, path.stem)


def _unwrapped(folder: Path) -> Path:
    """Return the data set inside the single folder that unpacking an archive adds."""
    inside = subfolders(folder)
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    if len(inside) != 1 or files or not subfolders(inside[0]):
        return folder
    name = inside[0].name.lower()
    return folder if "___" in name or name in SPLIT_NAMES else inside[0]


def _no_images(path: Path, files: FolderFiles) -> UsageError:
    kinds = sorted({p.suffix for p in files.files if p.suffix})
    holds = f"only files ending in {', '.join(kinds[:5])}" if kinds else "no files"
    if results := files.left_out.get(RESULTS):
        holds += f", and results of this program in `{results[0].name}`"
    return UsageError(
        f"`{path}` holds no images, {holds}.",
        needed="a folder with .jpg, .png, .tif or other images, at any depth",
        fix="check the path; unpack the archive if necessary",
    )
