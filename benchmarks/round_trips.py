"""Annotations written by the tools' own code, read here, and compared with their reading.

    pip install datumaro labelme ultralytics         # in another environment
    python benchmarks/round_trips.py write FOLDER    # there
    python benchmarks/round_trips.py read FOLDER     # here; adds rows to the CSV

``write`` draws outlines and masks of two classes, saves them with each tool, reads them
back with the reader of the same tool, and stores its masks as JSON. ``read`` reads the
folders with this package and reports the overlap (IoU) of every class.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

H, W = 96, 128
CLASSES = ("rust", "blight")
RESULTS = Path(__file__).parent / "results" / "round_trips.csv"
N = 4


def star(seed: int, x: float, y: float, radius: float) -> np.ndarray:
    """Return an outline of 14 points, (x, y)."""
    rng = np.random.default_rng(seed)
    angle = np.arange(14) * 2 * np.pi / 14
    radii = radius * rng.uniform(0.7, 1, 14)
    return np.stack([x + radii * np.cos(angle), y + radii * np.sin(angle)], 1).round(2)


def outlines(image: int) -> list[tuple[str, np.ndarray]]:
    """Return the drawn outlines of an image: one of each class."""
    return [
        ("rust", star(image, 35 + image, 40, 24)),
        ("blight", star(image + 100, 92, 55 - image, 26)),
    ]


def draw_images(folder: Path) -> list[Path]:
    """Save the images, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"leaf {i}.png" for i in range(N)]
    for i, path in enumerate(paths):
        noise = np.random.default_rng(i).integers(40, 90, (H, W, 3)).astype(np.uint8)
        noise[..., 1] += 90
        Image.fromarray(noise).save(path)
    return paths


def write(root: Path) -> None:
    """Write a folder for each tool and format, and the masks as the tool reads them."""
    root.mkdir(parents=True)
    images = draw_images(root / "drawn")
    _write_labelme(root, images)
    for name, export in (
        ("datumaro cvat", "cvat"),
        ("datumaro coco", "coco_instances"),
        ("datumaro voc", "voc_segmentation"),
        ("datumaro yolo", "yolo_ultralytics"),
    ):
        try:
            _write_datumaro(root, images, name, export)
        except Exception as error:
            print(name, repr(error)[:200])
            shutil.rmtree(root / name, ignore_errors=True)
    _write_ultralytics(root, images)


def _reference(root: Path, name: str, masks: dict[str, np.ndarray]) -> None:
    content = json.dumps({key: mask.tolist() for key, mask in masks.items()})
    (root / f"{name}.json").write_text(content)


def _write_labelme(root: Path, images: list[Path]) -> None:
    from labelme.utils import shapes_to_label

    folder = root / "labelme"
    shutil.copytree(images[0].parent, folder)
    masks = {}
    for i, path in enumerate(images):
        shapes: list[dict[str, Any]] = [
            {
                "label": name,
                "points": points.tolist(),
                "group_id": None,
                "shape_type": "polygon",
                "flags": {},
            }
            for name, points in outlines(i)
        ]
        tree: dict[str, Any] = {
            "version": "6.3.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": path.name,
            "imageData": None,
            "imageHeight": H,
            "imageWidth": W,
        }
        (folder / f"{path.stem}.json").write_text(json.dumps(tree))
        values = {"_background_": 0, **{c: n for n, c in enumerate(CLASSES, 1)}}
        mask, _ = shapes_to_label((H, W), shapes, values)
        masks[path.stem] = mask
    _reference(root, "labelme", masks)


