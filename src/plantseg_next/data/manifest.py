"""The one common table: a row an image, whatever data set it came from.

A layout's reader turns a folder into a ``Manifest``; from there on nobody asks where an
image came from. How mask values are to be read is kept a source, in a ``MaskCoding``,
so that five data sets with five conventions share one table of classes.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from plantseg_next.errors import DataError, UsageError
from plantseg_next.files import sha256_of, write_atomically
from plantseg_next.structures import ClassMap

Split = Literal["train", "val", "test", "unlabeled"]
SPLITS: tuple[Split, ...] = get_args(Split)
Role = Literal["background", "leaf", "no lesion", "ignore"]
"""What a mask value can mean besides a lesion class; "no lesion" may be leaf or not."""

FORMAT = 1
MANIFEST_FILE = "manifest.json"
"""Name by which a folder with a manifest, a run for one, is known."""


@dataclass(frozen=True)
class MaskCoding:
    """What each value of a source's masks means.

    Args:
        meaning: From a mask value, or a color ``"#rrggbb"``, to a ``Role`` or to the
            name of a lesion class. A value that is absent here is an unknown id.
        marks_leaf: Whether these masks tell leaf from ground. Where they do, lesion
            pixels count as leaf.
        origin: Where the coding comes from, for people: a file, or the rule by which
            it was inferred.
    """

    meaning: Mapping[int | str, str]
    marks_leaf: bool
    origin: str

    @property
    def by_color(self) -> bool:
        """Whether masks are colored images rather than maps of ids."""
        return any(isinstance(value, str) for value in self.meaning)

    @property
    def lesions(self) -> tuple[str, ...]:
        """Names of the lesion classes, in order of first appearance."""
        roles = get_args(Role)
        return tuple(dict.fromkeys(m for m in self.meaning.values() if m not in roles))


@dataclass(frozen=True)
class Row:
    """One image and everything that is known about it.

    Args:
        key: Unique in the manifest; the path inside its source, without the ending.
        image: The image.
        source: Name of the data set; a key of ``Manifest.codings`` if it has masks.
        mask: The mask, or ``None`` for an image without one.
        split: Where it is used; ``None`` until ``splits.assign`` has run.
        group: Images of one group never part across splits: the same leaf, scene or
            near-duplicate. Empty: a group of its own.
        disease: Image-level label, or ``None``.
        plant: Host, or ``None``.
        stated: Further columns of the data set's own index, as text.
        sha256: Digest of the image file; empty until it has been read.
        mask_sha256: Digest of the mask file; empty likewise.
        sparse: Whether the mask says something of few pixels only: points, scribbles.
    """

    key: str
    image: Path
    source: str
    mask: Path | None = None
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
        """Group within the source, or the row itself where it has no group."""
        return f"{self.source}/{self.group}" if self.group else f"{self.key}"


@dataclass(frozen=True)
class Origin:
    """How a source was read from disk, for people and for the checks.

    Args:
        layout: The layout that was recognized, in words.
        masks_without_image: Files among the masks that no image belongs to.
        names_without_image: Names in the source's index that no image has.
        doubts: What else of it could not be used, in words.
    """

    layout: str
    masks_without_image: tuple[str, ...] = ()
    names_without_image: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Rows, the classes they share, and how each source's masks are read.

    Args:
        rows: One an image, in a stable order.
        classes: Names of all lesion classes and image-level labels.
        codings: From a source's name to the meaning of its mask values.
        origins: From a source's name to how it was read from disk.
    """

    rows: tuple[Row, ...]
    classes: ClassMap
    codings: Mapping[str, MaskCoding]
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def split(self, name: Split) -> "Manifest":
        """Return the manifest with the rows of one split only."""
        return self.only(row for row in self.rows if row.split == name)

    def only(self, rows: Iterable[Row]) -> "Manifest":
        """Return the manifest with other rows and the same classes."""
        return replace(self, rows=tuple(rows))

    @property
    def labeled(self) -> "Manifest":
        """The rows that have a mask."""
        return self.only(row for row in self.rows if row.mask is not None)

    def digested(self) -> "Manifest":
        """Return the manifest with the SHA-256 of every image and mask filled in.

        An image that was renamed, moved or copied is still known by it. Masks are read
        anew: a person may have corrected them.

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
        """Return the rows whose image or mask is gone or not what it was."""
        return self.only(row for row in self.rows if _has_changed(row))

    def write(self, path: Path) -> None:
        """Write the table as JSON: files by absolute path, or relative to it if below."""
        table = {
            "format": FORMAT,
            "classes": asdict(self.classes),
            "codings": {
                name: {**asdict(coding), "meaning": list(coding.meaning.items())}
                for name, coding in self.codings.items()
            },
            "origins": {name: asdict(origin) for name, origin in self.origins.items()},
            "rows": [_row_to_json(row, path.parent) for row in self.rows],
        }
        text = json.dumps(table, indent=1, ensure_ascii=False)
        write_atomically(path, text.encode())

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a table written by ``write``; relative paths are relative to it.

        Raises:
            DataError: If it is not such a table, or of a newer format.
        """
        try:
            table = json.loads(path.read_text("utf-8"))
            if table["format"] > FORMAT:
                raise DataError(
                    f"`{path}` has format {table['format']}.",
                    needed=f"a manifest of format {FORMAT} or older",
                    fix="update plantseg-next",
                )
            classes = table["classes"]
            return cls(
                rows=tuple(_row_from_json(row, path.parent) for row in table["rows"]),
                classes=ClassMap(
                    tuple(classes["lesions"]),
                    tuple(classes["diseases"]),
                    classes["has_leaf"],
                ),
                codings={
                    name: MaskCoding(
                        dict(coding["meaning"]),
                        coding["marks_leaf"],
                        coding["origin"],
                    )
                    for name, coding in table["codings"].items()
                },
                origins={
                    name: Origin(
                        origin["layout"],
                        tuple(origin["masks_without_image"]),
                        tuple(origin["names_without_image"]),
                        tuple(origin.get("doubts", ())),
                    )
                    for name, origin in table.get("origins", {}).items()
                },
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"`{path}` is not a manifest: {error!r}.",
                needed="a table written by plantseg-next",
                fix="point at the folder of images instead, or write it again",
            ) from error


