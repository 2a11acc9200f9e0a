"""Small data sets in the layouts of annotation tools, drawn for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample

H, W = 48, 64
PATCH = (12, 8, 40, 30)
"""Left, top, right and bottom of the drawn lesion."""


def patch(box=PATCH, size_hw=(H, W)):
    """Return the mask of an upright rectangle."""
    left, top, right, bottom = box
    mask = np.zeros(size_hw, bool)
    mask[top:bottom, left:right] = True
    return mask


def corners(box=PATCH):
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def save_image(path, seed=0, size_hw=(H, W)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (*size_hw, 3))
    noise[..., 1] += 100
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


def save_images(folder, *names):
    for seed, name in enumerate(names):
        save_image(folder / name, seed)
    return folder


def write_json(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, ensure_ascii=False), "utf-8")
    return path


def labelme(path, *shapes, **more):
    """Write a LabelMe file; a shape is a label, its points, and its kind."""
    tree = {
        "version": "5.5.0",
        "imageHeight": H,
        "imageWidth": W,
        "shapes": [
            {"label": label, "points": points, "shape_type": kind}
            for label, points, kind in shapes
        ],
        **more,
    }
    return write_json(path, {k: v for k, v in tree.items() if v != "absent"})


def coco(path, names, segmentations, categories=None, **image_fields):
    """Write a COCO file: one annotation of category 1 for each image."""
    images = [
        {"id": i, "file_name": name, "height": H, "width": W, **image_fields}
        for i, name in enumerate(names, 1)
    ]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, **fields}
        for i, fields in enumerate(segmentations, 1)
    ]
    tree = {
        "images": [{k: v for k, v in i.items() if v != "absent"} for i in images],
        "annotations": annotations,
        "categories": categories or [{"id": 1, "name": "rust"}],
    }
    return write_json(path, tree)


def outline(box=PATCH):
    return {"segmentation": [[float(n) for point in corners(box) for n in point]]}


def cvat(path, bodies, root="annotations"):
    """Write a CVAT file; ``bodies`` maps the name of an image to its shapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = "".join(
        f'<image id="{i}" name="{name}" width="{W}" height="{H}">{body}</image>'
        for i, (name, body) in enumerate(bodies.items())
    )
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?><{root}>{entries}</{root}>', "utf-8"
    )
    return path


def polygon(label="rust", box=PATCH, more=""):
    points = ";".join(f"{x},{y}" for x, y in corners(box))
    return f'<polygon label="{label}" points="{points}" {more}/>'


def yolo_line(box=PATCH, number=0):
    relative = np.array(corners(box)) / (W, H)
    return f"{number} " + " ".join(f"{v:.6f}" for v in relative.ravel())


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def read(folder):
    """Return the manifest of a folder and its only origin."""
    manifest = read_folder(folder)
    (origin,) = manifest.origins.values()
    return manifest, origin


def lesions(manifest):
    """Return the lesion mask of every row that has a mask, by the name of its image."""
    return {
        row.image.name: load_sample(row, manifest).lesion
        for row in manifest.rows
        if row.mask is not None
    }


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def unlabeled_images(manifest):
    return sorted(row.image.name for row in manifest.rows if row.mask is None)


def assert_all_show(manifest, n, mask=None, least=1 - 1e-9):
    """Assert that ``n`` images have a mask, which shows this lesion, or the usual patch."""
    shown = lesions(manifest)
    assert len(shown) == n
    expected = patch() if mask is None else mask
    for name, lesion in shown.items():
        assert overlap(lesion > 0, expected) >= least, name


def save_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)
