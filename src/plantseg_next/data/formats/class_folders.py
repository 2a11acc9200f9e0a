"""Images sorted into one folder per disease, as in PlantVillage.

PlantVillage (Hughes and Salathe 2015, arXiv:1511.08060) has a folder
``Plant___Disease`` for each of its 38 classes, below ``raw/color``.
"""

from pathlib import Path

from plantseg_next.data.formats.folders import (
    SPLIT_NAMES,
    keys_of,
    split_of,
    subfolder,
    tidy_name,
)
from plantseg_next.data.manifest import Manifest, Origin, Row, common_classes

_NAMES_OF_NO_CLASS = {"images", "img", "imgs", "photos", "pictures", "raw", "dcim"}


def color_folder(folder: Path) -> Path:
    """Return the color images of a PlantVillage checkout, or the folder itself.

    It contains the same leaves three times: in color, in gray and segmented.
    """
    raw = subfolder(folder, ["raw"]) or folder
    return subfolder(raw, ["color"]) or folder


def are_class_folders(images: list[Path], root: Path) -> bool:
    """Return whether all images are in folders whose names can be classes.

    Either a folder is named ``Plant___Disease`` or ``healthy``, or there are at least
    two, whose names have at least three letters in a row and are not splits.
    """
    names = {_class_name(image, root) for image in images}
    if "" in names:
        return False
    if any("___" in name or name.lower() == "healthy" for name in names):
        return True
    return len(names) > 1 and all(_can_be_class(name) for name in names)


def read_class_folders(images: list[Path], root: Path, source: str) -> Manifest:
    """Return rows with image-level labels from the names of their folders.

    ``Plant___Disease`` gives both names; any other folder name is the disease. Names are
    normalized to lower case with spaces, so that data sets share them. A parent folder
    named after a split gives the split.

    Args:
        images: All images below ``root``.
        root: The folder that keys are relative to.
        source: Name of the data set.
    """
    rows = []
    for image, key in keys_of(images, root).items():
        plant, _, disease = _class_name(image, root).rpartition("___")
        rows.append(
            Row(
                key=key,
                image=image,
                source=source,
                split=split_of(image.relative_to(root)),
                disease=tidy_name(disease),
                plant=tidy_name(plant) or None,
            )
        )
    origin = Origin("class folders: the name of a folder is the label of its images")
    return Manifest(tuple(rows), common_classes(rows, {}), {}, {source: origin})


def _class_name(image: Path, root: Path) -> str:
    folder = image.parent
    return "" if folder == root or folder.name.lower() in SPLIT_NAMES else folder.name


def _can_be_class(name: str) -> bool:
    letters = "".join(c if c.isalpha() else " " for c in name)
    long_enough = any(len(word) >= 3 or not word.isascii() for word in letters.split())
    return long_enough and name.lower() not in _NAMES_OF_NO_CLASS
