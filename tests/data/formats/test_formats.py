import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.errors import DataError, UsageError
from plantseg_next.files import read_text

SHARED = Path(__file__).parents[3] / "../shared/data"


def make_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    return path


def mask(path: Path, *values: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.resize(np.array(values or (0, 1), np.uint8), (4, 6))
    Image.fromarray(ids).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, "utf-8")
    return path


def layout_of(manifest) -> str:
    return next(iter(manifest.origins.values())).layout


# images and masks


@pytest.mark.parametrize(
    ("image", "mask_file"),
    [
        ("images/leaf 1.jpg", "masks/leaf 1.png"),
        ("Images/a.JPG", "Annotations/a_mask.png"),
        ("img/a.jpg", "labels/a.jpg.png"),
        ("images/x/a.jpg", "masks/a.png"),
        ("a.jpg", "a_mask.png"),
        ("a.jpg", "masks/a.png"),
        ("train/images/a.jpg", "train/masks/a.png"),
        ("images/葉.jpg", "masks/葉.png"),
        (
            "images/" + unicodedata.normalize("NFD", "häger.jpg"),
            "masks/" + unicodedata.normalize("NFC", "häger.png"),
        ),
    ],
)
def test_masks_are_matched_by_name(tmp_path, image, mask_file):
    make_image(tmp_path / image)
    mask(tmp_path / mask_file)
    manifest = read_folder(tmp_path)
    (row,) = manifest.rows
    assert row.mask == tmp_path / mask_file
    assert layout_of(manifest) == "images and masks of equal names"
    assert load_sample(row, manifest).lesion.max() == 1


def test_masks_equal_names_in_two_splits_are_matched_by_split(tmp_path):
    for split in ("train", "val", "test"):
        make_image(tmp_path / "images" / split / "1.jpg")
        mask(tmp_path / "masks" / split / "1.png")
    rows = read_folder(tmp_path).rows
    assert [row.split for row in rows] == ["test", "train", "val"]
    assert [row.key for row in rows] == ["test/1", "train/1", "val/1"]
    for row in rows:
        assert row.mask is not None
        assert row.mask.parent.name == row.split


def test_masks_ambiguous_name_is_not_matched(tmp_path):
    for part in ("x", "y"):
        make_image(tmp_path / "images" / part / "1.jpg")
        make_image(tmp_path / "images" / part / f"{part}.jpg")
    mask(tmp_path / "masks" / "1.png")
    mask(tmp_path / "masks" / "x.png")
    found = {row.key: row.mask for row in read_folder(tmp_path).rows}
    assert found["x/1"] is None
    assert found["y/1"] is None
    assert found["x/x"] == tmp_path / "masks" / "x.png"


def test_unmatched_images_masks_and_names_are_reported(tmp_path):
    for name in ("a", "b"):
        make_image(tmp_path / "images" / f"{name}.jpg")
    mask(tmp_path / "masks" / "a.png")
    mask(tmp_path / "masks" / "z.png")
    text(tmp_path / "index.csv", "name,disease\na,Leaf_Rust\nlost,rust\n")
    manifest = read_folder(tmp_path)
    origin = manifest.origins[tmp_path.name]
    assert [row.mask is None for row in manifest.rows] == [False, True]
    assert origin.masks_without_image == (str(tmp_path / "masks" / "z.png"),)
    assert origin.names_without_image == ("lost",)
    assert manifest.rows[0].disease == "leaf rust"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_index_of_a_spreadsheet_in_unicode_is_read(tmp_path, encoding):
    make_image(tmp_path / "images/a.jpg")
    mask(tmp_path / "masks/a.png")
    lines = "name\tsplit\tdisease\r\na.jpg\ttrain\tMehltau grün\r\n"
    (tmp_path / "index.csv").write_bytes(lines.encode(encoding))
    (row,) = read_folder(tmp_path).rows
    assert (row.split, row.disease) == ("train", "mehltau grün")


@pytest.mark.parametrize(
    ("name", "fix"), [("a.json", "text editor"), ("a.csv", "CSV UTF-8")]
)
def test_text_in_another_encoding_is_refused_with_what_to_do(tmp_path, name, fix):
    (tmp_path / name).write_bytes("锈病".encode("gbk"))
    with pytest.raises(DataError, match="is not text in UTF-8") as caught:
        read_text(tmp_path / name)
    assert fix in caught.value.fix


