"""The one comparison of file names: how annotations, masks and tables name their images.

Names differ in Unicode form (a Mac stores accents decomposed), in slashes (Windows), in
case, in their ending, and in the folders before them. Two names are compared as exactly
as they allow: equal names first, then equal up to case, then without ending.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from urllib.parse import unquote

from plantseg_next.data.formats.folders import IMAGE_ENDINGS, split_of
from plantseg_next.errors import UsageError, shorten

IMAGE_WORDS = frozenset((
    *("images", "img", "imgs", "jpegimages", "image", "picture"),
    *("photo", "photos", "pictures"), *("original", "originals", "orig", "input", "inputs"),
    *("bild", "bilder", "imagen", "imagenes", "imágenes", "imagem", "imagens", "图像"),
))  # fmt: skip
"""Words that say "images", in the names of folders and files."""
MASK_WORDS = frozenset((
    *("mask", "masks", "msk", "msks", "segmentation", "segmentations", "segmentationclass"),
    *("segmentationclasspng", "groundtruth", "groundtruths", "truth", "maske", "masken"),
    *("mascara", "mascaras", "máscara", "máscaras", "masque", "masques", "掩码"),
))  # fmt: skip
"""Words that say "masks"."""
MAYBE_MASK_WORDS = frozenset((
    *("label", "labels", "lbl", "lbls", "annotation", "annotations", "anno", "ann"),
    *("anns", "annots", "gt", "gts", "seg", "segs", "标签"),
))  # fmt: skip
"""Words that say "masks", unless the files are photographs: of the label of a pot."""
ROLE_WORDS = frozenset((
    *IMAGE_WORDS, *MASK_WORDS, *MAYBE_MASK_WORDS,
    *("jpeg", "color", "rgb", "raw", "ground", "class", "png", "json", "jsons"),
    *("labelme", "xml", "txt", "dir", "data"),
))  # fmt: skip
"""Words of folder names that say what is in a folder, not which images they are."""
_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])|\d+|[^\W\d_]+")
_ENDINGS = re.compile(f"(?:{'|'.join(map(re.escape, IMAGE_ENDINGS))})+$", re.IGNORECASE)
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""What Label Studio prepends to the name of an uploaded file."""


def whole_name(name: str) -> str:
    """Return a file name with its ending, with accents as one letter each (NFC)."""
    return unicodedata.normalize("NFC", name)


def same_name(name: str) -> str:
    """Return a file name without ending, in the form used for comparison.

    Accents are normalized (NFC), and the ending of the image is removed from a mask too.

    Example:
        >>> same_name("leaf 1.JPG.png")
        'leaf 1'
    """
    return _ENDINGS.sub("", whole_name(name))


def words_of(name: str) -> list[str]:
    """Return the words and numbers of a name, in lower case.

    Example:
        >>> words_of("imagesTr"), words_of("train_masks2")
        (['images', 'tr'], ['train', 'masks', '2'])
    """
    return [word.casefold() for word in _WORD.findall(whole_name(name))]


def place_of(folder: PurePath) -> tuple[str, ...]:
    """Return the parts of a relative folder that distinguish images, for comparison.

    Words that say what a folder holds are left out, so that an image and its mask or
    annotation are in the same place.

    Example:
        >>> place_of(Path("train/images")), place_of(Path("Train_Masks"))
        (('train',), ('train',))
    """
    kept = (
        " ".join(word for word in words_of(part) if word not in ROLE_WORDS)
        for part in folder.parts
    )
    return tuple(part for part in kept if part)


