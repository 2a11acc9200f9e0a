"""Training that starts from another model: what is taken with it, and what is new."""

import json
import shutil

import pytest
import torch

from conftest import TINY
from plantseg_next import api
from plantseg_next.errors import DataError, StoppedError, UsageError
from plantseg_next.experiment import ModelSettings
from plantseg_next.models.bundle import Card, read_bundle, read_card, write_bundle
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.models.start import (
    SOURCE,
    STARTER_FOLDER,
    absolute_start,
    moved_start,
    network_of_run,
    same_shape,
    start_folder,
    starting_network,
    with_start,
)
from plantseg_next.structures import ClassMap
from plantseg_next.training.record import Record
from plantseg_next.training.trainer import Trainer

FEW = TINY.with_settings(["training.steps=6", "training.checkpoint_minutes=0"])
SHAPE = {"encoder": "test_convnext", "width": 32, "layers": 1}


def write_model(folder, classes, **changes):
    """Write a model whose every weight tells, heads included; return its network."""
    torch.manual_seed(3)
    settings = ModelSettings(**(SHAPE | {"start": "random"} | changes))
    network = build_segmenter(settings, classes).eval()
    with torch.no_grad():
        for head in (network.lesion_head, network.context):
            head.weight.normal_(0, 0.5)
            head.bias.normal_()
    card = Card(classes, settings, 64, None, "a.b", "cc-by-nc-4.0", "ab" * 32)
    write_bundle(folder, network, card)
    return network


def started(folder, classes, **changes):
    torch.manual_seed(4)  # nothing comes from the seed that made the first model
    settings = with_start(ModelSettings(start=str(folder), **changes))
    network, source = starting_network(settings, classes)
    return network.eval(), source


def scores(network, size=64):
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(image)


def any_lesion(network):
    """Return the probability that a pixel is of any lesion, whatever its class."""
    return scores(network).lesion.softmax(1)[:, 1:].sum(1)


# What the new network predicts ------------------------------------------------


def test_start_from_a_model_of_the_same_classes_predicts_the_same(tmp_path):
    classes = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
    old = scores(write_model(tmp_path, classes))
    new = scores(started(tmp_path, classes)[0])
    for mine, expected in zip(new, old, strict=True):
        assert torch.equal(mine, expected)


def test_start_from_a_model_reorders_classes_by_name(tmp_path):
    classes = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
    old = scores(write_model(tmp_path, classes))
    turned = ClassMap(("blight", "rust"), ("rust", "healthy"), has_leaf=True)
    new = scores(started(tmp_path, turned)[0])
    torch.testing.assert_close(new.lesion[:, [0, 2, 1]], old.lesion)
    torch.testing.assert_close(new.disease[:, [1, 0]], old.disease)
    torch.testing.assert_close(new.leaf, old.leaf)


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (("lesion",), ("rust", "blight", "mold")),
        (("lesion",), ("rust",)),
        (("rust", "blight"), ("rust", "spot", "mold")),
        (("rust", "blight", "mold"), ("mold", "spot", "scab", "rust")),
        (("rust",), ("rust", "spot", "mold")),
    ],
)
def test_start_with_other_classes_marks_the_lesions_of_the_earlier_model(
    tmp_path, known, wanted
):
    expected = any_lesion(write_model(tmp_path, ClassMap(known)))
    found = any_lesion(started(tmp_path, ClassMap(wanted))[0])
    assert expected.std() > 0.02
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_start_with_a_known_class_keeps_its_scores(tmp_path):
    old = scores(write_model(tmp_path, ClassMap(("rust", "blight"))))
    new = scores(started(tmp_path, ClassMap(("spot", "rust", "mold")))[0])
    torch.testing.assert_close(new.lesion[:, 0], old.lesion[:, 0])
    torch.testing.assert_close(new.lesion[:, 2], old.lesion[:, 1])


def test_start_with_unknown_classes_prefers_none_of_them(tmp_path):
    write_model(tmp_path, ClassMap(("lesion",)))
    new = scores(started(tmp_path, ClassMap(("rust", "blight", "mold")))[0])
    for i in (2, 3):
        assert torch.equal(new.lesion[:, i], new.lesion[:, 1])


