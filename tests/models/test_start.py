"""Training that starts from another model: adapted classes, shape, source and errors."""

import json
import shutil

import pytest
import torch

from plantseg_next.errors import DataError, UsageError
from plantseg_next.models.bundle import ModelCard, read_bundle, read_card, write_bundle
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
from plantseg_next.settings import ModelSettings
from plantseg_next.structures import ClassMap
from small_models import SHAPE, any_lesion, scores, started, write_model

# Predictions of the new network ------------------------------------------------


def test_start_from_a_model_of_the_same_classes_predicts_the_same(tmp_path):
    classes = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
    old = scores(write_model(tmp_path, classes))
    new = scores(started(tmp_path, classes)[0])
    for mine, expected in zip(new, old, strict=True):
        assert torch.equal(mine, expected)


def test_start_from_a_model_reorders_classes_by_name(tmp_path):
    classes = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
    old = scores(write_model(tmp_path, classes))
    reordered = ClassMap(("blight", "rust"), ("rust", "healthy"), has_leaf=True)
    new = scores(started(tmp_path, reordered)[0])
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


def test_start_keeps_disease_rows_by_name(tmp_path):
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


def test_start_keeps_batch_norm_statistics(tmp_path):
    """Of a model with pretrained weights and frozen batch normalization."""
    classes = ClassMap(("rust",), (), has_leaf=True)
    torch.manual_seed(0)
    settings = ModelSettings(encoder="test_efficientnet", width=32, layers=1)
    old = build_segmenter(settings, classes, fetch=False).eval()
    with torch.no_grad():
        for name, buffer in old.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    write_bundle(tmp_path, old, ModelCard(classes, settings, 64, None))
    new, _ = started(tmp_path, classes)
    assert torch.equal(scores(new).lesion, scores(old).lesion)


# Shape, source and errors --------------------------------------------


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
    card = ModelCard(
        classes, settings, 64, None, source.name, source.license, source.sha256
    )
    write_bundle(tmp_path / "second", network, card)
    third, _ = started(tmp_path / "second", classes)
    assert torch.equal(scores(third).lesion, scores(network.eval()).lesion)


@pytest.mark.parametrize(
    ("name", "asked", "there"),
    [
        ("width", 64, "32"),
        ("layers", 4, "1"),
        ("encoder", "resnet18", "'toy_encoder'"),
    ],
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


def test_start_folder_of_a_run_or_a_model_is_found(tmp_path, monkeypatch):
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


def test_start_of_a_resumed_run_needs_no_model(tmp_path):
    """The checkpoint has the weights, and start.json their source."""
    classes = ClassMap(("rust",))
    write_model(tmp_path / "first", classes)
    settings = with_start(ModelSettings(start=str(tmp_path / "first")))
    run = tmp_path / "run"
    run.mkdir()
    network, source = network_of_run(settings, classes, run, resumed=False)
    known = json.loads((run / SOURCE).read_text("utf-8"))
    assert known == {
        "format": 1,
        "name": f"model {read_card(tmp_path / 'first').sha256[:12]}, from a.b",
        "license": "cc-by-nc-4.0",
        "sha256": read_card(tmp_path / "first").sha256,
        "data_sets": [],
    }
    shutil.rmtree(tmp_path / "first")
    again, known_source = network_of_run(settings, classes, run, resumed=True)
    assert known_source == source
    again.load_state_dict(network.state_dict())  # as a checkpoint does
    del known["format"]  # as in earlier runs
    (run / SOURCE).write_text(json.dumps(known))
    assert network_of_run(settings, classes, run, resumed=True)[1] == source
    (run / SOURCE).write_text(json.dumps(known | {"licence": "x"}))
    with pytest.raises(DataError, match="`licence`: Unexpected") as caught:
        network_of_run(settings, classes, run, resumed=True)
    assert caught.value.fix.startswith("remove it if the model that training started from")
    (run / SOURCE).unlink()
    with pytest.raises(UsageError, match="there is no such model"):
        network_of_run(settings, classes, run, resumed=False)


@pytest.mark.parametrize("resumed", [True, False])
def test_start_of_a_run_without_start_json_is_loaded_again(tmp_path, resumed):
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
def test_start_in_a_moved_folder_gets_the_new_path(tmp_path, where):
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


def test_start_from_links_in_a_circle_is_refused(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    settings = absolute_start(ModelSettings(start=str(loop)))
    with pytest.raises(UsageError, match="there is no such model"):
        with_start(settings)
