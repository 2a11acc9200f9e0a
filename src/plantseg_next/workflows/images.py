"""The loop over images that every command shares: read, skip the unreadable, report."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from plantseg_next.data.image_io import too_large
from plantseg_next.data.manifest import Manifest, Origin, Row, UnusedFiles
from plantseg_next.errors import DataError, PlantSegError, is_out_of_memory
from plantseg_next.names import escaped, is_utf8, safe_path
from plantseg_next.structures import SkippedImage

T = TypeVar("T")
NOT_UTF8 = "the name is not UTF-8, so that no manifest can state it"
_RENAME = (
    "rename the file or its folder; `predict` measures it as it is. With a locale that is "
    "not UTF-8, set PYTHONUTF8=1"
)
LISTED_TWICE = "An image of this name has been read already: list every image once."


def read_each(
    manifest: Manifest,
    read: Callable[[Row], T],
    *,
    skipped: list[SkippedImage],
    name: Callable[[Row], str] = lambda row: row.key,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[tuple[Row, T]]:
    """Yield every row with what was read from its files.

    Args:
        manifest: The images.
        read: Reads an image, or an image and its mask.
        skipped: Images that raised an error while they were read are appended, as are
            images for which memory does not suffice, and a second one of the same name.
        name: Returns what a skipped image is called.
        on_progress: Called after each row is dealt with, with the number done and the
            total.
    """
    names: set[str] = set()
    for i, row in enumerate(manifest.rows):
        shown = name(row)
        reason = LISTED_TWICE if shown in names else ""
        names.add(shown)
        try:
            content = None if reason else read(row)
        except PlantSegError as error:
            reason = error.came
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = too_large(row.image).came
        if reason:
            skipped.append(SkippedImage(shown, reason))
        else:
            yield row, cast(T, content)
        on_progress(i + 1, len(manifest))


def refuse_unreadable(manifest: Manifest, skipped: Sequence[SkippedImage]) -> None:
    """Refuse images of which none could be read.

    Raises:
        DataError: If every image of the manifest was skipped.
    """
    if skipped and len(skipped) == len(manifest):
        raise DataError(
            f"None of the {len(skipped)} images can be read; the first: "
            f"{skipped[0].reason}",
            needed="at least one image that can be read, with its mask",
            fix="repair or restore them; `plantseg-next check` reports what is wrong",
        )


def without_results(manifest: Manifest, out: Path) -> Manifest:
    """Return the manifest without images in ``out``: results of an earlier call."""
    folder = os.path.realpath(out)  # of a link to itself, `Path.resolve` raises an error
    return manifest.only(
        row
        for row in manifest.rows
        if not Path(os.path.realpath(row.image.parent)).is_relative_to(folder)
    )


def without_unstatable_names(manifest: Manifest) -> Manifest:
    """Return the manifest without images whose names no manifest on disk can state.

    ``Origin.unused`` of their data sets lists them, ``escaped``.

    Raises:
        DataError: If that leaves no image of a data set.
    """
    left_out = [row for row in manifest.rows if not _is_statable(row)]
    kept = manifest.only(row for row in manifest.rows if _is_statable(row))
    origins = {name: _statable(origin) for name, origin in manifest.origins.items()}
    sources = {row.source for row in kept.rows}
    for row in left_out:
        if row.source not in sources:
            refuse_name(row.image, _RENAME)
        origin = origins.get(row.source, Origin("a manifest"))
        unused = UnusedFiles(NOT_UTF8, (escaped(row.image),))
        origins[row.source] = replace(origin, unused=(*origin.unused, unused))
    return replace(kept, origins=origins)


def left_out_names(manifest: Manifest) -> list[SkippedImage]:
    """Return the images that ``without_unstatable_names`` left out."""
    return [
        SkippedImage(file, f"Left out: {NOT_UTF8}; rename it.")
        for origin in manifest.origins.values()
        for unused in origin.unused
        if unused.reason == NOT_UTF8
        for file in unused.files
    ]


def _is_statable(row: Row) -> bool:
    names = (row.key, row.image, row.mask, row.source, row.group, row.disease, row.plant)
    return all(is_utf8(str(name)) for name in (*names, *row.stated.items()))


def _statable(origin: Origin) -> Origin:
    """Return the origin with the names in it escaped where they are not UTF-8."""
    return replace(
        origin,
        masks_without_image=tuple(map(_escaped, origin.masks_without_image)),
        names_without_image=tuple(map(_escaped, origin.names_without_image)),
        doubts=tuple(map(_escaped, origin.doubts)),
        unused=tuple(
            replace(unused, files=tuple(map(_escaped, unused.files)))
            for unused in origin.unused
        ),
    )


def _escaped(name: str) -> str:
    return name if is_utf8(name) else escaped(name)


def refuse_name(path: Path, fix: str) -> None:
    """Refuse a path that is not UTF-8.

    Raises:
        DataError: With what to do about it.
    """
    if not is_utf8(str(path)):
        raise DataError(
            f"`{path}` has a name that is not UTF-8.",
            needed="names in UTF-8, so that a manifest can state them",
            fix=fix,
        )


def name_within(images: Path) -> Callable[[Row], str]:
    """Return a function that names an image: its path within ``images``, or its key.

    The name is a relative path without ``..``, with what cannot be printed escaped.
    """
    root = Path(os.path.normpath(images if images.is_dir() else images.parent))

    def name(row: Row) -> str:
        path = Path(os.path.normpath(row.image))
        if path.is_relative_to(root):
            return escaped(path.relative_to(root).as_posix())
        return escaped(safe_path(f"{row.key}{row.image.suffix}"))

    return name
