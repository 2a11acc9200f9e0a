"""Helpers for all layouts: the images, names and index of a folder."""

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from plantseg_next.data.manifest import Split
from plantseg_next.errors import DataError
from plantseg_next.files import read_text
from plantseg_next.names import escaped, shorter

# HEIC is not readable, but is listed so that reading it raises an error with the reason.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"),
    *(".gif", ".avif", ".ppm", ".pgm", ".pbm", ".heic", ".heif"),
)
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


def is_image(path: Path) -> bool:
    """Return whether a file name is that of an image and not hidden."""
    return path.suffix.lower() in IMAGE_ENDINGS and not _is_hidden(path.name)


def find_images(folder: Path) -> list[Path]:
    """Return all images below a folder, sorted by path; see ``find_files``."""
    return find_files(folder, *IMAGE_ENDINGS)


def find_files(folder: Path, *endings: str) -> list[Path]:
    """Return all files below a folder with one of these endings, sorted by path.

    Hidden files and folders, and those of macOS (``._x``, ``__MACOSX``), are skipped.
    Symbolic links are followed, each folder once, so a loop ends.

    Args:
        folder: The folder to search.
        endings: In lower case, with the dot; case of the files is ignored.
    """
    files: list[Path] = []
    seen: set[Path] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        if (real := current.resolve()) in seen:
            continue
        seen.add(real)
        with os.scandir(current) as entries:  # has the file types, without another stat
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                path = current / entry.name
                # For a link to itself, an entry raises an error, a path does not.
                item = path if entry.is_symlink() else entry
                if item.is_dir():
                    pending.append(path)
                elif entry.name.lower().endswith(endings) and (
                    item.is_file() or not path.exists()  # reading it raises an error
                ):
                    files.append(path)
    return sorted(files)


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


def same_name(name: str) -> str:
    """Return a file name without ending, in the form used for comparison.

    Accents are normalized (NFC), and the ending of the image is removed from a mask too.

    Example:
        >>> same_name("leaf 1.JPG.png")
        'leaf 1'
    """
    stem = unicodedata.normalize("NFC", name)
    while ending := next((e for e in IMAGE_ENDINGS if stem.lower().endswith(e)), ""):
        stem = stem[: -len(ending)]
    return stem


def unique_names(
    images: Iterable[Path], name_of: Callable[[str], str] = str
) -> dict[str, Path]:
    """Return the images whose name is unique.

    Args:
        images: The images.
        name_of: Maps a file name to the name that is compared.
    """
    named = [(name_of(image.name), image) for image in images]
    count = Counter(name for name, _ in named)
    return {name: image for name, image in named if count[name] == 1}


def read_index(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, column names in lower case.

    The separator may be a comma, a semicolon or a tab.

    Raises:
        DataError: If the file is not UTF-8 text, or not a table.
    """
    lines = read_text(path).splitlines()
    header = lines[0] if lines else ""
    separator = max(",;\t", key=header.count)
    try:
        return [
            {name.strip().lower(): (value or "").strip() for name, value in row.items()}
            for row in csv.DictReader(lines, delimiter=separator, restval="")
            if None not in row
        ]
    except csv.Error as error:
        raise DataError(
            f"`{path}` is not a table: {error}.",
            needed="one line per image, every quotation mark closed",
            fix="open it in a spreadsheet and save it again",
        ) from error


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
