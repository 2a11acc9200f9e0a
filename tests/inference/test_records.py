"""Records: columns, files and names, and valid tables after a crash."""

import csv
import errno
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from plantseg_next.errors import OutputError, UsageError
from plantseg_next.inference.records import (
    IMAGE_COLUMNS,
    RecordWriter,
    image_row,
    write_atomically,
    write_mask,
)
from plantseg_next.inference.severity import assess
from plantseg_next.structures import ClassMap, Prediction

CLASSES = ClassMap(("rust", "brown spot"), ("healthy", "rust"), True)
IMAGE = np.full((40, 50, 3), 120, np.uint8)


def example_assessment(*, leaf=True, lesions=True, head=True):
    lesion = np.zeros((40, 50), np.uint8)
    if lesions:
        lesion[5:10, 5:15] = 1
        lesion[20:26, 5:11] = 2
        lesion[30:40, 44:50] = 2
    probability = np.where(lesion == 1, 0.75, 0.5).astype(np.float16)
    on_leaf = np.zeros((40, 50), np.float16)
    on_leaf[:, :40] = 1
    return assess(
        Prediction(
            lesion, probability, on_leaf if leaf else None, (0.2, 0.8) if head else ()
        )
    )


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_image_row_has_every_measure():
    row = image_row("a.jpg", example_assessment(), CLASSES)
    assert row == {
        "image": "a.jpg",
        "disease": "rust",
        "disease_probability": 0.8,
        "width": 50,
        "height": 40,
        "leaf_px": 1600,
        "lesion_px": 86,
        "severity_pct": 5.375,
        "affected_pct_of_image": 4.3,
        "denominator": "leaf",
        "n_lesions": 2,
        "n_lesions_off_leaf": 1,
        "min_lesion_px": 20,
        "mean_lesion_px": 43.0,
        "median_lesion_px": 43.0,
        "max_lesion_px": 50,
        "mean_confidence": pytest.approx((50 * 0.75 + 36 * 0.5) / 86),
        "px_rust": 50,
        "px_brown spot": 36,
    }


def test_record_writer_writes_tables_masks_and_overlays(tmp_path):
    with RecordWriter(tmp_path / "out", CLASSES, model="abc123") as writer:
        row = writer.add(
            "plot 1/лист.jpg", IMAGE, example_assessment(), notes=("dark", "blurred")
        )
        writer.add(
            "healthy, left.png",
            IMAGE,
            example_assessment(leaf=False, lesions=False, head=False),
        )
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "leaves", "lesions.csv", "masks", "overlays", "records.json", "severity.csv",
    ]  # fmt: skip

    first, second = read(out / "severity.csv")
    assert tuple(first) == (*IMAGE_COLUMNS, "px_rust", "px_brown spot")
    assert first["image"] == "plot 1/лист.jpg"
    assert (first["severity_pct"], first["model"]) == ("5.375", "abc123")
    assert first["notes"] == "dark; blurred"
    assert first["mask"] == row["mask"] == "masks/plot 1/лист.png"
    empty = {name for name, cell in second.items() if cell == ""}
    assert empty == {
        "disease", "disease_probability", "leaf_px", "severity_pct", "leaf_mask",
        "n_lesions_off_leaf", "mean_lesion_px", "median_lesion_px", "max_lesion_px",
        "mean_confidence", "notes",
    }  # fmt: skip
    assert (second["n_lesions"], second["denominator"]) == ("0", "image")

    lesions = read(out / "lesions.csv")
    assert [row["class"] for row in lesions] == ["brown spot", "rust", "brown spot"]
    assert [row["area_px"] for row in lesions] == ["60", "50", "36"]
    assert [row["on_leaf"] for row in lesions] == ["False", "True", "True"]
    assert {row["image"] for row in lesions} == {"plot 1/лист.jpg"}

    records = json.loads((out / "records.json").read_text("utf-8"))
    assert records["classes"]["lesions"] == list(CLASSES.lesions)
    assert records["images"][0]["lesions"][1]["area_px"] == 50
    assert records["images"][1]["severity_pct"] is None

    for column, values in (("mask", {0, 1, 2}), ("leaf_mask", {0, 1})):
        with Image.open(out / first[column]) as mask:
            assert mask.mode == "P"
            assert set(np.unique(np.array(mask))) == values
    with Image.open(out / first["overlay"]) as overlay:
        assert overlay.format == "JPEG"
        assert overlay.width == 512


