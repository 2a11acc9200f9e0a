"""Which images of a data set are masks: by their folder, their name, or their content.

The deepest folder with a word such as "images" or "masks" decides. Elsewhere a mask is
recognized by its name or ending beside that of an image: ``leaf_mask.png`` or ``leaf.png``
beside ``leaf.jpg``. Where a word may mean another thing (a photograph of a label), the
files must look like masks.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from plantseg_next.data.formats.folders import SPLIT_NAMES, FolderFiles
from plantseg_next.data.formats.mask_names import (
    bare,
    brush_name,
    says_mask,
    split_name,
    tag_of,
    without_words,
)
from plantseg_next.data.formats.names import (
    IMAGE_WORDS,
    MASK_WORDS,
    MAYBE_MASK_WORDS,
    ROLE_WORDS,
    words_of,
)
from plantseg_next.data.image_io import read_header, read_image, read_mask
from plantseg_next.data.manifest import Split
from plantseg_next.errors import PlantSegError

IMAGE, MASK, SHOWN = "image", "mask", "shown"
"""Roles: an image, a mask, or an image that only shows the masks to people."""

_SHOWN_WORDS = frozenset((
    *("visualization", "visualizations", "visualisation", "visualisations", "viz", "vis"),
    *("overlay", "overlays", "overlaid", "preview", "previews", "thumbnail", "thumbnails"),
    *("thumbs", "blend", "blended", "fuse"),  # the last one of SuperAnnotate
))  # fmt: skip
_DERIVED_WORDS = frozenset(
    ("object", "objects", "instance", "instances", "color", "colors", "colored")
)
"""Of two folders of masks, the one with such a word does not hold the class ids."""
_AND_WORDS = frozenset(("and", "with", "und", "mit"))
_MASK_SIBLINGS = (
    *(("y", "x"), ("output", "input"), ("outputs", "inputs")),
    *(("target", "input"), ("targets", "inputs")),
)
"""Words that mean masks if there is a folder of the same name with the second word."""
_SPLITS: dict[str, Split] = {**SPLIT_NAMES, "tr": "train", "ts": "test"}
"""With the two of nnU-Net: ``imagesTr``, ``imagesTs``."""
_SAMPLED = 9
_LOSSY_ENDINGS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".heic", ".heif"))
_MOST_GROUPS = 12
_MOST_IDS = 64
_PER_ID = 8  # pixels, so that a tiny photograph is not taken for a mask
_LOSSY_BITS = 3  # the lowest, which lossy compression changes
_MOST_PIXELS = 1 << 18
_FLAT = 0.6
_PEAKS = 8
_IN_PEAKS = 0.85


class Places:
    """Returns the place of files: the parts of their folder that distinguish images.

    Words that say what a folder holds are left out, so an image and its mask are in the
    same place.

    Args:
        root: The data set.
        siblings: Folders whose name says by an x or a y what they hold.
    """

    def __init__(self, root: Path, siblings: Iterable[Path] = ()) -> None:
        self.root = root
        self._siblings = frozenset(siblings)
        self._of: dict[Path, tuple[str, ...]] = {root: ()}

    def of(self, path: Path) -> tuple[str, ...]:
        """Return the place of a file."""
        return self._of_folder(path.parent)

    def split(self, path: Path) -> Split | None:
        """Return the split that the folders of a file name, if any."""
        return next((_SPLITS[p] for p in self.of(path) if p in _SPLITS), None)

    def shown(self, path: Path) -> str:
        """Return the path of a file inside the data set, for messages."""
        return path.relative_to(self.root).as_posix()

    def _of_folder(self, folder: Path) -> tuple[str, ...]:
        if folder not in self._of:
            name = folder.name
            if folder in self._siblings:
                name = _without_sibling_word(name)
            words = [word for word in words_of(name) if word not in ROLE_WORDS]
            own = (" ".join(words),) if words else ()
            self._of[folder] = self._of_folder(folder.parent) + own
        return self._of[folder]


@dataclass(frozen=True)
class Roles:
    """The images and masks among the files of a data set.

    Args:
        images: Files that are no masks.
        masks: Masks.
        certain: The images whose folder says that they are images.
        places: Where all of them are.
        folder_of: The folder that gave an image or mask its role, if one did.
        beside: Masks that were recognized beside their image.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    certain: frozenset[Path]
    places: Places
    folder_of: dict[Path, Path] = field(default_factory=dict)
    beside: frozenset[Path] = frozenset()