class ImageNames:
    """Finds the images of a data set by the names in its annotations and tables.

    Args:
        images: All images, below ``root``.
        root: The data set.

    Attributes:
        missing: Names that were looked for and are of no image.
        ambiguous: Names that fit several images equally well.
    """

    def __init__(self, images: Iterable[Path], root: Path) -> None:
        self._root = root
        self._by_name: dict[str, list[Path]] = {}
        self._folders: set[tuple[str, ...]] = set()
        self._holding_images: set[Path] = set()
        for image in images:
            for key in dict.fromkeys(_keys(image.name)):
                self._by_name.setdefault(key, []).append(image)
            parts = _folded(image.parent.relative_to(root).parts)
            self._folders |= {parts[i:] for i in range(len(parts))}
            self._holding_images.add(image.parent)
        self.missing: list[str] = []
        self.ambiguous: dict[str, list[Path]] = {}

    def find(self, name: str, near: Path | None = None) -> Path | None:
        """Return the image that a name denotes, or ``None``, which is recorded.

        Folders in the name decide as far as they exist in the data set. Among several
        images of the name, the one in the same place as ``near`` is meant.

        Args:
            name: A file name or a path, with or without ending, with either slash.
            near: Folder of the file that states the name.
        """
        candidates = self.candidates(name, near)
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            self.ambiguous[name] = candidates
        else:
            self.missing.append(name)
        return None

    def candidates(self, name: str, near: Path | None = None) -> list[Path]:
        """Return all images that a name fits equally well; see ``find``."""
        for variant in _variants(name):
            *folders, last = variant.split("/")
            for key in _keys(last):
                if chosen := self._chosen(self._by_name.get(key, []), folders, near):
                    return chosen
        return []

    def refuse_ambiguous(self) -> None:
        """Refuse names that fit several images.

        Raises:
            UsageError: If there was one.
        """
        for name, images in self.ambiguous.items():
            shown = [path.relative_to(self._root).as_posix() for path in images]
            raise UsageError(
                f"`{name}` is the name of {len(images)} images in `{self._root}`: "
                f"{shorten(shown)}.",
                needed="annotations whose names distinguish the images",
                fix="keep each annotation file beside its images, or give the images "
                "different names, in the files too",
            )

    def _chosen(
        self, candidates: Sequence[Path], folders: Sequence[str], near: Path | None
    ) -> list[Path]:
        """Return the candidates that agree best with stated folders, then with ``near``."""
        chosen = list(candidates)
        stated = _folded(part for part in folders if part not in {"", ".", ".."})
        if chosen and stated:
            agreeing = [_n_equal_ends(self._parts(path), stated) for path in chosen]
            if (
                max(agreeing) == 0
                and stated[-1:] in self._folders
                and place_of(PurePath(stated[-1]))
            ):
                return []  # another image of the name, in another folder
            chosen = [
                p for p, n in zip(chosen, agreeing, strict=True) if n == max(agreeing)
            ]
        if near is None:
            return chosen
        if not stated and near in self._holding_images:
            return [path for path in chosen if path.parent == near]
        here = near.relative_to(self._root)
        split = split_of(here / "name")
        chosen = [
            path
            for path in chosen
            if not split or split_of(path.relative_to(self._root)) in (split, None)
        ]
        if len(chosen) > 1:
            place = place_of(here)
            nearness = [
                (
                    place_of(path.parent.relative_to(self._root)) == place,
                    _n_equal_starts(place_of(path.parent.relative_to(self._root)), place),
                )
                for path in chosen
            ]
            best = max(nearness)
            chosen = [p for p, n in zip(chosen, nearness, strict=True) if n == best]
        return chosen

    def _parts(self, image: Path) -> tuple[str, ...]:
        return _folded(image.parent.relative_to(self._root).parts)


def one_file_each(
    found: Iterable[tuple[Path, Path | None]], root: Path, verb: str, needed: str
) -> dict[Path, Path]:
    """Return the annotation file of every image that has one.

    Args:
        found: Annotation files, each with its image, or ``None`` if it has none.
        root: Folder of the data set.
        verb: What the files do with an image, in the message: "annotate".
        needed: What is needed instead of two files, in the message.

    Raises:
        UsageError: If two files are of the same image.
    """
    file_of: dict[Path, Path] = {}
    for file, image in found:
        if image is not None and file_of.setdefault(image, file) != file:
            shown = [f.relative_to(root).as_posix() for f in (file_of[image], file)]
            raise UsageError(
                f"`{shown[0]}` and `{shown[1]}` both {verb} `{image.relative_to(root)}`.",
                needed=needed,
                fix="remove one of them, or move it out of the folder",
            )
    return file_of


def _keys(name: str) -> list[str]:
    """Return the forms of a file name to compare, from the most exact one."""
    normal = whole_name(name)
    bare = same_name(name)
    # Prefixes keep a bare name from being compared with a whole one.
    return [
        f"={normal}",
        f"~{normal.casefold()}",
        f".{bare}",
        f":{bare.casefold()}",
    ]


def _variants(name: str) -> Iterable[str]:
    """Yield a stated name with forward slashes, then as a server may have changed it."""
    path = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    yield path
    plain = unquote(path)
    if plain != path:
        plain = plain.rpartition("?d=")[2]
        yield plain
    folder, _, last = plain.rpartition("/")
    if (bare := _UPLOAD_PREFIX.sub("", last)) != last:
        yield f"{folder}/{bare}"


def _folded(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)


def _n_equal_ends(first: Sequence[str], second: Sequence[str]) -> int:
    return _n_equal_starts(first[::-1], second[::-1])


def _n_equal_starts(first: Sequence[str], second: Sequence[str]) -> int:
    n = 0
    while n < min(len(first), len(second)) and first[n] == second[n]:
        n += 1
    return n
