"""Layouts of annotation tools, compared with independent rasterizers."""

import base64
import io
import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from skimage.draw import polygon as polygon_of

from plantseg_next.data.formats import read_folder
from plantseg_next.data.formats.annotations import (
    Annotation,
    ellipse,
    patch,
    rasterize,
    rectangle,
    save_rasterized_masks,
)
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest
from plantseg_next.data.quality.check import check
from plantseg_next.errors import DataError

H, W = 60, 80
NAMES = ("Leaf", "Early_Blight", "rust")
LEAF = rectangle(4.0, 6.0, 76.0, 54.0)
BLIGHT = ellipse(30.0, 30.0, 9.0, 14.0)
RUST = np.array([[55.5, 20.25], [66, 24], [63, 37.5], [52, 33]])
OUTLINES = dict(zip(NAMES, (LEAF, BLIGHT, RUST), strict=True))


def star(radii, size=40):
    turn = np.arange(len(radii)) * 2 * np.pi / len(radii)
    return size / 2 + np.stack([np.cos(turn), np.sin(turn)], 1) * np.array(radii)[:, None]


def inside(points, size_hw=(H, W)):
    """Return a polygon filled by scikit-image: pixels whose center is inside."""
    mask = np.zeros(size_hw, bool)
    mask[polygon_of(points[:, 1] - 0.5, points[:, 0] - 0.5, size_hw)] = True
    return mask


def overlap(one, two):
    return (one & two).sum() / (one | two).sum()


def images(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (W, H), "green").save(path)
    return folder


def as_json(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree), "utf-8")
    return path


def layout_of(manifest):
    return next(iter(manifest.origins.values())).layout


def doubts_of(manifest):
    return next(iter(manifest.origins.values())).doubts


def sample_of(manifest: Manifest, key):
    row = next(row for row in manifest.rows if row.key == key)
    return load_sample(row, manifest)


def assert_as_outlined(manifest, key, *, classes=("early blight", "rust"), least=0.97):
    """Assert that the mask of a row shows the three outlines above."""
    assert manifest.classes.lesions == classes
    sample = sample_of(manifest, key)
    assert overlap(sample.leaf == 1, inside(LEAF)) == 1
    for name, points in ((classes[0], BLIGHT), (classes[1], RUST)):
        found = sample.lesion == 1 + classes.index(name)
        assert overlap(found, inside(points)) > least, name


# drawing


@given(arrays(float, 12, elements=st.floats(4, 19)))
def test_rasterize_polygon_preserves_area(radii):
    points = star(radii)
    mask, _ = rasterize([Annotation("a", (points,))], (40, 40), {"a": 1}, {"a": "rust"})
    x, y = points.T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    around = np.hypot(*(points - np.roll(points, 1, 0)).T).sum()
    assert abs(mask.sum() - area) < 0.25 * around
    rim = (mask == 1) ^ inside(points, (40, 40))
    # 0.311 for the worst of 3,000 regular polygons; two rules for pixels on the outline.
    assert rim.sum() < 0.32 * around


def test_rasterize_polygons_have_no_area_bias():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(200):
        points = star(rng.uniform(3, 9, 12)) + rng.uniform(0, 1, 2)
        mask, _ = rasterize([Annotation("a", (points,))], (40, 40), {"a": 1}, {"a": "rust"})
        x, y = points.T
        ratios.append(mask.sum() / (abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2))
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)


def test_rasterize_draws_small_over_large_and_lesions_over_leaf():
    big, small, leaf = (
        rectangle(0.0, 0.0, 9.0, 9.0),
        rectangle(2.0, 2.0, 4.0, 4.0),
        rectangle(0.0, 0.0, 9.0, 9.0),
    )
    areas = [
        Annotation("small", (small,)),
        Annotation("big", (big,)),
        Annotation("leaf", (leaf,)),
    ]
    values = {"small": 1, "big": 2, "leaf": 3}
    meaning = {"small": "rust", "big": "mildew", "leaf": "leaf"}
    mask, _ = rasterize(areas, (10, 10), values, meaning)
    assert (mask[2:4, 2:4] == 1).all()
    assert (mask == 1).sum() == 4
    assert (mask == 2).sum() == 77


# each layout


