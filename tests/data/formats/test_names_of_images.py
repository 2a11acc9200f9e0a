"""How annotations, masks and tables find their images by name, from one file or several."""

import unicodedata

import pytest

from annotation_files import (
    PATCH,
    assert_all_show,
    coco,
    corners,
    cvat,
    labelme,
    outline,
    patch,
    polygon,
    read,
    save_images,
    save_mask,
    unlabeled_images,
    write_text,
    yolo_line,
)
from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.errors import DataError, UsageError

# rule 4: one way to compare names


def test_labelme_windows_paths_to_another_folder(tmp_path):
    r"""After wkentaro/labelme#1725: ``..\files\test.jpg`` read on another system."""
    folder = save_images(tmp_path / "d", "files/photo.png", "other/photo.png")
    labelme(
        folder / "json/first.json",
        ("rust", corners(), "polygon"),
        imagePath="..\\files\\photo.png",
    )
    manifest, _ = read(folder)
    assert [row.key for row in manifest.labeled.rows] == ["files/photo"]
    assert_all_show(manifest, 1)


def test_labelme_files_in_a_folder_beside_the_images(tmp_path):
    """After wkentaro/labelme#253: JPEGImages and jsons side by side, in each split."""
    folder = save_images(tmp_path / "d", "train/JPEGImages/a.png", "val/JPEGImages/a.png")
    labelme(folder / "train/jsons/a.json", ("rust", corners(), "polygon"))
    labelme(folder / "val/jsons/a.json", ("rust", corners((1, 1, 5, 5)), "polygon"))
    manifest, _ = read(folder)
    train, val = (load_sample(row, manifest).lesion > 0 for row in manifest.rows)
    assert (train == patch()).all()
    assert (val == patch((1, 1, 5, 5))).all()
    assert [row.split for row in manifest.rows] == ["train", "val"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("tool", ["coco", "cvat", "labelme", "yolo", "masks", "index"])
def test_names_of_another_unicode_form(tmp_path, form, tool):
    """After llmsresearch/paperbanana#234: names decomposed by a Mac are not found."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    name, stated = (unicodedata.normalize(f, "Blätter é") for f in (form, other))
    folder = save_images(tmp_path / "d", f"images/{name}.png")
    match tool:
        case "coco":
            coco(folder / "c.json", [f"{stated}.png"], [outline()])
        case "cvat":
            cvat(folder / "c.xml", {f"{stated}.png": polygon()})
        case "labelme":
            labelme(folder / f"json/{stated}.json", ("rust", corners(), "polygon"))
        case "yolo":
            write_text(folder / f"labels/{stated}.txt", yolo_line())
        case _:
            save_mask(folder / f"masks/{stated}.png", patch())
    if tool == "index":
        write_text(folder / "index.csv", f"name,disease\n{stated}.png,rust\n")
    manifest, origin = read(folder)
    assert_all_show(manifest, 1)
    assert origin.names_without_image == ()
    if tool == "index":
        assert [row.disease for row in manifest.rows] == ["rust"]


@pytest.mark.parametrize(
    "stated",
    [
        "IMG_1.JPG",
        "img_1.jpg",
        "img_1.png",
        "img_1",
        "batch1/IMG_1.JPG",
        "batch1\\img_1.jpg",
        "C:\\Users\\me\\batch1\\IMG_1.JPG",
        "/data/upload/7/0a1b2c3d-IMG_1.JPG",
        "/data/local-files/?d=batch1%2FIMG_1.JPG",
        "./batch1/IMG_1.JPG",
    ],
)
def test_one_image_is_found_by_any_form_of_its_name(tmp_path, stated):
    """After open-edge-platform/datumaro#151 and CVHub520/X-AnyLabeling#342."""
    folder = save_images(tmp_path / "d", "batch1/IMG_1.JPG", "batch1/IMG_2.JPG")
    coco(folder / "c.json", [stated], [outline()])
    manifest, _ = read(folder)
    assert [row.key for row in manifest.labeled.rows] == ["batch1/IMG_1"]


def test_name_in_another_folder_of_the_data_set_is_missing(tmp_path):
    folder = save_images(tmp_path / "d", "batch1/1.png", "batch2/2.png")
    names = ["batch2/1.png", "batch2/2.png"]
    coco(folder / "c.json", names, [outline(), outline()])
    manifest, origin = read(folder)
    assert origin.names_without_image == ("batch2/1.png",)
    assert unlabeled_images(manifest) == ["1.png"]


def test_name_of_two_images_is_refused(tmp_path):
    folder = save_images(tmp_path / "d", "x/1.png", "y/1.png")
    coco(folder / "c.json", ["1.png"], [outline()])
    with pytest.raises(UsageError, match=r"`1.png` is the name of 2 images") as caught:
        read_folder(folder)
    assert "x/1.png, y/1.png" in str(caught.value)


def test_two_labelme_files_of_one_image_are_refused(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    labelme(folder / "a.json", ("rust", corners(), "polygon"))
    labelme(folder / "old/a.json", imagePath="../a.png")
    with pytest.raises(UsageError, match=r"`a.json` and `old/a.json` both annotate `a"):
        read_folder(folder)


# rule 6: several files of one kind


def test_cvat_tasks_of_the_same_frame_names(tmp_path):
    """After cvat-ai/cvat#2911: frames of the same name in every task."""
    folder = tmp_path / "d"
    boxes = {"task_1": PATCH, "task_2": (1, 1, 5, 5)}
    for task, box in boxes.items():
        save_images(folder / task / "images", "frame_000000.png")
        cvat(folder / task / "annotations.xml", {"frame_000000.png": polygon(box=box)})
    manifest, _ = read(folder)
    for row, box in zip(manifest.rows, boxes.values(), strict=True):
        assert (load_sample(row, manifest).lesion > 0).tolist() == patch(box).tolist()


def test_cvat_files_side_by_side_with_common_ids(tmp_path):
    """After cvat-ai/cvat#608: one XML per task, for one folder of images."""
    folder = save_images(tmp_path / "d", "images/a.png", "images/b.png")
    cvat(folder / "first.xml", {"a.png": polygon()})
    cvat(folder / "second.xml", {"b.png": polygon("blight")})
    manifest, _ = read(folder)
    assert manifest.classes.lesions == ("rust", "blight")
    assert_all_show(manifest, 2)


def test_coco_batches_with_common_ids(tmp_path):
    folder = save_images(tmp_path / "d", "a.png", "b.png", "c.png")
    coco(folder / "1.json", ["a.png"], [outline()])
    coco(folder / "2.json", ["b.png"], [outline()])
    manifest, _ = read(folder)
    assert_all_show(manifest, 2)
    assert unlabeled_images(manifest) == ["c.png"]


def test_coco_image_in_two_splits_is_refused(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    for split in ("train", "val"):
        coco(folder / f"instances_{split}.json", ["a.png"], [outline()])
    with pytest.raises(DataError, match=r"has the split train by `instances_train\.json`"):
        read_folder(folder)
