"""Output of a prediction run: tables, masks and overlays.

    severity.csv     one row per image      masks/      lesion class ids, palette PNG
    lesions.csv      one row per lesion     leaves/     leaf masks, where known
    records.json     both, and the classes  overlays/   images with outlines

A run may last for days, so nothing is kept in memory and every row is on disk as soon
as its image is done. During the run the tables have ``.partial`` in their names. They
are valid tables of the images done so far; a killed run leaves them next to the complete
tables of an earlier run. ``RecordWriter`` resumes from ``records.partial.jsonl``, whose
line is the last that is written of an image.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, Literal, TextIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from plantseg_next.errors import OutputError, UsageError
from plantseg_next.files import explained, write_atomically
from plantseg_next.inference.overlay import class_colors, draw_overlay
from plantseg_next.inference.severity import Assessment, Lesion
from plantseg_next.names import OutputPaths, Value, csv_line
from plantseg_next.structures import IGNORE, ClassMap, SkippedImage

FORMAT = 1


@dataclass(frozen=True)
class PredictionTable:
    """The predictions for a folder of images.

    Args:
        rows: The row of the table of each image.
        skipped: Images that could not be read, each with the reason.
    """

    rows: tuple[dict[str, Value], ...]
    skipped: tuple[SkippedImage, ...]


IMAGE_COLUMNS = (
    "image", "disease", "disease_probability", "width", "height", "scale", "leaf_px",
    "lesion_px", "severity_pct", "affected_pct_of_image", "denominator", "n_lesions",
    "n_lesions_off_leaf", "min_lesion_px", "mean_lesion_px", "median_lesion_px",
    "max_lesion_px", "mean_confidence", "mask", "leaf_mask", "overlay", "model",
    "notes",
)  # fmt: skip
"""Columns of ``severity.csv``; then one column ``px_<class>`` per lesion class."""

LEAST_NAMED = 0.5
"""Least probability of a predicted disease: below it, all others together are likelier."""

LESION_COLUMNS = ("image", "class", *(field.name for field in fields(Lesion)))


def image_row(name: str, assessment: Assessment, classes: ClassMap) -> dict[str, Value]:
    """Return the measures of one image, by column of ``severity.csv``.

    Areas, counts and confidence are of the lesions that severity is computed from: those
    on the leaf if there is one. ``mean_confidence`` is their mean probability, weighted
    by area. ``None`` means undefined: no leaf, no lesion or no disease head.
    """
    prediction, measure = assessment.prediction, assessment.measure
    counted = assessment.counted
    areas = [lesion.area_px for lesion in counted]
    probabilities = prediction.disease_probability
    highest = max(probabilities, default=None)
    disease = None
    if highest is not None and highest >= LEAST_NAMED:
        disease = classes.diseases[probabilities.index(highest)]
    weighted = sum(lesion.area_px * lesion.confidence for lesion in counted)
    height, width = prediction.lesion.shape
    row: dict[str, Value] = {
        "image": name,
        "disease": disease,
        "disease_probability": highest,
        "width": width,
        "height": height,
        **asdict(measure),
        "n_lesions": len(counted),
        "n_lesions_off_leaf": (
            None if measure.leaf_px is None else len(assessment.lesions) - len(counted)
        ),
        "min_lesion_px": assessment.min_lesion_px,
        "mean_lesion_px": statistics.fmean(areas) if areas else None,
        "median_lesion_px": statistics.median(areas) if areas else None,
        "max_lesion_px": max(areas, default=None),
        "mean_confidence": weighted / sum(areas) if areas else None,
    }
    for class_id, class_name in enumerate(classes.lesions, start=1):
        row[f"px_{class_name}"] = sum(
            lesion.area_px for lesion in counted if lesion.class_id == class_id
        )
    return row


def table_row(
    name: str,
    assessment: Assessment,
    classes: ClassMap,
    *,
    scale: float,
    model: str,
    notes: Sequence[str],
) -> dict[str, Value]:
    """Return ``image_row`` with what is not measured: scale, model and notes."""
    row = image_row(name, assessment, classes)
    return row | {"scale": scale, "model": model, "notes": "; ".join(notes)}


class RecordWriter:
    """Write the tables, masks and overlays of a run, one image at a time.

    A context manager: the tables get their final names when it exits without an error.

    Args:
        folder: Where to write; created if missing.
        classes: Names of the lesion classes and image-level labels.
        model: Digest of the model, written in every row.
        resume: Whether to continue the partial tables in the folder.

    Raises:
        OutputError: If the folder cannot be written.
    """

    def __init__(
        self, folder: Path, classes: ClassMap, *, model: str = "", resume: bool = False
    ) -> None:
        self.folder = folder
        self.classes = classes
        self.model = model
        self.resumed: list[dict[str, Value]] = []
        self._resume = resume
        self._names: set[str] = set()
        self._paths = OutputPaths()
        self._tables: tuple[TextIO, TextIO, TextIO]

    def __enter__(self) -> "RecordWriter":
        """Create the tables and write their headers, and the rows that are resumed.

        These are then in ``resumed``, as ``add`` returned them.
        """
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            records = self._read_partial() if self._resume else []
            images = self._open("severity.csv", "w")
            lesions = self._open("lesions.csv", "w")
            lines = self._open("records.jsonl", "a" if self._resume else "w")
            self._tables = images, lesions, lines
            images.write(csv_line(self._columns))
            lesions.write(csv_line(LESION_COLUMNS))
            for record in records:
                self._resume_record(record)
        return self

    def _open(self, name: str, mode: Literal["w", "a"]) -> TextIO:
        """Open a table; it is buffered by line: every row is on disk at once."""
        path = self._partial(name)
        return path.open(mode, buffering=1, encoding="utf-8", newline="\n")

    def _read_partial(self) -> list[dict[str, Any]]:
        """Return the records of complete lines; remove a line that was cut."""
        path = self._partial("records.jsonl")
        records, end = [], 0
        with suppress(FileNotFoundError), path.open("rb+") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    complete = line.endswith(b"\n") and record.keys() >= {
                        "image",
                        "lesions",
                    }
                except (ValueError, AttributeError):
                    complete = False
                if not complete:
                    break
                records.append(record)
                end += len(line)
            file.truncate(end)
        return records

    def _resume_record(self, record: dict[str, Any]) -> None:
        """Write the rows of an image that was done before; its files are kept."""
        lesions = record.pop("lesions")
        self._refuse_name(record["image"])
        for kind, suffix in (("masks", ".png"), ("leaves", ".png"), ("overlays", ".jpg")):
            self._path(kind, record["image"], suffix)  # no other image gets it
        self._append_csv(record, lesions)
        self.resumed.append(record)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Rename the tables, or leave them partial after an error."""
        try:
            with explained(self.folder), ExitStack() as tables:
                for table in self._tables:
                    tables.callback(table.close)  # a full disk may raise only here
        except OutputError:
            if kind is None:
                raise  # otherwise the first error is raised
        if kind is not None:
            return
        with explained(self.folder):
            self._write_json()
            for name in ("severity.csv", "lesions.csv"):
                self._partial(name).replace(self.folder / name)

    def add(
        self,
        name: str,
        image: UInt8[np.ndarray, "h w 3"],
        assessment: Assessment,
        *,
        scale: float = 1.0,
        notes: Sequence[str] = (),
    ) -> dict[str, Value]:
        """Write one image's rows and images.

        Args:
            name: Path of the image relative to the folder that was read, with ``/``.
                It names the row and the files, so that images of the same name in
                different folders have different files.
            image: RGB, of the size of the masks.
            assessment: Lesions and severity of the image.
            scale: Factor by which the image was shrunk for the model.
            notes: Quality issues of the image, as text.

        Returns:
            The row of ``severity.csv``, with paths relative to the folder written.

        Raises:
            UsageError: If ``name`` is absolute, leads outside, or was added before.
            OutputError: If the folder cannot be written.
        """
        self._refuse_name(name)
        row = table_row(
            name, assessment, self.classes, scale=scale, model=self.model, notes=notes
        )
        prediction = assessment.prediction
        with explained(self.folder):
            row["mask"] = path = self._path("masks", name, ".png")
            write_mask(self.folder / path, prediction.lesion, self.classes.lesions)
            if prediction.leaf is not None:
                row["leaf_mask"] = path = self._path("leaves", name, ".png")
                write_mask(self.folder / path, prediction.leaf, ("leaf",))
            row["overlay"] = path = self._path("overlays", name, ".jpg")
            drawn = Image.fromarray(draw_overlay(image, assessment, self.classes))
            write_atomically(
                self.folder / path, lambda file: drawn.save(file, "JPEG", quality=90)
            )
            self._append_rows(row, assessment.lesions)
        return row

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*IMAGE_COLUMNS, *(f"px_{name}" for name in self.classes.lesions))

    def _append_rows(self, row: Mapping[str, Value], lesions: Sequence[Lesion]) -> None:
        records: list[dict[str, Value]] = [
            {"class": self.classes.lesion_name(lesion.class_id), **asdict(lesion)}
            for lesion in lesions
        ]
        self._append_csv(row, records)
        lines = self._tables[2]
        whole = {column: row.get(column) for column in self._columns}
        text = json.dumps({**whole, "lesions": records}, ensure_ascii=False)
        lines.write(text + "\n")

    def _append_csv(
        self, row: Mapping[str, Value], records: Sequence[Mapping[str, Value]]
    ) -> None:
        images, lesion_table, _ = self._tables
        image = row["image"]
        rows = (
            [{"image": image, **record}[c] for c in LESION_COLUMNS] for record in records
        )
        lesion_table.write("".join(map(csv_line, rows)))
        images.write(csv_line(row.get(c) for c in self._columns))

    def _write_json(self) -> None:
        header = {"format": FORMAT, "model": self.model, "classes": asdict(self.classes)}
        partial = self._partial("records.jsonl")

        def write(file: BinaryIO) -> None:
            start = json.dumps(header, ensure_ascii=False)[:-1]
            file.write(f'{start}, "images": ['.encode())
            with partial.open("rb") as lines:
                for number, line in enumerate(lines):
                    file.write((b",\n" if number else b"\n") + line.rstrip(b"\n"))
            file.write(b"\n]}\n")

        write_atomically(self.folder / "records.json", write)
        partial.unlink()

    def _path(self, kind: str, name: str, suffix: str) -> str:
        return self._paths.path(kind, name, suffix, keep_ending=False)

    def _partial(self, name: str) -> Path:
        path = self.folder / name
        return path.with_name(f"{path.stem}.partial{path.suffix}")

    def _refuse_name(self, name: str) -> None:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise UsageError(
                f"`{name}` is not the name of an image within a folder.",
                needed="a relative path without `..`, such as plot_1/leaf.jpg",
                fix="name images relative to the folder that holds them all",
            )
        if name in self._names:
            raise UsageError(
                f"`{name}` was recorded twice.",
                needed="one row per image",
                fix="list every image once",
            )
        self._names.add(name)


def write_mask(path: Path, ids: UInt8[np.ndarray, "h w"], names: Sequence[str]) -> None:
    """Write class ids as a palette PNG, which viewers show in color.

    The stored values are the ids: 0 is black, ``IGNORE`` is gray, ``names[i]`` has the
    id ``i + 1``. The names are stored in the file, under the text key ``classes``.

    Raises:
        OSError: If the file cannot be written.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[1 : len(names) + 1] = class_colors(len(names))
    palette[IGNORE] = 128
    image = Image.fromarray(ids)
    image.putpalette(palette.tobytes())
    legend = PngInfo()
    legend.add_itxt("classes", json.dumps(list(names), ensure_ascii=False))
    write_atomically(path, lambda file: image.save(file, "PNG", pnginfo=legend))
