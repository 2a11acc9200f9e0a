"""Annotations that cannot be used: their images are unlabeled, never healthy."""

import numpy as np
import pytest

from annotation_files import (
    H,
    W,
    assert_all_show,
    coco,
    corners,
    cvat,
    labelme,
    lesions,
    outline,
    patch,
    polygon,
    read,
    save_images,
    unlabeled_images,
    write_text,
    yolo_line,
)
from plantseg_next.data.formats import read_folder
from plantseg_next.data.quality.check import check
from plantseg_next.errors import DataError

# rule 1: unusable is not healthy


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("cuboid", corners()),
        ("unknown", corners()),
        ("polygon", corners()[:2]),
        ("circle", corners()[:1]),
        ("rectangle", corners()[:1]),
        ("mask", corners()[:1]),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_labelme_image_with_unusable_shape_is_unlabeled(tmp_path, kind, points, beside):
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    labelme(folder / "a.json", ("rust", corners(), "polygon"))
    good = [("rust", corners((1, 1, 5, 5)), "polygon")] if beside else []
    labelme(folder / "b.json", *good, ("rust", points, kind))
    manifest, origin = read(folder)
    assert unlabeled_images(manifest) == ["b.png"]
    assert_all_show(manifest, 1)
    assert origin.doubts[-1].endswith("treated as unlabeled: 1 (b.png)")


@pytest.mark.parametrize(
    "fields",
    [
        {"bbox": [1, 1, 5, 5]},  # after matterport/Mask_RCNN#2532
        {"segmentation": None, "bbox": [1, 1, 5, 5]},
        {"segmentation": []},
        {"segmentation": [[1.0, 1.0, 5.0, 5.0]]},
        {"segmentation": [[1.0, 1.0, 5.0, 5.0, 9.0]]},
        {**outline(), "category_id": None},
        {**outline(), "category_id": 9},
        {"segmentation": {"size": [H, W], "counts": [1, 2, 3]}},
    ],
)
def test_coco_image_with_unusable_annotation_is_unlabeled(tmp_path, fields):
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    coco(folder / "c.json", ["a.png", "b.png"], [outline(), fields])
    manifest, _ = read(folder)
    assert unlabeled_images(manifest) == ["b.png"]
    assert_all_show(manifest, 1)


@pytest.mark.parametrize(
    "shape",
    [
        '<cuboid label="rust" xtl1="1"/>',
        '<skeleton label="rust"/>',
        '<polygon label="rust" points="1,1;5,5"/>',
        '<polygon label="rust" points="900,900;950,900;950,950"/>',
        '<mask label="rust" rle="5, 2" left="1" top="1" width="3" height="3"/>',
        '<polygon label="" points="1,1;5,5;1,5"/>',
    ],
)
def test_cvat_image_with_unusable_shape_is_unlabeled(tmp_path, shape):
    folder = save_images(tmp_path / "d", "images/a.png", "images/b.png")
    cvat(folder / "c.xml", {"a.png": polygon(), "b.png": polygon() + shape})
    manifest, _ = read(folder)
    assert unlabeled_images(manifest) == ["b.png"]
    assert_all_show(manifest, 1)


def test_yolo_boxes_among_polygons_are_unlabeled(tmp_path):
    """After ultralytics/ultralytics#21620: a set of boxes and outlines."""
    folder = save_images(tmp_path / "d", *(f"images/{i}.png" for i in "abc"))
    write_text(folder / "labels/a.txt", yolo_line())
    write_text(folder / "labels/b.txt", "0 0.5 0.5 0.2 0.2")
    write_text(folder / "labels/c.txt", f"{yolo_line()}\n0 0.5 0.5 0.2 0.2")
    manifest, _ = read(folder)
    assert unlabeled_images(manifest) == ["b.png", "c.png"]
    assert_all_show(manifest, 1)


