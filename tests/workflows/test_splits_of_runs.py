"""Splits of check and train, and images that are decoded once for all commands."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import FEW, TINY
from plantseg_next import api
from plantseg_next.data import image_io
from plantseg_next.data.manifest import Manifest
from plantseg_next.data.quality import near_duplicates
from plantseg_next.errors import DataError, UsageError
from plantseg_next.workflows.training_data import DataSources, TrainingData, build_manifest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def leaves(drawn_folder, tmp_path_factory):
    """Leaves without stated splits and groups; every fourth has a mirrored copy."""
    folder = tmp_path_factory.mktemp("free") / "leaves"
    shutil.copytree(drawn_folder, folder)
    (folder / "index.csv").unlink()
    for kind in ("images", "masks"):
        for path in sorted((folder / kind).iterdir())[::4]:
            with Image.open(path) as image:
                mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                mirrored.save(path.with_stem(f"{path.stem}_mirrored"))
    return folder


def state_splits(folder, split_of):
    """Write an index with the split of each image, by its number in the order of names."""
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("name", "split"))
        for i, path in enumerate(sorted((folder / "images").iterdir())):
            table.writerow((path.stem, split_of(i)))


class Decoded:
    """Count the images and the masks that are decoded."""

    def __init__(self, patch):
        self.images = self.masks = 0
        read_image, read_mask = image_io._upright_rgb, image_io._mask_values

        def count_image(*arguments):
            self.images += 1
            return read_image(*arguments)

        def count_mask(*arguments):
            self.masks += 1
            return read_mask(*arguments)

        patch.setattr(image_io, "_upright_rgb", count_image)
        patch.setattr(image_io, "_mask_values", count_mask)


def data_of_run(folder: Path) -> TrainingData:
    """Return the data of a run, as before its first step."""
    manifest = build_manifest(DataSources(folder), TINY)
    return TrainingData.create(manifest, TINY, "leaves")


def test_check_and_train_have_the_same_splits(leaves, tmp_path):
    report, lines = api.check(leaves), []
    trained = api.train(leaves, tmp_path / "run", TINY, log=lines.append)
    manifest = Manifest.read(trained.folder / "manifest.json")
    (source,) = report.sources
    assert source.splits == {
        split: len(manifest.split(split)) for split in ("train", "val", "test")
    }
    split_of = {row.key: row.split for row in manifest.rows}
    copies = [key for key in split_of if key.endswith("_mirrored")]
    assert len(copies) == 10
    assert all(split_of[k] == split_of[k.removesuffix("_mirrored")] for k in copies)
    assert "17 groups merged with another that shows the same scene" in lines[0]


def test_check_searches_near_duplicates_once(leaves, drawn_folder, tmp_path):
    search = near_duplicates._find_pairs
    search.cache_clear()
    api.check(leaves)
    assert (search.cache_info().misses, search.cache_info().hits) == (1, 0)
    other = tmp_path / "other"
    for i, path in enumerate(sorted((drawn_folder / "images").iterdir())):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        for kind, content in (("images", pixels), ("masks", pixels[..., 0] // 200)):
            (other / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(other / kind / f"{path.stem}.png")
    search.cache_clear()
    api.check(DataSources([leaves, other]))
    assert (search.cache_info().misses, search.cache_info().hits) == (1, 0)


def test_check_reports_near_duplicates_that_train_groups_itself(leaves):
    report = api.check(leaves)
    assert not report.spoils_training
    (issue,) = [i for i in report.issues if i.code == "near-duplicates"]
    assert issue.severity == "note"
    assert "without a common group" in issue.text
    assert issue.fix.startswith("nothing where `train` draws the splits: it keeps them in")


def test_check_of_two_data_sets_leaves_out_what_train_leaves_out(
    leaves, drawn_folder, tmp_path
):
    other = tmp_path / "mirrored"
    for kind in ("images", "masks"):
        (other / kind).mkdir(parents=True)
        for path in (leaves / kind).glob("*_mirrored.*"):
            shutil.copy(path, other / kind)
    shutil.copy(leaves / "classes.yaml", other)
    sources, lines = DataSources([drawn_folder, other]), []
    report = api.check(sources)
    manifest = build_manifest(sources, TINY, log=lines.append)
    assert not report.spoils_training
    (issue,) = [i for i in report.issues if i.code == "same-scene-in-two-data-sets"]
    assert len(issue.files) == 50 - len(manifest) > 0
    assert f": {len(issue.files)}. They are not in the numbers above." in issue.text
    assert any("excluded, because" in line for line in lines)
    assert sum(source.images for source in report.sources) == len(manifest)


def test_masks_without_a_lesion_are_refused(leaves, tmp_path):
    folder = shutil.copytree(leaves, tmp_path / "leaves")
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.ones((96, 96), np.uint8)).save(path)
    assert [i.code for i in api.check(folder).of("error")] == ["no-lesion-in-train"]
    leaf_only = shutil.copytree(folder, tmp_path / "leaf only")
    (leaf_only / "classes.yaml").write_text("0: background\n1: leaf\n")
    assert [i.code for i in api.check(leaf_only).of("error")] == ["no-lesion-in-train"]
    with pytest.raises(UsageError, match=r"training masks of .* shows a lesion") as refused:
        api.train(folder, tmp_path / "run", TINY)
    assert "draw the lesions" in refused.value.fix


def test_check_reports_a_test_split_without_masks(leaves, tmp_path):
    folder = shutil.copytree(leaves, tmp_path / "leaves")
    state_splits(folder, lambda i: "val" if i > 40 else "train")
    issues = {issue.code: issue.severity for issue in api.check(folder).issues}
    assert issues["no-masks-in-test"] == "warning"


def test_check_of_stated_splits_still_reports_leaks(leaves, tmp_path):
    folder = shutil.copytree(leaves, tmp_path / "leaves")
    state_splits(folder, lambda i: ("train", "val", "test")[i % 3])
    issues = {issue.code: issue.severity for issue in api.check(folder).issues}
    assert issues["near-duplicate-across-splits"] == "error"


def test_run_resumes_with_its_own_splits(stopped_run, drawn_folder, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("splits were drawn again")

    before = (stopped_run / "manifest.json").read_bytes()
    monkeypatch.setattr("plantseg_next.workflows.training_data.draw_splits", fail)
    api.train(drawn_folder, stopped_run, FEW)
    assert (stopped_run / "manifest.json").read_bytes() == before


def test_train_decodes_every_image_once_before_the_first_step(leaves, monkeypatch):
    decoded = Decoded(monkeypatch)
    data = data_of_run(leaves)
    assert decoded.images == len(data.manifest) == 50
    assert decoded.masks == len(data.manifest.labeled) == 50


def test_check_and_train_after_check_decode_no_image_again(leaves, monkeypatch):
    decoded = Decoded(monkeypatch)
    first = api.check(leaves)
    assert (decoded.images, decoded.masks) == (50, 50)
    assert api.check(leaves) == first
    from_index = data_of_run(leaves)
    assert (decoded.images, decoded.masks) == (50, 50)
    monkeypatch.setenv("XDG_CACHE_HOME", str(leaves.parent / "empty cache"))
    assert data_of_run(leaves) == from_index
    assert decoded.images == 100


def test_train_with_further_images_decodes_them_once(leaves, tmp_path, monkeypatch):
    shutil.copytree(leaves / "images", tmp_path / "more")
    decoded = Decoded(monkeypatch)
    sources = DataSources(leaves, unlabeled=[tmp_path / "more"])
    for n in (100, 100):
        assert len(build_manifest(sources, TINY)) == 50  # all show labeled scenes
        assert decoded.images == n


def test_plan_calls_progress_for_every_image(leaves):
    calls = []
    api.plan(leaves, 10**10, TINY, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("comparing images", 50, 50)


def test_train_unreadable_labeled_image_is_named(leaves, tmp_path):
    folder = shutil.copytree(leaves, tmp_path / "leaves")
    manifest = build_manifest(DataSources(folder), TINY)
    broken = manifest.split("train").rows[0].image
    broken.write_bytes(b"")
    again = build_manifest(DataSources(folder), TINY)
    rows = [replace(row, split="train") for row in again.rows]
    with pytest.raises(DataError, match=rf"{broken.name}` is empty \(0 bytes\)"):
        TrainingData.create(again.only(rows), TINY, "leaves")
