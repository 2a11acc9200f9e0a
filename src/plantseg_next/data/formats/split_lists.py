"""Pascal VOC's lists of the images of each split: ``ImageSets/Segmentation/train.txt``."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from plantseg_next.data.formats.folders import SPLIT_NAMES, FolderFiles
from plantseg_next.data.formats.names import ImageNames
from plantseg_next.data.manifest import Split
from plantseg_next.errors import UsageError
from plantseg_next.files import read_text


@dataclass
class ListedSplits:
    """The splits that lists state.

    Args:
        of: Split of each image that is listed.
        missing: Listed names without an image.
    """

    of: dict[Path, Split] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def read_split_lists(files: FolderFiles, images: Iterable[Path]) -> ListedSplits:
    """Return the splits in the lists of a data set; they are added to ``files.used``.

    Raises:
        DataError: If a list is not text.
        UsageError: If an image is in the lists of two splits.
    """
    listed = ListedSplits()
    list_of: dict[Path, Path] = {}
    names: ImageNames | None = None
    for path in files.ending(".txt"):
        folders = [part.lower() for part in path.parent.relative_to(files.root).parts]
        if folders[-2:] != ["imagesets", "segmentation"]:
            continue
        files.used.add(path)
        split = SPLIT_NAMES.get(path.stem.lower())
        if split is None:  # trainval.txt repeats two others; CVAT's default.txt lists all
            continue
        names = names or ImageNames(images, files.root)
        for line in read_text(path).splitlines():
            if not (name := line.strip()):
                continue
            image = names.find(name, near=path.parent.parent.parent)
            if image is None:
                continue
            if listed.of.setdefault(image, split) != split:
                raise UsageError(
                    f"`{image.relative_to(files.root).as_posix()}` of `{files.root}` is in "
                    f"`{list_of[image].name}` and in `{path.name}`.",
                    needed="each image in the list of one split: a score on images that "
                    "were learned from is too good",
                    fix="remove it from one of the lists",
                )
            list_of[image] = path
    if names is not None:
        listed.missing = list(dict.fromkeys([*names.missing, *names.ambiguous]))
    return listed
