"""What a check says at its end: labels, severity, unused files, paths, next steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantseg_next import api
from plantseg_next.data.formats import read_folder
from plantseg_next.data.manifest import UnusedFiles
from plantseg_next.data.quality.check import check
from plantseg_next.data.quality.issues import CheckReport, Issue, distinct_names, printable
from plantseg_next.workflows.training_data import DataSources


def write(
    folder: Path, name: str, seed: int, values=(0, 1, 2), *, mask: bool = True
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    ids = np.resize(np.array(values, np.uint8), (48, 64))
    for kind, content in (("images", pixels), ("masks", ids)):
        if mask or kind == "images":
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)


@pytest.fixture
def folder(tmp_path):
    for i, split in enumerate(("train", "train", "train", "val", "test")):
        write(tmp_path, f"{split}/{i}", i)
    (tmp_path / "classes.yaml").write_text("0: background\n1: leaf\n2: rust\n")
    return tmp_path


def test_severity_is_possible_where_the_leaf_is_marked(folder):
    text = "Leaf marked in 5 of 5 labeled images: severity possible."
    assert check(read_folder(folder)).severity == text
    assert text in check(read_folder(folder)).to_text()


def test_severity_counts_images_whose_leaf_is_known(folder):
    (folder / "classes.yaml").write_text("0: ignore\n1: leaf\n2: rust\n3: no lesion\n")
    write(folder, "train/9", 9, (3, 3, 2))
    severity = check(read_folder(folder)).severity
    assert severity == "Leaf marked in 5 of 6 labeled images: severity possible."


def test_severity_is_not_possible_without_a_leaf(folder):
    (folder / "classes.yaml").write_text("0: background\n1: background\n2: rust\n")
    severity = check(read_folder(folder)).severity
    assert severity.startswith(
        "Leaf marked in 0 of 5 labeled images: severity not possible"
    )
    assert "measured as a fraction of the image" in severity


def test_severity_is_not_possible_if_only_test_images_mark_the_leaf(folder):
    (folder / "classes.yaml").write_text("0: no lesion\n1: leaf\n2: rust\n")
    for i, split in enumerate(("train", "train", "train", "val")):
        write(folder, f"{split}/{i}", i, (0, 0, 2))
    severity = check(read_folder(folder)).severity
    assert "1 of 5 labeled images: severity not possible (no training image" in severity


def test_labels_of_each_split_are_counted(folder):
    write(folder, "train/healthy", 20, (0, 1, 1))
    write(folder, "train/named", 21, mask=False)
    write(folder, "val/bare", 22, mask=False)
    (folder / "index.csv").write_text("name,disease\ntrain/named,rust\n")
    report = check(read_folder(folder))
    counts = {
        of.split: (of.masks, of.with_lesions, of.image_labels, of.unlabeled)
        for of in report.labels
    }
    assert counts == {"train": (4, 3, 1, 0), "val": (1, 1, 0, 1), "test": (1, 1, 0, 0)}
    assert (
        "train      4             3                        1         0" in report.to_text()
    )


def with_unused(folder: Path, *unused: UnusedFiles) -> CheckReport:
    manifest = read_folder(folder)
    ((name, origin),) = manifest.origins.items()
    origins = {name: replace(origin, unused=unused)}
    return check(replace(manifest, origins=origins))


def test_files_that_are_not_used_are_one_issue_for_each_reason(folder):
    """After ultralytics/yolov5#2268: "50 missing" did not say of what, or why."""
    report = with_unused(
        folder,
        UnusedFiles("annotations of VIA, which are not read", ("via.json", "b/via.json")),
        UnusedFiles("camera files", ("a.cr2",)),
        UnusedFiles("annotations of VIA, which are not read", ("c/via.json",)),
        UnusedFiles("texts", ("README.md",), harmless=True),
        UnusedFiles("thumbnails", ("Thumbs.db", "b/Thumbs.db"), harmless=True),
    )
    issues = [issue for issue in report.issues if issue.code == "unused-files"]
    assert [issue.severity for issue in issues] == ["warning", "warning", "note"]
    via, raw, harmless = issues
    assert via.text.startswith(
        "Files that are not used, annotations of VIA, which are not read: 3. "
    )
    assert via.files == tuple(map(Path, ("via.json", "b/via.json", "c/via.json")))
    assert raw.files == (Path("a.cr2"),)
    assert "no image or label is lost. texts: 1; thumbnails: 2." in harmless.text
    assert len(harmless.files) == 3


