"""Helpers for all layouts: the images, names and index of a folder."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath

from plantseg_next.data.manifest import Split
from plantseg_next.errors import DataError
from plantseg_next.names import escaped, shorter

# HEIC is not readable, but is listed so that reading it raises an error with the reason.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"),
    *(".gif", ".avif", ".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".heic", ".heif"),
)
RENDERED_ANNOTATIONS = ("___fuse.png", "___save.png", "___pixel.png")
"""How names end that SuperAnnotate gives to renderings of its annotations."""
DANGLING = "links that lead nowhere"
RESULTS = "folders with results of plantseg-next"
RESULT_FILES = (
    frozenset({"run.json", "manifest.json"}),
    frozenset({"run.json", "checkpoints"}),
    frozenset({"severity.csv", "records.jsonl"}),
    frozenset({"report.json", "report.txt", "images.csv"}),
    frozenset({"pseudo_labels.csv", "manifest.json"}),
)
"""Files that together show that a folder holds results of this program."""
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "unlabelled": "unlabeled",
    "unlabeled": "unlabeled",
}


def is_image(path: PurePath) -> bool:
    """Return whether a file name is that of an image and not hidden."""
    return path.suffix.lower() in IMAGE_ENDINGS and not _is_hidden(path.name)


@dataclass(frozen=True)
class FolderFiles:
    """All files below a folder, found in one walk.

    Hidden files and folders, and those of macOS (``._x``, ``__MACOSX``), are left out.

    Args:
        root: The folder.
        files: Regular files, and links with the name of an image that lead nowhere, so
            that reading them raises an error. Sorted by path.
        left_out: What is no file to read, by the reason.
        used: Files that a reader has used; it adds them.
    """

    root: Path
    files: tuple[Path, ...]
    left_out: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)

    @cached_property
    def images(self) -> list[Path]:
        """Files with the name of an image, without renderings of annotations."""
        return [
            path
            for path in self.ending(*IMAGE_ENDINGS)
            if not path.name.endswith(RENDERED_ANNOTATIONS)
        ]

    def ending(self, *endings: str) -> list[Path]:
        """Return the files with one of these endings, given in lower case with the dot."""
        return [path for path in self.files if path.name.lower().endswith(endings)]

    def named(self, *names: str) -> list[Path]:
        """Return the files with one of these names, given in lower case, nearest first."""
        chosen = [path for path in self.files if path.name.lower() in names]
        return sorted(chosen, key=lambda path: (len(path.parts), path))

    def below(self, folder: Path) -> "FolderFiles":
        """Return the files below one of its folders; what is used there is used here."""
        files = tuple(path for path in self.files if folder in path.parents)
        return FolderFiles(folder, files, self.left_out, self.used)


def scan(folder: Path) -> FolderFiles:
    """Return all files below a folder.

    Symbolic links are followed, each folder once, so a loop ends. Links that lead
    nowhere, pipes, devices, and results of this program are not entered or opened.

    Raises:
        DataError: If a folder cannot be read: its files must not be lost unnoticed.
    """
    files: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    seen: set[Path] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        if (real := current.resolve()) in seen:
            continue
        seen.add(real)
        entries = _entries(current)
        names = {entry.name for entry in entries}
        if current != folder and any(marks <= names for marks in RESULT_FILES):
            left_out.setdefault(RESULTS, []).append(current)
            continue
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            path = current / entry.name
            reason = _why_not_a_file(entry, path, pending)
            if reason == "" or (reason == DANGLING and is_image(path)):
                files.append(path)
            elif reason:
                left_out.setdefault(reason, []).append(path)
    return FolderFiles(
        folder,
        tuple(sorted(files, key=str)),
        {reason: tuple(sorted(paths)) for reason, paths in left_out.items()},
    )


def holds_results(folder: Path) -> bool:
    """Return whether a folder holds results that this program wrote."""
    names = {entry.name for entry in _entries(folder)}
    return any(marks <= names for marks in RESULT_FILES)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:  # has the file types, without another stat
            return list(entries)
    except OSError as error:
        raise DataError(
            f"The folder `{folder}` cannot be read: {error.strerror}.",
            needed="permission to read every folder of the data set",
            fix="correct its permissions, or move it out of the data set",
        ) from error


def _why_not_a_file(entry: os.DirEntry[str], path: Path, pending: list[Path]) -> str | None:
    """Return "" for a file, ``None`` for a folder (now pending), or else a reason."""
    try:
        mode = entry.stat().st_mode
    except OSError:  # also of a link to itself
        return DANGLING if entry.is_symlink() else "files that cannot be looked at"
    if stat.S_ISDIR(mode):
        pending.append(path)
        return None
    return "" if stat.S_ISREG(mode) else "pipes, devices and sockets"


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly inside a folder, sorted, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))


def subfolder(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the subfolder with the first of these names, in any case, or ``None``."""
    by_name = {path.name.lower(): path for path in subfolders(folder)}
    return next((by_name[name] for name in names if name in by_name), None)


def keys_of(images: Iterable[Path], root: Path) -> dict[Path, str]:
    """Return a unique key per image: its path inside ``root`` without the ending.

    If two images differ only in their ending, both keep it.

    Example:
        >>> list(keys_of([Path("d/a/1.jpg"), Path("d/2.png")], Path("d")).values())
        ['a/1', '2']
    """
    relative = {image: image.relative_to(root) for image in images}
    bare = {image: path.with_suffix("") for image, path in relative.items()}
    counts = Counter(bare.values())
    return {
        image: (path if counts[path] == 1 else relative[image]).as_posix()
        for image, path in bare.items()
    }


def split_of(path: Path) -> Split | None:
    """Return the split named by a folder of a relative path, if any.

    Example:
        >>> split_of(Path("Validation/rust/1.jpg"))
        'val'
    """
    parts = (part.lower() for part in path.parts[:-1])
    return next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)


def tidy_name(name: str) -> str:
    """Return a class name in normal form: lower case, single spaces, escaped, not too long.

    Example:
        >>> tidy_name("Early_blight ")
        'early blight'
    """
    words = unicodedata.normalize("NFC", name).replace("_", " ").lower().split()
    return shorter(escaped(" ".join(words)))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