def test_index_with_semicolons_and_byte_order_mark_is_read(tmp_path):
    make_image(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png")
    table = "\ufeffName;Split;Group;Plant;Severity\na.JPG;validation;7;Coffee;3\n"
    text(tmp_path / "index.csv", table)
    (row,) = read_folder(tmp_path).rows
    assert (row.split, row.group, row.plant) == ("val", "7", "coffee")
    assert row.stated == {"severity": "3"}


def test_index_without_masks_gives_labels(tmp_path):
    make_image(tmp_path / "a.jpg")
    text(tmp_path / "index.csv", "file,disease\na.jpg,rust\n")
    manifest = read_folder(tmp_path)
    assert manifest.rows[0].disease == "rust"
    assert not manifest.codings


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("disease\nrust\n", "has the columns disease"),
        ("name,split\na,holdout\n", "has the split `holdout`"),
    ],
)
def test_index_invalid_columns_or_split_is_refused(tmp_path, table, sentence):
    make_image(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png")
    text(tmp_path / "index.csv", table)
    with pytest.raises(DataError, match=sentence):
        read_folder(tmp_path)


def test_index_with_two_rows_for_an_image_is_refused(tmp_path):
    make_image(tmp_path / "a.png")
    text(tmp_path / "index.csv", "name,split\na,train\na,train\n")
    assert read_folder(tmp_path).rows[0].split == "train"
    text(tmp_path / "index.csv", "name,split\na,train\na.png,val\n")
    with pytest.raises(DataError, match=r"two different rows for `a\.png`"):
        read_folder(tmp_path)


def test_index_not_utf8_is_refused(tmp_path):
    make_image(tmp_path / "a.jpg")
    (tmp_path / "index.csv").write_bytes("name\nä\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not text in UTF-8"):
        read_folder(tmp_path)


def test_index_unclosed_quotation_is_refused(tmp_path):
    make_image(tmp_path / "a.jpg")
    text(tmp_path / "index.csv", 'name\n"' + "a" * 200_000)
    with pytest.raises(DataError, match=r"index\.csv` is not a table: field larger than"):
        read_folder(tmp_path)


def test_masks_without_matching_names_are_a_usage_error(tmp_path):
    make_image(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "b.png")
    with pytest.raises(UsageError, match="no mask has the name of an image"):
        read_folder(tmp_path)


# PlantSeg


def plantseg(folder: Path, table: str) -> Path:
    for split, name in [("train", "a"), ("val", "b"), ("test", "c")]:
        make_image(folder / "images" / split / f"{name}.jpg")
        mask(folder / "annotations" / split / f"{name}.png", 0, "abc".index(name) + 1)
    text(folder / "Metadata.csv", table)
    return folder


TABLE = (
    "Name,Index,Plant,Disease,Resolution,Label file,Mask ratio,URL,License,Split\n"
    "a.jpg,0,Apple,apple black rot,6x4,a.png,0.5,,,training\n"
    "b.jpg,1,Apple,Rust,6x4,b.png,0.5,,,validation\n"
)


def test_plantseg_classes_are_named_by_index(tmp_path):
    manifest = read_folder(plantseg(tmp_path / "plantseg", TABLE))
    assert "PlantSeg archive" in layout_of(manifest)
    assert manifest.classes.lesions == ("apple black rot", "apple rust", "class 2")
    assert not manifest.classes.has_leaf
    rows = {row.split: row for row in manifest.rows}
    assert rows["val"].disease == "apple rust"
    assert rows["val"].plant == "apple"
    assert rows["test"].disease is None
    assert load_sample(rows["test"], manifest).lesion.max() == 3


def test_table_of_plantseg_is_used(tmp_path):
    manifest = read_folder(plantseg(tmp_path / "plantseg", TABLE))
    assert manifest.origins["plantseg"].unused == ()


def test_single_nested_folder_is_unwrapped(tmp_path):
    plantseg(tmp_path / "download" / "plantseg", TABLE)
    manifest = read_folder(tmp_path / "download")
    assert len(manifest) == 3
    assert manifest.codings.keys() == {"download"}


def test_plantseg_class_name_is_most_frequent_of_index(tmp_path):
    lines = [f"{n}.jpg,0,Apple,apple {d},,,,,," for n, d in zip("xyz", "ssb", strict=True)]
    manifest = read_folder(
        plantseg(tmp_path, TABLE.split("\n", maxsplit=1)[0] + "\n" + "\n".join(lines))
    )
    assert manifest.classes.lesions[0] == "apple s"
    assert len(manifest.origins[tmp_path.name].names_without_image) == 3


# class folders


def test_class_folders_plantvillage_gives_plant_and_disease(tmp_path):
    for kind in ("color", "grayscale"):
        base = tmp_path / "raw" / kind
        make_image(base / "Tomato___Early_blight" / "1.JPG")
        make_image(base / "Corn_(maize)___healthy" / "1.JPG")
    manifest = read_folder(tmp_path)
    assert [(r.plant, r.disease) for r in manifest.rows] == [
        ("corn (maize)", "healthy"),
        ("tomato", "early blight"),
    ]
    assert manifest.classes.diseases == ("early blight", "healthy")
    assert manifest.rows[1].split is None


def test_class_folders_inside_splits(tmp_path):
    for split in ("train", "valid"):
        for name in ("Leaf rust", "Phoma"):
            make_image(tmp_path / split / name / "1.jpg")
    rows = read_folder(tmp_path).rows
    assert Counter((r.split, r.disease) for r in rows) == {
        (split, name): 1 for split in ("train", "val") for name in ("leaf rust", "phoma")
    }


@pytest.mark.parametrize("names", [("2024-05-01", "2024-06-01"), ("DCIM", "photos")])
def test_class_folders_exclude_dates_and_cameras(tmp_path, names):
    for name in names:
        make_image(tmp_path / name / "1.jpg")
    manifest = read_folder(tmp_path)
    assert layout_of(manifest) == "images only"
    assert {row.split for row in manifest.rows} == {"unlabeled"}


# anything else


def test_find_images_skips_hidden_files_and_link_loops(tmp_path):
    make_image(tmp_path / "deep" / "a.jpg")
    make_image(tmp_path / "a.png")
    make_image(tmp_path / ".hidden" / "b.jpg")
    text(tmp_path / "._a.jpg", "resource fork")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [row.key for row in read_folder(tmp_path).rows] == ["a", "deep/a"]


def test_keys_with_equal_stems_keep_endings(tmp_path):
    make_image(tmp_path / "a.jpg")
    make_image(tmp_path / "a.png")
    assert [row.key for row in read_folder(tmp_path).rows] == ["a.jpg", "a.png"]


def test_read_folder_single_image_gives_one_row(tmp_path):
    manifest = read_folder(make_image(tmp_path / "my leaf.JPG"))
    assert [row.key for row in manifest.rows] == ["my leaf"]


def test_read_folder_reads_written_manifest(tmp_path):
    make_image(tmp_path / "leaves" / "a.jpg")
    manifest = read_folder(tmp_path.resolve() / "leaves")
    manifest.write(tmp_path / "manifest.json")
    assert read_folder(tmp_path) == manifest
    assert read_folder(tmp_path / "manifest.json") == manifest


def test_read_folder_wrong_paths_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_folder(tmp_path / "gone")
    with pytest.raises(UsageError, match="holds no images, no files"):
        read_folder(tmp_path)
    note = text(tmp_path / "note.txt", "hello")
    with pytest.raises(UsageError, match=r"only files ending in \.txt"):
        read_folder(tmp_path)
    with pytest.raises(UsageError, match="is a file, but not an image"):
        read_folder(note)
    make_image(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=r"classes\.yaml` does not exist"):
        read_folder(tmp_path, classes=tmp_path / "classes.yaml")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared collections are absent")
@pytest.mark.parametrize(
    ("name", "images", "has_leaf", "layout"),
    [
        ("wild", 54, False, "images and masks of equal names"),
        ("coffee", 416, True, "images and masks of equal names"),
        ("cardamom", 80, False, "class folders"),
        ("timeseries", 31, False, "images only"),
    ],
)
def test_real_collections_are_recognized(name, images, has_leaf, layout):
    manifest = read_folder(SHARED / name)
    assert len(manifest) == images
    assert manifest.classes.has_leaf == has_leaf
    assert layout_of(manifest).startswith(layout)