def test_paths_are_distinct_names_by_as_many_parts_as_needed():
    """After ultralytics/yolov5#5373: which of the files is it?"""
    paths = [Path(p) for p in ("d/a/x/1.png", "d/b/x/1.png", "d/b/x/2.png", "1.png")]
    assert distinct_names(paths) == ["a/x/1.png", "b/x/1.png", "x/2.png", "1.png"]
    assert distinct_names(paths[:1] * 2) == ["x/1.png"] * 2
    deep = [Path("a/x/y/z/1.png"), Path("b/x/y/z/1.png"), Path("x/y/z/1.png")]
    assert distinct_names(deep) == ["a/x/y/z/1.png", "b/x/y/z/1.png", "x/y/z/1.png"]
    issue = Issue("copies", "warning", "Copies: 2.", "", tuple(paths[:2]))
    assert "files:  a/x/1.png, b/x/1.png" in CheckReport((), (issue,)).to_text()


def test_names_with_control_characters_are_escaped_in_the_text():
    assert printable("a\x1b[31m b\u202e\udcff\nc 锈病") == r"a\x1b[31m b\u202e\xff\nc 锈病"
    issue = Issue("copies", "warning", "x\x1b[2J", "", (Path("a\x07"),))
    text = CheckReport((), (issue,)).to_text()
    assert r"x\x1b[2J" in text
    assert r"files:  a\x07" in text
    assert "\x1b" not in text


def test_remedy_for_masks_without_an_image_asks_for_no_new_name(folder):
    write(folder, "train/0_second", 3)
    (folder / "images" / "train" / "0_second.png").unlink()
    (issue,) = [
        i for i in check(read_folder(folder)).issues if i.code == "mask-without-image"
    ]
    assert "rename" not in issue.fix
    assert "of several masks an image, make one" in issue.fix


def state_classes(folder):
    (folder / "classes.yaml").write_text("0: background\n1: leaf\n2: rust\n")


@pytest.mark.parametrize("name", ["leaves", "my leaves", "-rf", "a;b", "it's"])
def test_next_command_is_quoted_for_a_shell(tmp_path, name):
    import shlex

    for i in range(24):
        write(tmp_path / name, str(i), i)
    state_classes(tmp_path / name)
    report = api.check(tmp_path / name)
    command = shlex.split(report.next_steps[-1])
    assert command == [
        "plantseg-next", "train", str(tmp_path / name), "--out", "RUN",
    ]  # fmt: skip


def test_next_steps_name_the_class_file_and_how_many_labels_are_missing(folder):
    classes = folder.parent / "classes.yaml"
    (folder / "classes.yaml").rename(classes)
    steps = api.check(DataSources(folder, classes=classes)).next_steps
    assert "at least 17 more images" in steps[0]
    assert f"--classes {classes}" in steps[-1]


def test_next_steps_of_values_without_names_ask_for_names(folder):
    (folder / "classes.yaml").unlink()
    for i in range(3):
        write(folder, f"train/{i}", i, (0, 5, 9))
    steps = api.check(folder).next_steps
    assert any(step.startswith("Name the classes: write a classes.yaml") for step in steps)


def test_next_steps_of_one_image_say_how_many_to_label(tmp_path):
    """After mapbox/robosat#36: no validation image, and no word about it before."""
    write(tmp_path, "a", 0)
    state_classes(tmp_path)
    steps = api.check(tmp_path).next_steps
    assert steps[0].startswith(
        "Label at least 2 more images: training, validation and test"
    )


def test_next_steps_of_images_alone_measure_them(tmp_path):
    write(tmp_path, "a", 0, mask=False)
    steps = api.check(tmp_path).next_steps
    assert f"  plantseg-next predict starter {tmp_path} --out RESULTS" in steps
