"""Lesions are measured at the scale of the model and reported in pixels of the image."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.inference.backends import TileLogits
from plantseg_next.inference.pipeline import Pipeline
from plantseg_next.inference.predictor import Predictor
from plantseg_next.models.bundle import ModelCard
from plantseg_next.settings import ModelSettings
from plantseg_next.structures import ClassMap
from plantseg_next.workflows.predict import write_measures

CLASSES = ClassMap(("spot",), (), has_leaf=True)
SEEN_PX = 64
"""Long side of an image as the model sees it."""


def red_is_a_lesion(tiles):
    red, green = (tiles[..., i].astype(np.float32) / 255 for i in (0, 1))
    leaf = np.maximum(red, green)
    none = np.zeros((len(tiles), 0), np.float32)
    with np.errstate(divide="ignore"):
        lesion = np.log(np.stack([1 - red, red], axis=1))
        return TileLogits(lesion, np.log(leaf) - np.log1p(-leaf), none)


def leaf_image(times):
    """Return a leaf with lesions of 16 and 64 pixels, photographed that much larger."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[8:40, 8:56] = (0, 255, 0)
    image[12:16, 12:16] = image[20:28, 32:40] = (255, 0, 0)
    return image.repeat(times, axis=0).repeat(times, axis=1)


def measured(folder, images, min_lesion_px, long_side_px=SEEN_PX):
    """Return the rows of ``severity.csv``, as text, by name of image."""
    (folder / "images").mkdir(parents=True)
    for name, image in images.items():
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
    card = ModelCard(CLASSES, ModelSettings(), 32, long_side_px)
    predictor = Predictor(red_is_a_lesion, CLASSES, 32, long_side_px)
    write_measures(
        Pipeline(predictor, replace(card, sha256="ab" * 32)),
        read_folder(folder / "images"),
        folder / "out",
        name=lambda row: row.image.stem,
        min_lesion_px=min_lesion_px,
    )
    with (folder / "out" / "severity.csv").open(encoding="utf-8") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(("min_lesion_px", "n"), [(1, 2), (17, 1), (65, 0)])
def test_lesion_count_is_the_same_at_every_resolution(tmp_path, min_lesion_px, n):
    rows = measured(tmp_path, {f"x{k}": leaf_image(k) for k in (1, 2, 5)}, min_lesion_px)
    for k in (1, 2, 5):
        row = rows[f"x{k}"]
        assert int(row["n_lesions"]) == n
        assert float(row["scale"]) == pytest.approx(1 / k)
        assert (int(row["height"]), int(row["width"])) == (48 * k, 64 * k)
        # The smallest lesion, like all areas, is in pixels of the image itself.
        assert int(row["min_lesion_px"]) == min_lesion_px * k**2
    if n:
        areas = [int(rows[f"x{k}"]["max_lesion_px"]) / k**2 for k in (1, 2, 5)]
        assert areas == pytest.approx([64] * 3, rel=0.15)


@pytest.mark.parametrize("long_side_px", [None, 64, 1024])
def test_scale_of_an_image_that_is_not_reduced_is_1(tmp_path, long_side_px):
    images = {"as is": leaf_image(1), "tiny": leaf_image(1)[8:40, 8:40]}
    rows = measured(tmp_path, images, 20, long_side_px)
    for row in rows.values():
        assert row["scale"] == "1"
        assert row["min_lesion_px"] == "20"


def test_images_of_the_longest_names_are_measured(tmp_path):
    """Their masks and overlays have shorter names, which stay different."""
    names = ["a" * 251, "a" * 250 + "b", "葉" * 83, "short"]
    rows = measured(tmp_path, dict.fromkeys(names, leaf_image(1)), 20)
    assert rows.keys() == set(names)
    for column in ("mask", "leaf_mask", "overlay"):
        files = {row[column] for row in rows.values()}
        assert len(files) == len(names)
        assert all((tmp_path / "out" / file).is_file() for file in files)
    assert rows["short"]["mask"] == "masks/short.png"


def test_min_lesion_px_is_rounded_to_whole_pixels(tmp_path):
    image = leaf_image(2)[:, :100]
    (row,) = measured(tmp_path, {"cut": image}, 20).values()
    assert float(row["scale"]) == pytest.approx(0.64)
    assert row["min_lesion_px"] == str(round(20 / 0.64**2))


def test_measures_of_a_transposed_image_are_the_same(tmp_path):
    image = leaf_image(2)
    transposed = np.ascontiguousarray(image.transpose(1, 0, 2))
    rows = measured(tmp_path, {"a": image, "b": transposed}, 20)
    for column in ("scale", "min_lesion_px", "n_lesions", "severity_pct"):
        assert rows["a"][column] == rows["b"][column]
