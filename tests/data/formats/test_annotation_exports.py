"""Files as annotation tools really write them, each with the right pixel values."""

import numpy as np
import pytest

from annotation_files import (
    PATCH,
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
    write_json,
)
from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.errors import DataError

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


def test_cvat_later_areas_lie_over_earlier_ones(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    small = polygon("blight", (14, 10, 20, 16))
    cvat(folder / "c.xml", {"a.png": small + polygon("rust")})
    manifest, _ = read(folder)
    (lesion,) = lesions(manifest).values()
    assert set(np.unique(lesion)) == {0, 1 + manifest.classes.lesions.index("rust")}


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


def test_many_rings_of_one_annotation(tmp_path):
    folder = save_images(tmp_path / "d", "a.png")
    spots = [
        (2 * i + 1, 2 * j + 1, 2 * i + 2, 2 * j + 2) for i in range(30) for j in range(20)
    ]
    rings = [outline(spot)["segmentation"][0] for spot in spots]
    coco(folder / "c.json", ["a.png"], [{"segmentation": rings}])
    manifest, _ = read(folder)
    assert_all_show(manifest, 1, np.logical_or.reduce([patch(spot) for spot in spots]))


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
