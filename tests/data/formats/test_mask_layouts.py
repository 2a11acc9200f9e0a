"""Folders of images and masks as people have them: which mask is whose, to the pixel."""

import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.data.formats.folders import scan
from plantseg_next.data.formats.mask_folders import find_roles
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest, Origin
from plantseg_next.errors import DataError, UsageError

SIDE = 32


def photo(path: Path, seed: int = 0) -> Path:
    """Draw a photograph: blotches of many colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(20, 200, (8, 8, 3), np.uint8)
    Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return path


def square(seed: int, side: int = 6) -> np.ndarray:
    """Return a square at a place of its own."""
    area = np.zeros((SIDE, SIDE), np.uint8)
    left, top = np.random.default_rng(seed + 100).integers(0, SIDE - side, 2)
    area[top : top + side, left : left + side] = 1
    return area


def save(path: Path, values: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)
    return values


def pairs(root: Path, names: Iterable[tuple[str, str]], value: int = 255) -> dict:
    """Draw images and masks; return the lesion of each image by its path."""
    truth = {}
    for seed, (image, mask) in enumerate(names):
        photo(root / image, seed)
        save(root / mask, square(seed) * value)
        truth[image] = square(seed)
    return truth


def read_lesions(root: Path, manifest: Manifest | None = None) -> dict[str, np.ndarray]:
    """Return the lesion ids of every image with a mask, by its path."""
    manifest = manifest or read_folder(root)
    return {
        row.image.relative_to(root).as_posix(): load_sample(row, manifest).lesion
        for row in manifest.rows
        if row.mask is not None
    }


def assert_lesions(root: Path, truth: dict[str, np.ndarray]) -> Manifest:
    manifest = read_folder(root)
    read = read_lesions(root, manifest)
    assert read.keys() == truth.keys()
    for name, lesion in truth.items():
        assert (read[name] == lesion).all(), name
    return manifest


def origin_of(manifest: Manifest) -> Origin:
    return next(iter(manifest.origins.values()))


def numbered(image: str, mask: str, count: int = 4) -> list[tuple[str, str]]:
    return [(image.format(n), mask.format(n)) for n in range(count)]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("Original_image/{}.png", "Mask/{}.png"),
        ("train/a{}.jpg", "train_masks/a{}_mask.png"),
        ("train_images/a{}.jpg", "train_masks/a{}.png"),
        ("trainx/X_img_{}.bmp", "trainy/Y_img_{}.bmp"),
        ("X/{}.png", "y/{}.png"),
        ("x_train/{}.png", "y_train/{}.png"),
        ("input/{}.png", "output/{}.png"),
        ("inputs/{}.png", "targets/{}.png"),
        ("img/{}.jpg", "gt/{}.png"),
        ("train/image/{}.png", "train/label/{}.png"),
        ("img_dir/train/{}.jpg", "ann_dir/train/{}.png"),
        ("images/training/{}.jpg", "annotations/training/{}.png"),
        ("images/IMG_{}.JPG", "masks/img_{}.PNG"),
        ("images/image_{}.jpg", "labels/label_{}.png"),
        ("image/Image{}.jpg", "mask/Mask{}.png"),
        ("images/IMG.{}.jpg", "masks/IMG.{}.png"),
        ("images/{}_seg.jpg", "masks/{}.png"),
        ("images/1.{}.2.jpg", "masks/1.{}.2_mask.gif"),
        ("images/{}.jpg", "masks/{}.jpg.mask.png"),
        ("Bilder/Blatt {}.jpg", "Masken/Blatt {}.png"),
        ("fotos/{}.jpg", "máscaras/{}.png"),
        ("photos/plot 1/{}.jpg", "Ground Truth/plot 1/{}.png"),
        (
            "ISIC_Training_Data/I_{}.jpg",
            "ISIC_Training_Part1_GroundTruth/I_{}_segmentation.png",
        ),
        ("leaf_segmentation/{}.jpg", "leaf_segmentation/{}_mask.png"),
        ("{}.jpg", "{}.png"),
        ("plot/{}.jpg", "plot/{}.tif"),
        ("img_{}.jpg", "mask_{}.png"),
        ("{}_img.jpg", "{}_gt.png"),
        ("{}_json/img.png", "{}_json/label.png"),
        ("set{}/images/x.jpg", "set{}/masks/x.png"),
        ("imgs/DSC_{}.jpg", "msks/DSC_{}_GT.png"),
        ("images/image ({}).jpg", "binary_masks/mask ({}).png"),
        ("images/{}.jpg", "masks/default/{}.png"),
        ("leaf/{}.jpg", "lesion/{}.png"),
        ("CamVid/train/a_{}.png", "CamVid/train_labels/a_{}_L.png"),
    ],
)
def test_masks_of_common_folders_are_read_exactly(tmp_path, image, mask):
    """Also after divamgupta/image-segmentation-keras#204, milesial/Pytorch-UNet#115
    (dots in names), and advaitsave/Multiclass-Semantic-Segmentation-CamVid#3 (``_L``)."""
    manifest = assert_lesions(tmp_path, pairs(tmp_path, numbered(image, mask)))
    assert len(manifest) == 4
    assert len({row.key for row in manifest.rows}) == 4
    assert not origin_of(manifest).masks_without_image