def coco_tree(segmentations, *, names=NAMES, file_name="a.png"):
    return {
        "images": [{"id": 7, "file_name": file_name, "height": H, "width": W}],
        "categories": [{"id": i + 3, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": i + 3, "segmentation": segmentation}
            for i, segmentation in enumerate(segmentations)
        ],
    }


def compressed(mask):
    found = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def uncompressed(mask):
    flat = mask.ravel(order="F").astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    return {"size": [H, W], "counts": runs if flat[0] == 0 else [0, *runs]}


@pytest.mark.parametrize("kind", ["polygons", "compressed", "uncompressed"])
def test_coco_masks_match_outlines(tmp_path, kind):
    images(tmp_path / "d", "images/a.png")
    write = {
        "polygons": lambda points: [points.ravel().tolist()],
        "compressed": lambda points: compressed(inside(points)),
        "uncompressed": lambda points: uncompressed(inside(points)),
    }[kind]
    file = as_json(
        tmp_path / "d/annotations/instances_val.json",
        coco_tree([write(points) for points in OUTLINES.values()]),
    )
    manifest = read_folder(tmp_path / "d")
    assert layout_of(manifest) == "COCO: outlines and run lengths"
    (row,) = manifest.rows
    assert row.split == "val"
    assert_as_outlined(manifest, row.key)
    other = COCO(str(file))
    lesion = sample_of(manifest, row.key).lesion
    for i, name in ((1, "early blight"), (2, "rust")):
        its = other.annToMask(other.loadAnns([i])[0]).astype(bool)
        assert overlap(lesion == 1 + manifest.classes.lesions.index(name), its) == 1


@pytest.mark.parametrize(
    "counts",
    [[50, 49], [5, 10**6], [5, -3, H * W - 2], ["five"], "11", "0" * 50, "zzzzzzz", 7],
)
def test_coco_invalid_run_lengths_are_skipped(tmp_path, counts):
    """Too short, too long or not numbers: uninitialized memory must not become a lesion."""
    images(tmp_path / "d", "images/a.png")
    leaf, blight, _ = (compressed(inside(points)) for points in OUTLINES.values())
    as_json(
        tmp_path / "d/annotations/instances_val.json",
        coco_tree([leaf, blight, {"size": [H, W], "counts": counts}]),
    )
    manifest = read_folder(tmp_path / "d")
    (origin,) = manifest.origins.values()
    assert origin.doubts == ("run lengths that do not fill their image: 1",)
    lesion = sample_of(manifest, manifest.rows[0].key).lesion > 0
    assert (lesion == inside(BLIGHT)).all()


def labelme_tree(shapes):
    return {"version": "5.5.0", "imageHeight": H, "imageWidth": W, "shapes": shapes}


def shape(label, points, kind="polygon", **more):
    points = np.asarray(points).tolist()
    return {"label": label, "points": points, "shape_type": kind, **more}


def test_labelme_masks_match_outlines(tmp_path):
    images(tmp_path / "d", "train/a.png", "train/b.png")
    shapes = [shape(name, points) for name, points in OUTLINES.items()]
    as_json(tmp_path / "d/train/a.json", labelme_tree(shapes))
    manifest = read_folder(tmp_path / "d")
    assert layout_of(manifest) == "LabelMe: one JSON file per image"
    assert_as_outlined(manifest, "train/a")
    assert [row.split for row in manifest.rows] == ["train", "train"]
    assert manifest.rows[1].mask is None
    # LabelMe itself draws a rim of half a pixel.
    image = Image.new("1", (W, H))
    ImageDraw.Draw(image).polygon([tuple(p) for p in RUST], outline=1, fill=1)
    rust = sample_of(manifest, "train/a").lesion == 2
    assert 1 < np.array(image).sum() / rust.sum() < 1.3
    assert overlap(rust, np.array(image)) > 0.8


def test_labelme_all_shape_types_are_read(tmp_path):
    images(tmp_path / "d", "a.png")
    stamp = io.BytesIO()
    Image.fromarray(inside(RUST)[20:38, 52:66]).save(stamp, "PNG")
    encoded = base64.b64encode(stamp.getvalue()).decode()
    shapes = [
        shape("Leaf", [[76, 54], [4, 6]], "rectangle"),
        shape("spot", [[30, 30], [30, 38]], "circle"),
        shape("rust", [[52, 20], [65, 37]], "mask", mask=encoded),
        shape("cube", [[1, 1]], "cuboid"),
    ]
    as_json(tmp_path / "d/a.json", labelme_tree(shapes))
    manifest = read_folder(tmp_path / "d")
    sample = sample_of(manifest, "a")
    assert overlap(sample.leaf == 1, inside(LEAF)) == 1
    assert overlap(sample.lesion == 2, inside(RUST)) == 1
    assert (sample.lesion == 1).sum() == pytest.approx(np.pi * 64, rel=0.02)
    assert doubts_of(manifest) == ("shapes of the kind cuboid, not used: 1",)


def cvat_file(path, body, labels=NAMES):
    meta = "".join(f"<label><name>{name}</name></label>" for name in labels)
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f"<meta><task><labels>{meta}</labels></task></meta>{body}</annotations>",
        "utf-8",
    )