def test_record_writer_gives_equal_names_different_files(tmp_path):
    names = ["a/leaf.jpg", "b/leaf.jpg", "a/leaf.png", "a/LEAF.jpg", "a/leaf-2.jpg"]
    with RecordWriter(tmp_path, CLASSES) as writer:
        rows = [writer.add(name, IMAGE, example_assessment()) for name in names]
    for column in ("mask", "leaf_mask", "overlay"):
        paths = [row[column] for row in rows]
        assert len({path.casefold() for path in paths}) == len(names)
        assert all((tmp_path / path).is_file() for path in paths)
    assert [row["mask"] for row in rows[:3]] == [
        "masks/a/leaf.png",
        "masks/b/leaf.png",
        "masks/a/leaf-2.png",
    ]


def interrupted_run(folder):
    with RecordWriter(folder, CLASSES) as writer:
        writer.add("new.jpg", IMAGE, example_assessment())
        # Rows are on disk before the tables are closed.
        done = read(folder / "severity.partial.csv")
        assert [row["image"] for row in done] == ["new.jpg"]
        raise KeyboardInterrupt


def test_record_writer_killed_keeps_partial_and_old_tables(tmp_path):
    with RecordWriter(tmp_path, CLASSES) as writer:
        writer.add("old.jpg", IMAGE, example_assessment())
    with pytest.raises(KeyboardInterrupt):
        interrupted_run(tmp_path)
    assert [row["image"] for row in read(tmp_path / "severity.csv")] == ["old.jpg"]
    assert len(read(tmp_path / "lesions.partial.csv")) == 3
    lines = (tmp_path / "records.partial.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[0])["image"] == "new.jpg"


def test_record_writer_without_images_writes_valid_tables(tmp_path):
    with RecordWriter(tmp_path, CLASSES):
        pass
    assert read(tmp_path / "severity.csv") == []
    assert json.loads((tmp_path / "records.json").read_text())["images"] == []


@pytest.mark.parametrize("name", ["/etc/leaf.jpg", "../leaf.jpg", "a/../../leaf.jpg", ""])
def test_record_writer_refuses_names_outside_the_folder(tmp_path, name):
    with (
        RecordWriter(tmp_path, CLASSES) as writer,
        pytest.raises(UsageError, match="is not the name of an image within") as e,
    ):
        writer.add(name, IMAGE, example_assessment())
    assert "needed: a relative path without `..`, such as plot_1/leaf.jpg" in str(e.value)


def test_record_writer_refuses_an_image_twice(tmp_path):
    with RecordWriter(tmp_path, CLASSES) as writer:
        writer.add("a.jpg", IMAGE, example_assessment())
        with pytest.raises(UsageError, match=r"`a.jpg` was recorded twice"):
            writer.add("a.jpg", IMAGE, example_assessment())


def test_record_writer_in_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file in the way")
    with (
        pytest.raises(OutputError, match="out` cannot be written") as error,
        RecordWriter(tmp_path / "out", CLASSES),
    ):
        pass
    assert error.value.needed == "a folder, or a path where nothing is"
    assert error.value.fix == "choose another --out"


def test_write_atomically_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_mask_file_has_ids_colors_and_names(tmp_path):
    ids = np.array([[0, 1, 116, 255]], np.uint8)
    names = tuple(f"class {i}" for i in range(116))
    write_mask(tmp_path / "m.png", ids, names)
    with Image.open(tmp_path / "m.png") as mask:
        np.testing.assert_array_equal(np.array(mask), ids)
        assert json.loads(mask.text["classes"])[115] == "class 115"
        colors = np.array(mask.convert("RGB"))[0].tolist()
    assert colors[:2] == [[0, 0, 0], [213, 94, 0]]
    assert colors[3] == [128, 128, 128]


def test_image_row_has_no_disease_below_half_probability():
    assessment = example_assessment()
    unsure = replace(assessment.prediction, disease_probability=(0.2, 0.45, 0.35))
    row = image_row("a.jpg", replace(assessment, prediction=unsure), CLASSES)
    assert row["disease"] is None
    assert row["disease_probability"] == 0.45


def test_record_writer_on_a_full_disk_raises_at_closing(tmp_path):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = RecordWriter(tmp_path, CLASSES)
    writer.__enter__()
    table = writer._tables[0]
    writer._tables = (SimpleNamespace(close=full), *writer._tables[1:])
    with pytest.raises(OutputError, match="No space left on device"):
        writer.__exit__(None, None, None)
    first = OutputError("cannot be written", needed="", fix="")
    writer.__exit__(OutputError, first, None)  # the first error is raised
    table.close()