def test_masks_whose_names_begin_alike_are_not_mixed_up(tmp_path):
    """After milesial/Pytorch-UNet#122: the mask of 1 was also looked for in 11 and 12."""
    names = [(f"imgs/{n}.jpg", f"masks/{n}_mask.png") for n in (1, 11, 12, 111)]
    assert_lesions(tmp_path, pairs(tmp_path, names))


def test_nested_sets_keep_all_images_and_distinct_keys(tmp_path):
    names = numbered("data/data/images/{}.jpg", "data/data/masks/{}.png")
    names += numbered("aug_data/aug_data/images/{}.jpg", "aug_data/aug_data/masks/{}.png")
    manifest = assert_lesions(tmp_path, pairs(tmp_path, names))
    assert len({row.key for row in manifest.rows}) == 8


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}/{}.jpg", "masks/{}/{}.png"),
        ("{}/images/{}.jpg", "{}/masks/{}.png"),
        ("img_dir/{}/{}.jpg", "ann_dir/{}/{}.png"),
        ("{}/{}.jpg", "{}_masks/{}.png"),
        ("{}x/{}.jpg", "{}y/{}.png"),
        ("{}_images/{}.jpg", "{}_labels/{}.png"),
    ],
)
def test_masks_of_equal_names_in_splits_stay_in_their_split(tmp_path, image, mask):
    names = [
        (image.format(split, n), mask.format(split, n))
        for split in ("train", "val")
        for n in range(3)
    ]
    manifest = assert_lesions(tmp_path, pairs(tmp_path, names))
    assert [row.split for row in manifest.rows] == ["train"] * 3 + ["val"] * 3


def test_mask_of_another_split_is_not_used(tmp_path):
    pairs(tmp_path, numbered("train/images/{}.jpg", "train/masks/{}.png"))
    photo(tmp_path / "train/images/9.jpg")
    save(tmp_path / "val/masks/9.png", square(9))
    photo(tmp_path / "val/images/8.jpg")
    manifest = read_folder(tmp_path)
    assert "train/images/9.jpg" not in read_lesions(tmp_path, manifest)
    assert origin_of(manifest).masks_without_image == (str(tmp_path / "val/masks/9.png"),)


def test_folders_with_accents_in_both_forms_are_one_place(tmp_path):
    nfd, nfc = (unicodedata.normalize(form, "Blätter") for form in ("NFD", "NFC"))
    names = [(f"images/{nfd}/{n}.jpg", f"masks/{nfc}/{n}.png") for n in range(2)]
    names += [(f"images/x/{n}.jpg", f"masks/x/{n}.png") for n in range(2)]
    assert_lesions(tmp_path, pairs(tmp_path, names))


def test_two_images_of_one_mask_are_refused(tmp_path):
    for name in ("images/a.jpg", "images/a.png", "images/b.jpg"):
        photo(tmp_path / name)
    save(tmp_path / "masks/a.png", square(0))
    save(tmp_path / "masks/b.png", square(1))
    with pytest.raises(UsageError) as caught:
        read_folder(tmp_path)
    assert "`masks/a.png` would be the mask of 2 images" in caught.value.came
    assert "images/a.jpg, images/a.png" in caught.value.came
    assert "as in `a.jpg.png`" in caught.value.fix


