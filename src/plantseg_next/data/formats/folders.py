"""What all layouts need of a folder: its images, its names, its index."""

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from plantseg_next.data.manifest import Split
from plantseg_next.errors import DataError
from plantseg_next.files import read_text

# HEIC is not readable, but must not be passed over in silence: reading it says why.
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
    """Return whether a file has the name of an image; hidden files have not."""
    return path.suffix.lower() in IMAGE_ENDINGS and not _is_hidden(path.name)


def find_images(folder: Path) -> list[Path]:
    """Return all images below a folder, sorted by path; see ``find_files``."""
    return find_files(folder, *IMAGE_ENDINGS)


def find_files(folder: Path, *endings: str) -> list[Path]:
    """Return all files below a folder whose names end so, sorted by path.

    Hidden files and folders and what macOS leaves behind (``._x``, ``__MACOSX``) are
    skipped. Symbolic links are followed, each folder once, so a loop ends.

    Args:
        folder: Where to begin.
        endings: In small letters, with the dot; those of files may be in capitals.
    """
    found: list[Path] = []
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        with os.scandir(here) as entries:  # knows what is a folder without asking again
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                path = here / entry.name
                # An entry raises where a link leads to itself, a path does not.
                known = path if entry.is_symlink() else entry
                if known.is_dir():
                    waiting.append(path)
                elif entry.name.lower().endswith(endings) and (
                    known.is_file() or not path.exists()  # whoever reads it says so
                ):
                    found.append(path)
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly inside a folder, sorted, hidden ones left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))


def subfolder(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the subfolder with the first of these names, in any case, or ``None``."""
    by_name = {path.name.lower(): path for path in subfolders(folder)}
    return next((by_name[name] for name in names if name in by_name), None)


def keys_of(images: Iterable[Path], root: Path) -> dict[Path, str]:
    """Return a unique key an image: its path inside ``root`` without the ending.

    Where two images differ in their ending alone, both keep it.

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
    """Return the split that a folder of a relative path is named for, if any.

    Example:
        >>> split_of(Path("Validation/rust/1.jpg"))
        'val'
    """
    parts = (part.lower() for part in path.parts[:-1])
    return next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)


def tidy_name(name: str) -> str:
    """Return a class name as all data sets can share it: lower case, single spaces.

    Example:
        >>> tidy_name("Early_blight ")
        'early blight'
    """
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").lower().split())


def same_name(name: str) -> str:
    """Return a file's name without ending, in the form in which names are compared.

    File systems store accents in two ways, and some masks keep the image's ending.

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
    """Return the images whose name no other one has.

    Args:
        images: To look at.
        name_of: From a file's name to what is compared.
    """
    named = [(name_of(image.name), image) for image in images]
    count = Counter(name for name, _ in named)
    return {name: image for name, image in named if count[name] == 1}


def read_index(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, column names in lower case.

    Commas, semicolons and tabs are understood as separators.

    Raises:
        DataError: If the file is not text in UTF-8, or no table.
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
            f"`{path}` is no table: {error}.",
            needed="a line an image, every quotation mark closed",
            fix="open it in a spreadsheet, and save it again",
        ) from error


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