def find_roles(files: FolderFiles, *, by_folders: bool = True) -> Roles:
    """Return which images of a data set are masks.

    Args:
        files: All files.
        by_folders: Whether the names of folders count.
    """
    folders = _Folders(files) if by_folders else None
    by_role: dict[str | None, list[Path]] = defaultdict(list)
    folder_of: dict[Path, Path] = {}
    for path in files.images:
        role, folder = folders.role(path.parent) if folders else (None, None)
        if brush_name(path):
            role, folder = MASK, None
        by_role[role].append(path)
        if folder is not None:
            folder_of[path] = folder
    if folders and not by_role[MASK]:
        by_role[MASK] = _in_unnamed_folders(by_role[IMAGE], by_role[None])
        by_role[None] = sorted(set(by_role[None]) - set(by_role[MASK]))
    images, masks = by_role[IMAGE] + by_role[None], by_role[MASK]
    if not images:  # only masks: the word says something else
        images, masks = masks, []
    beside, shown = _beside(sorted(images, key=str))
    images = sorted((p for p in images if p not in beside and p not in shown), key=str)
    places = Places(files.root, folders.siblings if folders else ())
    certain = {p for p in images if p in folder_of or places.split(p) is not None}
    return Roles(
        tuple(images),
        tuple(sorted([*masks, *beside], key=str)),
        frozenset(certain) if by_role[IMAGE] else frozenset(),
        places,
        folder_of,
        frozenset(beside),
    )


def _in_unnamed_folders(images: Sequence[Path], others: Sequence[Path]) -> list[Path]:
    """Return the files of folders that hold masks by their content.

    Such a folder has the names of the images of another folder: ``rust/1.png`` beside
    ``images/1.jpg``.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    by_name: dict[str, set[Path]] = defaultdict(set)
    for path in others:
        folders[path.parent].append(path)
    for path in (*images, *others):
        by_name[without_words(path.name)].add(path.parent)
    masks: list[Path] = []
    n_tried = 0
    for inside in folders.values():
        lossless = [path for path in inside if path.suffix.lower() not in _LOSSY_ENDINGS]
        shared = [p for p in lossless if len(by_name[without_words(p.name)]) > 1]
        if 2 * len(shared) <= len(inside) or n_tried == _MOST_GROUPS:
            continue
        n_tried += 1
        if look_like_masks(lossless):
            masks += inside
    return masks if len(masks) < len(images) + len(others) else []


class _Folders:
    """The roles of the folders of a data set."""

    def __init__(self, files: FolderFiles) -> None:
        self._root = files.root
        self._files: dict[Path, list[Path]] = defaultdict(list)
        self._names: dict[Path, set[str]] = defaultdict(set)
        self._own: dict[Path, str | None] = {}
        self._of: dict[Path, tuple[str | None, Path | None]] = {}
        self.siblings: set[Path] = set()
        for path in files.images:
            for folder in path.parents:
                if folder == self._root:
                    break
                self._files[folder].append(path)
                self._names[folder.parent].add(folder.name.casefold())

    def role(self, folder: Path) -> tuple[str | None, Path | None]:
        """Return the role of the files in a folder, and the folder whose name says so."""
        if folder == self._root:
            return None, None
        if folder not in self._of:
            own = self._role_of_name(folder)
            self._of[folder] = (own, folder) if own else self.role(folder.parent)
        return self._of[folder]

    def _role_of_name(self, folder: Path) -> str | None:
        words = set(words_of(folder.name))
        says_image, is_sure = bool(words & IMAGE_WORDS), bool(words & MASK_WORDS)
        if words & _SHOWN_WORDS:
            return SHOWN
        if not is_sure and not words & MAYBE_MASK_WORDS:
            return IMAGE if says_image else self._role_beside_sibling(folder)
        if words & _DERIVED_WORDS and self._has_plain_sibling(folder):
            return SHOWN
        if says_image and words & _AND_WORDS:
            return None
        is_mask = is_sure or look_like_masks(self._files[folder]) is not False
        return MASK if is_mask else None

    def _has_plain_sibling(self, folder: Path) -> bool:
        """Return whether another folder beside this one holds the class ids."""
        return any(
            set(words_of(name)) & (MASK_WORDS | MAYBE_MASK_WORDS)
            and not set(words_of(name)) & (_DERIVED_WORDS | _SHOWN_WORDS)
            for name in (other.name for other in self._files if _is_beside(other, folder))
        )

    def _role_beside_sibling(self, folder: Path) -> str | None:
        name = folder.name.casefold()
        others = self._names[folder.parent]
        for mask_word, image_word in _MASK_SIBLINGS:
            for word, other, role in (
                (mask_word, image_word, MASK),
                (image_word, mask_word, IMAGE),
            ):
                partner = _replaced(name, word, other)
                if partner not in others or partner == name:
                    continue
                masks = folder if role == MASK else folder.with_name(partner)
                in_masks = self._files.get(masks) or self._in_folded(masks)
                if look_like_masks(in_masks):
                    self.siblings.add(folder)
                    return role
        return None

    def _in_folded(self, folder: Path) -> list[Path]:
        name = folder.name.casefold()
        same = (f for f in self._files if _is_beside(f, folder))
        return next((self._files[f] for f in same if f.name.casefold() == name), [])


def _is_beside(folder: Path, other: Path) -> bool:
    return folder.parent == other.parent and folder != other


def _replaced(name: str, word: str, other: str) -> str:
    """Return a name with a word at its start or end replaced; unchanged without it."""
    if name.endswith(word):
        return name[: -len(word)] + other
    return other + name[len(word) :] if name.startswith(word) else name


def _without_sibling_word(name: str) -> str:
    for pair in _MASK_SIBLINGS:
        for word in pair:
            if (shorter := _replaced(name.casefold(), word, "")) != name.casefold():
                return shorter
    return name


def _beside(images: Sequence[Path]) -> tuple[set[Path], set[Path]]:
    """Return the masks beside their images, and images that show masks to people."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        by_folder[image.parent].append(image)
    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    shown: set[Path] = set()
    for inside in by_folder.values():
        for path, group in _candidates(inside):
            if group[0] == SHOWN:
                shown.add(path)
            else:
                groups[group].append(path)
    without_word = sum(group[0] == "tag" for group in groups)
    masks: set[Path] = set()
    for group, paths in groups.items():
        if group[0] == "tag" and without_word > _MOST_GROUPS:
            continue
        if look_like_masks(paths):
            masks.update(paths)
    for inside in by_folder.values():  # a mask needs its image beside it
        if all(path in masks for path in inside):
            masks.difference_update(inside)
    return masks, shown


