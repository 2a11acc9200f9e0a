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
    subfolders,
    tidy_name,
)
from plantseg_next.data.formats.names import ROLE_WORDS
from plantseg_next.data.manifest import Manifest, Origin, Row, common_classes

_NO_CLASSES = ROLE_WORDS | {"raw", "dcim", "batch", "part", "set", "session"}


def color_folder(folder: Path) -> Path:
    """Return the color images of a PlantVillage checkout, or the folder itself.

    It contains the same leaves three times: in color, in gray and segmented.
    """
    raw = subfolder(folder, ["raw"]) or folder
    color = subfolder(raw, ["color"])
    is_checkout = color and any("___" in path.name for path in subfolders(color))
    return color if color and is_checkout else folder


def are_class_folders(images: list[Path], root: Path) -> bool:
    """Return whether all images are in folders whose names can be classes.

    Either a folder is named ``Plant___Disease`` or ``healthy``, or there are at least
    two, whose names have at least three letters in a row and are not splits.
    """
    names = {class_of(image, root) for image in images}
    if "" in names:
        return False
    if any("___" in name or name.lower() == "healthy" for name in names):
        return True
    return len(names) > 1 and all(can_be_class(name) for name in names)


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
        plant, _, disease = class_of(image, root).rpartition("___")
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


def class_of(image: Path, root: Path) -> str:
    """Return the folder of an image as a class; "" if it is the root or a split."""
    folder = image.parent
    return "" if folder == root or folder.name.lower() in SPLIT_NAMES else folder.name


def can_be_class(name: str) -> bool:
    """Return whether a name has a word that is no number, camera or kind of file."""
    words = "".join(c if c.isalpha() else " " for c in name).split()
    long_enough = [word for word in words if len(word) >= 3 or not word.isascii()]
    return any(word.casefold() not in _NO_CLASSES for word in long_enough)