def test_start_takes_rows_of_diseases_by_name(tmp_path):
    old = write_model(tmp_path, ClassMap(("rust",), ("healthy", "rust", "mold")))
    wanted = ClassMap(("rust",), ("blight", "mold", "healthy"))
    new, _ = started(tmp_path, wanted)
    for part in ("weight", "bias"):
        mine, theirs = (getattr(n.disease_head, part) for n in (new, old))
        assert torch.equal(mine[1], theirs[2])
        assert torch.equal(mine[2], theirs[0])
        assert not any(torch.equal(mine[0], row) for row in theirs)


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (ClassMap(("rust",), ("healthy",)), ClassMap(("rust",))),
        (ClassMap(("rust",)), ClassMap(("rust",), ("healthy", "rust"))),
        (ClassMap(("rust",), (), has_leaf=True), ClassMap(("rust",))),
        (ClassMap(("rust",)), ClassMap(("rust",), (), has_leaf=True)),
    ],
)
def test_start_with_or_without_diseases_and_leaf_keeps_the_lesions(tmp_path, known, wanted):
    old = scores(write_model(tmp_path, known))
    new = scores(started(tmp_path, wanted)[0])
    assert torch.equal(new.lesion, old.lesion)
    assert new.disease.shape == (2, len(wanted.diseases))


def test_start_takes_frozen_statistics_too(tmp_path):
    """Of a model that began with pretrained weights, batch normalization and all."""
    classes = ClassMap(("rust",), (), has_leaf=True)
    torch.manual_seed(0)
    settings = ModelSettings(encoder="test_efficientnet", width=32, layers=1)
    old = build_segmenter(settings, classes, fetch=False).eval()
    with torch.no_grad():
        for name, buffer in old.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    write_bundle(tmp_path, old, Card(classes, settings, 64, None))
    new, _ = started(tmp_path, classes)
    assert torch.equal(scores(new).lesion, scores(old).lesion)


# Shape, source and what is refused --------------------------------------------


def test_start_takes_the_shape_of_the_earlier_model(tmp_path):
    write_model(tmp_path, ClassMap(("rust",)))
    settings = with_start(ModelSettings(start=str(tmp_path), dropout=0.3))
    shape = {name: getattr(settings, name) for name in SHAPE}
    assert shape == SHAPE
    assert settings.encoder_weights == "none"  # the normalization of a random start
    assert settings.dropout == 0.3


def test_start_from_a_model_that_started_from_one_keeps_the_normalization(tmp_path):
    classes = ClassMap(("rust",))
    write_model(tmp_path / "first", classes, encoder="test_efficientnet")
    settings = with_start(ModelSettings(start=str(tmp_path / "first")))
    network, source = starting_network(settings, classes)
    card = Card(classes, settings, 64, None, source.name, source.license, source.sha256)
    write_bundle(tmp_path / "second", network, card)
    third, _ = started(tmp_path / "second", classes)
    assert torch.equal(scores(third).lesion, scores(network.eval()).lesion)


@pytest.mark.parametrize(
    ("name", "asked", "there"),
    [("width", 64, "32"), ("layers", 4, "1"), ("encoder", "resnet18", "'test_convnext'")],
)
def test_start_with_another_shape_is_refused(tmp_path, name, asked, there):
    write_model(tmp_path, ClassMap(("rust",)))
    with pytest.raises(UsageError) as caught:
        with_start(ModelSettings(start=str(tmp_path), **{name: asked}))
    said = f"model.{name} is {asked!r}, and training starts from a model ({tmp_path}) with"
    assert f"{said} {there}." in str(caught.value)
    assert caught.value.needed == "the shape of the model that training starts from"
    assert f"leave model.{name} out, or --set model.start=imagenet" in caught.value.fix


@pytest.mark.parametrize("asked", [SHAPE, SHAPE | {"weights": "none"}])
def test_start_with_the_shape_stated_is_not_refused(tmp_path, asked):
    write_model(tmp_path, ClassMap(("rust",)))
    given = with_start(ModelSettings(start=str(tmp_path), **asked))
    assert given == with_start(ModelSettings(start=str(tmp_path)))


