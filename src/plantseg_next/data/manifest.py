"""The manifest: one table for all data sets, one row per image.

The reader of each layout converts a folder to a ``Manifest``; the rest of the package
does not depend on the layout. A ``MaskCoding`` per source maps mask values to classes, so
data sets with different conventions share one table of classes.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, PlainSerializer, with_config

from plantseg_next.errors import DataError, UsageError
from plantseg_next.files import regular_file, sha256_of
from plantseg_next.json_files import ClassMapInFile, JsonFormat, PathInFile
from plantseg_next.structures import ClassMap

Split = Literal["train", "val", "test", "unlabeled"]
SPLITS: tuple[Split, ...] = get_args(Split)
Role = Literal["background", "leaf", "no lesion", "ignore"]
"""Meaning of a mask value besides a lesion class; "no lesion" may be leaf or not."""
ROLES: tuple[Role, ...] = get_args(Role)

MAX_VALUE = 65_535
"""Largest mask value: masks have at most 16 bits."""
COLOR = re.compile("#[0-9a-f]{6}")
MAX_CLASSES = 254
"""Lesion classes that fit into eight bits with "no lesion" and ``IGNORE``."""


def _meaning_of(pairs: Any) -> dict[Any, Any]:  # noqa: ANN401 - as a file states it
    meaning: dict[Any, Any] = {}
    for value, role in pairs.items() if isinstance(pairs, dict) else pairs:
        is_id = type(value) is int and 0 <= value <= MAX_VALUE
        if not (is_id or (isinstance(value, str) and COLOR.fullmatch(value))):
            raise ValueError(f"{value!r} is neither a mask value nor a color #rrggbb")
        if value in meaning:
            raise ValueError(f"{value!r} is stated twice")
        meaning[value] = role
    return meaning


Meaning = Annotated[
    Mapping[int | str, str],
    BeforeValidator(_meaning_of),
    PlainSerializer(lambda meaning: list(meaning.items())),
]
"""A mapping that files keep as pairs, because the keys of JSON are text."""

Channel = Literal["stored", "alpha", "painted", "gray"]
"""Where the values of a mask are: see ``image_io.read_mask``."""

IN_DOUBT = "inferred, in doubt:"
"""How the origin of a mask coding begins that somebody should look at."""

Exif = Literal["as-stored", "upright"]
"""Which way images were annotated: before or after their EXIF orientation is applied."""

MANIFEST_FILE = "manifest.json"
"""File name of the manifest in a folder, for example in a run."""


@dataclass(frozen=True)
class MaskCoding:
    """The meaning of each mask value of a source.

    Args:
        meaning: From a mask value, or a color ``"#rrggbb"``, to a ``Role`` or the name of
            a lesion class. Any other value is unknown.
        marks_leaf: Whether these masks separate leaf from background. If so, lesion
            pixels count as leaf.
        origin: Where the coding comes from, as text: a file, or the rule by which it
            was inferred.
        channel: Where the values of a mask are.
        exif: Which way the masks lie; ``None``: as their sizes show, and upright where
            both ways fit.
    """

    meaning: Meaning
    marks_leaf: bool
    origin: str
    channel: Channel = "stored"
    exif: Exif | None = None

    @property
    def by_color(self) -> bool:
        """Whether masks are color images instead of maps of ids."""
        return any(isinstance(value, str) for value in self.meaning)

    @property
    def lesions(self) -> tuple[str, ...]:
        """Names of the lesion classes, in order of first appearance."""
        return tuple(dict.fromkeys(m for m in self.meaning.values() if m not in ROLES))


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Row:
    """One image with its labels and metadata.

    Args:
        key: Unique in the manifest; the path inside its source, without the ending.
        image: The image.
        source: Name of the data set; a key of ``Manifest.codings`` if it has masks.
        mask: The mask, or ``None`` for an image without one.
        split: Its split; ``None`` until ``splits.assign`` has run.
        group: Images of one group (the same leaf, scene or near-duplicate) are in one
            split. Empty: a group of its own.
        disease: Image-level label, or ``None``.
        plant: Host, or ``None``.
        stated: Further columns of the index of the data set, as text.
        sha256: Digest of the image file; empty until it has been read.
        mask_sha256: Digest of the mask file; empty likewise.
        sparse: Whether the mask labels only few pixels: points, scribbles.
    """

    key: str
    image: PathInFile
    source: str
    mask: PathInFile | None = None
    split: Split | None = None
    group: str = ""
    disease: str | None = None
    plant: str | None = None
    stated: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""
    mask_sha256: str = ""
    sparse: bool = False

    @property
    def group_key(self) -> str:
        """Group within the source, or the key of a row without a group."""
        return f"{self.source}/{self.group}" if self.group else f"{self.key}"


@dataclass(frozen=True)
class UnusedFiles:
    """Files of a data set that were seen and not used.

    Args:
        reason: Why, and what they are: "annotations of VIA, which are not read".
        files: Their paths.
        harmless: Whether no label or image can be lost with them: a README, a thumbnail.
    """

    reason: str
    files: tuple[str, ...]
    harmless: bool = False


@dataclass(frozen=True)
class Origin:
    """How a source was read from disk, for reports and checks.

    Args:
        layout: Description of the recognized layout.
        masks_without_image: Mask files without an image.
        names_without_image: Names in the index of the source without an image.
        doubts: Descriptions of other data that could not be used.
        unused: Files that were seen and not used.
        relative: Whether areas are stated in parts of the image size, which does not
            show how an image with an EXIF orientation was annotated.
    """

    layout: str
    masks_without_image: tuple[str, ...] = ()
    names_without_image: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    unused: tuple[UnusedFiles, ...] = ()
    relative: bool = False


@dataclass(frozen=True)
class Manifest:
    """Rows, their common classes, and the mask coding of each source.

    Args:
        rows: One per image, in a stable order.
        classes: Names of all lesion classes and image-level labels.
        codings: From a source's name to the meaning of its mask values.
        origins: From a source's name to how it was read from disk.
    """

    rows: tuple[Row, ...]
    classes: ClassMapInFile
    codings: Mapping[str, MaskCoding]
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def split(self, name: Split) -> "Manifest":
        """Return the manifest with only the rows of one split."""
        return self.only(row for row in self.rows if row.split == name)

    def only(self, rows: Iterable[Row]) -> "Manifest":
        """Return the manifest with other rows and the same classes."""
        return replace(self, rows=tuple(rows))

    def outside(self, folders: Iterable[Path]) -> tuple[Path, ...]:
        """Return the images that are in none of these folders, links not followed.

        Only a manifest can name such images; other layouts list a folder.
        """
        parents = {_plain(f if f.is_dir() else f.parent) for f in folders}
        return tuple(
            row.image for row in self.rows if parents.isdisjoint(_plain(row.image).parents)
        )

    @property
    def labeled(self) -> "Manifest":
        """The rows that have a mask."""
        return self.only(row for row in self.rows if row.mask is not None)

    def digested(self) -> "Manifest":
        """Return the manifest with the SHA-256 of every image and mask filled in.

        Digests identify images that were renamed, moved or copied. Masks are always
        read again, because they may have been corrected.

        Raises:
            DataError: If an image cannot be read.
        """
        return self.only(
            replace(
                row,
                sha256=row.sha256 or digest(row.image),
                mask_sha256=digest(row.mask) if row.mask is not None else "",
            )
            for row in self.rows
        )

    def changed(self) -> "Manifest":
        """Return the rows whose image or mask is missing or has changed."""
        return self.only(row for row in self.rows if _has_changed(row))

    def write(self, path: Path) -> None:
        """Write the table as JSON; paths below its folder are relative, others absolute."""
        _FORMAT.write(path, self)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a table written by ``write``; relative paths are relative to its folder.

        Raises:
            DataError: If it is not such a table, its format is newer, or it contradicts
                itself: two rows of one key, an image with two masks, an unknown name.
        """
        manifest = _FORMAT.read(path)
        refuse_many_classes(manifest.classes.lesions, f"`{path}`")
        for why in _contradictions(manifest):
            raise DataError(
                f"`{path}` contradicts itself: {why}.",
                needed="a manifest as this program writes it",
                fix=_FORMAT.fix,
            )
        return manifest


