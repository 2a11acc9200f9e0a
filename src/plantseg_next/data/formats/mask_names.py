"""Names of masks: the image that a name belongs to, and what else it says."""

import re
from collections.abc import Callable, Container
from functools import lru_cache
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

_KNOWN_NAMES = 1 << 18
_NAMING = "|".join(sorted(IMAGE_WORDS | MASK_WORDS | MAYBE_MASK_WORDS, key=len)[::-1])
_SEPARATOR = re.compile(r"[_\-. ]+")
_SUFFIX = re.compile(rf"(?:^|[_\-. ]+|(?<=\d))(?:ground[_\-. ]?truth|{_NAMING})$")
_PREFIX = re.compile(rf"^(?:ground[_\-. ]?truth|{_NAMING})(?:$|[_\-. ]+|(?=\d))")
_LETTER = re.compile(r"^[xy][_\-. ]+|[_\-. ]+[xy]$")
_CHANNEL = re.compile(r"_0000$")
_BRUSH = re.compile(r"task-(\d{1,18})-annotation-(\d{1,18})-by-(.*?)(?:-(\d+))?$")
_COUNTED = re.compile(r"(\D+?)(\d+)")
_COUNTING_WORDS = frozenset(
    ("object", "objects", "obj", "instance", "instances", "inst", "region", "roi", "id")
)
_NEUTRAL_WORDS = frozenset((
    *("tag", "tags", "category", "cls", "binary", "bin", "default", "export", "exported"),
    *("new", "old", "final", "corrected", "clean", "manual", "resized", "cropped", "all"),
    *("full", "gray", "bw", "version", "batch", "part", "set", "aug", "augmented"),
))  # fmt: skip
_NAMELESS_WORDS = ROLE_WORDS | _COUNTING_WORDS | _NEUTRAL_WORDS

NameForm = Callable[[str], str]


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


class BrushName(NamedTuple):
    """The name of a mask of Label Studio.

    Args:
        task: Number of the task.
        annotation: Number of the annotation.
        rest: Who drew it, the name of the control, and the labels, joined by dashes.
    """

    task: int
    annotation: int
    rest: str


def brush_name(mask: Path) -> BrushName | None:
    """Return what the name of a mask of Label Studio says; ``None`` for another one."""
    match = _BRUSH.match(mask.stem)
    return BrushName(int(match[1]), int(match[2]), match[3]) if match else None


def says_mask(text: str) -> bool:
    """Return whether a part of a name has a word such as "mask" or "label"."""
    words = set(_SEPARATOR.split(text))
    words |= {counted[1] for word in words if (counted := _COUNTED.fullmatch(word))}
    return bool(words & (MASK_WORDS | MAYBE_MASK_WORDS))


@lru_cache(_KNOWN_NAMES)
def bare(name: str) -> str:
    """Return a file name without endings, in lower case."""
    return same_name(name).casefold()


@lru_cache(_KNOWN_NAMES)
def without_words(name: str) -> str:
    """Return a name in lower case without words such as "image" at its ends.

    Example:
        >>> without_words("image_7.jpg"), without_words("7_seg_mask.png")
        ('7', '7')
    """
    name, before = bare(name), ""
    while name != before:
        name, before = same_name(_PREFIX.sub("", _SUFFIX.sub("", name))), name
    return name


def without_letter(name: str) -> str:
    """Return ``without_words``, and without a leading or last x or y."""
    longer = without_words(name)
    shorter = _LETTER.sub("", longer)
    return without_words(shorter) if shorter != longer else shorter


def name_forms(*, channels: bool = False) -> list[tuple[NameForm, NameForm]]:
    """Return how the names of an image and of its mask are compared, exact ones first.

    Args:
        channels: Whether images have nnU-Net's number of a channel.
    """
    forms: list[tuple[NameForm, NameForm]] = [
        (whole_name, lambda mask: whole_name(mask.rpartition(".")[0])),
        (same_name, same_name),
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


def _without_one_word(mask: str) -> str:
    name = bare(mask)
    shorter = _SUFFIX.sub("", name)
    return same_name(shorter if shorter != name else _PREFIX.sub("", name))