def test_cvat_masks_match_outlines(tmp_path):
    images(tmp_path / "d", "images/a.png", "images/b.png")
    rust = inside(RUST)[20:38, 52:66].ravel().astype(int)
    ends = np.flatnonzero(np.diff(rust)) + 1
    runs = np.diff([0, *ends, rust.size]).tolist()
    runs = runs if rust[0] == 0 else [0, *runs]
    points = ";".join(f"{x},{y}" for x, y in LEAF)
    cvat_file(
        tmp_path / "d/annotations.xml",
        f'<image id="0" name="a.png" subset="Train" width="{W}" height="{H}">'
        f'<tag label="Late_Blight"/><polygon label="Leaf" points="{points}"/>'
        '<ellipse label="Early_Blight" cx="30" cy="30" rx="9" ry="14"/>'
        f'<mask label="rust" left="52" top="20" width="14" height="18" '
        f'rle="{", ".join(map(str, runs))}"/><skeleton label="x"/></image>'
        f'<image id="1" name="b.png" width="{W}" height="{H}"></image>',
    )
    manifest = read_folder(tmp_path / "d")
    assert layout_of(manifest) == "CVAT for images: an XML file"
    assert_as_outlined(manifest, "images/a")
    a, b = manifest.rows
    assert (a.disease, a.split) == ("late blight", "train")
    assert b.mask is None
    assert doubts_of(manifest) == (
        "shapes of the kind skeleton, not used: 1",
        "images without a shape, treated as unlabeled: 1",
    )


@pytest.mark.parametrize("inner", [True, False])
def test_yolo_masks_match_outlines(tmp_path, inner):
    place, labels = ("images/val", "labels/val") if inner else ("val/images", "val/labels")
    folder = images(tmp_path / "d", f"{place}/a.png", f"{place}/b.png", f"{place}/c.png")
    lines = [
        f"{i} " + " ".join(f"{v:.6f}" for v in (points / (W, H)).ravel())
        for i, points in enumerate(OUTLINES.values())
    ]
    (folder / labels).mkdir(parents=True)
    (folder / labels / "a.txt").write_text("\n".join([*lines, "1 .5 .5 .1 .1"]))
    (folder / labels / "b.txt").write_text("")
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": dict(enumerate(NAMES))}))
    manifest = read_folder(folder)
    assert layout_of(manifest) == "YOLO segmentation: one text file per image"
    assert_as_outlined(manifest, f"{place}/a")
    assert [row.split for row in manifest.rows] == ["val"] * 3
    assert (sample_of(manifest, f"{place}/b").lesion == 0).all()
    assert manifest.rows[2].mask is None
    assert doubts_of(manifest) == ("lines with a box instead of a polygon, not used: 1",)


def test_pascal_voc_from_cvat_is_read(tmp_path):
    folder = images(tmp_path / "d", "JPEGImages/a.png", "JPEGImages/b.png")
    colors = {"Leaf": (0, 128, 0), "Early_Blight": (128, 0, 0), "rust": (250, 50, 83)}
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{name}:{','.join(map(str, c))}::" for name, c in colors.items()]
    (folder / "labelmap.txt").write_text("\n".join(lines))
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\n")
    mask = np.zeros((H, W, 3), np.uint8)
    for name, points in OUTLINES.items():
        mask[inside(points)] = colors[name]
    for kind in ("SegmentationClass", "SegmentationObject"):
        (folder / kind).mkdir()
        Image.fromarray(mask).quantize(8).save(folder / kind / "a.png")
    manifest = read_folder(folder)
    assert_as_outlined(manifest, "a", least=1 - 1e-9)
    assert [row.split for row in manifest.rows] == ["val", None]
    (folder / "labelmap.txt").write_text("rust:128,0::\n")
    with pytest.raises(DataError, match=r"labelmap.txt`, line 1: 'rust:128,0::'"):
        read_folder(folder)