def _write_datumaro(root: Path, images: list[Path], name: str, export: str) -> None:
    import datumaro as dm

    items = [
        dm.DatasetItem(
            id=path.stem,
            subset=("train", "val")[i % 2],
            media=dm.Image.from_file(path=str(path)),
            annotations=[
                dm.Polygon(
                    points.ravel().tolist(),
                    label=CLASSES.index(c),
                    id=k,
                    group=k,
                    z_order=k,
                )
                for k, (c, points) in enumerate(outlines(i), 1)
            ],
            attributes={"id": i + 1},
        )
        for i, path in enumerate(images)
    ]
    dataset = dm.Dataset.from_iterable(items, categories=list(CLASSES))
    if export == "voc_segmentation":
        dataset.transform("polygons_to_masks")
    folder = root / name
    dataset.export(str(folder), export, save_media=True)
    again = dm.Dataset.import_from(str(folder), export)
    labels = [c.name for c in again.categories()[dm.AnnotationType.label]]
    masks = {}
    for item in again:
        mask = np.zeros((H, W), np.uint8)
        for area in item.annotations:
            if area.type in {dm.AnnotationType.polygon, dm.AnnotationType.mask}:
                inside = _inside(area, dm)
                mask[inside] = 1 + CLASSES.index(labels[area.label])
        masks[item.id.rpartition("/")[2]] = mask
    _reference(root, name, masks)


def _inside(area: Any, dm: Any) -> np.ndarray:  # noqa: ANN401 - classes of another package
    if area.type == dm.AnnotationType.mask:
        return np.asarray(area.image, bool)
    from pycocotools import mask as run_lengths

    rle = run_lengths.frPyObjects([list(area.points)], H, W)
    return np.asarray(run_lengths.decode(rle)[..., 0], bool)


def _write_ultralytics(root: Path, images: list[Path]) -> None:
    from ultralytics.data.converter import convert_coco

    name = "ultralytics convert_coco"
    folder = root / name
    source = root / "coco for ultralytics"
    source.mkdir()
    tree: dict[str, list[Any]] = {
        "images": [
            {"id": i, "file_name": p.name, "height": H, "width": W}
            for i, p in enumerate(images, 1)
        ],
        "annotations": [],
        "categories": [{"id": n, "name": c} for n, c in enumerate(CLASSES, 1)],
    }
    masks = {}
    from pycocotools import mask as run_lengths

    for i, path in enumerate(images):
        mask = np.zeros((H, W), np.uint8)
        for c, points in outlines(i):
            low, size = points.min(0), np.ptp(points, axis=0)
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]) + 1,
                    "image_id": i + 1,
                    "category_id": 1 + CLASSES.index(c),
                    "iscrowd": 0,
                    "bbox": [*low.tolist(), *size.tolist()],
                    "segmentation": [points.ravel().tolist()],
                }
            )
            rle = run_lengths.frPyObjects([points.ravel().tolist()], H, W)
            mask[run_lengths.decode(rle)[..., 0] > 0] = 1 + CLASSES.index(c)
        masks[path.stem] = mask
    (source / "train.json").write_text(json.dumps(tree))
    convert_coco(str(source), str(folder), use_segments=True, cls91to80=False)
    shutil.rmtree(source)
    (folder / "images" / "train").mkdir(parents=True, exist_ok=True)
    for path in images:
        shutil.copy(path, folder / "images" / "train")
    (folder / "data.yaml").write_text("names: [rust, blight]\n")
    _reference(root, name, masks)


def read(root: Path) -> None:
    """Read every folder with this package, and add a row for each to the CSV."""
    import results_table

    from plantseg_next.data.formats import read_folder
    from plantseg_next.data.image_io import load_sample

    for file in sorted(root.glob("*.json")):
        manifest = read_folder(root / file.stem)
        masks = json.loads(file.read_text())
        overlaps = []
        for row in manifest.labeled.rows:
            lesion = load_sample(row, manifest).lesion
            reference = np.array(masks[row.image.stem])
            for value, c in enumerate(CLASSES, 1):
                mine = lesion == 1 + manifest.classes.lesions.index(c)
                theirs = reference == value
                overlaps.append((mine & theirs).sum() / (mine | theirs).sum())
        (origin,) = manifest.origins.values()
        result = {
            "tool": file.stem,
            "layout": origin.layout,
            "images": len(manifest),
            "masks": len(manifest.labeled),
            "least_iou": round(float(min(overlaps, default=0)), 4),
            "mean_iou": round(float(np.mean(overlaps or [0])), 4),
            "unused": len(origin.unused),
        }
        print(result)
        results_table.append(RESULTS, result | results_table.stamp())


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
