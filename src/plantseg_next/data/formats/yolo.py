"""YOLO segmentation: one text file per image, one polygon per line, in relative units.

The format is described at https://docs.ultralytics.com/datasets/segment/. A line of five
numbers is a box: it does not give the shape of a lesion, and is not used.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from plantseg_next.data.formats.annotations import AnnotatedImage, read_annotations
from plantseg_next.data.formats.coding import CLASS_FILES
from plantseg_next.data.formats.folders import FolderFiles, split_of
from plantseg_next.data.formats.names import ImageNames, one_file_each, same_name
from plantseg_next.data.formats.numbers import finite_array, whole
from plantseg_next.data.formats.rasterize import Annotation
from plantseg_next.data.image_io import read_size
from plantseg_next.data.manifest import Exif, Manifest, Origin
from plantseg_next.errors import DataError, PlantSegError
from plantseg_next.files import read_text
from plantseg_next.yaml_files import load_yaml

MAX_YAML_FILES = 20
NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
"""Files with one class name a line."""
NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", *NAME_LISTS)
_BOX_NUMBERS = 5
_BOX = "lines with a box instead of a polygon, not used"


def label_files(files: FolderFiles) -> list[Path]:
    """Return the label files of a YOLO data set; empty if it is another layout.

    They are in folders named ``labels``, or beside their images, and have the names of
    the images.
    """
    texts = [p for p in files.ending(".txt") if p.name.lower() not in NAME_LISTS]
    folders = [
        path
        for path in texts
        if "labels" in (part.lower() for part in path.relative_to(files.root).parts[:-1])
    ]
    if folders:
        return folders
    beside = {(image.parent, same_name(image.name)) for image in files.images}
    named = [path for path in texts if (path.parent, same_name(path.stem)) in beside]
    labels = [path for path in named if _looks_like_labels(path)]
    empty = [path for path in named if labels and not path.stat().st_size]
    return sorted(labels + empty)


def read_yolo(
    files: FolderFiles,
    texts: Sequence[Path],
    source: str,
    classes: Path | None = None,
    exif: Exif | None = None,
) -> Manifest:
    """Return images with masks drawn from YOLO label files.

    An image without a label file is not annotated; an empty file means no lesions.

    Args:
        files: The data set; a ``data.yaml`` or ``classes.txt`` in it names the classes.
        texts: Its label files.
        source: Name of the data set.
        classes: A class file with the meaning of each name.
        exif: "as-stored" if the labels are relative to the images as they are stored,
            before their EXIF orientation is applied.

    Raises:
        DataError: If a line is not in the YOLO format, or two files name the classes
            differently.
        UsageError: If a label file fits several images, or an image several files.
    """
    class_names = _class_names(files)
    names = ImageNames(files.images, files.root)
    files.used.update(texts)
    found = ((file, names.find(file.stem, file.parent)) for file in texts)
    file_of = one_file_each(found, files.root, "label", "one label file for each image")
    names.refuse_ambiguous()
    origin = Origin(
        "YOLO segmentation: one text file per image",
        (),
        tuple(names.missing),
        () if class_names else ("no file names the classes, which are called class N",),
        relative=True,
    )
    return read_annotations(
        _annotated(files, file_of, class_names, upright=exif != "as-stored"),
        files.root,
        source,
        origin,
        names=[class_names[i] for i in sorted(class_names)],
        classes=classes,
    )


def _annotated(
    files: FolderFiles,
    file_of: Mapping[Path, Path],
    class_names: Mapping[int, str],
    *,
    upright: bool,
) -> Iterator[AnnotatedImage]:
    for image in files.images:
        split = split_of(image.relative_to(files.root))
        file = file_of.get(image)
        if file is None:
            yield AnnotatedImage(image, None, None, split)
            continue
        lines = read_text(file).splitlines()
        try:
            size_hw = read_size(image, upright=upright)
        except PlantSegError:  # `check` reports the image
            yield AnnotatedImage(image, None, None, split)
            continue
        areas: list[Annotation] = []
        unusable = Counter[str]()
        for number, line in enumerate(lines, 1):
            if line.strip():
                area = _area(line, class_names, size_hw, f"`{file}`, line {number}")
                if _are_key_points(line.split()[1:]):
                    area = "lines of a box and key points in it, not used"
                if isinstance(area, str):
                    unusable[area] += 1
                else:
                    areas.append(area)
        yield AnnotatedImage(image, areas, size_hw, split, None, unusable)


def _class_names(files: FolderFiles) -> dict[int, str]:
    """Return the names that the files of a data set state for its class numbers."""
    stated: dict[int, str] = {}
    origin: Path | None = None
    for path in files.named(*NAMES_FILES) or _others_with_names(files):
        files.used.add(path)
        names = _names_in(path)
        if stated and names != stated:
            raise DataError(
                f"`{origin}` and `{path}` name the classes differently.",
                needed="one list of class names for the data set",
                fix="remove the wrong file; or use the folders as separate data sets",
            )
        stated, origin = names, path
    return stated


def _others_with_names(files: FolderFiles) -> list[Path]:
    """Return YAML files of other names that list class names."""
    texts = [p for p in files.ending(".yaml", ".yml") if p.name not in CLASS_FILES]
    found = []
    for path in texts[:MAX_YAML_FILES]:
        try:
            tree = load_yaml(read_text(path))
        except (yaml.YAMLError, PlantSegError):
            continue
        if isinstance(tree, dict) and isinstance(tree.get("names"), dict | list):
            found.append(path)
    return found


def _names_in(path: Path) -> dict[int, str]:
    try:
        text = read_text(path)
        if path.name.lower() in NAME_LISTS:
            lines = enumerate(line.strip() for line in text.rstrip().splitlines())
            return {i: name or f"class {i}" for i, name in lines}
        tree = load_yaml(text)
        if "kpt_shape" in tree:
            raise ValueError("`kpt_shape` says that the labels are key points")
        names = tree["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {whole(i, "a class number"): str(name).strip() for i, name in pairs}
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(
            f"`{path}` does not name the classes: {error!r}.",
            needed="`names:` with a name for each number, of a data set for segmentation",
            fix="use the file that the annotation tool wrote",
        ) from error


def _area(
    line: str, names: Mapping[int, str], size_hw: tuple[int, int], where: str
) -> Annotation | str:
    """Return the area of a line, or why it cannot be used."""
    words = line.split()
    try:
        number = whole(words[0], "the class")
        values = finite_array(words[1:], "the line")
        if len(words) == _BOX_NUMBERS:
            return _BOX
        if len(values) % 2 or len(values) < 6:
            raise ValueError("not pairs of x and y")
    except ValueError as error:
        raise DataError(
            f"{where}: {line[:60]!r}.",
            needed="the number of a class and pairs of x and y relative to the image size",
            fix="export the labels again for segmentation, without confidences; or "
            "remove the line",
        ) from error
    if names and number not in names:
        return "lines with the number of a class that has no name, not used"
    points = values.reshape(-1, 2) * (size_hw[1], size_hw[0])
    return Annotation(names.get(number, f"class {number}"), (points,))


def _are_key_points(words: Sequence[str]) -> bool:
    """Return whether numbers are a box and points with a visibility of 0, 1 or 2."""
    marks = words[6::3]
    return (
        len(words) % 3 == 1
        and len(marks) > 1
        and all(mark in {"0", "1", "2", "0.0", "1.0", "2.0"} for mark in marks)
    )


def _looks_like_labels(path: Path) -> bool:
    """Return whether the first line of a text is that of a label file."""
    try:
        first = next((line for line in read_text(path).splitlines() if line.strip()), "")
        words = first.split()
        whole(words[0] if words else "", "the class")
        return len(words) >= _BOX_NUMBERS and bool(len(finite_array(words[1:], "a line")))
    except (ValueError, PlantSegError):
        return False
