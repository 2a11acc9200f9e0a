import copy
import hashlib
import json
import math
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

import toy_encoder
from plantseg_next.data.manifest import Role
from plantseg_next.errors import DataError, UsageError
from plantseg_next.files import write_atomically
from plantseg_next.models.bundle import (
    CARD,
    RESERVED,
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
from plantseg_next.models.start import STARTER_FOLDER
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
    tree["card_sha256"] = ""
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
    assert caught.value.needed == "a model card of format 3 to 5"
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
    tree = json.loads((tmp_path / CARD).read_text("utf-8"))
    tree |= {"images_sha256": "", "card_sha256": ""}
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
    tree["card_sha256"] = ""
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
        assert caught.value.needed == "a model card of format 3 to 5"
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
    assert card.format == 5
    assert card.metrics == {"lesion_dice": 0.5}
    assert card.classes == ClassMap(("rust",), (), has_leaf=True)
    assert card.threshold == 0.5
    assert card.calibration is None
    assert read_images(tmp_path) is None


def test_card_states_what_a_reader_without_this_package_needs(bundle):
    folder, _, card = bundle
    tree = json.loads((folder / CARD).read_text("utf-8"))
    assert list(tree)[:3] == ["format", "classes", "model"]
    assert tree["format"] == 5
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


def changed_by_hand(folder, tmp_path, change, *, digest=False):
    """Copy a model with a changed card, with or without the digest of the card."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tree = json.loads((tmp_path / CARD).read_text("utf-8"))
    change(tree)
    if not digest:
        tree["card_sha256"] = ""
    (tmp_path / CARD).write_text(json.dumps(tree))
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["classes"].update(lesions=["Mehltau-Flecken é", "rost"]),
        lambda tree: tree.update(threshold=0.3),
        lambda tree: tree.update(tile_px=96),
        lambda tree: tree.update(long_side_px=512),
        lambda tree: tree["metrics"].update(dice=0.9),
        lambda tree: tree.update(weights_license="apache-2.0"),
        lambda tree: tree["normalization"]["mean"].reverse(),
        lambda tree: tree.update(written=""),
    ],
)
def test_card_changed_by_hand_is_refused(bundle, tmp_path, change):
    folder = changed_by_hand(bundle[0], tmp_path, change, digest=True)
    with pytest.raises(
        DataError, match=r"model\.json` was changed: its `card_sha256`"
    ) as e:
        read_bundle(folder)
    assert e.value.needed == "the card as the run wrote it"
    assert e.value.fix == (
        "take another copy of the model; if the change is on purpose, remove "
        "`card_sha256` from the card"
    )
    tree = json.loads((folder / CARD).read_text("utf-8"))
    del tree["card_sha256"]
    (folder / CARD).write_text(json.dumps(tree))
    read_bundle(folder)


def test_card_that_is_only_set_differently_is_read(bundle, tmp_path):
    shutil.copytree(bundle[0], tmp_path, dirs_exist_ok=True)
    tree = json.loads((tmp_path / CARD).read_text("utf-8"))
    (tmp_path / CARD).write_text(json.dumps(tree, sort_keys=True, ensure_ascii=True))
    assert read_card(tmp_path) == bundle[2]


@pytest.mark.parametrize("start", ["starter", "starter_field"])
def test_card_of_an_older_format_states_no_digest(start):
    """The models of the package are such."""
    card = read_card(STARTER_FOLDER.with_name(start))
    assert card.card_sha256 == ""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.update(tile_px=0), "`tile_px`: .*greater than or equal to 32"),
        (lambda t: t.update(tile_px="a"), "`tile_px`: .*a valid integer"),
        (lambda t: t.update(tile_px=10**9), "`tile_px`: .*less than or equal to 8192"),
        (lambda t: t.update(long_side_px=10**12), "`long_side_px`: .*equal to 1000000"),
        (lambda t: t["model"].update(layers=10**6), "`model.layers`: .*equal to 64"),
        (lambda t: t["model"].update(width=10**9), "`model.width`: .*equal to 4096"),
        (
            lambda t: t["model"].update(encoder="x" * 10**6),
            "`model.encoder`: .*at most 200",
        ),
        (lambda t: t.update(calibration={"lesion": 1e300}), "`calibration.lesion`: "),
        (lambda t: t.update(calibration={"nope": 1}), "'lesion', 'leaf' or 'disease'"),
        (lambda t: t["normalization"].update(mean=[1e300] * 3), "`normalization.mean.0`"),
        (lambda t: t["classes"].update(lesions=[1, 2]), r"`classes.lesions.0`: .*string"),
        (lambda t: t["classes"].update(lesions=[]), "`classes`: no lesion class is stated"),
        (lambda t: t["classes"].update(diseases=list("ab") * 200000), "states a more than"),
        (
            lambda t: t["classes"].update(diseases=[f"{i}" for i in range(10**5)]),
            "diseases states 100,000 names, and at most 254 are possible",
        ),
        (lambda t: t["classes"].update(lesions=["x" * 10**6, "y"]), "1,000,000 characters"),
        (lambda t: t.update(sha256=5), "`sha256`: .*string"),
        (lambda t: t.update(sha256="/../../etc"), "`sha256`: .*pattern"),
        (lambda t: t.update(n_val_images=10**30), "`n_val_images`: "),
    ],
)
def test_card_out_of_range_is_refused(bundle, tmp_path, change, text):
    folder = changed_by_hand(bundle[0], tmp_path, change)
    with pytest.raises(DataError, match=f"is not a model card: .*{text}"):
        read_bundle(folder)


@pytest.mark.parametrize("name", RESERVED)
def test_lesion_class_with_the_name_of_another_meaning_is_refused(bundle, tmp_path, name):
    def change(tree):
        tree["classes"]["lesions"][0] = name

    folder = changed_by_hand(bundle[0], tmp_path, change)
    with pytest.raises(DataError, match=f"`{name}` cannot be the name of a lesion class"):
        read_card(folder)


def test_reserved_names_are_the_meanings_of_mask_values():
    assert set(RESERVED) == set(get_args(Role))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"width": 4096, "layers": 64}, "states 4096 channels, the weights have 32"),
        ({"layers": 64}, "states 64 layers, the weights have 1"),
        (
            {"encoder": "convnextv2_huge"},
            r"has 65\d,\d{3},\d{3} parameters, and the weights",
        ),
        ({"encoder": "test_vit"}, "cannot be an encoder|Missing key"),
    ],
)
def test_network_of_another_size_is_refused_before_it_is_made(
    bundle, tmp_path, monkeypatch, change, text
):
    folder = changed_by_hand(bundle[0], tmp_path, lambda tree: tree["model"].update(change))
    with monkeypatch.context() as patch:
        patch.setattr("plantseg_next.models.segmenter.build_segmenter", None)
        with pytest.raises((DataError, UsageError), match=text):
            read_bundle(folder)


@pytest.mark.parametrize("kind", ["lesions", "diseases"])
def test_other_number_of_classes_than_in_the_weights_is_refused(bundle, tmp_path, kind):
    def change(tree):
        tree["classes"][kind].append("another")

    folder = changed_by_hand(bundle[0], tmp_path, change)
    n = len(getattr(CLASSES, kind))
    text = rf"the card states {n + 1} {kind}, the weights have {n}\."
    with pytest.raises(DataError, match=text) as caught:
        read_bundle(folder)
    assert caught.value.needed == "weights and card of the same model"


def with_weights(folder, tmp_path, content):
    """Copy a model with other weights, which have the digest in the card."""

    def change(tree):
        tree["sha256"] = hashlib.sha256(content).hexdigest()

    folder = changed_by_hand(folder, tmp_path, change)
    (folder / read_card(folder).weights).write_bytes(content)
    return folder


def header_of(content, change=lambda header: header):
    n = int.from_bytes(content[:8], "little")
    text = change(json.loads(content[8 : 8 + n]))
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + n :]


def changed(name, **values):
    return lambda header: header | {name: header[name] | values}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda _: b"", "is damaged: it does not begin with a header"),
        (lambda c: c[:5], "is damaged: it does not begin with a header"),
        (lambda _: pickle.dumps({"a": 1}), "is damaged: it does not begin with a header"),
        (lambda c: b"\xff" * 8 + c[8:], "is damaged: it does not begin with a header"),
        (lambda c: (10**8).to_bytes(8, "little") + c[8:], "does not begin with a header"),
        (lambda c: c[:-100], r"is damaged: it has [\d,]+ bytes, and its header states"),
        (
            lambda c: c + bytes(64),
            r"is damaged: it has [\d,]+ bytes, and its header states",
        ),
        (lambda c: header_of(c, lambda _: b"[1, 2]"), "its header is not that of tensors"),
        (
            lambda c: header_of(c, lambda _: b"[" * 10**5),
            "its header is not that of tensors",
        ),
        (
            lambda c: header_of(c, changed("mean", shape=[2**40, 2**40, 1])),
            "its header is not that of tensors",
        ),
        (
            lambda c: header_of(c, changed("mean", shape=[-1, "x"])),
            "its header is not that of tensors",
        ),
        (lambda c: header_of(c, changed("mean", dtype="F7")), "not that of tensors"),
        (lambda c: header_of(c, changed("mean", dtype="I32")), "mean has the type"),
        (lambda c: header_of(c, changed("mean", shape=[3])), "size mismatch for mean"),
        (lambda _: LFS, "is damaged: it is a pointer of Git LFS, not the file that it"),
    ],
)
def test_weights_with_a_right_digest_that_are_none_are_refused(
    bundle, tmp_path, change, text
):
    """The last after huggingface/transformers#27923: a clone without its large files."""
    content = (bundle[0] / bundle[2].weights).read_bytes()
    with pytest.raises(DataError, match=text):
        read_bundle(with_weights(bundle[0], tmp_path, change(content)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bundle, tmp_path, value):
    """After dmlc/gluon-cv#1052: one channel of published weights is NaN."""
    network = copy.deepcopy(bundle[1])
    with torch.no_grad():
        network.lesion_head.weight[0, 0] = value
    write(tmp_path, network, bundle[2])
    text = r"holds numbers that are not finite, in lesion_head\.weight"
    with pytest.raises(DataError, match=text) as caught:
        read_bundle(tmp_path)
    assert caught.value.needed == "every file of the model as it was written"


def test_weights_that_are_no_file_are_not_opened(bundle, tmp_path):
    folder = changed_by_hand(bundle[0], tmp_path, lambda _: None)
    weights = folder / bundle[2].weights
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(DataError, match="is not a file"):
        read_bundle(folder)
    weights.unlink()
    weights.mkdir()
    with pytest.raises(DataError, match="is not a file"):
        read_bundle(folder)


def test_weights_with_a_false_size_are_not_read(bundle, tmp_path):
    """A sparse file of a terabyte: it would not fit into memory."""
    folder = changed_by_hand(bundle[0], tmp_path, lambda _: None)
    with (folder / bundle[2].weights).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"it has 1,099,511,627,776 bytes, and its header"):
        read_bundle(folder)