def common_classes(rows: Iterable[Row], codings: Mapping[str, MaskCoding]) -> ClassMap:
    """Return the classes that rows of one or many sources share.

    Lesion classes keep the order of their codings (a published order of ids survives);
    image-level names are sorted.
    """
    rows = list(rows)
    used = [codings[s] for s in dict.fromkeys(r.source for r in rows) if s in codings]
    lesions = dict.fromkeys(name for coding in used for name in coding.lesions)
    diseases = sorted({row.disease for row in rows if row.disease is not None})
    return ClassMap(
        lesions=tuple(lesions),
        diseases=tuple(diseases),
        has_leaf=any(coding.marks_leaf for coding in used),
    )


def merge(manifests: Iterable[Manifest]) -> Manifest:
    """Return one manifest of many; keys are prefixed by their source.

    Raises:
        UsageError: If two sources share a name.
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
                needed="another name for each data set",
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
        DataError: If it cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {error.strerror}.",
            needed="an image that is there and may be read",
            fix="restore the file, or run `plantseg-next check` on the folder",
        ) from error


def _has_changed(row: Row) -> bool:
    try:
        if row.sha256 != digest(row.image):
            return True
        return row.mask is not None and row.mask_sha256 != digest(row.mask)
    except DataError:
        return True


def _row_to_json(row: Row, folder: Path) -> dict[str, object]:
    values = asdict(row) | {"image": _as_text(row.image, folder)}
    if row.mask is not None:
        values["mask"] = _as_text(row.mask, folder)
    return {name: value for name, value in values.items() if value}


def _as_text(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _row_from_json(values: dict[str, object], folder: Path) -> Row:
    paths: dict[str, object] = {
        name: folder / str(values[name]) for name in ("image", "mask") if name in values
    }
    return Row(**(values | paths))  # type: ignore[arg-type]