def test_whole_names_tell_two_images_of_one_stem_apart(tmp_path):
    truth = pairs(
        tmp_path,
        [("images/a.jpg", "masks/a.jpg.png"), ("images/a.png", "masks/a.png.png")],
    )
    assert_lesions(tmp_path, truth)


def test_two_masks_of_one_image_are_refused(tmp_path):
    pairs(tmp_path, numbered("images/{}.jpg", "masks/{}.png"))
    save(tmp_path / "labels/0.png", square(5))
    with pytest.raises(
        UsageError, match=r"image `images/0\.jpg` of .* has 2 masks"
    ) as caught:
        read_folder(tmp_path)
    assert "masks/rust and masks/leaf" in caught.value.fix


def test_images_with_a_suffix_keep_their_own_masks(tmp_path):
    names = [(f"images/leaf{n}{s}.jpg", f"masks/leaf{n}{s}.png") for n in range(2)
             for s in ("", "_seg")]  # fmt: skip
    assert_lesions(tmp_path, pairs(tmp_path, names))


@pytest.mark.parametrize(
    "names", [("front_label", "front"), ("gt", "leaf"), ("a_seg", "a")]
)
def test_photographs_with_a_word_for_masks_are_images(tmp_path, names):
    for n in range(3):
        for name in names:
            photo(tmp_path / f"{name}{n}.jpg", n)
            photo(tmp_path / "label" / f"{name}{n}.jpg", n)
    manifest = read_folder(tmp_path)
    assert len(manifest) == 12
    assert not manifest.codings


def test_copies_of_photographs_in_another_format_are_images(tmp_path):
    for n in range(3):
        photo(tmp_path / f"{n}.jpg", n)
        photo(tmp_path / f"{n}.png", n)
    assert len(read_folder(tmp_path)) == 6


def test_masks_beside_images_in_class_folders_keep_the_label(tmp_path):
    names = [(f"{d}/a{n}.jpg", f"{d}/a{n}.png") for d in ("blight", "rust") for n in (1, 2)]
    manifest = assert_lesions(tmp_path, pairs(tmp_path, names))
    assert [row.disease for row in manifest.rows] == ["blight"] * 2 + ["rust"] * 2


def test_images_that_show_masks_are_named_and_not_read(tmp_path):
    """After bodokaiser/piwise#22 (which of two folders holds the classes)."""
    truth = pairs(tmp_path, numbered("JPEGImages/{}.jpg", "SegmentationClass/{}.png"))
    shown = [
        "SegmentationObject/{}.png",
        "SegmentationClassVisualization/{}.jpg",
        "vis/{}.jpg",
    ]
    for n in range(4):
        for name in shown:
            photo(tmp_path / name.format(n), n)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/0.xml").write_text("<annotation/>")
    manifest = assert_lesions(tmp_path, truth)
    unused = {name for entry in origin_of(manifest).unused for name in entry.files}
    assert len(unused) == 13
    assert str(tmp_path / "SegmentationObject/0.png") in unused


def test_images_of_annotations_in_a_set_without_masks_are_named(tmp_path):
    for n in range(3):
        photo(tmp_path / f"{n}.jpg", n)
        save(tmp_path / f"{n}.jpg___fuse.png", square(n) * 255)
    manifest = read_folder(tmp_path)
    assert len(manifest) == 3
    (unused,) = origin_of(manifest).unused
    assert len(unused.files) == 3


def test_other_images_beside_the_folders_are_named(tmp_path):
    truth = pairs(tmp_path, numbered("images/{}.jpg", "masks/{}.png"))
    photo(tmp_path / "figures/0.png")
    photo(tmp_path / "test/7.jpg")
    manifest = read_folder(tmp_path)
    assert read_lesions(tmp_path, manifest).keys() == truth.keys()
    assert {row.image.name: row.split for row in manifest.rows}["7.jpg"] == "test"
    (unused,) = origin_of(manifest).unused
    assert unused.files == (str(tmp_path / "figures/0.png"),)


