"""Files as annotation tools really write them, each with the right pixel values."""

import unicodedata

import numpy as np
import pytest

from annotation_files import (
    PATCH,
    H,
    W,
    coco,
    corners,
    cvat,
    labelme,
    lesions,
    outline,
    overlap,
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
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.quality.check import check
from plantseg_next.errors import DataError, UsageError

EXACT = 1 - 1e-9


def assert_all_show(manifest, n, mask=None, least=EXACT):
    shown = lesions(manifest)
    assert len(shown) == n
    expected = patch() if mask is None else mask
    for name, lesion in shown.items():
        assert overlap(lesion > 0, expected) >= least, name


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


def save_mask(path, mask):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)


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


# rule 7: shapes as the tool shows them


def turned_bar(degrees, center, half):
    """Return the mask of a turned rectangle by the rule for points, not of a library."""
    y, x = np.mgrid[:H, :W] + 0.5
    turn = np.deg2rad(degrees)
    dx, dy = x - center[0], y - center[1]
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = -dx * np.sin(turn) + dy * np.cos(turn)
    return (abs(along) <= half[0]) & (abs(across) <= half[1])


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 315])
def test_cvat_box_is_turned_about_its_center(tmp_path, degrees):
    """After cvat-ai/cvat#5881: boxes were turned with the handle, in degrees."""
    folder = save_images(tmp_path / "d", "a.png")
    box = f'xtl="12" ytl="18" xbr="52" ybr="30" rotation="{degrees}"'
    cvat(folder / "c.xml", {"a.png": f'<box label="rust" {box}/>'})
    manifest, _ = read(folder)
    assert_all_show(manifest, 1, turned_bar(degrees, (32, 24), (20, 6)), least=0.95)


