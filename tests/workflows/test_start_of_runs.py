"""Runs that start from a model: what they take from it, and what is refused."""

import json
import shutil

import pytest
import torch

from conftest import TINY
from plantseg_next import api
from plantseg_next.errors import DataError, StoppedError, UsageError
from plantseg_next.models.bundle import read_bundle, read_card
from plantseg_next.models.start import (
    SOURCE,
    network_of_run,
    with_start,
)
from plantseg_next.settings import ModelSettings
from plantseg_next.structures import ClassMap
from plantseg_next.training.run_record import RunRecord
from plantseg_next.training.trainer import Trainer
from small_models import SHAPE, scores, started, write_model

pytestmark = pytest.mark.integration
FEW = TINY.with_settings(["training.steps=6", "training.checkpoint_minutes=0"])


@pytest.fixture(scope="module")
def first(drawn_folder, tmp_path_factory):
    """A short run of its own, to start from."""
    folder = tmp_path_factory.mktemp("first") / "run"
    api.train(drawn_folder, folder, FEW.with_settings(["seed=5"]))
    return folder


def from_model(folder, **changes):
    """Return settings of a run that starts from a model and states no shape."""
    pairs = [f"{name}={value}" for name, value in changes.items()]
    model = ModelSettings(start=str(folder))
    return FEW.model_copy(update={"model": model}).with_settings(pairs)


def test_start_from_a_run_is_recorded(first, drawn_folder, tmp_path):
    lines = []
    api.train(drawn_folder, tmp_path / "run", from_model(first), log=lines.append)
    model = RunRecord.read(tmp_path / "run").settings.model
    assert {name: getattr(model, name) for name in SHAPE} == SHAPE
    assert model.start == str(first)
    card = read_card(tmp_path / "run" / "last")
    digest = read_card(first / "best").sha256
    assert card.weights_sha256 == digest
    assert card.weights_origin == f"model {digest[:12]}, from random"
    assert any(f"weights: model {digest[:12]}, from random" in line for line in lines)
    read_bundle(tmp_path / "run" / "best")


def test_start_from_a_run_uses_its_weights(first, drawn_folder, tmp_path):
    """With a learning rate near 0, the outputs stay those of the first model."""
    settings = from_model(first, **{"training.lr": 1e-12, "loss.disease": 0})
    api.train(drawn_folder, tmp_path / "run", settings)
    new, _ = read_bundle(tmp_path / "run" / "last")
    old, _ = read_bundle(first / "best")
    for mine, expected in zip(scores(new), scores(old), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stop_after", [2, 4], ids=["before", "after"])
def test_resume_after_the_start_model_was_deleted_is_identical(
    first, drawn_folder, tmp_path, monkeypatch, stop_after
):
    """Before and after the first validation, at step 3, which writes the first model."""
    shutil.copytree(first, tmp_path / "first")
    settings = from_model(tmp_path / "first")
    api.train(drawn_folder, tmp_path / "uninterrupted", settings)
    run = Trainer.run
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self: run(self, stop_after=stop_after))
        with pytest.raises(StoppedError):
            api.train(drawn_folder, tmp_path / "run", settings)
    shutil.rmtree(tmp_path / "first")
    api.train(drawn_folder, tmp_path / "run", settings)
    for model in ("best", "last"):
        cards = [read_card(tmp_path / r / model) for r in ("uninterrupted", "run")]
        assert cards[0] == cards[1]


def test_resume_without_start_json_and_start_model_is_refused(
    first, drawn_folder, tmp_path, monkeypatch
):
    """The missing model is reported; no other model is used instead."""
    shutil.copytree(first, tmp_path / "first")
    settings = from_model(tmp_path / "first")
    run = Trainer.run
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self: run(self, stop_after=2))
        with pytest.raises(StoppedError):
            api.train(drawn_folder, tmp_path / "run", settings)
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "run" / SOURCE).unlink()
    with pytest.raises(UsageError, match="there is no such model"):
        api.train(drawn_folder, tmp_path / "run", settings)


@pytest.mark.parametrize("where", ["", "best", "last"])
def test_restart_from_a_model_of_the_archived_run_works(
    first, drawn_folder, tmp_path, where
):
    run = tmp_path / "run"
    shutil.copytree(first, run)
    digest = read_card(run / (where or "best")).sha256
    trained = api.train(drawn_folder, run, from_model(run / where), restart=True)
    assert trained.summary.steps == 6
    assert read_card(run / "last").weights_sha256 == digest
    (archived,) = (path for path in tmp_path.iterdir() if path != run and path.is_dir())
    start = RunRecord.read(run).settings.model.start
    assert start == str(archived / where)
    assert (archived / "best").is_dir()
    # The run is resumed with the path that it recorded.
    assert api.train(drawn_folder, run, from_model(start)).summary.steps == 6