def test_masks_alone_are_read_as_images(tmp_path):
    for n in range(3):
        photo(tmp_path / f"leaf segmentation/{n}.jpg", n)
    assert len(read_folder(tmp_path)) == 3


def test_missing_images_and_masks_are_counted(tmp_path):
    """After bdd100k/bdd100k#103: some images lack a mask, some masks an image."""
    truth = pairs(tmp_path, numbered("images/train/{}.jpg", "labels/train/{}.png"))
    photo(tmp_path / "images/train/8.jpg")
    save(tmp_path / "labels/train/9.png", square(9))
    manifest = read_folder(tmp_path)
    assert len(manifest) == 5
    assert read_lesions(tmp_path, manifest).keys() == truth.keys()
    assert origin_of(manifest).masks_without_image == (
        str(tmp_path / "labels/train/9.png"),
    )


def test_png_called_jpeg_is_read(tmp_path):
    truth = pairs(tmp_path, numbered("images/{}.jpg", "masks/{}.png"))
    Image.open(tmp_path / "images/0.jpg").save(tmp_path / "images/0.jpg", format="PNG")
    assert_lesions(tmp_path, truth)


def test_names_with_special_letters_are_read_exactly(tmp_path):
    """After the names that a file system allows: quotes, a line feed, a leading dash."""
    stems = ["leaf 1", "leaf,2", "leaf#3", "100%", "it's", 'say "hi"', "two\nlines", "-rf"]
    truth = pairs(tmp_path, [(f"images/{s}.jpg", f"masks/{s}.png") for s in stems])
    assert_lesions(tmp_path, truth)


# several masks of one image


def class_pairs(root: Path, names: Iterable[tuple[str, dict[str, str]]]) -> dict:
    """Draw masks of a leaf and of rust on it; return what is right, by image."""
    truth = {}
    for seed, (image, masks) in enumerate(names):
        photo(root / image, seed)
        areas = {"rust": square(seed), "leaf": np.zeros((SIDE, SIDE), np.uint8)}
        areas["leaf"][:28, 1:] = 1
        for name, mask in masks.items():
            save(root / mask, areas[name] * 255)
        truth[image] = (areas["rust"] if "rust" in masks else 0 * square(0), areas["leaf"])
    return truth


CLASSES = [
    ("images/{}.jpg", "masks/{c}/{}.png"),
    ("images/{}.jpg", "masks/{c}/{}_mask.png"),
    ("images/{}.jpg", "masks_{c}/{}.png"),
    ("images/{}.jpg", "{c}_mask/{}.png"),
    ("images/{}.jpg", "masks/{}-{c}-0.png"),
    ("images/{}.jpg", "masks/{}_class_{c}.png"),
    ("images/{}.jpg", "masks/{}_{c}.png"),
    ("images/{}.jpg", "masks/{c}_{}.png"),
    ("train/images/{}.jpg", "train/masks/{c}/{}.png"),
    ("images/train/{}.jpg", "masks/{c}/train/{}.png"),
    ("images/train/{}.jpg", "masks/{}_{c}.png"),
    ("images/{}.jpg", "{c}/{}.png"),
    ("p{}.jpg", "p{}_{c}_mask.png"),
    ("p{}.jpg", "p{}-{c}.png"),
]


@pytest.mark.parametrize(("image", "mask"), CLASSES)
def test_masks_of_classes_become_one_mask(tmp_path, image, mask):
    """After qubvel/segmentation_models#492 and microsoft/BiomedParse#87 (a file a class),
    HumanSignal/label-studio-sdk#254 (image-class-number), ryouchinsa/Rectlabel-support#268
    (image_class_name)."""
    truth = class_pairs(
        tmp_path,
        (
            (image.format(n), {c: mask.format(n, c=c) for c in ("rust", "leaf")})
            for n in range(3)
        ),
    )
    manifest = read_folder(tmp_path)
    assert manifest.classes.lesions == ("rust",)
    assert manifest.classes.has_leaf
    assert len(manifest.labeled) == len(manifest) == 3
    for row in manifest.rows:
        lesion, leaf = truth[row.image.relative_to(tmp_path).as_posix()]
        sample = load_sample(row, manifest)
        assert (sample.lesion == lesion).all()
        assert (sample.leaf == (leaf | lesion)).all()
    (coding,) = manifest.codings.values()
    assert coding.origin.startswith("by the names of the files or folders of the masks")
    assert not origin_of(manifest).doubts
    assert not origin_of(manifest).unused


