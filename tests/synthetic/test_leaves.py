"""Drawn leaves: exact masks, fixed seeds, growth with age, files."""

import csv
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from plantseg_next.errors import OutputError, UsageError
from plantseg_next.synthetic.folders import write_drawn_folder
from plantseg_next.synthetic.leaf_shapes import smooth_noise
from plantseg_next.synthetic.leaves import DISEASES, draw_leaf
from plantseg_next.synthetic.lesions import LESION_KINDS, Blots, draw_look, place_blots

SMALL = (96, 128)
seeds = st.integers(0, 10_000)


def test_leaf_of_same_seed_has_same_bytes():
    first, again, other = draw_leaf(7), draw_leaf(7), draw_leaf(8)
    for part in ("image", "lesion", "leaf"):
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
    assert (first.disease, first.age_days) == (again.disease, again.age_days)
    assert not np.array_equal(first.image, other.image)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, disease=st.sampled_from(DISEASES), natural=st.booleans())
def test_leaf_masks_are_consistent(seed, disease, natural):
    drawn = draw_leaf(seed, size_hw=SMALL, disease=disease, natural_ground=natural)
    assert drawn.image.shape == (*SMALL, 3)
    assert set(np.unique(drawn.leaf)) <= {0, 1}
    assert set(np.unique(drawn.lesion)) <= {0, DISEASES.index(disease)}
    assert not (drawn.lesion[drawn.leaf == 0]).any()
    assert drawn.leaf.any()


@settings(max_examples=15, deadline=None)
@given(
    seed=seeds,
    kind=st.sampled_from(LESION_KINDS),
    ages=st.lists(st.floats(0, 40), min_size=2, max_size=3),
)
def test_lesions_only_grow_with_age_and_the_leaf_is_constant(seed, kind, ages):
    drawn = [
        draw_leaf(seed, size_hw=SMALL, disease=kind, age_days=age) for age in sorted(ages)
    ]
    for young, old in pairwise(drawn):
        np.testing.assert_array_equal(young.leaf, old.leaf)
        assert not (young.lesion.astype(bool) & (old.lesion == 0)).any()


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_lesions_are_absent_at_age_zero_and_present_later(kind):
    shown = 0
    for seed in range(12):
        fresh = draw_leaf(seed, size_hw=SMALL, disease=kind, age_days=0.0)
        assert not fresh.lesion.any()
        assert fresh.disease == kind
        aged = draw_leaf(seed, size_hw=SMALL, disease=kind, age_days=25.0)
        shown += bool(aged.lesion.any())
    assert shown >= 11  # a first lesion may lie in a hole of the leaf


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_diseased_leaf_at_age_zero_equals_healthy_leaf(kind):
    fresh = draw_leaf(5, size_hw=SMALL, disease=kind, age_days=0.0)
    healthy = draw_leaf(5, size_hw=SMALL, disease="healthy")
    np.testing.assert_array_equal(fresh.image, healthy.image)


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_image_differs_from_healthy_leaf_within_the_mask(kind):
    """Except for halo, glare and JPEG artifacts."""
    inside, outside = [], []
    same = {"size_hw": (144, 144), "natural_ground": False}
    for seed in range(20, 30):
        diseased = draw_leaf(seed, disease=kind, age_days=22.0, **same)
        healthy = draw_leaf(seed, disease="healthy", **same)
        change = np.abs(diseased.image.astype(float) - healthy.image).mean(axis=2)
        core = ndimage.binary_erosion(diseased.lesion > 0)
        far = ndimage.distance_transform_edt(diseased.lesion == 0) > 40
        inside += [change[core].mean()] if core.any() else []
        outside += [change[far].mean()] if far.any() else []
    assert np.median(inside) > 12
    assert np.median(outside) < 2


def test_blot_area_follows_logistic_growth():
    """An even blot against the area that the formula of logistic growth gives."""
    blot = Blots(
        np.array([[80.0, 85.0]]), *(np.array([v]) for v in (60.0, 1.0, 0.0, 2.0, 0.5)), 0.0
    )
    even = np.ones((170, 170), np.float32)
    for age in (3.0, 9.0, 30.0):
        fraction = 1 / (1 + 49 * np.exp(-0.5 * (age - 2)))
        area = int((blot.extent(age, even).depth_px > 0).sum())
        assert area == pytest.approx(np.pi * 60**2 * fraction, rel=0.02)
    assert (blot.extent(2.0, even).depth_px < 0).all()


