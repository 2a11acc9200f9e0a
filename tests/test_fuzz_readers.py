"""Whatever is in a file, its reader returns, or raises an error of the package.

Small valid files are damaged at random: bytes flipped, cut, moved and repeated, values
replaced by what no tool writes, and nested. Nothing but ``PlantSegError`` may escape.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from plantseg_next.data.class_names import read_names
from plantseg_next.data.formats import read_folder
from plantseg_next.data.formats.coding import read_coding, read_meanings
from plantseg_next.data.formats.tables import read_index
from plantseg_next.data.image_io import load_sample, read_header, read_image, read_mask
from plantseg_next.errors import PlantSegError
from plantseg_next.models.bundle import CARD, read_card
from plantseg_next.settings import Settings
from plantseg_next.structures import ClassMap
from plantseg_next.training.callbacks.status import PROGRESS, read_status
from plantseg_next.training.checkpoints import Checkpoints
from plantseg_next.training.run_record import (
    CHECKPOINTS,
    EVENTS,
    RECORD,
    SETTINGS,
    RunRecord,
)
from small_models import write_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of decoders, about damaged content

OUTLINE = [[4, 4], [12, 4], [12, 12]]
FLAT = [number for point in OUTLINE for number in point]


class Reader(NamedTuple):
    """A kind of file and what reads it.

    Args:
        name: The file in its folder.
        build: Makes the folder with the file in it.
        read: Reads the folder.
    """

    name: str
    build: Callable[[Path], object]
    read: Callable[[Path], object]


def images(folder: Path, *names: str) -> None:
    for i, name in enumerate(names or ("a.png", "b.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(path)


def masks(folder: Path, *, colored: bool = False) -> None:
    images(folder / "images")
    mask = np.zeros((16, 16), np.uint8)
    mask[2:14, 2:14], mask[5:8, 5:8] = 1, 2
    (folder / "masks").mkdir()
    for name in "ab":
        drawn = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], np.uint8)[mask]
        Image.fromarray(drawn if colored else mask).save(folder / "masks" / f"{name}.png")
    if not colored:
        (folder / "classes.yaml").write_text("0: background\n1: leaf\n2: rust\n")


def nothing(_: Path) -> None:
    """Make nothing; the folder is there already."""


def text(name: str, content: object, build: Callable[[Path], object] = masks) -> Any:
    """Return a function that makes a folder with a text file in it."""

    def make(folder: Path) -> None:
        build(folder)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    return make


def read_data(folder: Path) -> None:
    manifest = read_folder(folder)
    for row in manifest.labeled.rows:
        load_sample(row, manifest)


def manifest(folder: Path) -> None:
    masks(folder)
    read_folder(folder).write(folder / "manifest.json")


def embedded() -> str:
    content = io.BytesIO()
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def run_folder(folder: Path) -> None:
    masks(folder / "data")
    sources = {"data": [str(folder / "data")]}
    record = RunRecord(Settings(), sources, (9, 1), {"threads": 1, "machine": "x"})
    record.write(folder, read_folder(folder / "data"))
    sizes = ("ram", "ram_peak", "ram_free", "disk_free", "gpu", "gpu_peak")
    progress = {f"{name}_mib": 400 for name in sizes} | {"time": 1.7e9, "left_s": 12.5}
    progress |= {"state": "running", "step": 3, "steps": 9, "lesion_fractions": {"s": 0.1}}
    (folder / PROGRESS).write_text(json.dumps(progress))
    event = {"step": 1, "kind": "rollback", "text": "to step 0"}
    (folder / EVENTS).write_text(f"{json.dumps(event)}\n" * 2)


def checkpoint(folder: Path) -> None:
    state = {"engine": {0: torch.arange(6.0)}, "rows": [{"loss": math.inf}, None]}
    Checkpoints(folder).save(state, step=1)


def read_checkpoint(folder: Path) -> None:
    path = folder / CHECKPOINT
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    Checkpoints(folder).load()


COCO = {
    "images": [
        {"id": i, "file_name": f"{n}.png", "height": 16, "width": 16}
        for i, n in enumerate("ab")
    ],
    "categories": [{"id": 1, "name": "rust"}, {"id": 2, "name": "leaf"}],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [FLAT]},
        {
            "id": 2,
            "image_id": 1,
            "category_id": 2,
            "segmentation": {"size": [16, 16], "counts": [40, 100, 116]},
        },
        {
            "id": 3,
            "image_id": 1,
            "category_id": 1,
            "segmentation": {"size": [16, 16], "counts": "X1T3L3"},
            "iscrowd": 1,
        },
    ],
}
LABELME = {
    "version": "5",
    "flags": {},
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": 16,
    "imageWidth": 16,
    "shapes": [
        {"label": "rust", "shape_type": kind, "points": OUTLINE, "group_id": None}
        for kind in ("polygon", "rectangle", "circle", "linestrip")
    ]
    + [
        {
            "label": "leaf",
            "shape_type": "mask",
            "points": [[2, 2], [9, 9]],
            "mask": embedded(),
        }
    ],
}
POINTS = ";".join(f"{x},{y}" for x, y in OUTLINE)
CVAT = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><job><labels><label><name>rust</name></label></labels></job></meta>
<image id="0" name="a.png" width="16" height="16">
<polygon label="rust" points="{POINTS}" z_order="0"/>
<box label="rust" xtl="1" ytl="1" xbr="4" ybr="5" rotation="30"/>
<ellipse label="rust" cx="5" cy="5" rx="2" ry="3"/>
<mask label="rust" left="2" top="2" width="4" height="2" rle="1, 3, 4"/>
<polyline label="rust" points="{POINTS}"/><points label="rust" points="{POINTS}"/>
</image>
<image id="1" name="b.png" width="16" height="16" subset="Train"><tag label="healthy"/>
</image>
</annotations>"""
PLANTSEG = "Name,Index,Plant,Disease,Split\na.png,0,apple,rust,train\nb.png,1,apple,scab,\n"
LINES = "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0.5 0.5 0.25 0.25\n"
COLORS = "# label:color\nbackground:0,0,0::\nleaf:0,255,0::\nrust:255,0,0::\n"