def test_set_of_boxes_only_is_refused_before_training(tmp_path):
    """After ultralytics/ultralytics#548: boxes taken for a set for segmentation."""
    folder = save_images(tmp_path / "d", *(f"images/{i}.png" for i in "abc"))
    for name in "abc":
        write_text(folder / f"labels/{name}.txt", "0 0.5 0.5 0.2 0.2")
    manifest, _ = read(folder)
    assert len(manifest.labeled) == 0
    report = check(manifest)
    assert report.spoils_training
    assert "nothing-to-learn" in [issue.code for issue in report.issues]


def test_boxes_drawn_as_outlines_are_doubted(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    rings = [outline((4 * i, 1, 4 * i + 3, 5)) for i in range(10)]
    segmentations = [{**ring, "image_id": 1} for ring in rings]
    coco(folder / "c.json", ["a.png"], segmentations)
    _, origin = read(folder)
    assert origin.doubts == (
        "areas that are all boxes: drawn as they are, but lesions are rarely boxes: 10",
    )


def test_lesion_smaller_than_a_pixel_is_one_pixel(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    speck = [[10.2, 20.2], [10.4, 20.2], [10.4, 20.4]]
    labelme(folder / "a.json", ("rust", speck, "polygon"))
    manifest, _ = read(folder)
    (lesion,) = lesions(manifest).values()
    assert np.argwhere(lesion).tolist() == [[20, 10]]


# YOLO


def test_yolo_labels_beside_the_images(tmp_path):
    folder = save_images(tmp_path / "d", "a.png", "b.png", "c.png")
    write_text(folder / "a.txt", yolo_line())
    write_text(folder / "b.txt", "")
    write_text(folder / "classes.txt", "rust\n")
    write_text(folder / "c.txt", "taken at noon, field 7")
    manifest, origin = read(folder)
    assert manifest.classes.lesions == ("rust",)
    shown = lesions(manifest)
    assert (shown["a.png"] > 0).tolist() == patch().tolist()
    assert not shown["b.png"].any()
    assert unlabeled_images(manifest) == ["c.png"]
    assert [u.files for u in origin.unused] == [(str(folder / "c.txt"),)]


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt", "x/data.yaml"])
def test_yolo_class_names_wherever_they_lie(tmp_path, place):
    folder = save_images(tmp_path / "d", "images/a.png")
    write_text(folder / "labels/a.txt", yolo_line(number=1))
    text = "names: [blight, rust]" if place.endswith("yaml") else "blight\nrust\n"
    write_text(folder / place, text)
    manifest, _ = read(folder)
    assert manifest.classes.lesions == ("blight", "rust")
    assert set(np.unique(lesions(manifest)["a.png"])) == {0, 2}


def test_yolo_class_number_without_name_is_unlabeled(tmp_path):
    folder = save_images(tmp_path / "d", "images/a.png", "images/b.png")
    write_text(folder / "labels/a.txt", yolo_line())
    write_text(folder / "labels/b.txt", yolo_line(number=5))
    write_text(folder / "data.yaml", "names: [rust]")
    manifest, _ = read(folder)
    assert unlabeled_images(manifest) == ["b.png"]


def test_yolo_lists_of_names_that_differ_are_refused(tmp_path):
    folder = save_images(tmp_path / "d", "images/a.png")
    write_text(folder / "labels/a.txt", yolo_line())
    write_text(folder / "data.yaml", "names: [rust]")
    write_text(folder / "labels/classes.txt", "blight\n")
    with pytest.raises(DataError, match=r"data.yaml` and .*classes.txt` name the classes"):
        read_folder(folder)


def test_yolo_key_points_are_refused(tmp_path):
    folder = save_images(tmp_path / "d", "images/a.png")
    write_text(folder / "labels/a.txt", "0 .5 .5 .2 .2 .1 .1 .2 .2 .3 .3")
    write_text(folder / "data.yaml", "names: [rust]\nkpt_shape: [3, 2]")
    with pytest.raises(DataError, match="`kpt_shape` says that the labels are key points"):
        read_folder(folder)
