"""Drawn scenes: exact masks, fixed seeds, every kind, files."""

import csv

import numpy as np
import pytest
from PIL import Image
from scenes import canvas
from scenes import scene as scene_module
from scenes.folders import write_scenes
from scenes.scene import KINDS, draw_scene

from plantseg_next.data.formats import read_folder
from plantseg_next.data.mask_values import decode_mask
from plantseg_next.errors import UsageError
from plantseg_next.structures import IGNORE
from plantseg_next.synthetic.leaves import DISEASES

pytestmark = pytest.mark.integration
SMALL = (96, 112)
SEEDS = range(4)


@pytest.fixture(scope="module")
def drawn():
    return {
        (kind, seed): draw_scene(seed, size_hw=SMALL, kind=kind)
        for kind in KINDS
        for seed in SEEDS
    }


def test_scene_of_same_seed_has_same_bytes(drawn):
    for kind in KINDS:
        first, again = drawn[kind, 1], draw_scene(1, size_hw=SMALL, kind=kind)
        for part in ("image", "lesion", "leaf"):
            np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
        assert first.disease == again.disease
        assert not np.array_equal(first.image, drawn[kind, 2].image)


def test_masks_have_known_values_and_lesions_lie_on_leaf(drawn):
    for scene in drawn.values():
        assert scene.image.shape == (*SMALL, 3)
        assert scene.image.dtype == scene.lesion.dtype == scene.leaf.dtype == np.uint8
        assert set(np.unique(scene.leaf)) <= {0, 1, IGNORE}
        assert (scene.leaf[scene.lesion > 0] == 1).all()
        shown = set(np.unique(scene.lesion)) - {0}
        assert shown == ({DISEASES.index(scene.disease)} - {0})


def test_undergrowth_has_ignored_foliage_and_no_lesion(drawn):
    for seed in SEEDS:
        scene = drawn["undergrowth", seed]
        assert IGNORE in scene.leaf
        assert 1 not in scene.leaf
        assert not scene.lesion.any()


def test_scene_of_a_kind_with_a_leaf_has_leaf_pixels(drawn):
    for (kind, _), scene in drawn.items():
        if kind == "none":
            assert not scene.leaf.any()
            assert scene.disease == "healthy"
    for kind in set(KINDS) - {"undergrowth", "none"}:
        shown = [bool((drawn[kind, seed].leaf == 1).any()) for seed in SEEDS]
        assert sum(shown) >= 3
    for kind in ("leaf", "soil", "canopy"):  # what lies on the ground is all in focus
        assert all(IGNORE not in drawn[kind, seed].leaf for seed in SEEDS)


def test_scene_images_are_neither_black_nor_constant(drawn):
    for scene in drawn.values():
        assert scene.image.max() > 60
        assert scene.image.std() > 1


def test_shadows_do_not_change_masks(drawn, monkeypatch):
    def no_shadow(*_):
        return None

    monkeypatch.setattr(canvas, "darken", no_shadow)
    monkeypatch.setattr(scene_module, "darken", no_shadow)
    for kind in ("leaf", "soil", "canopy", "foreground"):
        lit = draw_scene(3, size_hw=SMALL, kind=kind)
        np.testing.assert_array_equal(lit.leaf, drawn[kind, 3].leaf)
        np.testing.assert_array_equal(lit.lesion, drawn[kind, 3].lesion)
        if kind != "foreground":
            assert not np.array_equal(lit.image, drawn[kind, 3].image)


def test_scene_leaf_mask_includes_dead_tissue():
    """Blight covers a large part of some leaves, within the leaf mask."""
    fractions = []
    for seed in range(40):
        scene = draw_scene(seed, size_hw=(64, 64), kind="leaf")
        if scene.disease == "blight":
            fractions.append((scene.lesion > 0).sum() / (scene.leaf == 1).sum())
    assert max(fractions) > 0.25


def test_about_a_quarter_is_healthy_and_every_disease_occurs():
    small = {"size_hw": (48, 48), "kind": "leaf"}
    diseases = [draw_scene(seed, **small).disease for seed in range(100)]
    assert 0.15 < diseases.count("healthy") / len(diseases) < 0.5
    assert set(diseases) == set(DISEASES)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"seed": -1}, "`seed` is -1.\n  needed: a whole number from 0"),
        ({"size_hw": (16, 64)}, "needed: at least 32 rows and columns"),
        ({"kind": "desert"}, "`kind` is 'desert'.\n  needed: one of leaf, soil"),
    ],
)
def test_draw_scene_with_wrong_arguments_is_refused(wrong, sentence):
    with pytest.raises(UsageError) as error:
        draw_scene(**{"seed": 0, **wrong})
    assert sentence in str(error.value)


def test_folder_of_scenes_is_read_as_drawn(tmp_path):
    write_scenes(tmp_path / "s", 8, seed=2, size_hw=(48, 64))
    with (tmp_path / "s" / "index.csv").open(newline="") as file:
        index = list(csv.DictReader(file))
    assert [row["name"] for row in index] == [f"scene_{k:05}" for k in range(8)]
    manifest = read_folder(tmp_path / "s")
    coding = manifest.codings[manifest.rows[0].source]
    for k, row in enumerate(index):
        scene = draw_scene(2 * 1_000_003 + k, size_hw=(48, 64))
        assert row["disease"] == scene.disease
        with Image.open(tmp_path / "s" / "masks" / f"{row['name']}.png") as mask:
            values = np.array(mask)
        lesion, leaf = decode_mask(values, coding, manifest.classes)
        np.testing.assert_array_equal(leaf, scene.leaf)
        np.testing.assert_array_equal(lesion > 0, scene.lesion > 0)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"seed": -1}, {"size_hw": (16, 64)}])
def test_folder_of_scenes_that_cannot_be_drawn_is_not_begun(tmp_path, wrong):
    with pytest.raises(UsageError):
        write_scenes(tmp_path / "s", **{"n": 2, **wrong})
    assert not (tmp_path / "s").exists()
