"""Confident predictions of a model become training masks of the next run."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import TINY
from plantseg_next import api
from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.mask_values import decode_mask
from plantseg_next.errors import OutputError, UsageError
from plantseg_next.models.bundle import read_card
from plantseg_next.structures import IGNORE, ClassMap, Prediction
from plantseg_next.synthetic.folders import write_drawn_folder
from plantseg_next.workflows.pseudo_label import coding_of, sure_mask
from plantseg_next.workflows.training_data import DataSources

pytestmark = pytest.mark.integration


def prediction(lesion, leaf, name, threshold=0.5):
    probability, leaf = (np.array([values], np.float16) for values in (lesion, leaf))
    lesion = np.where(probability >= threshold, np.array([name]), 0).astype(np.uint8)
    return Prediction(lesion, probability, leaf)


def test_mask_ignores_pixels_below_the_threshold():
    classes = ClassMap(("rust", "blight"), has_leaf=True)
    #            lesion  lesion?  leaf  leaf?  ground  lesion off the leaf
    lesion = [0.95, 0.80, 0.02, 0.02, 0.02, 0.95]
    leaf = [0.99, 0.99, 0.97, 0.60, 0.03, 0.50]
    predicted = prediction(lesion, leaf, [2, 2, 1, 1, 1, 1])
    mask, confidence = sure_mask(predicted, threshold=0.9, has_leaf=True)
    assert mask[0].tolist() == [3, IGNORE, 1, IGNORE, 0, 2]
    assert confidence[0] == pytest.approx([0.95, 0.80, 0.97, 0.60, 0.97, 0.95], abs=2e-3)
    decoded = decode_mask(mask, coding_of(classes), classes)
    assert decoded[0][0].tolist() == [2, IGNORE, 0, IGNORE, 0, 1]
    assert decoded[1][0].tolist() == [1, IGNORE, 1, IGNORE, 0, 1]
    bare, _ = sure_mask(predicted, threshold=0.9, has_leaf=False)
    assert bare[0].tolist() == [2, IGNORE, 0, 0, 0, 1]


def test_mask_follows_the_lesion_threshold_of_the_model():
    #            lesion  below the threshold  leaf
    lesion, leaf = [0.80, 0.65, 0.02], [0.99, 0.99, 0.97]
    predicted = prediction(lesion, leaf, [2, 2, 2], threshold=0.7)
    for has_leaf, expected in ((True, [3, IGNORE, 1]), (False, [2, IGNORE, 0])):
        mask, confidence = sure_mask(predicted, threshold=0.6, has_leaf=has_leaf)
        assert mask[0].tolist() == expected
        assert confidence[0, :2] == pytest.approx([0.80, 0.35], abs=2e-3)


def test_images_of_the_longest_names_are_labeled(drawn_folder, tmp_path):
    image = next((drawn_folder / "images").iterdir())
    names = ["a" * 251, "a" * 250 + "b", "葉" * 83]
    (tmp_path / "images").mkdir()
    for name in names:
        shutil.copy(image, tmp_path / "images" / f"{name}.png")
    labels = tmp_path / "labels"
    assert len(api.pseudo_label("starter", tmp_path / "images", labels).rows) == 3
    masks = {row.mask for row in Manifest.read(labels / "manifest.json").rows}
    assert len(masks) == 3
    assert all(mask.is_file() for mask in masks)
    shutil.copy(image, os.fsencode(tmp_path / "images") + b"/\xff.png")
    more = api.pseudo_label("starter", tmp_path / "images", tmp_path / "more")
    assert len(more.rows) == 3
    ((left_out, reason),) = more.skipped
    assert left_out == rf"{tmp_path}/images/\xff.png"
    assert reason == (
        "Left out: the name is not UTF-8, so that no manifest can state it; rename it."
    )
    assert len(Manifest.read(tmp_path / "more" / "manifest.json")) == 3


def test_pseudo_labels_are_corrected_and_learned_from(finished_run, drawn_folder, tmp_path):
    write_drawn_folder(tmp_path / "more", 5, seed=7, size_hw=(96, 96))
    images = tmp_path / "more" / "images"
    (images / "broken.jpg").write_bytes(b"not an image")
    table = api.pseudo_label(finished_run, images, tmp_path / "out", threshold=0.6)
    assert len(table.rows) == 5
    assert [name for name, _ in table.skipped] == ["broken.jpg"]
    with (tmp_path / "out" / "pseudo_labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    manifest = read_folder(tmp_path / "out")
    sample = load_sample(manifest.rows[0], manifest)
    trusted = (sample.lesion != IGNORE).mean()
    assert 100 * trusted == pytest.approx(float(rows[0]["mask_pct"]), abs=0.01)

    mask = manifest.rows[0].mask  # a person paints it over
    Image.fromarray(np.full((96, 96), 2, np.uint8)).save(mask)
    again = load_sample(manifest.rows[0], manifest)
    assert (again.lesion == 1).all()

    sources = DataSources(drawn_folder, pseudo_labels=[tmp_path / "out"])
    second = api.train(sources, tmp_path / "second", TINY)
    first = Manifest.read(finished_run / "manifest.json")
    assert second.n_train == len(first.split("train")) + 5
    assert second.n_val == len(first.split("val"))
    kept = Manifest.read(second.folder / "manifest.json")
    assert kept.classes == first.classes


def test_threshold_of_one_half_is_refused(finished_run, drawn_folder, tmp_path):
    with pytest.raises(UsageError, match=r"The threshold is 0\.5\."):
        api.pseudo_label(finished_run, drawn_folder, tmp_path / "out", threshold=0.5)


def test_images_with_masks_are_refused(finished_run, drawn_folder, tmp_path):
    with pytest.raises(UsageError, match="has a mask"):
        api.pseudo_label(finished_run, drawn_folder, tmp_path / "out")


def test_self_train_learns_from_hidden_images(drawn_folder, tmp_path):
    few = TINY.with_settings(
        [
            "data.labeled_fraction=0.3",
            "semi.method=supervised",
            "semi.threshold=0.6",
        ]
    )
    lines = []
    first, second = api.self_train(drawn_folder, tmp_path / "rounds", few, log=lines.append)
    hidden = Manifest.read(first.folder / "manifest.json").split("unlabeled")
    assert second.n_train == first.n_train + len(hidden)
    assert second.n_val == first.n_val
    assert f"round 1: {len(hidden)} images labeled by run_0" in lines
    rows = Manifest.read(second.folder / "manifest.json").rows
    assert len({row.image for row in rows}) == len(rows)  # no image twice
    assert not any(row.split == "unlabeled" for row in rows)
    report = api.evaluate(second.folder)
    assert report.n_images

    # Killed while labeling, it resumes there and ends with the same weights.
    ended_with = read_card(second.folder / "last").sha256
    shutil.rmtree(second.folder)
    (tmp_path / "rounds" / "labels_1" / "manifest.json").unlink()
    lines.clear()
    _, again = api.self_train(drawn_folder, tmp_path / "rounds", few, log=lines.append)
    assert read_card(again.folder / "last").sha256 == ended_with
    (tmp_path / "rounds" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="already holds labels_1, run_0"):
        api.self_train(drawn_folder, tmp_path / "rounds", few)


@pytest.mark.parametrize(
    "key",
    [
        "ABSOLUTE", "../../../up", "x/../../up", "C:\\x", "nul", "a\r\nb", "a\0b", ".",
        "n" * 5000, "a/" * 3000 + "b",
    ],
)  # fmt: skip
def test_key_of_a_manifest_never_leads_out_of_the_folder(drawn_folder, tmp_path, key):
    first, second = sorted((drawn_folder / "images").iterdir())[:2]
    (tmp_path / "data").mkdir()
    shutil.copy(first, tmp_path / "outside.png")
    shutil.copy(second, tmp_path / "data" / "b.png")
    key = key.replace("ABSOLUTE", str(tmp_path / "absolute"))
    rows = [
        Row(key, tmp_path / "outside.png", "s", split="unlabeled"),
        Row("b", tmp_path / "data" / "b.png", "s", split="unlabeled"),
    ]
    Manifest(tuple(rows), ClassMap(()), {}).write(tmp_path / "data" / "manifest.json")
    before = set(tmp_path.rglob("*"))
    table = api.pseudo_label("starter", tmp_path / "data", tmp_path / "labels")
    api.predict("starter", tmp_path / "data", tmp_path / "measures")
    assert len(table.rows) == 2
    new = set(tmp_path.rglob("*")) - before
    outs = (tmp_path / "labels", tmp_path / "measures")
    assert all(any(path.is_relative_to(out) for out in outs) for path in new)
    labels = Manifest.read(tmp_path / "labels" / "manifest.json")
    assert all(row.mask.is_file() for row in labels.rows)
    assert len({row.mask for row in labels.rows}) == 2
    for name in ("labels/pseudo_labels.csv", "measures/severity.csv"):
        assert len((tmp_path / name).read_text("utf-8").splitlines()) == 3
