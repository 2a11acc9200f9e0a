"""Runs with few masks and many images, end to end."""

import csv
import json
import logging
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY
from plantseg_next import api
from plantseg_next.data import splits
from plantseg_next.data.formats import read_folder
from plantseg_next.data.manifest import Manifest
from plantseg_next.models.bundle import read_card
from plantseg_next.synthetic.folders import write_drawn_folder
from plantseg_next.training.callbacks.callback import Callback
from plantseg_next.workflows.training_data import DataSources

pytestmark = pytest.mark.integration
FEW = TINY.with_settings(["data.labeled_fraction=0.3", "semi.warmup_fraction=0"])


def history(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["mean_teacher", "weak_to_strong"])
def test_hidden_masks_are_validated_on_and_not_learned_from(drawn_folder, tmp_path, method):
    settings = FEW.with_settings([f"semi.method={method}"])
    lines = []
    trained = api.train(drawn_folder, tmp_path / "run", settings, log=lines.append)
    hidden = Manifest.read(trained.folder / "manifest.json").split("unlabeled")
    assert f"{len(hidden)} images without masks to learn from" in lines
    for row in history(trained.folder):
        assert 0 <= float(row["pl_coverage/no lesion"]) <= 1
        assert 0 <= float(row["pl_precision/no lesion"]) <= 1
    assert api.evaluate(trained.folder).n_images


def test_supervised_run_uses_no_unlabeled_image(drawn_folder, tmp_path):
    lines = []
    settings = FEW.with_settings(["semi.method=supervised"])
    trained = api.train(drawn_folder, tmp_path / "run", settings, log=lines.append)
    assert not any("without masks" in line for line in lines)
    assert "pl_mask_ratio" not in history(trained.folder)[0]


def test_leaf_in_validation_masks_only_gives_no_severity(drawn_folder, tmp_path):
    whole = read_folder(drawn_folder)
    coding = next(iter(whole.codings.values()))
    of_lesions = replace(
        coding,
        meaning={v: "no lesion" if m == "leaf" else m for v, m in coding.meaning.items()},
        marks_leaf=False,
    )
    rows = tuple(
        replace(row, source="field" if row.split == "train" else row.source)
        for row in whole.rows
    )
    mixed = replace(whole, rows=rows, codings=whole.codings | {"field": of_lesions})
    mixed.write(tmp_path / "data" / "manifest.json")
    lines = []
    trained = api.train(tmp_path / "data", tmp_path / "run", TINY, log=lines.append)
    assert any("marks the leaf: the model will give no severity" in line for line in lines)
    assert not read_card(trained.folder / "best").classes.has_leaf
    assert api.evaluate(trained.folder).n_images
    table = api.predict(trained.folder, drawn_folder / "images", tmp_path / "out")
    assert {row["denominator"] for row in table.rows} == {"image"}
    assert not any(row["severity_pct"] for row in table.rows)


def test_unlabeled_folder_is_added_to_the_run(drawn_folder, tmp_path):
    write_drawn_folder(tmp_path / "more", 4, seed=9, size_hw=(96, 96))
    images = tmp_path / "more" / "images"
    whole = FEW.with_settings(["data.labeled_fraction=1"])
    run = api.train(drawn_folder, tmp_path / "first", whole)
    test = Manifest.read(run.folder / "manifest.json").split("test").rows[0]
    shutil.copy(test.image, images / "from_test.jpg")
    lines = []
    sources = DataSources(drawn_folder, unlabeled=[images])
    trained = api.train(sources, tmp_path / "run", whole, log=lines.append)
    assert "4 images without masks to learn from" in lines
    (line,) = [line for line in lines if "excluded" in line]
    assert "show the scene of a validation or test image: 1" in line
    assert line.endswith("from_test.jpg")
    added = Manifest.read(trained.folder / "manifest.json").split("unlabeled")
    assert len(added) == 4
    last = history(trained.folder)[-1]
    for name in ("labeled", "images"):
        assert 0 < float(last[f"mean_entropy/{name}"]) < 1
        assert 0 <= float(last[f"lesion_fraction/{name}"]) <= 1
    summary = (trained.folder / "summary.txt").read_text()
    assert "  no masks   images: " in summary


def test_unlabeled_images_without_plants_are_reported(drawn_folder, tmp_path):
    bricks = tmp_path / "bricks"
    bricks.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 40, (96, 96, 1), np.uint8)
        Image.fromarray(np.array([150, 70, 60], np.uint8) + noise).save(bricks / f"{i}.png")
    sources = DataSources(drawn_folder, unlabeled=[bricks])
    settings = FEW.with_settings(["data.labeled_fraction=1"])
    trained = api.train(sources, tmp_path / "run", settings)
    events = (trained.folder / "events.jsonl").read_text().splitlines()
    (event, *_) = [json.loads(line) for line in events if "no-plants" in line]
    assert "In 100% of the tiles of `bricks`" in event["text"]


