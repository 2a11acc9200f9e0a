"""Annotations that cannot be used: their images are unlabeled, never healthy."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

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
    write_json,
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


def test_yolo_key_points_with_visibility_are_unlabeled(tmp_path):
    folder = save_images(tmp_path / "d", "images/a.png", "images/b.png")
    write_text(folder / "labels/a.txt", yolo_line())
    write_text(folder / "labels/b.txt", "0 .5 .5 .4 .4 .4 .4 2 .6 .4 2 .6 .6 1 .5 .5 0")
    manifest, origin = read(folder)
    assert unlabeled_images(manifest) == ["b.png"]
    assert "lines of a box and key points in it, not used: 1" in origin.doubts


def test_yolo_names_in_a_yaml_of_any_name(tmp_path):
    folder = save_images(tmp_path / "d", "images/a.png")
    write_text(folder / "labels/a.txt", yolo_line())
    write_text(folder / "leaf-disease.yaml", "path: .\nnames:\n  0: rust\n")
    manifest, origin = read(folder)
    assert manifest.classes.lesions == ("rust",)
    assert origin.unused == ()


def test_coco_outlines_from_0_to_1_are_unlabeled(tmp_path):
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    parts = {"segmentation": [[0.2, 0.2, 0.5, 0.2, 0.5, 0.5]]}
    coco(folder / "c.json", ["a.png", "b.png"], [outline(), parts])
    manifest, origin = read(folder)
    assert unlabeled_images(manifest) == ["b.png"]
    assert "outlines from 0 to 1, which are no pixels, not used: 1" in origin.doubts


def test_labelme_mask_of_another_size_than_its_box_is_unlabeled(tmp_path):
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    for name, box in (("a", [[12, 8], [39, 29]]), ("b", [[12, 8], [30, 29]])):
        shapes = [{"label": "rust", "points": box, "shape_type": "mask"}]
        shapes[0]["mask"] = png_of(np.ones((22, 28), np.uint8))
        write_json(folder / f"{name}.json", {"shapes": shapes})
    manifest, _ = read(folder)
    assert unlabeled_images(manifest) == ["b.png"]
    assert_all_show(manifest, 1)


def test_labelme_mask_of_the_whole_image_is_not_moved_to_its_box(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    shape = {"label": "rust", "points": [[12, 8], [39, 29]], "shape_type": "mask"}
    shape["mask"] = png_of(patch().astype(np.uint8))
    write_json(folder / "a.json", {"shapes": [shape]})
    manifest, _ = read(folder)
    assert_all_show(manifest, 1)


def png_of(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("captions", {"caption": "a leaf"}),
        ("panoptic", {"segments_info": [], "file_name": "a.png"}),
        ("key points", {"keypoints": [1, 2, 2], "bbox": [1, 1, 5, 5]}),
    ],
)
def test_other_kinds_of_coco_files_are_named_and_do_no_harm(tmp_path, kind, entry):
    folder = save_images(tmp_path / "d", "a.png")
    coco(folder / "instances.json", ["a.png"], [outline()])
    entry = {"id": 1, "image_id": 1, "category_id": 1, **entry}
    images = [{"id": 1, "file_name": "a.png", "height": H, "width": W}]
    write_json(folder / "other.json", {"images": images, "annotations": [entry]})
    manifest, origin = read(folder)
    assert_all_show(manifest, 1)
    assert [u.reason for u in origin.unused] == [f"annotations of COCO, {kind}"]


def test_points_beside_outlines_are_doubted(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    point = ("rust", [[50, 40]], "point")
    labelme(folder / "a.json", ("rust", corners(), "polygon"), point)
    _, origin = read(folder)
    assert origin.doubts == ("points and lines beside outlines, drawn 3 pixels wide: 1",)


def test_labelme_file_that_names_another_image_is_doubted(tmp_path):
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    labelme(folder / "a.json", ("rust", corners(), "polygon"), imagePath="b.png")
    manifest, origin = read(folder)
    assert unlabeled_images(manifest) == ["b.png"]
    assert origin.doubts == (
        "files whose imagePath names another image; their own name counts: 1",
    )


@pytest.mark.parametrize("tool", ["coco", "cvat"])
def test_image_annotated_in_two_files_is_doubted(tmp_path, tool):
    """After cvat-ai/cvat#791: a task for each class, of the same images."""
    folder = save_images(tmp_path / "d", "a.png")
    other = (45, 2, 60, 40)
    if tool == "coco":
        coco(folder / "1.json", ["a.png"], [outline()])
        coco(folder / "2.json", ["a.png"], [outline(other)])
    else:
        cvat(folder / "1.xml", {"a.png": polygon()})
        cvat(folder / "2.xml", {"a.png": polygon(box=other)})
    manifest, origin = read(folder)
    assert_all_show(manifest, 1, patch() | patch(other))
    assert origin.doubts == (
        "images annotated in several files, whose areas are drawn together: 1",
    )


@pytest.mark.parametrize("name", ["Leaf", "leaf2", "leaf_3", "Blatt", "hoja", "whole leaf"])
def test_names_of_the_leaf(tmp_path, name):
    folder = save_images(tmp_path / "d", "a.png")
    leaf = (name, corners((2, 2, 62, 46)), "polygon")
    labelme(folder / "a.json", leaf, ("rust", corners(), "polygon"))
    manifest, _ = read(folder)
    assert manifest.classes.lesions == ("rust",)
    assert manifest.classes.has_leaf