def _candidates(inside: Sequence[Path]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the files of a folder that may be masks, with what names them so."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    by_core: dict[str, list[Path]] = defaultdict(list)
    for path in inside:
        by_name[bare(path.name)].append(path)
        if not says_mask(bare(path.name)):
            by_core[without_words(path.name)].append(path)
    for path in inside:
        name, ending = bare(path.name), path.suffix.lower()
        twins = {p.suffix.lower() for p in by_name[name]} - {ending}
        if twins:
            yield path, ("ending", ending, *sorted(twins))
            continue
        of_image, rest = split_name(name, by_name) or ("", "")
        if rest and _SHOWN_WORDS & set(words_of(rest)):
            yield path, (SHOWN,)
        elif rest and says_mask(rest):
            yield path, ("word", tag_of(rest).name, ending)
        elif says_mask(name) and by_core.get(without_words(path.name)):
            yield path, ("word", "", ending)
        elif says_mask(name) and _SHOWN_WORDS & set(words_of(name)):
            yield path, (SHOWN,)
        elif of_image and tag_of(rest).name and ending not in {".jpg", ".jpeg"}:
            yield path, ("tag", tag_of(rest).name, ending)


def look_like_masks(paths: Sequence[Path]) -> bool | None:
    """Return whether most of some files look like masks; ``None`` if that is not clear."""
    places = np.linspace(0, len(paths) - 1, min(len(paths), _SAMPLED)).astype(int)
    looks = [look for i in places if (look := _looks_like_mask(paths[i])) is not None]
    return sum(looks) * 2 > len(looks) if looks else None


def _looks_like_mask(path: PurePath) -> bool | None:
    """Return whether a file has the few values of a mask; ``None`` if that is not clear.

    Masks with smooth edges, or saved with loss, have many values, but most pixels have one
    of a few, and that of their neighbor. Photographs have noise.
    """
    path = Path(path)
    try:
        header = read_header(path)
        is_lossy = bool(header.lossy)
        values = read_image(path) >> _LOSSY_BITS if is_lossy else read_mask(path)
    except PlantSegError:
        return None
    step = max(1, int((values.shape[0] * values.shape[1] / _MOST_PIXELS) ** 0.5))
    values = values[::step].astype(np.uint32)
    if values.ndim == 3:
        values = values @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    counts = np.sort(np.unique(values[:, ::step], return_counts=True)[1])[::-1]
    if len(counts) == 1 and (is_lossy or header.mode in {"RGB", "RGBA"}):
        return None
    if not is_lossy and len(counts) <= min(_MOST_IDS, max(2, counts.sum() // _PER_ID)):
        return True
    is_flat = (values[:, 1:] == values[:, :-1]).mean() >= _FLAT
    return bool(is_flat and counts[:_PEAKS].sum() >= _IN_PEAKS * counts.sum())
