import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import toy_encoder
from plantseg_next.errors import DataError, UsageError
from plantseg_next.files import write_atomically
from plantseg_next.models.bundle import (
    CARD,
    ModelCard,
    Normalization,
    RunImage,
    find_bundle,
    read_bundle,
    read_card,
    read_images,
    read_weights,
)
from plantseg_next.models.bundle import write_bundle as write
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.settings import ModelSettings
from plantseg_next.structures import ClassMap

CLASSES = ClassMap(("rost", "Mehltau-Flecken é"), ("healthy",), has_leaf=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    settings = ModelSettings(encoder=toy_encoder.NAME, start="random", width=32, layers=1)
    network = build_segmenter(settings, CLASSES)
    card = ModelCard(
        CLASSES,
        settings,
        64,
        None,
        sources=("a",),
        metrics={"dice": 0.5},
        threshold=0.4,
        normalization=Normalization((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
    )
    return folder, network, write(folder, network, card)


def test_bundle_read_after_write_is_identical(bundle):
    folder, network, card = bundle
    again, read = read_bundle(folder)
    assert read == card
    assert not again.training
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(x).lesion, again(x).lesion)


def test_bundle_with_a_flipped_byte_is_refused(bundle, tmp_path):
    folder, _, card = bundle
    content = bytearray((folder / card.weights).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / card.weights).write_bytes(content)
    (tmp_path / CARD).write_bytes((folder / CARD).read_bytes())
    with pytest.raises(DataError, match="is damaged: its SHA-256 is not the one"):
        read_bundle(tmp_path)


def test_bundle_with_missing_or_truncated_weights_is_refused(bundle, tmp_path):
    folder, _, card = bundle
    (tmp_path / CARD).write_bytes((folder / CARD).read_bytes())
    with pytest.raises(DataError, match=rf"/{card.weights}` is missing\."):
        read_bundle(tmp_path)
    (tmp_path / card.weights).write_bytes((folder / card.weights).read_bytes()[:-10])
    with pytest.raises(DataError, match="is damaged"):
        read_bundle(tmp_path)


def test_card_missing_or_invalid_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_card(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no `model\.json`"):
        read_card(tmp_path)
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(DataError, match=r"written by an older version \(format 1\)"):
        read_card(tmp_path)
    (tmp_path / CARD).write_text('{"format": 4, "model": {}, "picture_px": 1}')
    with pytest.raises(DataError, match=r"is not a model card: `classes`: Field required"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("threshold", 5, "less than 1"),
        ("threshold", math.nan, "less than 1"),
        ("tile_px", 0, "greater than or equal to 32"),
        ("tile_px", 50, "a multiple of 32"),
        ("long_side_px", 0, "greater than or equal to 32"),
        ("n_val_images", -1, "greater than or equal to 0"),
    ],
)
def test_card_with_an_impossible_value_is_refused(bundle, tmp_path, name, value, text):
    tree = json.loads((bundle[0] / CARD).read_text("utf-8")) | {name: value}
    (tmp_path / CARD).write_text(json.dumps(tree))
    with pytest.raises(DataError, match=f"is not a model card: `{name}`: .*{text}"):
        read_card(tmp_path)


def test_unreadable_folder_of_a_model_is_refused(tmp_path, monkeypatch):
    def forbidden(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / CARD).write_text("{}")
    monkeypatch.setattr(Path, "is_file", forbidden)
    monkeypatch.setattr(Path, "open", forbidden)
    assert find_bundle(tmp_path) == tmp_path
    with pytest.raises(DataError, match=r"model\.json` cannot be read: Permission denied"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("calibration.lesion", 0, "greater than 0"),
        ("calibration.lesion", -1.5, "greater than 0"),
        ("calibration.lesion", math.nan, "a finite number"),
        ("normalization.std.1", 0, "greater than 0"),
        ("normalization.std.2", math.inf, "a finite number"),
        ("normalization.mean.0", math.nan, "a finite number"),
    ],
)
def test_card_with_an_impossible_part_is_refused(bundle, tmp_path, name, value, text):
    tree = json.loads((bundle[0] / CARD).read_text("utf-8"))
    tree["calibration"] = {"lesion": 1.2, "leaf": 0.9}
    (tmp_path / CARD).write_text(json.dumps(tree))
    assert read_card(tmp_path).calibration == {"lesion": 1.2, "leaf": 0.9}
    *path, last = (int(part) if part.isdigit() else part for part in name.split("."))
    part = tree
    for key in path:
        part = part[key]
    part[last] = value
    (tmp_path / CARD).write_text(json.dumps(tree))
    with pytest.raises(DataError, match=f"is not a model card: `{name}`: .*{text}"):
        read_card(tmp_path)


@pytest.mark.parametrize("kind", ["lesions", "diseases"])
def test_card_with_a_name_stated_twice_is_refused(bundle, tmp_path, kind):
    tree = json.loads((bundle[0] / CARD).read_text("utf-8"))
    tree["classes"][kind] = ["rost", "fleck", "rost"]
    (tmp_path / CARD).write_text(json.dumps(tree))
    text = f"is not a model card: `classes`: {kind} states rost more than once"
    with pytest.raises(DataError, match=text) as caught:
        read_card(tmp_path)
    assert caught.value.needed == "a model card of format 3 to 4"
    assert caught.value.fix == "take another copy of the model, or train it again"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "`classes"),
        (" ", "`classes"),
        ("ro\nst", "`classes"),
        ("\ud800", "line 1: half of a surrogate pair"),
    ],
)
def test_card_with_an_unreadable_name_is_refused(bundle, tmp_path, name, why):
    tree = json.loads((bundle[0] / CARD).read_text("utf-8"))
    tree["classes"]["lesions"][0] = name
    (tmp_path / CARD).write_text(json.dumps(tree))
    with pytest.raises(DataError, match=f"is not a model card: {why}"):
        read_card(tmp_path)