# invalid files


def test_coco_of_published_plantseg_is_read(tmp_path):
    """Annotations of images not listed, outlines beyond the image, no categories."""
    folder = images(tmp_path / "d", "images/a.png", "images/b.png")
    tree = coco_tree([[rectangle(70.0, 50.0, 90.0, 70.0).ravel().tolist()]])
    tree["images"] += [
        {"id": 8, "file_name": "b.png", "height": H, "width": W},
        {"id": 9, "file_name": "gone.png", "height": H, "width": W},
    ]
    foreign = {"id": 5, "image_id": 99, "category_id": 3, "segmentation": []}
    outside = {**tree["annotations"][0], "id": 6}
    outside["segmentation"] = [rectangle(200.0, 200.0, 210.0, 210.0).ravel().tolist()]
    tree["annotations"] += [foreign, outside]
    tree["categories"] = []
    as_json(folder / "train.json", tree)
    manifest = read_folder(folder)
    assert manifest.classes.lesions == ("class 3",)
    assert (sample_of(manifest, "images/a").lesion == 1).sum() == 100
    assert manifest.rows[1].mask is None
    assert set(doubts_of(manifest)) == {
        "annotations of images that the file does not list: 1",
        "annotations whose category the file does not name: 2",
        "images that are listed without an annotation, treated as unlabeled: 1",
        "outlines that extend beyond their image, clipped: 2",
        "annotations without a pixel in their image, not used: 1",
    }
    report = check(manifest)
    found = [f.text for f in report.issues if f.code == "annotation-doubtful"]
    assert len(found) == 5
    names = [f.text for f in report.issues if f.code == "name-without-image"]
    assert names == ["Names of images that are listed, but missing: gone.png."]


@pytest.mark.parametrize("corner", [1e30, -1e9, float("nan")])
def test_outline_far_outside_image_is_skipped(tmp_path, corner):
    """Drawing it would exhaust memory."""
    images(tmp_path / "d", "images/a.png")
    far = [[corner, 0.0], [1.0, 1.0], [0.0, 9.0]]
    spots = [rectangle(1.0, 1.0, 5.0, 5.0).tolist(), [*far, *far]]
    tree = coco_tree(
        [[np.ravel(points).tolist()] for points in spots], names=("rust", "rot")
    )
    as_json(tmp_path / "d/train.json", tree)
    manifest = read_folder(tmp_path / "d")
    assert set(doubts_of(manifest)) == {
        "outlines that extend 10 times the size of their image beyond it, not used: 1"
    }
    assert (sample_of(manifest, "images/a").lesion > 0).sum() == 16


@pytest.mark.parametrize("height", [0, -60, 10**9])
def test_annotation_invalid_image_size_is_refused(tmp_path, height):
    images(tmp_path / "d", "images/a.png")
    tree = coco_tree([[rectangle(1.0, 1.0, 5.0, 5.0).ravel().tolist()]])
    tree["images"][0]["height"] = height
    as_json(tmp_path / "d/train.json", tree)
    with pytest.raises(DataError, match=rf"has {height} rows and 80 columns") as caught:
        read_folder(tmp_path / "d")
    assert "correct the height and the width" in str(caught.value)


def test_patch_partly_outside_image_is_clipped():
    decoded = run_lengths.decode(patch(np.ones((5, 5), bool), -3, -2, (10, 10)))
    assert decoded[:3, :2].all()
    assert decoded.sum() == 6


def test_coco_missing_images_are_refused(tmp_path):
    folder = images(tmp_path / "d", "x.png")
    as_json(folder / "train.json", coco_tree([]))
    with pytest.raises(DataError, match=r"None of the 1 images of `train.json` is in"):
        read_folder(folder)


def test_coco_missing_field_is_refused(tmp_path):
    folder = images(tmp_path / "d", "a.png")
    tree = coco_tree([])
    del tree["images"][0]["height"]
    as_json(folder / "train.json", tree)
    with pytest.raises(DataError, match=r"is not in the COCO format: KeyError\('height'\)"):
        read_folder(folder)