def test_empty_mask_of_a_class_is_no_lesion_and_a_missing_one_is_counted(tmp_path):
    names = [(f"images/{n}.jpg", {c: f"masks/{c}/{n}.png" for c in ("rust", "leaf")})
             for n in range(3)]  # fmt: skip
    class_pairs(tmp_path, names)
    save(tmp_path / "masks/rust/0.png", 0 * square(0))
    (tmp_path / "masks/rust/1.png").unlink()
    manifest = read_folder(tmp_path)
    lesions = read_lesions(tmp_path, manifest)
    assert lesions["images/0.jpg"].max() == lesions["images/1.jpg"].max() == 0
    assert lesions["images/2.jpg"].max() == 1
    assert "without one of `rust`, read as without it: 1" in origin_of(manifest).doubts[-1]


def test_image_without_any_mask_of_a_class_is_unlabeled(tmp_path):
    names = [(f"images/{n}.jpg", {c: f"masks/{c}/{n}.png" for c in ("rust", "leaf")})
             for n in range(2)]  # fmt: skip
    class_pairs(tmp_path, names)
    photo(tmp_path / "images/9.jpg")
    assert [row.mask is None for row in read_folder(tmp_path).rows] == [False, False, True]


def test_masks_of_the_leaf_alone_are_no_lesions(tmp_path):
    for mask in ("masks/leaf/{}.png", "masks/{}_leaf.png"):
        root = tmp_path / mask[6:8].strip("{}")
        names = [(f"images/{n}.jpg", {"leaf": mask.format(n)}) for n in range(3)]
        class_pairs(root, names)
        manifest = read_folder(root)
        assert manifest.classes.lesions == ()
        assert manifest.classes.has_leaf


def test_folder_with_a_number_alone_is_one_mask(tmp_path):
    manifest = assert_lesions(
        tmp_path, pairs(tmp_path, numbered("images/{}.jpg", "masks/0/{}.png"))
    )
    assert manifest.classes.lesions == ("lesion",)


def test_classes_in_folders_of_one_mask_an_image_are_named(tmp_path):
    names = [(f"images/{n}.jpg", f"masks/{('rust', 'blight')[n % 2]}/{n}.png")
             for n in range(4)]  # fmt: skip
    pairs(tmp_path, names)
    manifest = read_folder(tmp_path)
    assert set(manifest.classes.lesions) == {"rust", "blight"}


def test_folders_of_class_ids_are_not_classes(tmp_path):
    for n in range(4):
        photo(tmp_path / f"images/{n}.jpg", n)
        save(
            tmp_path / f"masks/{('north', 'south')[n % 2]}/{n}.png",
            square(n) + 2 * square(n + 9),
        )
    classes = "0: background\n1: rust\n2: blight\n3: rot\n"
    (tmp_path / "classes.yaml").write_text(classes)
    manifest = read_folder(tmp_path)
    assert "north" not in manifest.classes.lesions
    assert len(manifest.labeled) == 4


def test_numbers_of_masks_are_instances_and_said(tmp_path):
    """After HumanSignal/label-studio#3892: one label came as several files."""
    truth = {}
    for n in range(3):
        photo(tmp_path / f"images/{n}.jpg", n)
        parts = [
            save(tmp_path / f"masks/{n}_mask_{i}.png", square(10 * n + i)) for i in (0, 1)
        ]
        truth[f"images/{n}.jpg"] = parts[0] | parts[1]
    manifest = assert_lesions(tmp_path, truth)
    assert manifest.classes.lesions == ("lesion",)
    assert "read as the lesions of one class" in origin_of(manifest).doubts[0]


def nested(root: Path, mask: str) -> None:
    for n in range(4):
        photo(root / f"images/{n}.jpg", n)
        leaf = np.ones((SIDE, SIDE), np.uint8)
        leaf[:2] = 0
        inner = np.zeros((SIDE, SIDE), np.uint8)
        inner[10 : 14 + n, 10:15] = 1
        save(root / mask.format(n, i=0), inner * 255)
        save(root / mask.format(n, i=1), leaf * 255)