def test_list_of_images_that_the_card_does_not_state_is_refused(bundle, tmp_path):
    _, network, card = bundle
    write(tmp_path, network, card, IMAGES)
    tree = json.loads((tmp_path / CARD).read_text("utf-8")) | {"images_sha256": ""}
    (tmp_path / CARD).write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"is not stated in `model\.json`") as caught:
        read_images(tmp_path)
    assert caught.value.fix == "take another copy of the model"


def test_file_of_a_model_that_may_not_be_read_is_refused(bundle, monkeypatch):
    folder, _, card = bundle
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.name == card.weights:
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    text = rf"/{card.weights}` cannot be read: Permission denied\."
    with pytest.raises(DataError, match=text):
        read_weights(folder)


def test_bundle_with_weights_of_another_network_is_refused(bundle, tmp_path):
    folder, _, card = bundle
    tree = json.loads((folder / CARD).read_text("utf-8"))
    tree["model"]["width"] = 64
    (tmp_path / CARD).write_text(json.dumps(tree))
    (tmp_path / card.weights).write_bytes((folder / card.weights).read_bytes())
    with pytest.raises(DataError, match=r"does not fit its `model\.json`"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("start", "norm"), [("imagenet", nn.BatchNorm2d), ("random", nn.GroupNorm)]
)
def test_bundle_keeps_the_normalization_of_its_first_weights(tmp_path, start, norm):
    """``model.start`` determines the kind of normalization, not the weights."""
    settings = ModelSettings(encoder="test_efficientnet", start=start, width=32, layers=1)
    network = build_segmenter(settings, CLASSES, fetch=False)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_()
    write(tmp_path, network, ModelCard(CLASSES, settings, 64, None))
    again, _ = read_bundle(tmp_path)
    assert any(isinstance(module, norm) for module in again.encoder.modules())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(x).lesion, again(x).lesion)


def test_bundle_started_from_a_deleted_model_is_readable(tmp_path):
    settings = ModelSettings(
        encoder="test_efficientnet", weights="none", width=32, layers=1, start="/gone/run"
    )
    network = build_segmenter(settings, CLASSES, fetch=False)
    write(tmp_path, network, ModelCard(CLASSES, settings, 64, None))
    _, card = read_bundle(tmp_path)
    assert card.model == settings


def test_bundle_states_license_and_digest_of_the_first_weights(bundle, tmp_path):
    _, network, card = bundle
    bound = replace(
        card, weights_origin="a.b", weights_license="cc-by-nc-4.0", weights_sha256="ab" * 32
    )
    write(tmp_path, network, bound)
    tree = json.loads((tmp_path / CARD).read_text("utf-8"))
    assert tree["weights_license"] == "cc-by-nc-4.0"
    assert tree["weights_sha256"] == "ab" * 32
    assert read_card(tmp_path) == bound


def test_bundle_of_a_newer_format_is_refused(bundle, tmp_path):
    folder, _, _ = bundle
    tree = json.loads((folder / CARD).read_text("utf-8"))
    (tmp_path / CARD).write_text(json.dumps(tree | {"format": 99}))
    with pytest.raises(DataError, match="written by a newer version"):
        read_card(tmp_path)


