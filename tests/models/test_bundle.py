import json

import pytest
import torch

from plantseg_next.errors import DataError, UsageError
from plantseg_next.experiment import ModelSettings
from plantseg_next.files import write_atomically
from plantseg_next.models.bundle import CARD, Card, read_bundle, read_card
from plantseg_next.models.bundle import write_bundle as write
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.structures import ClassMap

CLASSES = ClassMap(("rost", "Mehltau-Flecken é"), ("healthy",), has_leaf=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    settings = ModelSettings(width=32, layers=1)
    network = build_segmenter(settings, CLASSES)
    card = Card(CLASSES, settings, 64, None, sources=("a",), figures={"dice": 0.5})
    return folder, network, write(folder, network, card)


def test_a_model_comes_back_as_it_was(bundle):
    folder, network, card = bundle
    again, read = read_bundle(folder)
    assert read == card
    assert not again.training
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(x).lesion, again(x).lesion)


def test_a_flipped_byte_is_found(bundle, tmp_path):
    folder, _, card = bundle
    content = bytearray((folder / card.weights).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / card.weights).write_bytes(content)
    (tmp_path / CARD).write_bytes((folder / CARD).read_bytes())
    with pytest.raises(DataError, match="is damaged: its SHA-256 is not the one"):
        read_bundle(tmp_path)


def test_a_truncated_and_a_missing_file_are_found(bundle, tmp_path):
    folder, _, card = bundle
    (tmp_path / CARD).write_bytes((folder / CARD).read_bytes())
    with pytest.raises(DataError, match="is damaged"):
        read_bundle(tmp_path)
    (tmp_path / card.weights).write_bytes((folder / card.weights).read_bytes()[:-10])
    with pytest.raises(DataError, match="is damaged"):
        read_bundle(tmp_path)


def test_wrong_folders_and_cards_are_explained(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_card(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no `model\.json`"):
        read_card(tmp_path)
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        read_card(tmp_path)


def test_weights_of_another_network_are_said_not_to_fit(bundle, tmp_path):
    folder, _, card = bundle
    tree = json.loads((folder / CARD).read_text("utf-8"))
    tree["model"]["width"] = 64
    (tmp_path / CARD).write_text(json.dumps(tree))
    (tmp_path / card.weights).write_bytes((folder / card.weights).read_bytes())
    with pytest.raises(DataError, match=r"does not fit its `model\.json`"):
        read_bundle(tmp_path)


def test_a_model_from_permissive_weights_keeps_their_topology(tmp_path):
    settings = ModelSettings(width=32, layers=1, weights="permissive")
    network = build_segmenter(settings, CLASSES, fetch=False)
    assert not any("grn" in name for name, _ in network.named_parameters())
    write(tmp_path, network, Card(CLASSES, settings, 64, None))
    read_bundle(tmp_path)


def test_a_newer_format_is_said_to_be(bundle, tmp_path):
    folder, _, _ = bundle
    tree = json.loads((folder / CARD).read_text("utf-8"))
    (tmp_path / CARD).write_text(json.dumps(tree | {"format": 99}))
    with pytest.raises(DataError, match="written by a newer version"):
        read_card(tmp_path)


def test_a_model_of_the_first_format_is_read(bundle, tmp_path):
    folder, _, card = bundle
    tree = json.loads((folder / CARD).read_text("utf-8"))
    (tmp_path / CARD).write_text(json.dumps(tree | {"format": 1}))
    (tmp_path / "model.safetensors").write_bytes((folder / card.weights).read_bytes())
    _, read = read_bundle(tmp_path)
    assert read.sha256 == card.sha256


@pytest.mark.parametrize("written", [0, 1])
def test_a_model_that_is_replaced_is_the_old_or_the_new_one(
    bundle, tmp_path, monkeypatch, written
):
    """Whichever of its two files the writer had come to when it died."""
    _, network, card = bundle
    old = write(tmp_path, network, card)
    torch.nn.init.ones_(network.detail[0].weight)
    left = iter([True] * written + [False])

    def dying(path, content):
        if not next(left):
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr("plantseg_next.models.bundle.write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, network, card)
    assert read_bundle(tmp_path)[1].sha256 == old.sha256


def test_a_replaced_model_leaves_nothing_behind(bundle, tmp_path):
    _, network, card = bundle
    write(tmp_path, network, card)
    torch.nn.init.zeros_(network.detail[0].weight)
    new = write(tmp_path, network, card)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CARD, new.weights])