@pytest.mark.parametrize("mask", ["masks/{}_mask_{i}.png", "masks/{i}/{}.png"])
def test_number_that_seems_to_be_the_leaf_is_asked_for(tmp_path, mask):
    nested(tmp_path, mask)
    with pytest.raises(
        UsageError, match="mask 1 of most images contains their other masks"
    ):
        read_folder(tmp_path)
    (tmp_path / "classes.yaml").write_text("0: rust\n1: leaf\n")
    manifest = read_folder(tmp_path)
    assert manifest.classes.lesions == ("rust",)
    assert manifest.classes.has_leaf
    assert read_lesions(tmp_path, manifest)["images/2.jpg"].sum() == 30


def test_numbered_folders_are_doubted_classes(tmp_path):
    for n in range(3):
        photo(tmp_path / f"images/{n}.jpg", n)
        for i in (0, 1):
            save(tmp_path / f"masks/{i}/{n}.png", square(10 * n + i) * 255)
    manifest = read_folder(tmp_path)
    assert manifest.classes.lesions == ("class 0", "class 1")
    assert "if one is the leaf, name the folders" in origin_of(manifest).doubts[0]


def test_masks_of_one_image_of_two_sizes_are_refused(tmp_path):
    names = [("images/0.jpg", {c: f"masks/{c}/0.png" for c in ("rust", "leaf")})]
    class_pairs(tmp_path, names)
    save(tmp_path / "masks/rust/0.png", square(0)[:20])
    with pytest.raises(DataError, match=r"`0\.jpg`|differ in size") as caught:
        read_folder(tmp_path)
    assert "32 x 20" in caught.value.came


def test_mask_of_class_ids_among_masks_of_classes_is_refused(tmp_path):
    names = [("images/0.jpg", {c: f"masks/{c}/0.png" for c in ("rust", "leaf")})]
    class_pairs(tmp_path, names)
    save(tmp_path / "masks/rust/0.png", square(0) + 2 * square(1) + 4 * square(2))
    with pytest.raises(
        UsageError, match=r"masks/rust/0\.png` of .* is one of several masks"
    ):
        read_folder(tmp_path)


def test_masks_of_two_people_are_refused(tmp_path):
    for n in range(2):
        photo(tmp_path / f"images/{n}.jpg", n)
        for who in ("annotator1", "annotator2"):
            save(tmp_path / f"masks/{who}/{n}.png", square(n))
    with pytest.raises(UsageError, match="seem to be of several people"):
        read_folder(tmp_path)


def test_unreadable_mask_of_a_class_leaves_its_image_unlabeled(tmp_path):
    names = [(f"images/{n}.jpg", {c: f"masks/{c}/{n}.png" for c in ("rust", "leaf")})
             for n in range(2)]  # fmt: skip
    class_pairs(tmp_path, names)
    (tmp_path / "masks/rust/1.png").write_bytes(b"\x89PNG")
    manifest = read_folder(tmp_path)
    assert [row.mask is None for row in manifest.rows] == [False, True]
    assert any("images/1.jpg" in doubt for doubt in origin_of(manifest).doubts)


def test_folder_of_each_image_with_masks_of_any_name(tmp_path):
    """After the layout of the Data Science Bowl: images/ and masks/ in each folder."""
    truth = {}
    for n in range(3):
        photo(tmp_path / f"id{n}/images/id{n}.png", n)
        parts = [
            save(tmp_path / f"id{n}/masks/{n}f{i}e.png", square(7 * n + i)) for i in (0, 1)
        ]
        truth[f"id{n}/images/id{n}.png"] = parts[0] | parts[1]
    manifest = assert_lesions(tmp_path, truth)
    assert "read as the lesions of one class" in origin_of(manifest).doubts[0]


