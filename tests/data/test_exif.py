"""Photographs that are stored rotated or mirrored, and masks made before or after that."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from plantseg_next import api
from plantseg_next.cli.app import app
from plantseg_next.data.formats import read_folder, read_folders
from plantseg_next.data.image_io import load_sample, mask_orientation
from plantseg_next.data.manifest import Exif, Manifest
from plantseg_next.data.quality.check import check
from plantseg_next.data.quality.inspect import inspect
from plantseg_next.errors import DataError, UsageError

TURNS = range(1, 9)
SHAPES = [(48, 64), (56, 56)]
RED = (230, 30, 30)


def exif_of(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Return pixels rotated as Pillow does for an EXIF orientation."""
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = turn
    return np.array(ImageOps.exif_transpose(image))


def stored(hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a red patch off the center, and its mask, as stored."""
    mask = np.zeros(hw, np.uint8)
    mask[5:15, 8:30] = 1
    image = np.random.default_rng(hw[0]).integers(20, 120, (*hw, 3)).astype(np.uint8)
    image[mask == 1] = RED
    return image, mask


def folder_of(
    folder: Path,
    turn: int,
    hw: tuple[int, int],
    *,
    way: Exif,
    own: int = 1,
    count: int = 1,
) -> Path:
    """Write images and masks, drawn on the images as stored or upright."""
    image, mask = stored(hw)
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    drawn = mask if way == "as-stored" else upright(mask, turn)
    for n in range(count):
        image[-1, -1] = n
        name = f"{n}.png"
        Image.fromarray(image).save(folder / "images" / name, exif=exif_of(turn))
        Image.fromarray(drawn).save(
            folder / "masks" / name, **({"exif": exif_of(own)} if own > 1 else {})
        )
    return folder


def assert_on_patch(manifest: Manifest) -> None:
    """Assert that every mask lies on the red patch of its image, to the pixel."""
    assert manifest.rows
    for row, stats in zip(manifest.rows, inspect(manifest), strict=True):
        sample = load_sample(row, manifest)
        assert np.array_equal(sample.lesion == 1, (sample.image == RED).all(axis=2))
        assert stats.failures == []
        assert sum(stats.mask.lesion_px.values()) == 220


def codes(manifest: Manifest) -> dict[str, tuple[Path, ...]]:
    return {issue.code: issue.files for issue in check(manifest).issues}


@pytest.mark.parametrize("hw", SHAPES)
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("way", ["as-stored", "upright"])
def test_stated_way_is_applied_to_every_orientation(tmp_path, hw, turn, way):
    """After wkentaro/labelme#1529: masks that do not match rotated photographs."""
    manifest = read_folder(folder_of(tmp_path, turn, hw, way=way), exif=way)
    assert_on_patch(manifest)
    assert "exif-ambiguous" not in codes(manifest)


@pytest.mark.parametrize("hw", SHAPES)
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("way", ["as-stored", "upright"])
def test_orientation_that_sizes_do_not_show_is_a_warning(tmp_path, hw, turn, way):
    """After CVHub520/X-AnyLabeling#1098: tools that ignore the EXIF orientation."""
    manifest = read_folder(folder_of(tmp_path, turn, hw, way=way))
    sizes_show = turn >= 5 and hw[0] != hw[1]
    found = codes(manifest)
    if turn == 1 or sizes_show:
        assert "exif-ambiguous" not in found
        assert_on_patch(manifest)
    else:
        assert [path.name for path in found["exif-ambiguous"]] == ["0.png"]
        if way == "upright":
            assert_on_patch(manifest)


@pytest.mark.parametrize("hw", SHAPES)
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("exif", [None, "as-stored", "upright"])
def test_orientation_of_the_mask_itself_is_applied(tmp_path, hw, turn, exif):
    """After ryouchinsa/Rectlabel-support#167: files that keep the orientation as a tag."""
    folder = folder_of(tmp_path, turn, hw, way="as-stored", own=turn)
    if turn == 1 and exif:
        return
    manifest = read_folder(folder, exif=exif)
    assert_on_patch(manifest)
    assert "exif-ambiguous" not in codes(manifest)


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_copied_orientation_of_an_upright_mask_is_not_applied(tmp_path, turn):
    folder = folder_of(tmp_path, turn, (48, 64), way="upright", own=turn)
    assert_on_patch(read_folder(folder))


@pytest.mark.parametrize(
    ("way", "other"), [("as-stored", "upright"), ("upright", "as-stored")]
)
def test_stated_way_that_sizes_contradict_is_an_error(tmp_path, way, other):
    manifest = read_folder(folder_of(tmp_path, 6, (48, 64), way=way), exif=other)
    with pytest.raises(DataError, match=f"masks are stated to lie {other}") as caught:
        load_sample(manifest.rows[0], manifest)
    assert "leave out --exif" in caught.value.fix
    assert "size-mismatch" in codes(manifest)


def test_warning_names_images_and_the_option(tmp_path):
    manifest = read_folder(folder_of(tmp_path, 3, (48, 64), way="as-stored", count=3))
    (issue,) = [i for i in check(manifest).issues if i.code == "exif-ambiguous"]
    assert issue.severity == "warning"
    assert "would fit them both as stored and upright" in issue.text
    assert "upright image: 3." in issue.text
    assert "--exif as-stored" in issue.fix
    assert [path.name for path in issue.files] == ["0.png", "1.png", "2.png"]


# annotations


def corners(mask: np.ndarray) -> list[tuple[int, int]]:
    ys, xs = np.nonzero(mask)
    a, b, c, d = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    return [(a, b), (c, b), (c, d), (a, d)]


def annotated(folder: Path, kind: str, turn: int, hw: tuple[int, int], way: Exif) -> Path:
    image, mask = stored(hw)
    mask = mask if way == "as-stored" else upright(mask, turn)
    (folder / "images").mkdir(parents=True)
    Image.fromarray(image).save(folder / "images" / "0.png", exif=exif_of(turn))
    points, (h, w) = corners(mask), mask.shape
    kind, _, without = kind.partition(" without ")
    if kind == "yolo":
        (folder / "labels").mkdir()
        line = " ".join(f"{x / w:.9f} {y / h:.9f}" for x, y in points)
        (folder / "labels" / "0.txt").write_text(f"0 {line}\n")
    elif kind == "labelme":
        shape = {"label": "rust", "points": points, "shape_type": "polygon"}
        size = {} if without else {"imageHeight": h, "imageWidth": w}
        tree = {"shapes": [shape], "imagePath": "0.png", **size}
        (folder / "images" / "0.json").write_text(json.dumps(tree))
    elif kind == "coco":
        size = {} if without else {"height": h, "width": w}
        tree = {
            "images": [{"id": 1, "file_name": "0.png", **size}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 1,
                    "segmentation": [[v for p in points for v in p]],
                }
            ],
            "categories": [{"id": 1, "name": "rust"}],
        }
        (folder / "a.json").write_text(json.dumps(tree))
    else:
        text = ";".join(f"{x},{y}" for x, y in points)
        (folder / "annotations.xml").write_text(
            f'<annotations><image id="0" name="0.png" width="{w}" height="{h}">'
            f'<polygon label="rust" points="{text}"/></image></annotations>'
        )
    return folder


