"""Runs with few masks and many pictures, the whole way."""

import csv
import shutil

import pytest

from conftest import TINY
from plantseg_next import api
from plantseg_next.data.manifest import Manifest
from plantseg_next.data.synthetic import write_drawn_folder
from plantseg_next.learning import Sources

FEW = TINY.with_settings(["data.labelled_share=0.3", "unlabelled.starts=0"])


def history(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["mean_teacher", "weak_to_strong"])
def test_hidden_masks_judge_the_teacher_and_teach_nobody(drawn_folder, tmp_path, method):
    settings = FEW.with_settings([f"unlabelled.method={method}"])
    said = []
    trained = api.train(drawn_folder, tmp_path / "run", settings, say=said.append)
    hidden = Manifest.read(trained.folder / "manifest.json").split("unlabelled")
    assert f"{len(hidden)} pictures without masks to learn from" in said
    for row in history(trained.folder):
        assert 0 <= float(row["believed_no lesion"]) <= 1
        assert 0 <= float(row["right_no lesion"]) <= 1
    assert api.evaluate(trained.folder).n_pictures


def test_the_supervised_twin_looks_at_no_other_picture(drawn_folder, tmp_path):
    said = []
    settings = FEW.with_settings(["unlabelled.method=supervised"])
    trained = api.train(drawn_folder, tmp_path / "run", settings, say=said.append)
    assert not any("without masks" in line for line in said)
    assert "taught" not in history(trained.folder)[0]


def test_a_folder_without_masks_joins_the_run(drawn_folder, tmp_path):
    write_drawn_folder(tmp_path / "more", 4, seed=9, size_hw=(96, 96))
    pictures = tmp_path / "more" / "images"
    whole = FEW.with_settings(["data.labelled_share=1"])
    run = api.train(drawn_folder, tmp_path / "first", whole)
    test = Manifest.read(run.folder / "manifest.json").split("test").rows[0]
    shutil.copy(test.image, pictures / "from_test.jpg")
    said = []
    sources = Sources(drawn_folder, unlabelled=[pictures])
    trained = api.train(sources, tmp_path / "run", whole, say=said.append)
    assert "4 pictures without masks to learn from" in said
    (line,) = [line for line in said if "left out" in line]
    assert "show the scene of a validation or test picture: 1" in line
    assert line.endswith("from_test.jpg")
    added = Manifest.read(trained.folder / "manifest.json").split("unlabelled")
    assert len(added) == 4


def test_two_strong_views_train(drawn_folder, tmp_path):
    settings = FEW.with_settings(["unlabelled.strong_views=2", "training.micro_batch=1"])
    trained = api.train(drawn_folder, tmp_path / "run", settings)
    assert trained.outcome.steps == 6