@pytest.mark.parametrize("mask", ["masks/class_{i}/{}.png", "masks/{}_class{i}.png"])
def test_numbers_of_classes_are_not_instances(tmp_path, mask):
    for n in range(3):
        photo(tmp_path / f"images/{n}.jpg", n)
        for i in (0, 1):
            save(tmp_path / mask.format(n, i=i), square(10 * n + i) * 255)
    assert read_folder(tmp_path).classes.lesions == ("class 0", "class 1")


def test_masks_in_old_and_new_folders_are_refused(tmp_path):
    for n in range(3):
        photo(tmp_path / f"images/{n}.jpg", n)
        for age in ("old", "new"):
            save(tmp_path / f"masks/{age}/{n}.png", square(n) * 255)
    with pytest.raises(UsageError, match="has 2 masks that do not say a class"):
        read_folder(tmp_path)


# Label Studio


def brush(root: Path, name: str = "task-{}-annotation-{}-by-1-tag-{}-{}.png") -> dict:
    tasks, truth = [], {}
    for n in range(1, 4):
        image = f"images/0000000{n}-leaf_{n}.jpg"
        photo(root / image, n)
        rust = save(
            root / "masks" / name.format(n, n + 20, "leaf-spot", 0), square(n) * 255
        )
        save(root / "masks" / name.format(n, n + 20, "leaf", 1), 0 * rust + 255)
        results = [
            {"from_name": "tag", "value": {"brushlabels": [label]}}
            for label in ("leaf-spot", "leaf")
        ]
        tasks.append(
            {
                "id": n,
                "data": {"image": f"/data/upload/1/{Path(image).name}"},
                "annotations": [{"id": n + 20, "result": results}],
            }
        )
        truth[image] = square(n)
    return {"tasks": tasks, "truth": truth}


def test_brush_masks_are_joined_by_the_export_as_json(tmp_path):
    """After HumanSignal/label-studio#8561 and #9847: names of numbers, and an address."""
    drawn = brush(tmp_path, "task-{}-annotation-{}-by-a-b@c.org-tag-{}-{}.png")
    (tmp_path / "project.json").write_text(json.dumps(drawn["tasks"]))
    manifest = assert_lesions(tmp_path, drawn["truth"])
    assert manifest.classes.lesions == ("leaf-spot",)
    assert manifest.classes.has_leaf
    assert not origin_of(manifest).unused


def test_brush_masks_without_json_are_refused_with_the_remedy(tmp_path):
    brush(tmp_path)
    with pytest.raises(UsageError, match="named by Label Studio's numbers") as caught:
        read_folder(tmp_path)
    assert "export the project again as JSON" in caught.value.fix


def test_brush_masks_of_the_last_annotation_count(tmp_path):
    drawn = brush(tmp_path)
    drawn["tasks"][0]["annotations"].append({"id": 5, "result": []})
    last = "masks/task-1-annotation-5-by-1-tag-leaf-spot-0.png"
    save(tmp_path / last, square(50))
    (tmp_path / "project.json").write_text(json.dumps(drawn["tasks"]))
    drawn["truth"]["images/00000001-leaf_1.jpg"] = square(50)
    manifest = assert_lesions(tmp_path, drawn["truth"])
    assert any("the last one counts: 2" in doubt for doubt in origin_of(manifest).doubts)


def test_task_looked_at_without_a_region_is_healthy_and_an_open_one_unlabeled(tmp_path):
    drawn = brush(tmp_path)
    for n, annotations in ((8, [{"id": 1, "result": []}]), (9, [])):
        photo(tmp_path / f"images/leaf_{n}.jpg", n)
        task = {
            "id": n,
            "data": {"image": f"s3://x/leaf_{n}.jpg"},
            "annotations": annotations,
        }
        drawn["tasks"].append(task)
    (tmp_path / "project.json").write_text(json.dumps(drawn["tasks"]))
    manifest = read_folder(tmp_path)
    lesions = read_lesions(tmp_path, manifest)
    assert lesions["images/leaf_8.jpg"].max() == 0
    assert "images/leaf_9.jpg" not in lesions


def test_brush_masks_of_unknown_tasks_are_named(tmp_path):
    drawn = brush(tmp_path)
    (tmp_path / "project.json").write_text(json.dumps(drawn["tasks"][:2]))
    manifest = read_folder(tmp_path)
    assert len(manifest.labeled) == 2
    assert len(origin_of(manifest).masks_without_image) == 2