def _plain(path: Path) -> Path:
    """Return an absolute path without `..`; links are not followed."""
    return Path(normpath(path.absolute()))


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield what cannot be true of a manifest, in words."""
    yield from _shared(manifest.rows, "key", lambda row: row.key)
    # Within a source: data sets that share images may be used together.
    yield from _shared(manifest.rows, "image", lambda row: (row.source, row.image))
    masked = manifest.labeled.rows
    yield from _shared(masked, "mask", lambda row: (row.source, row.mask))
    for row in manifest.rows:
        if not row.key:
            yield f"the row of `{row.image}` has no key"
        if row.disease is not None and row.disease not in manifest.classes.diseases:
            yield f"the row `{row.key}` has the unknown label `{row.disease}`"
    for source in dict.fromkeys(row.source for row in masked):
        if source not in manifest.codings:
            yield f"the masks of the source `{source}` have no meaning"
            continue
        for name in manifest.codings[source].lesions:
            if name not in manifest.classes.lesions:
                yield f"the class `{name}` of the source `{source}` is not in its classes"


def _shared(rows: Iterable[Row], what: str, of: Callable[[Row], object]) -> Iterator[str]:
    first: dict[object, Row] = {}
    for row in rows:
        if (other := first.setdefault(of(row), row)) is not row:
            yield f"the rows of `{other.image}` and `{row.image}` have one {what}"


def _present_names(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table of format 1 with the present name of a split."""
    old_names = {"unlabelled": "unlabeled"}
    for row in table["rows"]:
        if "split" in row:
            row["split"] = old_names.get(row["split"], row["split"])
    return table