def test_start_from_a_missing_model_is_refused(tmp_path):
    path = str(tmp_path / "nowhere")
    with pytest.raises(UsageError) as caught:
        start_folder(path)
    assert f"model.start is {path!r}, and there is no such model." in str(caught.value)
    assert (
        "starter, starter-field, imagenet, random, or the path of a run or a model"
        in caught.value.needed
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no such model"):
        with_start(ModelSettings(start=str(tmp_path / "empty")))


def test_start_names_a_run_or_a_model(tmp_path, monkeypatch):
    write_model(tmp_path / "run" / "best", ClassMap(("rust",)))
    for path in ("run", "run/best"):
        assert start_folder(str(tmp_path / path)) == tmp_path / "run" / "best"
    monkeypatch.chdir(tmp_path)
    assert absolute_start(ModelSettings(start="run")).start == str(tmp_path / "run")
    assert start_folder("starter") == STARTER_FOLDER
    assert start_folder("starter-field") == STARTER_FOLDER.with_name("starter_field")
    for name in ("starter", "starter-field"):
        starter = ModelSettings(start=name)
        assert absolute_start(starter) == starter
    for start in ("imagenet", "random"):
        settings = ModelSettings(start=start)
        assert start_folder(start) is None
        assert with_start(settings) == absolute_start(settings) == settings


def test_start_source_carries_license_and_digest_of_the_model(tmp_path):
    classes = ClassMap(("rust",))
    write_model(tmp_path, classes)
    source = started(tmp_path, classes)[1]
    digest = read_card(tmp_path).sha256
    assert source.name == f"model {digest[:12]}, from a.b"
    assert source.license == "cc-by-nc-4.0"
    assert source.sha256 == digest
    assert "no commercial use of the trained model" in source.notice


def test_start_of_a_run_is_remembered_beside_its_checkpoint(tmp_path):
    """The model may be gone when a run is resumed: its checkpoint has the weights."""
    classes = ClassMap(("rust",))
    write_model(tmp_path / "first", classes)
    settings = with_start(ModelSettings(start=str(tmp_path / "first")))
    run = tmp_path / "run"
    run.mkdir()
    network, source = network_of_run(settings, classes, run, resumed=False)
    known = json.loads((run / SOURCE).read_text("utf-8"))
    assert known == {
        "name": f"model {read_card(tmp_path / 'first').sha256[:12]}, from a.b",
        "license": "cc-by-nc-4.0",
        "sha256": read_card(tmp_path / "first").sha256,
        "data_sets": [],
    }
    shutil.rmtree(tmp_path / "first")
    again, remembered = network_of_run(settings, classes, run, resumed=True)
    assert remembered == source
    again.load_state_dict(network.state_dict())  # as a checkpoint does
    with pytest.raises(UsageError, match="there is no such model"):
        network_of_run(settings, classes, run, resumed=False)


@pytest.mark.parametrize("resumed", [True, False])
def test_start_of_a_run_without_a_memory_of_it_is_looked_for(tmp_path, resumed):
    """Before its first checkpoint, and in a run whose start.json was deleted."""
    classes = ClassMap(("rust",))
    old = write_model(tmp_path / "first", classes)
    settings = with_start(ModelSettings(start=str(tmp_path / "first")))
    (tmp_path / "run").mkdir()
    network, _ = network_of_run(settings, classes, tmp_path / "run", resumed=resumed)
    assert torch.equal(scores(network.eval()).lesion, scores(old).lesion)
    assert (tmp_path / "run" / SOURCE).is_file()


def test_start_from_the_starter_takes_its_shape_and_license():
    settings = with_start(ModelSettings(start="starter"))
    assert settings.encoder == "tf_efficientnet_lite1"
    assert settings.encoder_weights == "packaged"
    network, source = starting_network(settings, ClassMap(("rust", "spot"), (), True))
    assert source.license == "apache-2.0"
    assert source.sha256 == read_card(STARTER_FOLDER).sha256
    known, card = read_bundle(STARTER_FOLDER)
    assert card.classes.has_leaf
    torch.testing.assert_close(any_lesion(network.eval()), any_lesion(known))


@pytest.mark.parametrize("where", ["run", "run/best"])
def test_start_within_a_folder_that_was_moved_is_found_there(tmp_path, where):
    old, new = tmp_path / "run", tmp_path / "run.earlier"
    settings = ModelSettings(start=str(tmp_path / where))
    moved = moved_start(settings, old, new).start
    assert moved == str(tmp_path / where.replace("run", "run.earlier"))
    for start in ("starter", "random", str(tmp_path / "running" / "best")):
        settings = ModelSettings(start=start)
        assert moved_start(settings, old, new) == settings


def test_start_with_the_shape_it_has_already_changes_nothing(tmp_path):
    write_model(tmp_path, ClassMap(("rust",)))
    settings = with_start(ModelSettings(start=str(tmp_path)))
    assert same_shape(settings, settings) == settings


# Runs -------------------------------------------------------------------------


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


def test_start_of_a_run_from_another_is_written_down(first, drawn_folder, tmp_path):
    said = []
    api.train(drawn_folder, tmp_path / "run", from_model(first), say=said.append)
    model = Record.read(tmp_path / "run").settings.model
    assert {name: getattr(model, name) for name in SHAPE} == SHAPE
    assert model.start == str(first)
    card = read_card(tmp_path / "run" / "last")
    digest = read_card(first / "best").sha256
    assert card.weights_sha256 == digest
    assert card.weights_origin == f"model {digest[:12]}, from random"
    assert any(f"weights: model {digest[:12]}, from random" in line for line in said)
    read_bundle(tmp_path / "run" / "best")


def test_start_of_a_run_uses_what_the_model_learned(first, drawn_folder, tmp_path):
    """Not only its shape: without a rate, the model stays what it was."""
    settings = from_model(first, **{"training.rate": 1e-12, "loss.disease": 0})
    api.train(drawn_folder, tmp_path / "run", settings)
    new, _ = read_bundle(tmp_path / "run" / "last")
    old, _ = read_bundle(first / "best")
    for mine, expected in zip(scores(new), scores(old), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stop_after", [2, 4], ids=["before", "after"])
def test_start_of_a_run_is_resumed_after_its_model_was_deleted(
    first, drawn_folder, tmp_path, monkeypatch, stop_after
):
    """Before and after the first validation, at step 3, which writes the first model."""
    shutil.copytree(first, tmp_path / "first")
    settings = from_model(tmp_path / "first")
    api.train(drawn_folder, tmp_path / "undisturbed", settings)
    run = Trainer.run
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self: run(self, stop_after=stop_after))
        with pytest.raises(StoppedError):
            api.train(drawn_folder, tmp_path / "run", settings)
    shutil.rmtree(tmp_path / "first")
    api.train(drawn_folder, tmp_path / "run", settings)
    for model in ("best", "last"):
        cards = [read_card(tmp_path / r / model) for r in ("undisturbed", "run")]
        assert cards[0] == cards[1]


def test_start_of_a_run_is_resumed_in_mid_course_without_start_json_or_model(
    first, drawn_folder, tmp_path, monkeypatch
):
    """What is missing is said; nothing else takes its place."""
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
def test_start_within_the_run_that_restart_archives_is_found(
    first, drawn_folder, tmp_path, where
):
    run = tmp_path / "run"
    shutil.copytree(first, run)
    digest = read_card(run / (where or "best")).sha256
    trained = api.train(drawn_folder, run, from_model(run / where), restart=True)
    assert trained.outcome.steps == 6
    assert read_card(run / "last").weights_sha256 == digest
    (archived,) = (path for path in tmp_path.iterdir() if path != run and path.is_dir())
    start = Record.read(run).settings.model.start
    assert start == str(archived / where)
    assert (archived / "best").is_dir()
    # The run is known again by the path that it wrote down.
    assert api.train(drawn_folder, run, from_model(start)).outcome.steps == 6


def test_start_of_a_plan_has_the_shape_of_the_model(first, drawn_folder, monkeypatch):
    planned = []

    def heard(_manifest, settings, *_, **__):
        planned.append(settings.model)

    monkeypatch.setattr(api, "plan_for", heard)
    api.plan(drawn_folder, 10**10, from_model(first))
    (model,) = planned
    assert {name: getattr(model, name) for name in SHAPE} == SHAPE
    assert model.encoder_weights == "none"
    with pytest.raises(UsageError, match=r"model\.width is 64, and training starts from"):
        api.plan(drawn_folder, 10**10, from_model(first, **{"model.width": 64}))


def test_start_of_a_finished_run_is_reported_after_its_model_was_deleted(
    first, drawn_folder, tmp_path
):
    shutil.copytree(first, tmp_path / "first")
    settings = from_model(tmp_path / "first")
    api.train(drawn_folder, tmp_path / "run", settings)
    shutil.rmtree(tmp_path / "first")
    assert api.train(drawn_folder, tmp_path / "run", settings).outcome.steps == 6
    assert api.evaluate(tmp_path / "run").n_pictures > 0


def test_start_of_a_run_from_another_model_is_refused_to_resume(
    first, drawn_folder, tmp_path
):
    shutil.copytree(first, tmp_path / "other")
    api.train(drawn_folder, tmp_path / "run", from_model(first))
    with pytest.raises(UsageError, match="holds a run of another configuration") as caught:
        api.train(drawn_folder, tmp_path / "run", from_model(tmp_path / "other"))
    said = f"model.start: {first} in the run, {tmp_path / 'other'} now"
    assert said in str(caught.value)


def test_start_of_a_run_from_nowhere_leaves_nothing_behind(drawn_folder, tmp_path):
    with pytest.raises(UsageError, match="there is no such model"):
        api.train(drawn_folder, tmp_path / "run", from_model(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_start_of_an_unknown_encoder_leaves_nothing_behind(drawn_folder, tmp_path):
    """Or a second try with the right name would meet a run of another configuration."""
    settings = TINY.with_settings(["model.encoder=mega"])
    with pytest.raises(UsageError, match=r"model\.encoder is 'mega'"):
        api.train(drawn_folder, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "other"),
    [("encoder", "resnet18"), ("width", 64), ("encoder", "tf_efficientnet_lite1")],
)
def test_start_of_a_run_with_another_shape_is_refused_to_resume(
    drawn_folder, tmp_path, name, other
):
    """Whether the other one is the default or not: this run starts from no model."""
    api.train(drawn_folder, tmp_path / "run", TINY)
    model = TINY.model.model_copy(update={name: other})
    with pytest.raises(UsageError, match="holds a run of another configuration") as caught:
        api.train(drawn_folder, tmp_path / "run", TINY.model_copy(update={"model": model}))
    said = f"model.{name}: {getattr(TINY.model, name)} in the run, {other} now"
    assert said in str(caught.value)
    assert "model.weights" not in str(caught.value)


def test_start_from_a_card_that_does_not_fit_its_weights_is_refused(tmp_path):
    write_model(tmp_path, ClassMap(("rust",)))
    card = tmp_path / "model.json"
    card.write_text(card.read_text("utf-8").replace('"width": 32', '"width": 64'))
    with pytest.raises(DataError, match=r"does not fit its `model\.json`: "):
        started(tmp_path, ClassMap(("rust",)))


def test_start_carries_the_data_sets_of_the_earlier_model(tmp_path):
    settings = with_start(ModelSettings(start="starter"))
    run = tmp_path / "run"
    run.mkdir()
    for resumed in (False, True):
        _, source = network_of_run(settings, ClassMap(("rust",)), run, resumed=resumed)
        assert "coffee" in source.data_sets


def test_start_of_a_run_is_validated_before_the_first_step(first, drawn_folder, tmp_path):
    """Training that makes a model worse is said to."""
    settings = from_model(first, **{"training.rate": 5.0})
    found = api.train(drawn_folder, tmp_path / "run", settings)
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert rows[1].split(",")[:2] == ["0", "0"]
    scores = [float(row.split(",")[2]) for row in rows[1:]]
    said = "no step was as good as the model that training" in (
        (tmp_path / "run" / "events.jsonl").read_text()
    )
    assert said == (max(scores[1:]) < scores[0])
    assert said
    assert found.outcome.best.score == pytest.approx(max(scores[1:]), abs=1e-4)


def test_start_data_is_not_judged_unseen_by_a_later_model(first, drawn_folder, tmp_path):
    """What the earlier model learned from, the later one's run does not know."""
    other = tmp_path / "other"
    shutil.copytree(drawn_folder, other)
    found = api.train(other, tmp_path / "run", from_model(first))
    for path in (other / "images").iterdir():  # other pictures, under the known name
        with path.open("ab") as file:
            file.write(b" ")
    (other / "index.csv").unlink()
    renamed = other.rename(tmp_path / drawn_folder.name)
    with pytest.raises(UsageError, match="or a model that it was started from") as caught:
        api.evaluate(found.folder, renamed)
    assert "rename the folder" in caught.value.fix