@pytest.mark.parametrize("older", [1, 2])
def test_bundle_of_an_older_format_is_refused(bundle, tmp_path, older):
    """With the settings and keys of the old format."""
    folder, _, card = bundle
    tree = json.loads((folder / CARD).read_text("utf-8"))
    tree["weights_license"] = tree.pop("weights_license")
    del tree["weights_sha256"]
    tree["model"] = {"encoder": "atto", "weights": "none", "width": 32, "layers": 1}
    (tmp_path / CARD).write_text(json.dumps(tree | {"format": older}))
    (tmp_path / "model.safetensors").write_bytes((folder / card.weights).read_bytes())
    for read in (read_card, read_bundle, read_weights):
        with pytest.raises(DataError, match="was written by an older version") as caught:
            read(tmp_path)
        assert caught.value.needed == "a model card of format 3 to 4"
        assert caught.value.fix == "train the model again"


FORMAT_3 = {
    "classes": {"lesions": ["rust"], "diseases": [], "has_leaf": True},
    "model": {"encoder": "a", "weights": "none", "start": "random", "width": 32},
    "tile_px": 64,
    "long_side_px": None,
    "weights_origin": "random",
    "weights_license": "none",
    "weights_sha256": "",
    "sources": ["a"],
    "metrics": {"lesion_dice": 0.5},
    "sha256": "0f",
    "format": 3,
}


@pytest.mark.parametrize("names", ["present", "old"])
def test_card_of_format_3_is_converted(tmp_path, names):
    tree = dict(FORMAT_3)
    if names == "old":
        tree["figures"] = tree.pop("metrics")
        tree["model"] = {**tree["model"], "drop_path": 0.0}
    (tmp_path / CARD).write_text(json.dumps(tree))
    card = read_card(tmp_path)
    assert card.format == 4
    assert card.metrics == {"lesion_dice": 0.5}
    assert card.classes == ClassMap(("rust",), (), has_leaf=True)
    assert card.threshold == 0.5
    assert card.calibration is None
    assert read_images(tmp_path) is None


def test_card_states_what_a_reader_without_this_package_needs(bundle):
    folder, _, card = bundle
    tree = json.loads((folder / CARD).read_text("utf-8"))
    assert list(tree)[:3] == ["format", "classes", "model"]
    assert tree["format"] == 4
    assert tree["classes"]["lesions"] == ["rost", "Mehltau-Flecken é"]
    assert tree["normalization"] == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    assert tree["threshold"] == 0.4
    assert tree["calibration"] is None
    assert tree["written"] == card.written != ""


IMAGES = (
    RunImage("00aa", "train", "s", "leaf é", has_mask=True),
    RunImage("01", "unlabeled", "s", "", has_mask=False),
)


def test_bundle_lists_the_images_of_its_run(bundle, tmp_path):
    _, network, card = bundle
    first = write(tmp_path, network, card, IMAGES)
    assert read_images(tmp_path) == IMAGES
    second = write(tmp_path, network, card, IMAGES[:1])
    assert first.images != second.images
    names = {CARD, second.weights, second.images}
    assert {path.name for path in tmp_path.iterdir()} == names
    (tmp_path / second.images).write_text("{}")
    with pytest.raises(DataError, match="is damaged: its SHA-256 is not the one"):
        read_images(tmp_path)
    (tmp_path / second.images).unlink()
    with pytest.raises(DataError, match=r"images-\w+\.json` is missing"):
        read_images(tmp_path)
    read_bundle(tmp_path)  # predictions do not need it
    write(tmp_path, network, card)
    assert read_images(tmp_path) is None


@pytest.mark.parametrize("written", [0, 1])
def test_bundle_write_killed_midway_keeps_the_old_model(
    bundle, tmp_path, monkeypatch, written
):
    """Before the first and before the second of its two files."""
    _, network, card = bundle
    old = write(tmp_path, network, card)
    torch.nn.init.ones_(network.stem_stride2[0].weight)
    succeeds = iter([True] * written + [False])

    def killed(path, content):
        if not next(succeeds):
            raise KeyboardInterrupt
        write_atomically(path, content)

    for module in ("models.bundle", "json_files"):
        monkeypatch.setattr(f"plantseg_next.{module}.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, network, card)
    assert read_bundle(tmp_path)[1].sha256 == old.sha256


def test_bundle_replacement_removes_the_old_weights(bundle, tmp_path):
    _, network, card = bundle
    write(tmp_path, network, card)
    torch.nn.init.zeros_(network.stem_stride2[0].weight)
    new = write(tmp_path, network, card)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CARD, new.weights])


def test_model_replaced_while_it_is_read_is_read_again(bundle, tmp_path, monkeypatch):
    _, network, card = bundle
    old = write(tmp_path, network, card)
    torch.nn.init.constant_(network.stem_stride2[0].weight, 2.0)
    new = write(tmp_path, network, card)
    assert new.sha256 != old.sha256
    cards = iter([old])
    monkeypatch.setattr("plantseg_next.models.bundle.read_card", lambda _: next(cards, new))
    assert read_weights(tmp_path)[1] == new