def plantseg(folder: Path) -> None:
    masks(folder)
    (folder / "masks").rename(folder / "annotations")


def yolo(folder: Path) -> None:
    images(folder / "images" / "train")
    text("labels/train/a.txt", LINES, nothing)(folder)
    text("data.yaml", "names: {0: rust, 1: leaf}\n", nothing)(folder)


def voc(folder: Path) -> None:
    masks(folder, colored=True)
    (folder / "images").rename(folder / "JPEGImages")
    (folder / "masks").rename(folder / "SegmentationClass")
    text("labelmap.txt", COLORS, nothing)(folder)
    text("ImageSets/Segmentation/train.txt", "a\nb\n", nothing)(folder)


def read_images(folder: Path) -> None:
    (path,) = folder.iterdir()
    for read in (read_header, read_image, read_mask):
        with suppress(PlantSegError):
            read(path)


def read_run(folder: Path) -> None:
    str(read_status(folder, alive=False))


CODINGS = {
    "classes.yaml": "0: background\n1: leaf\n'2': rust\n",
    "classes.json": {"0": "background", "1": "leaf", "2": "rust"},
    "classes.csv": "value,meaning\n0,background\n1,leaf\n2,rust\n",
}
TABLE = "name,split,disease,group\na,train,rust,1\nb,val,,2\n"
NAMES = "a: {Rust: rust}\nb: {x: leaf}\n"
CARD_CLASSES = ClassMap(("rust",))
SPLIT_LIST = "ImageSets/Segmentation/train.txt"
CHECKPOINT = f"{CHECKPOINTS}/000001-step-1.safetensors"


def image_in(name: str) -> Reader:
    return Reader(name, lambda folder: images(folder, name), read_images)


def one(name: str, content: object, read: Callable[[Path], object]) -> Reader:
    """Return the reader of a text file that is read alone."""
    return Reader(name, text(name, content), lambda folder: read(folder / name))


