import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.data.quality.check import check
from plantseg_next.data.quality.issues import CheckReport, Issue, SourceSummary
from plantseg_next.data.splits import assign, group_near_duplicates

SHARED = Path(__file__).parents[3] / "../shared/data"
TURNED = 6


def noise(seed: int, size_hw: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), np.uint8)


def add(
    folder: Path,
    name: str,
    *,
    pixels: np.ndarray,
    ids: tuple[int, ...] | None = (0, 1, 1, 2),
    mask_hw: tuple[int, int] | None = None,
    turn: int = 1,
) -> Path:
    """Write an image and, unless ``ids`` is ``None``, a mask of these values."""
    image = folder / "images" / f"{name}.png"
    exif = Image.Exif()
    exif[0x0112] = turn
    for path in (image, folder / "masks" / f"{name}.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image, exif=exif)
    if ids is not None:
        shape = mask_hw or pixels.shape[:2]
        mask = np.resize(np.array(ids, np.uint8), shape)
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return image


@pytest.fixture
def folder(tmp_path):
    """Six valid images in three splits."""
    for i, split in enumerate(["train", "train", "train", "train", "val", "test"]):
        add(tmp_path, f"{split}/{i}", pixels=noise(i))
    lines = "0: background\n1: leaf\n2: rust\n"
    (tmp_path / "classes.yaml").write_text(lines, "utf-8")
    return tmp_path


def codes(report: CheckReport) -> dict[str, str]:
    return {issue.code: issue.severity for issue in report.issues}


def the(report: CheckReport, code: str) -> Issue:
    (issue,) = [i for i in report.issues if i.code == code]
    return issue


def test_check_valid_data_warns_only_of_few_labels(folder):
    report = check(read_folder(folder))
    assert codes(report) == {"few-labels": "warning"}
    assert not report.spoils_training
    assert "Nothing found that would spoil training or evaluation." in report.to_text()
    assert "splits   train 4, val 1, test 1" in report.to_text()
    assert "rust 25 % of the annotated pixels" in report.to_text()


def test_check_images_without_green_are_a_warning(folder):
    cats = np.full((48, 64, 3), (120, 80, 60), np.uint8)
    for i in range(5):
        add(folder, f"train/cat_{i}", pixels=cats + noise(i) // 16, ids=None)
    assert "no-green" not in codes(check(read_folder(folder)))  # less than half of all
    for i in range(5, 7):
        add(folder, f"train/cat_{i}", pixels=cats + noise(i) // 16, ids=None)
    issue = the(check(read_folder(folder)), "no-green")
    assert f"Images of {folder.name} with hardly any green pixels" in issue.text
    assert issue.text.endswith("of 13: 7.")


def test_check_unusable_files_are_errors(folder):
    (folder / "images" / "train" / "empty.jpg").write_bytes(b"")
    add(folder, "train/size", pixels=noise(10), mask_hw=(40, 64))
    add(folder, "train/ids", pixels=noise(11), ids=(0, 9))
    add(folder, "train/broken", pixels=noise(12))
    (folder / "masks" / "train" / "broken.png").write_bytes(b"no")
    add(folder, "train/jpeg", pixels=noise(13))
    Image.new("L", (64, 48)).save(folder / "masks" / "train" / "jpeg.png", "JPEG")
    report = check(read_folder(folder))
    assert [f.code for f in report.of("error")] == [
        "unreadable-image",
        "unreadable-mask",
        "jpeg-mask",
        "size-mismatch",
        "unknown-mask-value",
    ]
    assert report.spoils_training
    assert "is empty (0 bytes)" in the(report, "unreadable-image").text
    assert "has 64 x 40 pixels" in the(report, "size-mismatch").text
    assert "holds the value 9 on 50 %" in the(report, "unknown-mask-value").text
    assert "5 errors would spoil training" in report.to_text()


def test_check_copy_across_splits_is_an_error(folder):
    add(folder, "test/copy", pixels=noise(0))
    report = check(read_folder(folder))
    assert codes(report)["copy-across-splits"] == "error"
    names = {path.name for path in the(report, "copy-across-splits").files}
    assert names == {"0.png", "copy.png"}
    assert "near-duplicate-across-splits" not in codes(report)


def test_check_copy_within_split_is_a_warning(folder):
    add(folder, "train/copy", pixels=noise(0))
    assert codes(check(read_folder(folder)))["copies"] == "warning"


def test_check_mirrored_image_across_splits_is_an_error(folder):
    add(folder, "test/mirrored", pixels=np.ascontiguousarray(noise(0)[:, ::-1]))
    issue = the(check(read_folder(folder)), "near-duplicate-across-splits")
    assert issue.severity == "error"
    assert "They affect 50.0 % of test" in issue.text


def test_check_few_near_duplicates_across_splits_are_a_warning(folder):
    for i in range(120):
        add(folder, f"test/more{i}", pixels=noise(100 + i))
    add(folder, "test/mirrored", pixels=np.ascontiguousarray(noise(0)[:, ::-1]))
    issue = the(check(read_folder(folder)), "near-duplicate-across-splits")
    assert issue.severity == "warning"


def test_check_near_duplicates_without_splits_are_a_warning(folder):
    add(folder, "train/mirrored", pixels=np.ascontiguousarray(noise(0)[:, ::-1]))
    manifest = read_folder(folder)
    free = manifest.only(replace(row, split=None) for row in manifest.rows)
    assert the(check(free), "near-duplicates").severity == "warning"
    grouped = manifest.only(replace(row, group="all", split=None) for row in free.rows)
    assert "near-duplicates" not in codes(check(grouped))


def test_grouped_near_duplicates_do_not_cross_splits(folder):
    add(folder, "train/mirrored", pixels=np.ascontiguousarray(noise(0)[:, ::-1]))
    add(folder, "train/copy", pixels=noise(0))
    manifest = read_folder(folder)
    free = manifest.only(replace(row, split=None) for row in manifest.rows)
    joined = group_near_duplicates(free, check(free).same_scene)
    groups = {row.key: row.group for row in joined.rows}
    assert groups["train/0"] == groups["train/mirrored"] == groups["train/copy"] != ""
    assert groups["train/1"] == ""
    for seed in range(5):
        found = codes(check(assign(joined, seed=seed)))
        assert "copy-across-splits" not in found
        assert "near-duplicate-across-splits" not in found


def test_check_near_duplicate_of_a_test_image_without_mask_is_no_leak(folder):
    """Such as an image of which another one in the test split shows the scene."""
    add(folder, "test/bare", pixels=noise(7), ids=None)
    add(folder, "train/mirrored", pixels=np.ascontiguousarray(noise(7)[:, ::-1]))
    assert "near-duplicate-across-splits" not in codes(check(read_folder(folder)))


def test_check_group_across_splits_is_an_error(folder):
    manifest = read_folder(folder)
    grouped = manifest.only(replace(row, group="7") for row in manifest.rows)
    report = check(grouped)
    assert f"The first: {folder.name}/7." in the(report, "group-across-splits").text


def test_check_reports_exif_orientation_of_images_and_masks(folder):
    add(folder, "train/turned", pixels=noise(20), turn=TURNED, mask_hw=(64, 48))
    add(folder, "train/stored", pixels=noise(21), turn=TURNED)
    report = check(read_folder(folder))
    assert len(the(report, "exif-orientation").files) == 2
    assert [path.stem for path in the(report, "mask-not-rotated").files] == ["stored"]
    assert not report.of("error")


def test_check_reports_unmatched_images_masks_and_names(folder):
    add(folder, "train/bare", pixels=noise(30), ids=None)
    add(folder, "train/orphan", pixels=noise(31)).unlink()
    (folder / "index.csv").write_text("name\nlost\n", "utf-8")
    found = codes(check(read_folder(folder)))
    assert found["image-without-mask"] == "note"
    assert found["mask-without-image"] == "warning"
    assert found["name-without-image"] == "warning"


def test_check_index_contradictions_are_warnings(folder):
    lines = "0: background\n1: leaf\n2: rust\n3: phoma\n"
    (folder / "classes.yaml").write_text(lines, "utf-8")
    table = "name,disease,Resolution,Mask ratio\n"
    table += "train/0,phoma,64x48,0.25\ntrain/1,rust,100x50,25\ntrain/2,rust,64x48,0.7\n"
    (folder / "index.csv").write_text(table, "utf-8")
    report = check(read_folder(folder))
    label = the(report, "label-contradicts-mask")
    assert "labeled phoma, mask rust" in label.text
    assert [path.stem for path in label.files] == ["0"]
    size = the(report, "resolution-contradicts-index")
    assert "64 x 48, stated 100x50" in size.text
    ratio = the(report, "mask-ratio-contradicts-index")
    assert [path.stem for path in ratio.files] == ["2"]
    assert "No mask in train shows phoma" in report.to_text()


def test_check_class_missing_from_test_is_a_warning(folder):
    Image.new("L", (64, 48)).save(folder / "masks" / "test" / "5.png")
    report = check(read_folder(folder))
    missing = the(report, "class-missing-from-split")
    assert missing.text == "No mask in test shows rust: not evaluated there."
    assert codes(report)["mask-without-lesion"] == "note"


def test_check_swapped_leaf_and_lesion_are_a_warning(folder):
    (folder / "classes.yaml").write_text("0: background\n2: leaf\n1: rust\n", "utf-8")
    issue = the(check(read_folder(folder)), "leaf-smaller-than-lesions")
    assert issue.severity == "warning"
    assert "may be swapped" in issue.fix


def test_check_tiny_palette_and_16_bit_files_are_reported(folder):
    add(folder, "train/tiny", pixels=noise(40, (16, 64)))
    ids = np.resize(np.array([0, 1, 2], np.uint8), (48, 64))
    for name, mask in [("p", Image.fromarray(ids).convert("P")), ("i", ids.astype("u2"))]:
        add(folder, f"train/{name}", pixels=noise(50 + len(name)))
        image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        image.save(folder / "masks" / "train" / f"{name}.png")
    found = codes(check(read_folder(folder)))
    assert found["tiny-image"] == "warning"
    assert found["palette-mask"] == found["16-bit-mask"] == "note"


def test_check_images_without_labels_are_an_error(tmp_path):
    Image.fromarray(noise(0)).save(tmp_path / "a.png")
    report = check(read_folder(tmp_path))
    assert codes(report) == {"nothing-to-learn": "error"}


def test_check_class_folders_report_no_masks(tmp_path):
    for i, name in enumerate(["healthy", "rust"]):
        (tmp_path / name).mkdir()
        Image.fromarray(noise(i)).save(tmp_path / name / "a.png")
    report = check(read_folder(tmp_path))
    assert codes(report) == {"no-masks": "error", "no-splits": "note"}


def test_check_training_masks_without_any_lesion_are_an_error(folder):
    for path in (folder / "masks" / "train").iterdir():
        Image.fromarray(np.ones((48, 64), np.uint8)).save(path)
    issue = the(check(read_folder(folder)), "no-lesion-in-train")
    assert issue.severity == "error"
    text = f"None of the 4 training masks of `{folder.name}` shows a lesion."
    assert issue.text == text  # as train says it


def test_report_states_a_class_of_all_pixels_as_100_percent():
    lesions = {"rust": 1.0, "blight": 0.00123}
    report = CheckReport((SourceSummary("a", "", "", 1, 1, {}, lesions),), ())
    assert "lesions  rust 100 %, blight 0.12 % of" in report.to_text()


def test_check_inferred_coding_is_a_note(folder):
    (folder / "classes.yaml").unlink()
    for mask in (folder / "masks").rglob("*.png"):
        Image.fromarray(np.resize(np.array([0, 0, 0, 1], np.uint8), (48, 64))).save(mask)
    issue = the(check(read_folder(folder)), "coding-inferred")
    assert issue.severity == "note"
    assert "is inferred: mask values 0, 1 read as background, lesion" in issue.text


def test_check_values_without_names_are_a_warning(folder):
    (folder / "classes.yaml").unlink()
    for mask in (folder / "masks").rglob("*.png"):
        ids = np.array([0, 0, 0, 0, 3, 0, 0, 0, 7], np.uint8)
        Image.fromarray(np.resize(ids, (48, 64))).save(mask)
    issue = the(check(read_folder(folder)), "coding-inferred")
    assert issue.severity == "warning"
    assert "read as background, class 3, class 7; no file names these classes" in issue.text
    assert "state what the values mean in classes.yaml" in issue.fix


def test_report_text_is_shortened_and_json_is_complete(folder):
    for i in range(9):
        (folder / "images" / "train" / f"empty{i}.jpg").write_bytes(b"")
    report = check(read_folder(folder))
    assert "train/empty3.jpg and 5 more" in report.to_text()
    table = json.loads(report.to_json())
    assert table["spoils_training"] is True
    assert len(table["issues"][0]["files"]) == 9


def test_check_calls_on_progress_for_every_row(folder):
    calls: list[tuple[int, int]] = []
    check(read_folder(folder), on_progress=lambda done, of: calls.append((done, of)))
    assert calls == [(i + 1, 6) for i in range(6)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared collections are absent")
def test_check_valid_real_collection_passes():
    report = check(read_folder(SHARED / "wild"))
    assert not report.spoils_training
    assert codes(report).keys() == {"no-splits", "coding-inferred", "palette-mask"}