def test_random_encoder_that_is_not_trained_is_refused(drawn_folder, tmp_path):
    settings = TINY.with_settings(["memory.freeze_encoder=true"])
    with pytest.raises(UsageError, match="a random encoder that is not trained"):
        api.train(drawn_folder, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


def test_plan_uses_the_shape_of_the_start_model(first, drawn_folder, monkeypatch):
    planned = []

    def recorder(_manifest, settings, *_, **__):
        planned.append(settings.model)

    monkeypatch.setattr("plantseg_next.workflows.plan.plan_for", recorder)
    api.plan(drawn_folder, 10**10, from_model(first))
    (model,) = planned
    assert {name: getattr(model, name) for name in SHAPE} == SHAPE
    assert model.encoder_weights == "none"
    with pytest.raises(UsageError, match=r"model\.width is 64, and training starts from"):
        api.plan(drawn_folder, 10**10, from_model(first, **{"model.width": 64}))


def test_finished_run_is_evaluated_after_its_start_model_was_deleted(
    first, drawn_folder, tmp_path
):
    shutil.copytree(first, tmp_path / "first")
    settings = from_model(tmp_path / "first")
    api.train(drawn_folder, tmp_path / "run", settings)
    shutil.rmtree(tmp_path / "first")
    assert api.train(drawn_folder, tmp_path / "run", settings).summary.steps == 6
    assert api.evaluate(tmp_path / "run").n_images > 0


def test_resume_from_another_start_model_is_refused(first, drawn_folder, tmp_path):
    shutil.copytree(first, tmp_path / "other")
    api.train(drawn_folder, tmp_path / "run", from_model(first))
    with pytest.raises(UsageError, match="holds a run of another configuration") as caught:
        api.train(drawn_folder, tmp_path / "run", from_model(tmp_path / "other"))
    difference = f"model.start: {first} in the run, {tmp_path / 'other'} now"
    assert difference in str(caught.value)


def test_start_from_a_missing_model_leaves_no_folder(drawn_folder, tmp_path):
    with pytest.raises(UsageError, match="there is no such model"):
        api.train(drawn_folder, tmp_path / "run", from_model(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_unknown_encoder_leaves_no_folder(drawn_folder, tmp_path):
    """A second try with the right name would be refused as another configuration."""
    settings = TINY.with_settings(["model.encoder=mega"])
    with pytest.raises(UsageError, match=r"model\.encoder is 'mega'"):
        api.train(drawn_folder, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "other"),
    [("encoder", "resnet18"), ("width", 64), ("encoder", "tf_efficientnet_lite1")],
)
def test_resume_with_another_shape_is_refused(drawn_folder, tmp_path, name, other):
    """The run starts from no model, so the defaults are refused as well."""
    api.train(drawn_folder, tmp_path / "run", TINY)
    model = TINY.model.model_copy(update={name: other})
    with pytest.raises(UsageError, match="holds a run of another configuration") as caught:
        api.train(drawn_folder, tmp_path / "run", TINY.model_copy(update={"model": model}))
    difference = f"model.{name}: {getattr(TINY.model, name)} in the run, {other} now"
    assert difference in str(caught.value)
    assert "model.weights" not in str(caught.value)


def test_start_from_a_card_that_does_not_match_its_weights_is_refused(tmp_path):
    write_model(tmp_path, ClassMap(("rust",)))
    card = tmp_path / "model.json"
    tree = json.loads(card.read_text("utf-8")) | {"card_sha256": ""}
    tree["model"]["width"] = 64
    card.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"does not fit its `model\.json`: "):
        started(tmp_path, ClassMap(("rust",)))


def test_start_keeps_the_data_sets_of_the_start_model(tmp_path):
    settings = with_start(ModelSettings(start="starter"))
    run = tmp_path / "run"
    run.mkdir()
    for resumed in (False, True):
        _, source = network_of_run(settings, ClassMap(("rust",)), run, resumed=resumed)
        assert "coffee" in source.data_sets


def test_start_model_is_validated_before_the_first_step(drawn_folder, tmp_path):
    """An event reports training that makes the model worse."""
    settings = from_model("starter", **{"training.lr": 5.0})
    trained = api.train(drawn_folder, tmp_path / "run", settings)
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert rows[1].split(",")[:2] == ["0", "0"]
    scores = [float(row.split(",")[2]) for row in rows[1:]]
    reported = "No validation reached the score of the model that training" in (
        (tmp_path / "run" / "events.jsonl").read_text()
    )
    assert reported == (max(scores[1:]) < scores[0])
    assert reported
    assert trained.summary.best.monitored_metric == pytest.approx(max(scores[1:]), abs=1e-4)


def test_data_of_the_start_model_is_refused_as_test_data(first, drawn_folder, tmp_path):
    """The manifest of the run does not list what its start model learned from."""
    other = tmp_path / "other"
    shutil.copytree(drawn_folder, other)
    trained = api.train(other, tmp_path / "run", from_model(first))
    for path in (other / "images").iterdir():  # other images, under the known name
        with path.open("ab") as file:
            file.write(b" ")
    (other / "index.csv").unlink()
    renamed = other.rename(tmp_path / drawn_folder.name)
    with pytest.raises(UsageError, match="or a model that it was started from") as caught:
        api.evaluate(trained.folder, renamed)
    assert "rename the folder" in caught.value.fix
