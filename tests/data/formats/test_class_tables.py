"""Tables that tools export beside masks decide what the values mean."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest
from plantseg_next.errors import DataError
from plantseg_next.structures import IGNORE

VALUES = np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8)


def draw(root: Path, image: str, mask: str, values: np.ndarray = VALUES) -> None:
    for path in (root / image, root / mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (*values.shape[:2], 3), np.uint8)
    Image.fromarray(noise).save(root / image)
    Image.fromarray(values).save(root / mask)


def read(root: Path) -> tuple[Manifest, np.ndarray, np.ndarray]:
    """Return the manifest, the lesion names of the first image, and its leaf."""
    manifest = read_folder(root)
    sample = load_sample(manifest.rows[0], manifest)
    names = {0: "", IGNORE: "ignore"} | dict(enumerate(manifest.classes.lesions, 1))
    return manifest, np.vectorize(names.get)(sample.lesion), sample.leaf


def origin(manifest: Manifest) -> str:
    return next(iter(manifest.codings.values())).origin


def test_roboflow_classes_of_every_split_decide(tmp_path):
    """After roboflow/notebooks#23: the export of semantic masks."""
    table = '"Pixel Value", "Class"\n0, unlabelled\n1, "Leaf"\n2, rust\n3, Early_Blight\n'
    for split in ("train", "valid"):
        draw(tmp_path, f"{split}/a.rf.1.jpg", f"{split}/a.rf.1_mask.png")
        (tmp_path / split / "_classes.csv").write_text(table)
    manifest, names, leaf = read(tmp_path)
    assert names[::2, 0].tolist() == ["", "", "rust", "early blight"]
    assert leaf[::2, 0].tolist() == [0, 1, 1, 1]
    assert {row.split for row in manifest.rows} == {"train", "val"}
    assert origin(manifest) == "stated in train/_classes.csv"
    assert not manifest.origins[tmp_path.name].unused


def test_tables_that_disagree_are_refused(tmp_path):
    for split, name in (("train", "rust"), ("valid", "blight")):
        draw(tmp_path, f"{split}/a.jpg", f"{split}/a_mask.png")
        (tmp_path / split / "_classes.csv").write_text(f"Pixel Value,Class\n1,{name}\n")
    with pytest.raises(DataError, match="disagree: the value 1 is `rust` in the first"):
        read_folder(tmp_path)


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationClassPNG"])
@pytest.mark.parametrize("first", ["_background_\n", "__ignore__\n_background_\n"])
def test_labelme_class_names_of_both_ages_decide(tmp_path, folder, first):
    """After wkentaro/labelme#178 (arrays in SegmentationClass, and -1 saved as 255)."""
    values = VALUES.copy()
    values[7, 7] = 255
    draw(tmp_path, "JPEGImages/a.jpg", f"{folder}/a.png", values)
    arrays = (
        "SegmentationClassNpy" if folder == "SegmentationClass" else "SegmentationClass"
    )
    (tmp_path / arrays).mkdir()
    np.save(tmp_path / arrays / "a.npy", values.astype(np.int32))
    (tmp_path / "class_names.txt").write_text(first + "leaf\nrust\nblight")
    manifest, names, leaf = read(tmp_path)
    assert names[::2, 0].tolist() == ["", "", "rust", "blight"]
    assert leaf[::2, 0].tolist() == [0, 1, 1, 1]
    assert names[7, 7] == "ignore"
    assert origin(manifest) == "stated in class_names.txt"
    (unused,) = manifest.origins[tmp_path.name].unused
    assert unused.files == (str(tmp_path / arrays / "a.npy"),)


def test_label_names_of_labelme_folders_must_agree(tmp_path):
    for n, names in enumerate(("_background_\nleaf\nrust\nblight", "_background_\nrust")):
        draw(tmp_path, f"{n}_json/img.png", f"{n}_json/label.png")
        draw(tmp_path, f"{n}_json/img.png", f"{n}_json/label_viz.png")
        (tmp_path / f"{n}_json/label_names.txt").write_text(names)
    with pytest.raises(DataError, match="disagree: the value 1 is `leaf`"):
        read_folder(tmp_path)
    (tmp_path / "1_json/label_names.txt").write_text("_background_\nleaf\nrust\nblight")
    manifest, names, _ = read(tmp_path)
    assert names[::2, 0].tolist() == ["", "", "rust", "blight"]
    assert len(manifest) == 2


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "leaf": 1, "rust": 2, "ignore": 3},
        {"0": "background", "1": "leaf", "2": "rust", "3": "ignore"},
        {"leaf": "1", "rust": "2", "ignore": "3", "background": "0"},
    ],
)
def test_nnunet_labels_of_both_versions_decide(tmp_path, labels):
    """After MIC-DKFZ/nnUNet#2567 (ignore) and MIC-DKFZ/nnUNet#2674 (values first)."""
    for n in range(2):
        draw(tmp_path, f"imagesTr/leaf{n}_0000.png", f"labelsTr/leaf{n}.png")
    tree = {"channel_names": {"0": "R"}, "labels": labels, "numTraining": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(tree))
    manifest, names, leaf = read(tmp_path)
    assert names[::2, 0].tolist() == ["", "", "rust", "ignore"]
    assert leaf[::2, 0].tolist() == [0, 1, 1, IGNORE]
    assert [row.key for row in manifest.rows] == ["leaf0_0000", "leaf1_0000"]
    assert not manifest.origins[tmp_path.name].unused