ENDINGS = ("jpg", "png", "tif", "webp", "gif", "bmp")
READERS = {
    **{f"{ending} image": image_in(f"a.{ending}") for ending in ENDINGS},
    "manifest.json": Reader("manifest.json", manifest, read_data),
    "run.json": Reader(RECORD, run_folder, RunRecord.read),
    "settings.yaml": Reader(SETTINGS, run_folder, RunRecord.read),
    "progress.json": Reader(PROGRESS, run_folder, read_run),
    "events.jsonl": Reader(EVENTS, run_folder, read_run),
    "model.json": Reader(CARD, lambda f: write_model(f, CARD_CLASSES), read_card),
    "checkpoint": Reader(CHECKPOINT, checkpoint, read_checkpoint),
    **{name: Reader(name, text(name, it), read_data) for name, it in CODINGS.items()},
    **{f"names of {name}": one(name, it, read_meanings) for name, it in CODINGS.items()},
    "stated classes": one("mine.yml", CODINGS["classes.yaml"], read_coding),
    "class names": one("names.yaml", NAMES, read_names),
    "table": one("t.csv", TABLE.replace(",", ";"), read_index),
    "index.csv": Reader("index.csv", text("index.csv", TABLE), read_data),
    "labelmap.txt": Reader("labelmap.txt", voc, read_data),
    "VOC list": Reader(SPLIT_LIST, voc, read_data),
    "PlantSeg": Reader("Metadata.csv", text("Metadata.csv", PLANTSEG, plantseg), read_data),
    "COCO": Reader("coco.json", text("coco.json", COCO, images), read_data),
    "LabelMe": Reader("a.json", text("a.json", LABELME, images), read_data),
    "CVAT": Reader("annotations.xml", text("annotations.xml", CVAT, images), read_data),
    "YOLO label": Reader("labels/train/a.txt", yolo, read_data),
    "YOLO data.yaml": Reader("data.yaml", yolo, read_data),
}
NAMES_OF_READERS = list(READERS)
TOKENS = [
    *(b"NaN", b"1e999", b"-1", b"9" * 30, b"0", b"1.5", b"null", b"true", b"~", b".inf"),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"'",
        b",",
        b":",
        b";",
        b"\t",
        b"\n",
        b"\r",
        b" ",
        b"#",
    ),
    *(b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\\ud800", b"\xed\xa0\x80", b"\x1b["),
    *(b"&a [*a]", b"*a", b"<<: ", b"---\n", b"!!binary ", b"- ", b"? ", b"|\n", b"{}"),
    *(b"<a>", b"</image>", b"<!DOCTYPE a>", b"&amp;", b"/>", b"=", b"../x", b"/dev/zero"),
]
VALUES = [
    *(None, True, False, -1, 0, 1, 2**31, 10**30, 1.5, -1e308, math.nan, math.inf),
    *("", "a", "nan", "../x", "/dev/zero", "a\0", "\ud800", "é", "9" * 99, "rust", "train"),
    *([], [[]], [[[]]], {}, {"a": 1}, [None], ["a"], [1, 2], [[1, 2]], {"size": [1]}),
]
DAMAGES = ["flip", "cut", "end", "repeat", "swap", "insert", "put"]


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return content with one to four pieces flipped, cut, moved, repeated or inserted."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        piece, rest = content[start:end], content[end:]
        match draw(st.sampled_from(DAMAGES)):
            case "flip":
                flips = draw(st.binary(min_size=1, max_size=2))
                head = bytes(a ^ b for a, b in zip(piece, flips, strict=False))
                piece = head + piece[len(head) :]
            case "cut":
                piece = b""
            case "end":
                piece, rest = b"", b""
            case "repeat":
                piece *= draw(st.sampled_from([2, 3, 300]))
            case "swap":
                other = draw(st.integers(0, len(rest)))
                piece, rest = rest[:other], piece + rest[other:]
            case "insert":
                times = draw(st.sampled_from([1, 1, 1, 200]))
                piece += draw(st.sampled_from(TOKENS)) * times
            case "put":
                piece = draw(st.sampled_from(TOKENS))
        content = content[:start] + piece + rest
    return content


@st.composite
def damaged_tree(draw: st.DrawFn, content: bytes) -> bytes:
    """Return JSON with one to three of its values replaced, removed, nested or copied."""
    tree = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_in(tree))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "remove", "nest", "copy"])):
            case "replace":
                parent[key] = deepcopy(draw(st.sampled_from(VALUES)))
            case "remove":
                del parent[key]
            case "nest":
                for _ in range(draw(st.sampled_from([1, 2, 80, 200]))):
                    parent[key] = [parent[key]]
            case "copy":
                other, place = draw(st.sampled_from(places))
                other[place] = json.loads(json.dumps(parent[key]))
    return json.dumps(tree).encode()


def keys_of(value: Any) -> Any:
    return range(len(value)) if isinstance(value, list) else value


def places_in(tree: Any) -> Any:
    """Yield every place of a tree, as a container and a key; not those nested deep."""
    pending = [(tree, 0)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, dict | list) and depth < 20:
            for key in list(keys_of(value)):
                yield value, key
                pending.append((value[key], depth + 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("fuzz") / "data"
            made[name].mkdir()
            READERS[name].build(made[name])
        return made[name]

    return folder_of


def check_reader(name: str, folder: Path, data: st.DataObject) -> None:
    reader = READERS[name]
    path = folder / reader.name
    content = path.read_bytes()
    damaged = damaged_bytes(content)
    if path.suffix == ".json" and data.draw(st.booleans(), label="tree"):
        damaged = damaged_tree(content)
    try:
        path.write_bytes(data.draw(damaged, label="content"))
        with suppress(PlantSegError):
            reader.read(folder)
    finally:
        path.write_bytes(content)


@pytest.mark.integration
@pytest.mark.parametrize("name", READERS)
def test_undamaged_file_is_read(folders, name):
    READERS[name].read(folders(name))


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES_OF_READERS)
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_file_raises_nothing_but_errors_of_the_package(folders, name, data):
    check_reader(name, folders(name), data)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES_OF_READERS)
@settings(max_examples=2_000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_damaged_files_raise_nothing_but_errors_of_the_package(folders, name, data):
    check_reader(name, folders(name), data)