@pytest.mark.parametrize("hw", [(48, 64), (56, 56)])
@pytest.mark.parametrize("turn", [2, 3, 5, 6, 8])
@pytest.mark.parametrize(
    "kind",
    ["yolo", "labelme", "coco", "cvat", "labelme without size", "coco without size"],
)
@pytest.mark.parametrize("way", ["as-stored", "upright"])
def test_outlines_lie_as_stated(tmp_path, kind, turn, hw, way):
    manifest = read_folder(annotated(tmp_path, kind, turn, hw, way), exif=way)
    assert_on_patch(manifest)
    assert "exif-ambiguous" not in codes(manifest)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("kind", ["yolo", "coco"])
def test_outlines_in_parts_of_the_size_are_always_ambiguous(tmp_path, kind, turn):
    manifest = read_folder(annotated(tmp_path, kind, turn, (48, 64), "upright"))
    assert_on_patch(manifest)
    ambiguous = turn > 1 if kind == "yolo" else turn in (2, 3, 4)
    assert ("exif-ambiguous" in codes(manifest)) == ambiguous


# the option


def test_option_names_a_data_set(tmp_path):
    folders = [
        folder_of(tmp_path / "a", 3, (48, 64), way="as-stored"),
        folder_of(tmp_path / "b", 3, (48, 64), way="upright"),
    ]
    manifest = read_folders(folders, exif=["upright", "a=as-stored"])
    assert {name: c.exif for name, c in manifest.codings.items()} == {
        "a": "as-stored",
        "b": "upright",
    }
    assert_on_patch(manifest)


@pytest.mark.parametrize(
    ("text", "message"),
    [("stored", "--exif is `stored`"), ("c=upright", "--exif names the data set `c`")],
)
def test_option_with_another_word_or_data_set_is_refused(tmp_path, text, message):
    folder = folder_of(tmp_path / "a", 3, (48, 64), way="upright")
    with pytest.raises(UsageError, match=message):
        read_folders([folder], exif=[text])


def test_manifest_keeps_the_stated_way(tmp_path):
    folder = folder_of(tmp_path / "a", 3, (48, 64), way="as-stored")
    read_folder(folder, exif="as-stored").write(tmp_path / "manifest.json")
    assert '"exif": "as-stored"' in (tmp_path / "manifest.json").read_text("utf-8")
    assert_on_patch(Manifest.read(tmp_path / "manifest.json"))
    read_folder(folder).write(tmp_path / "plain.json")
    text = (tmp_path / "plain.json").read_text("utf-8")
    assert "exif" not in text
    assert "channel" not in text


def test_sources_record_the_stated_way(tmp_path):
    folder = folder_of(tmp_path / "a", 3, (48, 64), way="as-stored")
    sources = api.DataSources(folder, exif=["as-stored"])
    assert_on_patch(sources.read())
    assert sources.plain()["exif"] == ["as-stored"]
    assert "exif" not in api.DataSources(folder).plain()


def test_check_command_takes_the_option(tmp_path):
    folder = folder_of(tmp_path / "a", 3, (48, 64), way="as-stored", count=4)
    runner = CliRunner()
    assert "[exif-ambiguous]" in runner.invoke(app, ["check", str(folder)]).output
    stated = runner.invoke(app, ["check", str(folder), "--exif", "a=as-stored"]).output
    assert "exif-ambiguous" not in stated
    assert "are said to; they are rotated with it: 4." in stated


def test_mask_orientation_of_a_mask_that_fits_no_way_is_refused(tmp_path):
    folder = folder_of(tmp_path, 6, (48, 64), way="upright")
    image, mask = folder / "images" / "0.png", folder / "masks" / "0.png"
    with pytest.raises(DataError, match="has 60 x 64 pixels, but its image"):
        mask_orientation(image, mask, (64, 48), (64, 60), own=1)