def test_cvat_ellipse_is_turned(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    shape = '<ellipse label="rust" cx="32" cy="24" rx="20" ry="6" rotation="60"/>'
    cvat(folder / "c.xml", {"a.png": shape})
    y, x = np.mgrid[:H, :W] + 0.5
    turn = np.deg2rad(60)
    along = (x - 32) * np.cos(turn) + (y - 24) * np.sin(turn)
    across = -(x - 32) * np.sin(turn) + (y - 24) * np.cos(turn)
    mask = (along / 20) ** 2 + (across / 6) ** 2 <= 1
    manifest, _ = read(folder)
    assert_all_show(manifest, 1, mask, least=0.95)


def test_turned_rectangles_of_x_anylabeling(tmp_path):
    """After CVHub520/X-AnyLabeling#397: the kind "rotation", lost by an export."""
    folder = save_images(tmp_path / "d", "a.png")
    turn = np.deg2rad(30)
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = (np.array([[-20, -6], [20, -6], [20, 6], [-20, 6]]) @ axes + (32, 24)).tolist()
    labelme(folder / "a.json", ("rust", points, "rotation"))
    manifest, _ = read(folder)
    assert_all_show(manifest, 1, turned_bar(30, (32, 24), (20, 6)), least=0.95)


def test_cvat_z_order_decides_before_size(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    small = polygon("blight", (14, 10, 20, 16), 'z_order="0"')
    cvat(folder / "c.xml", {"a.png": small + polygon("rust", more='z_order="1"')})
    manifest, _ = read(folder)
    (lesion,) = lesions(manifest).values()
    assert (lesion == patch() * (1 + manifest.classes.lesions.index("rust"))).all()


HOLE = (20, 14, 30, 24)


@pytest.mark.parametrize("tool", ["labelme", "coco", "cvat", "background in coco"])
def test_hole_in_a_lesion_is_no_lesion(tmp_path, tool):
    """After cocodataset/cocoapi#153 and jsbroks/coco-annotator#187: outlines with holes."""
    folder = save_images(tmp_path / "d", "a.png")
    rings = [*outline()["segmentation"], *outline(HOLE)["segmentation"]]
    match tool:
        case "labelme":
            hole = ("background", corners(HOLE), "polygon")
            labelme(folder / "a.json", hole, ("rust", corners(), "polygon"))
        case "coco":
            coco(folder / "c.json", ["a.png"], [{"segmentation": rings[::-1]}])
        case "cvat":
            cvat(folder / "c.xml", {"a.png": polygon() + polygon("background", HOLE)})
        case _:
            names = [{"id": 1, "name": "rust"}, {"id": 2, "name": "Background"}]
            hole = {**outline(HOLE), "category_id": 2, "image_id": 1}
            coco(folder / "c.json", ["a.png"], [outline(), hole], names)
    manifest, _ = read(folder)
    assert manifest.classes.lesions == ("rust",)
    assert_all_show(manifest, 1, patch() & ~patch(HOLE))


def test_lesion_in_a_hole_is_filled_again(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    inner = (23, 17, 27, 21)
    rings = [outline(box)["segmentation"][0] for box in (inner, PATCH, HOLE)]
    coco(folder / "c.json", ["a.png"], [{"segmentation": rings}])
    manifest, _ = read(folder)
    assert_all_show(manifest, 1, (patch() & ~patch(HOLE)) | patch(inner))


def test_two_patches_that_overlap_are_no_hole(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    other = (30, 20, 50, 40)
    rings = [outline(box)["segmentation"][0] for box in (PATCH, other)]
    coco(folder / "c.json", ["a.png"], [{"segmentation": rings}])
    manifest, _ = read(folder)
    assert_all_show(manifest, 1, patch() | patch(other))


def test_island_of_leaf_in_a_lesion_is_leaf(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    leaf = (2, 2, 62, 46)
    labelme(
        folder / "a.json",
        ("leaf", corners(HOLE), "polygon"),
        ("rust", corners(), "polygon"),
        ("leaf", corners(leaf), "polygon"),
    )
    manifest, _ = read(folder)
    sample = load_sample(manifest.rows[0], manifest)
    assert ((sample.lesion > 0) == (patch() & ~patch(HOLE))).all()
    assert ((sample.leaf == 1) == patch(leaf)).all()


def test_leaf_that_is_diseased_all_over_stays_diseased(tmp_path):
    """The outline of its lesion is a little larger than that of the leaf."""
    folder = save_images(tmp_path / "d", "a.png")
    lesion = ("rust", corners((11, 7, 41, 31)), "polygon")
    labelme(folder / "a.json", lesion, ("leaf", corners(), "polygon"))
    manifest, _ = read(folder)
    assert_all_show(manifest, 1, patch((11, 7, 41, 31)))


# rule 10: what a file lacks


@pytest.mark.parametrize(
    "fields",
    [
        {"imageHeight": "absent", "imageWidth": "absent"},
        {"imageHeight": None, "imageWidth": None},
    ],
)
@pytest.mark.parametrize("kind", ["polygon", None])
def test_labelme_before_2018(tmp_path, fields, kind):
    folder = save_images(tmp_path / "d", "a.png")
    labelme(folder / "a.json", ("rust", corners(), kind), **fields)
    manifest, _ = read(folder)
    assert_all_show(manifest, 1)


def test_coco_without_sizes(tmp_path):
    """After pylabel-project/pylabel#33 and open-mmlab/mmdetection#4139."""
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    names = ["a.png", "b.png"]
    rle = {"segmentation": {"size": [H, W], "counts": runs_of(patch())}}
    absent = {"height": "absent", "width": "absent"}
    coco(folder / "c.json", names, [outline(), rle], **absent)
    manifest, _ = read(folder)
    assert_all_show(manifest, 2)


def runs_of(mask):
    """Return uncompressed COCO run lengths: by columns, beginning with background."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(np.diff(flat))
    return np.diff([0, *ends]).tolist()


@pytest.mark.parametrize("ids", [("1", 1), (1, "1"), (1.0, 1), ("01a", "01a")])
def test_coco_ids_as_text_and_as_number(tmp_path, ids):
    """After cvat-ai/cvat#298 and zylo117/Yet-Another-EfficientDet-Pytorch#60."""
    folder = save_images(tmp_path / "d", "a.png")
    image = {"id": ids[0], "file_name": "a.png", "height": H, "width": W}
    area = {"id": 1, "image_id": ids[1], "category_id": "1", **outline()}
    names = [{"id": 1, "name": "rust"}]
    tree = {"images": [image], "annotations": [area], "categories": names}
    write_json(folder / "c.json", tree)
    manifest, _ = read(folder)
    assert_all_show(manifest, 1)


def test_coco_two_images_of_one_id_are_refused(tmp_path):
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    entries = [
        {"id": i, "file_name": f"{name}.png", "height": H, "width": W}
        for i, name in ((1, "a"), ("1", "b"))
    ]
    tree = {"images": entries, "annotations": [], "categories": []}
    write_json(folder / "c.json", tree)
    with pytest.raises(DataError, match=r"two images of the id 1: one is `b.png`"):
        read_folder(folder)


@pytest.mark.parametrize(
    "segmentation",
    [
        [n for point in corners() for n in point],
        corners(),
        [corners()],
    ],
)
def test_coco_outlines_without_or_with_more_lists(tmp_path, segmentation):
    folder = save_images(tmp_path / "d", "a.png")
    coco(folder / "c.json", ["a.png"], [{"segmentation": segmentation}])
    manifest, _ = read(folder)
    assert_all_show(manifest, 1)


def test_super_category_that_labels_nothing_is_no_class(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    names = [
        {"id": 0, "name": "leaf-disease", "supercategory": "none"},
        {"id": 1, "name": "rust", "supercategory": "leaf-disease"},
        {"id": 2, "name": "blight", "supercategory": "leaf-disease"},
    ]
    coco(folder / "c.json", ["a.png"], [outline()], names)
    manifest, _ = read(folder)
    assert manifest.classes.lesions == ("rust", "blight")


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


# rule 3: every file that is not used is named


FOREIGN = {
    "VIA, the VGG Image Annotator": ("via_region_data.json", {"a.png7": {
        "filename": "a.png", "size": 7, "regions": []}}),
    "Supervisely": ("ann/a.png.json", {"size": {}, "objects": [], "tags": []}),
    "SuperAnnotate": ("a.png___objects.json", {"metadata": {}, "instances": []}),
    "V7 Darwin": ("a.json", {"version": "2.0", "item": {}, "annotations": []}),
    "Datumaro": ("annotations/default.json", {"info": {}, "categories": {}, "items": []}),
    "ISAT": ("a.json", {"info": {"description": "ISAT"}, "objects": []}),
    "Labelbox": ("export.json", [{"data_row": {"id": "x"}}]),
    "CreateML": ("_annotations.createml.json", [{"image": "a.png", "annotations": []}]),
    "Label Studio": ("project.json", [{"id": 1, "data": {}, "annotations": []}]),
    "Encord": ("labels.json", [{"label_hash": "x", "data_units": {}}]),
}  # fmt: skip


@pytest.mark.parametrize("tool", FOREIGN)
def test_annotations_of_a_tool_that_is_not_read_are_named(tmp_path, tool):
    folder = save_images(tmp_path / "d", "a.png", "b.png")
    name, tree = FOREIGN[tool]
    file = write_json(folder / name, tree)
    _, origin = read(folder)
    assert [(u.reason, u.files, u.harmless) for u in origin.unused] == [
        (f"annotations of {tool}", (str(file),), False)
    ]


def test_annotations_that_are_not_read_beside_masks_are_named(tmp_path):
    """After cvat-ai/cvat#8411: a video export is another format of the same name."""
    folder = save_images(tmp_path / "d", "images/a.png", "images/b.png")
    save_mask(folder / "masks/a.png", patch())
    save_mask(folder / "masks/b.png", patch())
    write_text(folder / "annotations.xml", "<annotations><track id='0'/></annotations>")
    boxes = "<annotation><object><bndbox/></object></annotation>"
    write_text(folder / "Annotations/a.xml", boxes)
    write_text(folder / "README.md", "leaves")
    write_text(folder / "photo.CR2", "raw")
    write_text(folder / "more.zip", "PK")
    _, origin = read(folder)
    reasons = {u.reason.split(":")[0]: (len(u.files), u.harmless) for u in origin.unused}
    assert reasons == {
        "annotations of CVAT for video": (1, False),
        "annotations of Pascal VOC, with boxes": (1, False),
        "photographs in the raw format of a camera": (1, False),
        "archives": (1, False),
        "descriptions, programs and settings": (1, True),
    }


def test_pictures_of_annotations_are_no_images(tmp_path):
    folder = save_images(tmp_path / "d", "a.jpg", "a.jpg___fuse.png")
    manifest, origin = read(folder)
    assert [row.image.name for row in manifest.rows] == ["a.jpg"]
    assert [u.reason for u in origin.unused] == ["pictures of annotations by SuperAnnotate"]


@pytest.mark.parametrize("name", ["photo.DNG", "photo.NEF", "photo.cr3"])
def test_photographs_in_a_raw_format_are_named(tmp_path, name):
    """After qarmin/czkawka#2007: a program skipped DNG files without a word."""
    folder = save_images(tmp_path / "d", "a.jpg")
    write_text(folder / name, "raw")
    _, origin = read(folder)
    (unused,) = origin.unused
    assert unused.reason == (
        "photographs in the raw format of a camera: export them as JPEG or TIFF"
    )


def test_project_of_via_is_named(tmp_path):
    """After matterport/Mask_RCNN#2609: the project of VIA instead of its annotations."""
    folder = save_images(tmp_path / "d", "a.jpg")
    write_json(folder / "via_project.json", {"_via_settings": {}, "_via_img_metadata": {}})
    _, origin = read(folder)
    assert [u.reason for u in origin.unused] == [
        "annotations of VIA, the VGG Image Annotator"
    ]


def test_coco_file_of_no_images_beside_labelme_is_named(tmp_path):
    """After pieterblok/maskal#9: a conversion left empty COCO files beside LabelMe's."""
    folder = save_images(tmp_path / "d", "a.png")
    labelme(folder / "a.json", ("rust", corners(), "polygon"))
    coco(folder / "train.json", [], [])
    manifest, origin = read(folder)
    assert_all_show(manifest, 1)
    assert [u.reason for u in origin.unused] == ["annotations of COCO"]


def test_results_of_this_program_are_left_out(tmp_path):
    folder = save_images(tmp_path / "d", "a.png", "out/overlays/a.png")
    write_text(folder / "out/severity.csv", "image")
    write_text(folder / "out/records.jsonl", "{}")
    manifest, origin = read(folder)
    assert [row.key for row in manifest.rows] == ["a"]
    (unused,) = origin.unused
    assert unused.reason == "folders with results of plantseg-next"
    with pytest.raises(UsageError, match="holds results of plantseg-next, no data set"):
        read_folder(folder / "out")


def test_pipes_and_dangling_links_are_named_and_not_opened(tmp_path):
    import os

    folder = save_images(tmp_path / "d", "a.png")
    os.mkfifo(folder / "annotations.xml")
    (folder / "gone.json").symlink_to(folder / "nowhere.json")
    (folder / "loop.json").symlink_to(folder / "loop.json")
    (folder / "moved.jpg").symlink_to(folder / "nowhere.jpg")
    manifest, origin = read(folder)
    assert [row.image.name for row in manifest.rows] == ["a.png", "moved.jpg"]
    assert {u.reason: len(u.files) for u in origin.unused} == {
        "pipes, devices and sockets": 1,
        "links that lead nowhere": 2,
    }
