"""Names of masks: the image that a name belongs to, and what else it says."""

import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import NamedTuple

from plantseg_next.data.formats.folders import SPLIT_NAMES
from plantseg_next.data.formats.names import (
    IMAGE_WORDS,
    MASK_WORDS,
    MAYBE_MASK_WORDS,
    ROLE_WORDS,
    same_name,
    whole_name,
)

_NAMING = "|".join(sorted(IMAGE_WORDS | MASK_WORDS | MAYBE_MASK_WORDS, key=len)[::-1])
_SEPARATOR = re.compile(r"[_\-. ]+")
_SUFFIX = re.compile(rf"(?:^|[_\-. ]+|(?<=\d))(?:ground[_\-. ]?truth|{_NAMING})$")
_PREFIX = re.compile(rf"^(?:ground[_\-. ]?truth|{_NAMING})(?:$|[_\-. ]+|(?=\d))")
_LETTER = re.compile(r"^[xy][_\-. ]+|[_\-. ]+[xy]$")
_CHANNEL = re.compile(r"_0000$")
_COUNTED = re.compile(r"(\D+?)(\d+)")
_COUNTING_WORDS = frozenset(
    ("object", "objects", "obj", "instance", "instances", "inst", "region", "roi", "id")
)
_NAMELESS_WORDS = ROLE_WORDS | _COUNTING_WORDS | {"tag", "tags", "category", "cls"}

NameForm = Callable[[Path], str]


class Tag(NamedTuple):
    """What the name or the folder of a mask says beside the name of its image.

    Args:
        name: A class, "" if it says none.
        number: The last number, "" without one.
        by_word: Whether a word such as "mask" or "class" says that it is a mask.
    """

    name: str
    number: str
    by_word: bool


NO_TAG = Tag("", "", True)


def tag_of(text: str) -> Tag:
    """Return what a part of a name says.

    Example:
        >>> tag_of("class_early_blight")
        Tag(name='early blight', number='', by_word=True)
        >>> tag_of("mask_07")
        Tag(name='', number='07', by_word=True)
    """
    words: list[str] = []
    for word in _SEPARATOR.split(text.casefold()):
        counted = _COUNTED.fullmatch(word)
        words += counted.groups() if counted and counted[1] in _NAMELESS_WORDS else [word]
    words = [word for word in words if word]
    kept = [word for word in words if word not in _NAMELESS_WORDS]
    by_word = len(kept) < len(words)
    number = kept.pop() if kept and kept[-1].isdecimal() else ""
    return Tag(" ".join(kept), number, by_word)


def tag_of_folders(parts: tuple[str, ...]) -> Tag:
    """Return what the folders of a mask say that those of its image do not."""
    return tag_of(" ".join(part for part in parts if part not in SPLIT_NAMES))


def says_mask(text: str) -> bool:
    """Return whether a part of a name has a word such as "mask" or "label"."""
    words = set(_SEPARATOR.split(text))
    words |= {counted[1] for word in words if (counted := _COUNTED.fullmatch(word))}
    return bool(words & (MASK_WORDS | MAYBE_MASK_WORDS))


def bare(path: Path) -> str:
    """Return the name without endings, in lower case."""
    return same_name(path.name).casefold()


def without_words(path: Path) -> str:
    """Return the name in lower case without words such as "image" at its ends.

    Example:
        >>> without_words(Path("image_7.jpg")), without_words(Path("7_seg_mask.png"))
        ('7', '7')
    """
    name, before = bare(path), ""
    while name != before:
        name, before = same_name(_PREFIX.sub("", _SUFFIX.sub("", name))), name
    return name


def without_letter(path: Path) -> str:
    """Return ``without_words``, and without a leading or last x or y."""
    bare_name = without_words(path)
    name = _LETTER.sub("", bare_name)
    return without_words(Path(name)) if name != bare_name else name


def name_forms(*, channels: bool = False) -> list[tuple[NameForm, NameForm]]:
    """Return how the names of an image and of its mask are compared, exact ones first.

    Args:
        channels: Whether images have nnU-Net's number of a channel.
    """
    forms: list[tuple[NameForm, NameForm]] = [
        (lambda image: whole_name(image.name), lambda mask: whole_name(mask.stem)),
        (lambda image: same_name(image.name), lambda mask: same_name(mask.name)),
        (bare, bare),
        (bare, _without_one_word),
        (without_words, without_words),
        (without_letter, without_letter),
    ]
    if channels:
        forms.insert(0, (lambda image: _CHANNEL.sub("", bare(image)), bare))
    return forms


def split_name(mask: str, images: Container[str]) -> tuple[str, str] | None:
    """Return the name of an image in that of a mask, and the rest; ``None`` without one.

    The image is before the rest, or else behind it; the longest name counts.

    Args:
        mask: As ``bare`` returns it.
        images: Names of images, likewise.

    Example:
        >>> split_name("leaf_1-rust-0", {"leaf_1", "leaf"}), split_name("rust_3", {"3"})
        (('leaf_1', 'rust-0'), ('3', 'rust'))
    """
    marks = list(_SEPARATOR.finditer(mask))
    for mark in reversed(marks):
        if (name := mask[: mark.start()]) in images and (rest := mask[mark.end() :]):
            return name, rest
    for mark in marks:
        if (name := mask[mark.end() :]) in images and (rest := mask[: mark.start()]):
            return name, rest
    return None


def _without_one_word(mask: Path) -> str:
    name = bare(mask)
    shorter = _SUFFIX.sub("", name)
    return same_name(shorter if shorter != name else _PREFIX.sub("", name))