def test_depth_and_zone_mark_the_same_pixels():
    rng = np.random.default_rng(0)
    leaf = np.full((64, 64), 50.0, np.float32)
    blots = place_blots(rng, "leaf spot", leaf, 120.0)
    rough = np.clip(1 + 0.2 * smooth_noise(rng, (64, 64), 8.0), 0.6, 1.7)
    extent = blots.extent(15.0, rough.astype(np.float32))
    np.testing.assert_array_equal(extent.depth_px > 0, extent.zone < 1)


def test_blots_without_a_leaf_are_none():
    rng = np.random.default_rng(0)
    blots = place_blots(rng, "rust", np.full((40, 40), -9.0, np.float32), 100.0)
    assert blots.radius_px.size == 0
    extent = blots.extent(20.0, np.ones((40, 40), np.float32))
    assert (extent.depth_px < 0).all()
    for kind in LESION_KINDS:
        assert 0 <= draw_look(rng, kind, blots).cover <= 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"seed": -1}, "`seed` is -1.\n  needed: a whole number from 0"),
        ({"size_hw": (16, 64)}, "needed: at least 32 rows and columns"),
        ({"disease": "rot"}, "`disease` is 'rot'.\n  needed: one of healthy, leaf spot"),
        ({"age_days": -2.0}, "`age_days` is -2.0.\n  needed: a number of days from 0"),
        ({"age_days": float("nan")}, "`age_days` is nan."),
    ],
)
def test_draw_leaf_with_wrong_arguments_is_refused(wrong, sentence):
    with pytest.raises(UsageError) as error:
        draw_leaf(**{"seed": 0, **wrong})
    assert sentence in str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn")
    write_drawn_folder(path, 48, seed=3, size_hw=(64, 64))
    return path


def test_drawn_folder_matches_its_index(folder):
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    assert list(rows[0]) == ["name", "split", "disease", "group"]
    assert {row["name"] for row in rows} == {
        path.stem for path in (folder / "images").iterdir()
    }
    classes = (folder / "classes.yaml").read_text().splitlines()
    assert classes[:3] == ["0: background", "1: leaf", "2: leaf spot"]
    for row in rows:
        with Image.open(folder / "masks" / f"{row['name']}.png") as mask:
            assert mask.mode == "P"
            values = set(np.unique(np.asarray(mask)).tolist())
        lesions = values - {0, 1}
        expected = DISEASES.index(row["disease"]) + 1
        assert lesions == ({expected} if row["disease"] != "healthy" else set())


def test_drawn_folder_has_each_leaf_in_one_split_and_each_disease_in_all(folder):
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], set()).add((row["split"], row["disease"]))
    assert all(len(pairs) == 1 for pairs in groups.values())
    assert 48 > len(groups) > 24  # some leaves are seen twice
    for disease in DISEASES:
        splits = {row["split"] for row in rows if row["disease"] == disease}
        assert splits == {"train", "val", "test"}


def test_splits_of_many_leaves_are_70_15_15():
    from plantseg_next.synthetic.folders import plan_splits

    splits = plan_splits(np.random.default_rng(0), [*DISEASES] * 40)
    fractions = [splits.count(name) / len(splits) for name in ("train", "val", "test")]
    assert fractions == pytest.approx([0.70, 0.15, 0.15])


def test_drawn_folder_of_same_seed_has_same_files(tmp_path):
    for name in ("a", "b"):
        write_drawn_folder(tmp_path / name, 3, seed=1, size_hw=(48, 48))
    first = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(first) == 3 + 3 + 2
    for path in first:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


def test_drawn_folder_that_is_not_empty_is_refused(folder, tmp_path):
    with pytest.raises(OutputError, match="needed: a folder without images and index"):
        write_drawn_folder(folder, 3)
    with pytest.raises(UsageError, match="`n` is 0"):
        write_drawn_folder(tmp_path, 0)
    assert not list(tmp_path.iterdir())