def test_truncated_json_is_refused(tmp_path):
    folder = images(tmp_path / "d", "a.png", "b.png")
    for hidden in (".old", "__MACOSX"):
        (folder / hidden).mkdir()
        (folder / hidden / "x.json").write_bytes(b"\0")
    (folder / "._train.json").write_bytes(b"\0")
    assert [row.disease for row in read_folder(folder).rows] == [None, None]
    (folder / "train.json").write_text('{"images": [{"id": 1, "file_na')
    with pytest.raises(DataError, match=r"train.json` is not JSON, or truncated: Unterm"):
        read_folder(folder)


def test_yolo_invalid_line_is_refused(tmp_path):
    folder = images(tmp_path / "d", "images/a.png")
    (folder / "labels").mkdir()
    (folder / "labels/a.txt").write_text("0 .1 .1 .2 .2 .3 .3\n0 .1 .1 .2 .2 .3\n")
    with pytest.raises(DataError, match=r"a.txt`, line 2: '0 .1 .1 .2 .2 .3'"):
        read_folder(folder)


def test_yolo_names_not_utf8_are_refused(tmp_path):
    folder = images(tmp_path / "d", "images/train/a.png")
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/a.txt").write_text("0 .1 .1 .2 .1 .2 .2")
    (folder / "data.yaml").write_bytes("names: [pourriture séchée]".encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.yaml` is not text in UTF-8 \(byte 20\)"):
        read_folder(folder)
    (folder / "data.yaml").write_bytes("names: [pourriture séchée]".encode("utf-8-sig"))
    assert read_folder(folder).classes.lesions == ("pourriture séchée",)


def test_image_without_leaf_outline_has_unknown_leaf(tmp_path):
    folder = images(tmp_path / "d", "a.png", "b.png")
    as_json(folder / "a.json", labelme_tree([shape("leaf", LEAF), shape("rust", RUST)]))
    as_json(folder / "b.json", labelme_tree([shape("rust", RUST)]))
    manifest = read_folder(folder)
    a, b = (sample_of(manifest, key) for key in "ab")
    assert (a.leaf == 1).sum() == inside(LEAF).sum()
    assert set(np.unique(b.leaf)) == {1, 255}
    assert set(np.unique(b.lesion)) == {0, 1}


def test_points_and_scribbles_leave_other_pixels_ignored(tmp_path):
    folder = images(tmp_path / "d", "a.png", "b.png")
    seeds = [
        shape("rust", [[10.5, 10.5]], "point"),
        shape("background", [[40.5, 5.5], [40.5, 50.5]], "linestrip"),
    ]
    as_json(folder / "a.json", labelme_tree(seeds))
    as_json(folder / "b.json", labelme_tree([shape("rust", RUST)]))
    manifest = read_folder(folder)
    sample = sample_of(manifest, "a")
    assert sample.lesion[10, 10] == 1
    assert 1 <= (sample.lesion == 1).sum() <= 16
    assert (sample.lesion[5:51, 40] == 0).all()
    assert (sample.lesion == 255).mean() > 0.9
    # Sparse masks are only used for training.
    assert [row.split for row in manifest.rows] == ["train", None]


def test_class_file_maps_annotation_names(tmp_path):
    folder = images(tmp_path / "d", "a.png")
    shapes = [shape(name, points) for name, points in OUTLINES.items()]
    as_json(folder / "a.json", labelme_tree(shapes))
    (folder / "classes.yaml").write_text("early blight: blight\nleaf: leaf\n")
    with pytest.raises(DataError, match="does not state the meaning of `rust`") as caught:
        read_folder(folder)
    assert "add `rust: rust`" in str(caught.value)
    (folder / "classes.yaml").write_text("Early blight: blight\nleaf: leaf\nRUST: blight\n")
    manifest = read_folder(folder)
    assert manifest.classes.lesions == ("blight",)
    assert (sample_of(manifest, "a").lesion == 1).sum() > 400


def test_saved_masks_survive_moving_the_run(tmp_path):
    folder = images(tmp_path / "d", "a.png")
    as_json(folder / "a.json", labelme_tree([shape("rust", RUST)]))
    manifest = save_rasterized_masks(read_folder(folder), tmp_path / "run/masks")
    manifest.write(tmp_path / "run/manifest.json")
    before = sample_of(manifest, "a").lesion
    (tmp_path / "run").rename(tmp_path / "moved")
    (row,) = Manifest.read(tmp_path / "moved/manifest.json").rows
    assert row.mask == tmp_path / "moved/masks/d/a.png"
    assert np.array_equal(load_sample(row, manifest).lesion, before)