def test_nnunet_regions_and_channels_are_refused(tmp_path):
    """After MIC-DKFZ/nnUNet#1481: labels of regions, which overlap."""
    draw(tmp_path, "imagesTr/leaf_0000.png", "labelsTr/leaf.png")
    tree = {"channel_names": {"0": "R"}, "labels": {"background": 0, "plant": [1, 2]}}
    (tmp_path / "dataset.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="`plant` is a region of 2 values"):
        read_folder(tmp_path)
    draw(tmp_path, "imagesTr/leaf_0001.png", "labelsTr/leaf.png")
    with pytest.raises(Exception, match=r"leaf_0001\.png` of .* is a channel of its image"):
        read_folder(tmp_path)


@pytest.mark.parametrize("value", [-1, 1.5, None, True, "9" * 5000, 65536, {}])
def test_nnunet_labels_of_no_value_are_refused(tmp_path, value):
    draw(tmp_path, "imagesTr/leaf_0000.png", "labelsTr/leaf.png")
    tree = {"channel_names": {"0": "R"}, "labels": {"background": 0, "rust": value}}
    (tmp_path / "dataset.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"dataset\.json`: "):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["class_dict.csv", "colors.csv"])
def test_table_of_colors_decides(tmp_path, name):
    """After ooooverflow/BiSeNet#26: class_dict.csv, here with its further column."""
    colors = np.array([[0, 0, 0], [0, 128, 0], [128, 0, 0], [64, 64, 64]], np.uint8)
    draw(tmp_path, "train/a.png", "train_labels/a_L.png", colors[VALUES])
    rows = "Void,64,64,64,0\nunlabeled,0,0,0,0\nleaf,0,128,0,1\nrust,128,0,0,1\n"
    (tmp_path / name).write_text(f"name,r,g,b,class_11\n{rows}")
    manifest, names, leaf = read(tmp_path)
    assert names[::2, 0].tolist() == ["", "", "rust", "ignore"]
    assert leaf[::2, 0].tolist() == [0, 1, 1, IGNORE]
    assert origin(manifest) == f"stated in {name}"


@pytest.mark.parametrize(
    "lines",
    [
        "background\nleaf\nrust\nblight",
        "\ufeff__ignore__\r\n_background_\r\nleaf\r\nrust\r\nblight\r\n",
        "leaf\nrust\nblight",
        "0 background\n1 leaf\n2 rust\n3 blight",
        "3: blight\n1: leaf\n2: rust\n0: background",
    ],
)
def test_list_of_names_that_fits_the_values_decides(tmp_path, lines):
    draw(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "classes.txt").write_text(lines)
    manifest, names, leaf = read(tmp_path)
    assert names[::2, 0].tolist() == ["", "", "rust", "blight"]
    assert leaf[::2, 0].tolist() == [0, 1, 1, 1]
    assert origin(manifest) == "stated in classes.txt"


def test_list_of_names_that_does_not_fit_is_doubted(tmp_path):
    draw(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "labels.txt").write_text("leaf\nrust\nblight\nmildew\n")
    manifest, _, _ = read(tmp_path)
    assert manifest.classes.lesions == ("class 1", "class 2", "class 3")
    (doubt,) = manifest.origins[tmp_path.name].doubts
    assert doubt.startswith("`labels.txt` names 4 classes (leaf, rust, blight, mildew)")
    assert "the values 0, 1, 2, 3: which value is which class is not clear" in doubt


def test_label_map_in_a_folder_below_decides(tmp_path):
    colors = np.array([[0, 0, 0], [0, 128, 0], [128, 0, 0], [128, 0, 0]], np.uint8)
    for task in ("task_1", "task_2"):
        draw(tmp_path, f"{task}/JPEGImages/a.jpg", f"{task}/SegmentationClass/a.png",
             colors[VALUES])  # fmt: skip
        (tmp_path / task / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\r\nbackground:0,0,0::\r\n"
            "leaf:0,128,0::\r\nrust:128,0,0::\r\n"
        )
    manifest, names, _ = read(tmp_path)
    assert names[::2, 0].tolist() == ["", "", "rust", "rust"]
    assert len(manifest.labeled) == 2


def test_class_file_of_the_user_takes_precedence(tmp_path):
    draw(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "class_names.txt").write_text("_background_\na\nb\nc")
    (tmp_path / "classes.yaml").write_text("0: background\n1: leaf\n2: mildew\n3: ignore\n")
    manifest, names, _ = read(tmp_path)
    assert names[::2, 0].tolist() == ["", "", "mildew", "ignore"]
    assert origin(manifest) == "stated in classes.yaml"


def test_table_without_a_class_or_with_one_value_twice_is_refused(tmp_path):
    draw(tmp_path, "images/a.jpg", "masks/a.png")
    table = tmp_path / "_classes.csv"
    table.write_text("Pixel Value,Class\n0,background\n")
    with pytest.raises(DataError, match="it names 0 lesion classes"):
        read_folder(tmp_path)
    table.write_text("Pixel Value,Class\n1,rust\n1,blight\n")
    with pytest.raises(DataError, match="the value 1 is both `rust` and `blight`"):
        read_folder(tmp_path)
    table.write_text("Pixel Value,Class\none,rust\n")
    with pytest.raises(DataError, match=r"_classes\.csv`: invalid literal"):
        read_folder(tmp_path)


def test_value_that_the_table_lacks_is_an_error_of_its_mask(tmp_path):
    draw(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "_classes.csv").write_text("Pixel Value,Class\n0,background\n1,rust\n")
    manifest = read_folder(tmp_path)
    with pytest.raises(DataError, match="its meaning is unknown"):
        load_sample(manifest.rows[0], manifest)
