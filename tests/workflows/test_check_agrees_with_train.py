"""What `train` refuses is an error of `check`, in the same words, and the reverse.

An error of `check` with which training starts is in the log of `train`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import TINY
from plantseg_next import api
from plantseg_next.errors import DataError, PlantSegError, UsageError
from plantseg_next.workflows.training_data import DataSources, TrainingData, build_manifest

pytestmark = pytest.mark.integration


def draw(seed: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy image, and a mask of 0 background, 1 leaf and 2 lesion."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 200, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[side // 8 : -side // 8, side // 8 : -side // 8] = 1
    mask[side // 4 : side // 2, side // 4 : side // 2] = 2
    return image, mask


def add(
    folder: Path,
    name: str,
    seed: int,
    *,
    side: int = 64,
    values: dict[int, int] | None = None,
    mask: bool = True,
) -> None:
    """Write an image and its mask, with some of its values replaced."""
    image, ids = draw(seed, side)
    for value, other in (values or {}).items():
        ids[ids == value] = other
    for kind, pixels in (("images", image), ("masks", ids)):
        if kind == "images" or mask:
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    if mask and not (folder / "classes.yaml").exists():
        (folder / "classes.yaml").write_text("0: background\n1: leaf\n2: rust\n")


def several(n: int, *, of: str = "", **options: object) -> Callable[[Path], None]:
    """Return a function that writes so many images, all in one split if it is named."""

    def write(folder: Path) -> None:
        for i in range(n):
            add(folder, f"{of}/{i}" if of else str(i), i, **options)  # type: ignore[arg-type]

    return write


def in_splits(
    spoil: Callable[[Path], object] = lambda _: None, *, n: int = 4
) -> Callable[[Path], None]:
    """Return a function that writes images of all splits, and spoils some."""

    def write(folder: Path) -> None:
        for k, split in enumerate(("train", "val", "test")):
            for i in range(n):
                add(folder, f"{split}/{i}", 100 * k + i)
        (folder / "classes.yaml").write_text("0: background\n1: leaf\n2: rust\n")
        spoil(folder)

    return write


def broken(kind: str, split: str, n: int = 1) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        for i in range(n):
            (folder / kind / split / f"{i}.png").write_bytes(b"no image\0")

    return spoil


def jpeg_mask(folder: Path) -> None:
    Image.fromarray(draw(0)[1]).save(folder / "masks" / "val" / "0.png", "JPEG")


def other_size(split: str) -> Callable[[Path], object]:
    path = Path("masks") / split / "0.png"
    return lambda folder: Image.fromarray(draw(0, 48)[1]).save(folder / path)


def unknown_value(split: str) -> Callable[[Path], object]:
    return lambda folder: add(folder, f"{split}/0", 77, values={1: 9})


def boxes_only(folder: Path) -> None:
    (folder / "images").mkdir()
    boxes = []
    for i in range(6):
        Image.fromarray(draw(i)[0]).save(folder / "images" / f"{i}.png")
        box = {
            "id": i,
            "image_id": i,
            "category_id": 1,
            "bbox": [9, 9, 20, 20],
            "area": 400,
        }
        boxes.append(box | {"segmentation": [], "iscrowd": 0})
    images = [
        {"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(6)
    ]
    categories = [{"id": 1, "name": "rust"}]
    table = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(table))


def annotated_at_another_size(folder: Path) -> None:
    for i in range(8):
        Image.fromarray(draw(i)[0]).save(folder / f"{i}.png")
        corners = [[10, 10], [40, 10], [40, 40]]
        shape = {"label": "rust", "shape_type": "polygon", "points": corners}
        size = {"imageHeight": 64, "imageWidth": 64 if i else 99}
        table = {"version": "5.0.1", "shapes": [shape], "imagePath": f"{i}.png", **size}
        (folder / f"{i}.json").write_text(json.dumps(table))


def empty_index(folder: Path) -> None:
    several(8)(folder)
    (folder / "index.csv").write_text("")


def index_without_rows(folder: Path) -> None:
    several(8)(folder)
    (folder / "index.csv").write_text("name,split\n")


def of_one_leaf(folder: Path) -> None:
    several(8)(folder)
    lines = "".join(f"{i},leaf\n" for i in range(8))
    (folder / "index.csv").write_text(f"name,group\n{lines}")


def group_in_two_splits(folder: Path) -> None:
    lines = "".join(f"{s}/{i},g{i}\n" for s in ("train", "val", "test") for i in range(4))
    (folder / "index.csv").write_text(f"name,group\n{lines}")


def only_train_masks(folder: Path) -> None:
    several(6, of="train")(folder)
    for i in range(4):
        add(folder, f"val/{i}", 100 + i, mask=False)
        add(folder, f"test/{i}", 200 + i, mask=False)


def copy_in_two_splits(folder: Path) -> None:
    add(folder, "test/0", 0)


def mirrored_in_two_splits(folder: Path) -> None:
    for kind in ("images", "masks"):
        with Image.open(folder / kind / "train" / "1.png") as image:
            turned = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            turned.save(folder / kind / "test" / "1.png")


def class_in_test_only(folder: Path) -> None:
    (folder / "classes.yaml").write_text("0: background\n1: leaf\n2: rust\n3: blight\n")
    for i in range(4):
        add(folder, f"test/{i}", 200 + i, values={2: 3})


def healthy(split: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        seed = {"train": 0, "val": 100, "test": 200}[split]
        for i in range(4):
            add(folder, f"{split}/{i}", seed + i, values={2: 1})

    return spoil


def healthy_only(folder: Path) -> None:
    several(8, values={2: 1})(folder)
    (folder / "classes.yaml").write_text("0: background\n1: leaf\n2: rust\n")


def leaf_only(folder: Path) -> None:
    several(8, values={2: 1})(folder)
    (folder / "classes.yaml").write_text("0: background\n1: leaf\n")


def labels_only(folder: Path) -> None:
    for i in range(8):
        path = folder / ("healthy", "rust")[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw(i)[0]).save(path)


def missing(split: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "images" / split / "0.png"
        path.unlink()
        path.symlink_to("nowhere.png")

    return spoil


# Each data set, and the errors of `check`. "log": training starts, and its log says so.
REFUSED: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "one image": (several(1), {"no-masks-in-val"}),
    "two images": (several(2), {"no-masks-in-val"}),
    "only train": (several(1, of="train"), {"no-masks-in-val"}),
    "only test": (several(12, of="test"), {"no-masks-in-train", "no-masks-in-val"}),
    "only val": (several(12, of="val"), {"no-masks-in-train"}),
    "train without val masks": (only_train_masks, {"no-masks-in-val"}),
    "one leaf": (of_one_leaf, {"no-masks-in-val"}),
    "healthy only": (healthy_only, {"no-lesion-in-train"}),
    "healthy train": (in_splits(healthy("train")), {"no-lesion-in-train"}),
    "leaf only": (leaf_only, {"no-lesion-in-train"}),
    "background only": (several(8, values={1: 0, 2: 0}), {"no-lesion-in-train"}),
    "no masks": (several(8, mask=False), {"nothing-to-learn"}),
    "labels only": (labels_only, {"no-masks"}),
    "boxes only": (boxes_only, {"nothing-to-learn"}),
    "broken train image": (in_splits(broken("images", "train")), {"unreadable-image"}),
    "broken val image": (in_splits(broken("images", "val")), {"unreadable-image"}),
    "all val broken": (in_splits(broken("images", "val", 4)), {"unreadable-image"}),
    "missing train image": (in_splits(missing("train")), {"unreadable-image"}),
    "broken train mask": (in_splits(broken("masks", "train")), {"unreadable-mask"}),
    "broken val mask": (in_splits(broken("masks", "val")), {"unreadable-mask"}),
    "JPEG mask": (in_splits(jpeg_mask), {"jpeg-mask"}),
    "train mask of another size": (in_splits(other_size("train")), {"size-mismatch"}),
    "val mask of another size": (in_splits(other_size("val")), {"size-mismatch"}),
    "annotated at another size": (annotated_at_another_size, {"size-mismatch"}),
    "unknown value in train": (in_splits(unknown_value("train")), {"unknown-mask-value"}),
    "unknown value in val": (in_splits(unknown_value("val")), {"unknown-mask-value"}),
}
LOGGED: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "broken test image": (in_splits(broken("images", "test")), {"unreadable-image"}),
    "broken test mask": (in_splits(broken("masks", "test")), {"unreadable-mask"}),
    "test mask of another size": (in_splits(other_size("test")), {"size-mismatch"}),
    "unknown value in test": (in_splits(unknown_value("test")), {"unknown-mask-value"}),
    "copy": (in_splits(copy_in_two_splits), {"copy-across-splits"}),
    "mirrored": (in_splits(mirrored_in_two_splits), {"near-duplicate-across-splits"}),
    "group": (in_splits(group_in_two_splits), {"group-across-splits"}),
}
TRAINED: dict[str, Callable[[Path], object]] = {
    "three images": several(3),
    "small images": several(12, side=16),
    "class in test only": in_splits(class_in_test_only),
    "healthy val": in_splits(healthy("val")),
    "healthy test": in_splits(healthy("test")),
    "good": in_splits(),
}


def outcome(folder: Path) -> tuple[str, list[str]]:
    """Return what train refuses ("" if nothing) before its first step, and its log."""
    lines: list[str] = []
    try:
        manifest = build_manifest(DataSources(folder), TINY, log=lines.append)
        TrainingData.create(manifest, TINY, str(folder), log=lines.append)
    except PlantSegError as error:
        return error.came, lines
    return "", lines


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_train_is_an_error_of_check_in_the_same_words(tmp_path, name):
    write, codes = REFUSED[name]
    write(tmp_path)
    report = api.check(tmp_path)
    errors = report.of("error")
    assert {issue.code for issue in errors} == codes
    refused, _ = outcome(tmp_path)
    assert refused in [issue.text for issue in errors]
    assert report.next_steps
    assert not any("plantseg-next train" in step for step in report.next_steps)


@pytest.mark.parametrize("name", LOGGED)
def test_error_of_check_with_which_training_starts_is_in_its_log(tmp_path, name):
    write, codes = LOGGED[name]
    write(tmp_path)
    assert {issue.code for issue in api.check(tmp_path).of("error")} == codes
    refused, lines = outcome(tmp_path)
    assert not refused
    for code in codes:
        assert any(line.startswith(f"error [{code}]: ") for line in lines)


@pytest.mark.parametrize("name", TRAINED)
def test_data_set_without_an_error_of_check_is_trained_on(tmp_path, name):
    TRAINED[name](tmp_path)
    report = api.check(tmp_path)
    assert not report.of("error")
    refused, lines = outcome(tmp_path)
    assert not refused
    assert not any(line.startswith("error") for line in lines)
    assert report.next_steps[-1] == f"  plantseg-next train {tmp_path} --out RUN"


@pytest.mark.parametrize("write", [lambda _: None, empty_index, index_without_rows])
def test_folder_that_cannot_be_read_is_refused_by_both(tmp_path, write):
    write(tmp_path)
    with pytest.raises((UsageError, DataError)) as by_check:
        api.check(tmp_path)
    with pytest.raises(type(by_check.value)) as by_train:
        api.train(tmp_path, tmp_path / "run", TINY)
    assert str(by_check.value) == str(by_train.value)


def test_annotation_of_another_size_is_named_by_its_image(tmp_path):
    annotated_at_another_size(tmp_path)
    (issue,) = api.check(tmp_path).of("error")
    assert issue.files == (tmp_path / "0.png",)
    assert f"`{tmp_path / '0.png'}` was annotated at 99 x 64 pixels" in issue.text
    assert "annotation tool" in issue.fix


def test_train_refuses_a_set_before_its_folder_is_made(tmp_path):
    several(12, of="test")(tmp_path / "data")
    with pytest.raises(
        UsageError, match="no image with a mask in its train split"
    ) as error:
        api.train(tmp_path / "data", tmp_path / "run", TINY)
    assert error.value.exit_code == 2
    assert "move some labeled images to train" in error.value.fix
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("marked", "possible"), [("train", True), ("test", False)])
def test_severity_is_possible_for_check_as_for_train(tmp_path, marked, possible):
    in_splits()(tmp_path)
    lines = "0: background\n1: leaf\n2: rust\n3: no lesion\n"
    (tmp_path / "classes.yaml").write_text(lines)
    for k, split in enumerate(("train", "val", "test")):
        for i in range(4 if split != marked else 0):
            add(tmp_path, f"{split}/{i}", 100 * k + i, values={0: 3, 1: 3})
    severity = api.check(tmp_path).severity
    assert ("not possible" not in severity) == possible
    assert severity.startswith("Leaf marked in 4 of 12 labeled images")
    manifest = build_manifest(DataSources(tmp_path), TINY)
    data = TrainingData.create(manifest, TINY, "leaves")
    assert data.manifest.classes.has_leaf == possible