_FORMAT = JsonFormat(
    Manifest,
    "a manifest",
    version=2,
    fix="use the folder of images instead, or create the manifest again",
    migrate=_present_names,
    omit_defaults=True,
)


def common_classes(rows: Iterable[Row], codings: Mapping[str, MaskCoding]) -> ClassMap:
    """Return the common classes of rows of one or many sources.

    Lesion classes keep the order of their codings, for example a published order of ids;
    image-level labels are sorted.

    Raises:
        DataError: If there are more than ``MAX_CLASSES`` lesion classes.
    """
    rows = list(rows)
    used = [codings[s] for s in dict.fromkeys(r.source for r in rows) if s in codings]
    lesions = dict.fromkeys(name for coding in used for name in coding.lesions)
    refuse_many_classes(lesions, "The data sets")
    diseases = sorted({row.disease for row in rows if row.disease is not None})
    return ClassMap(
        lesions=tuple(lesions),
        diseases=tuple(diseases),
        has_leaf=any(coding.marks_leaf for coding in used),
    )


def refuse_many_classes(names: Iterable[str], where: str) -> None:
    """Refuse more classes than a mask of eight bits can hold.

    Args:
        names: Names of lesion classes; equal ones count once.
        where: What states them, for the error.

    Raises:
        DataError: If there are more than ``MAX_CLASSES``.
    """
    if (number := len(set(names))) > MAX_CLASSES:
        raise class_count(where, number)


def class_count(where: str, number: int) -> DataError:
    """Return the error for too many lesion classes, or none."""
    return DataError(
        f"{where} name {number} lesion classes.",
        needed=f"1 to {MAX_CLASSES} lesion classes, or at least the leaf",
        fix="name the classes to segment, and map the rest to background or ignore",
    )


def merge(manifests: Iterable[Manifest]) -> Manifest:
    """Return the merged manifests; keys are prefixed by their source.

    Raises:
        UsageError: If two sources have the same name.
    """
    rows: list[Row] = []
    codings: dict[str, MaskCoding] = {}
    origins: dict[str, Origin] = {}
    seen: set[str] = set()
    for manifest in manifests:
        sources = {row.source for row in manifest.rows}
        if clash := sources & seen:
            raise UsageError(
                f"Two data sets are both called {sorted(clash)}.",
                needed="a different name for each data set",
                fix="rename one of the folders",
            )
        seen |= sources
        codings.update(manifest.codings)
        origins.update(manifest.origins)
        rows += [replace(row, key=f"{row.source}/{row.key}") for row in manifest.rows]
    return Manifest(tuple(rows), common_classes(rows, codings), codings, origins)


def digest(path: Path) -> str:
    """Return the SHA-256 of an image file.

    Raises:
        DataError: If it cannot be read, or is no regular file.
    """
    regular_file(path, "an image or a mask")
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {error.strerror}.",
            needed="an image that exists and is readable",
            fix="restore the file, or run `plantseg-next check` on the folder",
        ) from error


def _has_changed(row: Row) -> bool:
    try:
        if row.sha256 != digest(row.image):
            return True
        return row.mask is not None and row.mask_sha256 != digest(row.mask)
    except DataError:
        return True