def test_two_strong_views_train(drawn_folder, tmp_path):
    settings = FEW.with_settings(["semi.strong_views=2", "training.micro_batch=1"])
    trained = api.train(drawn_folder, tmp_path / "run", settings)
    assert trained.summary.steps == 6


def test_image_with_points_is_labeled_and_unlabeled(drawn_folder, tmp_path):
    """Its points are labels; the rest of it is used as an image without a mask."""
    shutil.copytree(drawn_folder, tmp_path / "leaves")
    with (tmp_path / "leaves" / "classes.yaml").open("a") as classes:
        classes.write("255: ignore\n")
    for path in sorted((tmp_path / "leaves" / "masks").iterdir())[::2]:
        mask = np.asarray(Image.open(path)).copy()
        known = np.zeros(mask.shape, bool)
        known[10:13, 10:13] = known[60:63, 60:63] = True
        Image.fromarray(np.where(known, mask, 255).astype(mask.dtype)).save(path)
    lines = []
    run = api.train(tmp_path / "leaves", tmp_path / "run", TINY, log=lines.append)
    rows = Manifest.read(run.folder / "manifest.json").split("train").rows
    sparse = sum(row.sparse for row in rows)
    assert 0 < sparse < len(rows)
    first = next(line for line in lines if "to learn from" in line)
    assert first.startswith(
        f"{len(rows)} labeled images to learn from ({sparse} of them by points"
    )
    assert f"{sparse} images without masks to learn from" in lines
    assert float(history(run.folder)[-1]["loss_points"]) > 0


def test_run_with_points_only_trains(drawn_folder, tmp_path):
    manifest = splits.assign(read_folder(drawn_folder), seed=0)
    rows = []
    for row in manifest.rows:
        if row.split == "train":
            mask = np.asarray(Image.open(row.mask))
            known = np.zeros(mask.shape, bool)
            known[::12, ::12] = True
            path = tmp_path / "masks" / f"{row.mask.stem}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.where(known, mask, 255).astype(np.uint8)).save(path)
            row = replace(row, mask=path)  # noqa: PLW2901
        rows.append(row)
    codings = {
        name: replace(coding, meaning={**coding.meaning, 255: "ignore"})
        for name, coding in manifest.codings.items()
    }
    replace(manifest, rows=tuple(rows), codings=codings).write(tmp_path / "points.json")
    run = api.train(tmp_path / "points.json", tmp_path / "run", TINY)
    last = history(run.folder)[-1]
    assert float(last["loss_points"]) > 0
    assert float(last["loss_ohem_ce"]) == 0


def test_image_labels_of_class_folders_train_and_resume_identically(drawn_folder, tmp_path):
    """Class folders beside a data set with masks, interrupted and resumed."""
    write_drawn_folder(tmp_path / "more", 8, seed=9, size_hw=(96, 96))
    for i, image in enumerate(sorted((tmp_path / "more" / "images").iterdir())):
        folder = tmp_path / "village" / ("Plant___Rust" if i % 2 else "Plant___healthy")
        folder.mkdir(parents=True, exist_ok=True)
        image.rename(folder / image.name)
    settings = FEW.with_settings(
        [
            "image_labels.fraction=0.7",
            "semi.cut_mix=0",
            "data.weights={village: [2.0, 1.0, 10]}",
        ]
    )
    sources = DataSources([drawn_folder, tmp_path / "village"])
    lines = []
    whole = api.train(sources, tmp_path / "whole", settings, log=lines.append)
    assert any(line.endswith("of them with an image-level label") for line in lines)
    assert any("label is of a data set with masks" in line for line in lines)
    row = history(whole.folder)[-1]
    assert float(row["loss_unsup_disease"]) > 0
    assert float(row["loss_unsup_cam_seeds"]) >= 0
    assert "cam_seed_precision/rust" in row

    class Stop(Callback):
        def on_step(self, info):
            if info.step == 3:
                raise KeyboardInterrupt
            return ()

    with pytest.raises(KeyboardInterrupt):
        api.train(sources, tmp_path / "parts", settings, callbacks=[Stop()])
    parts = api.train(sources, tmp_path / "parts", settings)
    assert history(parts.folder) == history(
        whole.folder
    )  # compared first for a readable difference
    digests = [read_card(run.folder / "last").sha256 for run in (whole, parts)]
    assert digests[0] == digests[1]


def test_training_leaves_global_state_as_it_was(drawn_folder, tmp_path):
    logger = logging.getLogger("lightning_fabric")

    def state():
        return (
            torch.get_num_threads(),
            torch.is_autocast_cache_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            logger.level,
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
        )

    before = state()
    bfloat16 = FEW.with_settings(["training.precision=bfloat16", "training.steps=3"])
    api.train(drawn_folder, tmp_path / "run", bfloat16)
    assert state() == before