# lists of splits


def voc(root: Path, lists: dict[str, str]) -> dict:
    truth = pairs(root, numbered("JPEGImages/{}.jpg", "SegmentationClass/{}.png"))
    place = root / "ImageSets/Segmentation"
    place.mkdir(parents=True)
    for name, content in lists.items():
        (place / name).write_text(content)
    return truth


def test_split_lists_state_splits_and_missing_names_are_counted(tmp_path):
    """After DrSleep/tensorflow-deeplab-lfov#13 and vpariza/open-hummingbird-eval#8: lists
    name images that are not there."""
    truth = voc(
        tmp_path,
        {"train.txt": "0\r\n1\r\n7\r\n", "val.txt": "2\n", "trainval.txt": "0\n1\n2\n"},
    )
    manifest = assert_lesions(tmp_path, truth)
    assert [row.split for row in manifest.rows] == ["train", "train", "val", None]
    assert origin_of(manifest).names_without_image == ("7",)
    assert not origin_of(manifest).unused


def test_image_in_two_lists_is_refused(tmp_path):
    voc(tmp_path, {"train.txt": "0\n1\n", "val.txt": "1\n"})
    with pytest.raises(
        UsageError, match=r"`JPEGImages/1\.jpg` of .* is in `train\.txt` and"
    ):
        read_folder(tmp_path)


def test_folder_and_pipe_named_like_lists_are_not_opened(tmp_path):
    voc(tmp_path, {"train.txt": "0\n"})
    (tmp_path / "ImageSets/Segmentation/val.txt").mkdir()
    os.mkfifo(tmp_path / "ImageSets/Segmentation/test.txt")
    assert [row.split for row in read_folder(tmp_path).rows][:2] == ["train", None]


def save_as(path: Path, values: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path, **options)


def smooth(seed: int) -> np.ndarray:
    """Return a mask with smooth edges, of many levels."""
    large = Image.fromarray(np.kron(square(seed), np.full((16, 16), 255, np.uint8)))
    return np.array(large.resize((200, 200), Image.Resampling.LANCZOS))


def test_masks_with_smooth_edges_or_loss_beside_images_are_masks(tmp_path):
    for n in range(3):
        photo(tmp_path / f"{n}.jpg", n)
        save_as(tmp_path / f"{n}_mask.png", smooth(n))
        photo(tmp_path / f"b/{n}.png", n)
        save_as(tmp_path / f"b/{n}.jpg", smooth(n), quality=90)
    roles = find_roles(scan(tmp_path))
    names = [mask.relative_to(tmp_path).as_posix() for mask in roles.masks]
    assert names == [f"{n}_mask.png" for n in range(3)] + [f"b/{n}.jpg" for n in range(3)]


def test_masks_of_the_leaf_beside_those_of_lesions_are_both_read(tmp_path):
    names = [(f"images/{n}.jpg", {"rust": f"masks/{n}.png", "leaf": f"leaf_masks/{n}.png"})
             for n in range(3)]  # fmt: skip
    truth = class_pairs(tmp_path, names)
    manifest = read_folder(tmp_path)
    assert manifest.classes.lesions == ("lesion",)
    for row in manifest.rows:
        sample = load_sample(row, manifest)
        lesion, leaf = truth[row.image.relative_to(tmp_path).as_posix()]
        assert (sample.lesion == lesion).all()
        assert (sample.leaf == (leaf | lesion)).all()


def test_class_called_target_spot_keeps_its_name(tmp_path):
    names = [(f"images/{n}.jpg", f"masks/{('target spot', 'rust')[n % 2]}/{n}.png")
             for n in range(4)]  # fmt: skip
    pairs(tmp_path, names)
    assert set(read_folder(tmp_path).classes.lesions) == {"target spot", "rust"}


def test_brush_masks_in_the_folder_of_the_export_are_masks(tmp_path):
    drawn = brush(tmp_path)
    (tmp_path / "masks").rename(tmp_path / "project-1-at-2024")
    (tmp_path / "project.json").write_text(json.dumps(drawn["tasks"]))
    assert_lesions(tmp_path, drawn["truth"])
