"""Severity and lesions: compared with plain ratios and scikit-image's regionprops."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from skimage.measure import label, perimeter_crofton, regionprops
from skimage.morphology import remove_small_objects

from plantseg_next.inference import severity as severity_module
from plantseg_next.inference.severity import (
    assess,
    find_lesions,
    measure_severity,
    remove_small_lesions,
    whole_leaf,
)
from plantseg_next.structures import Prediction

COFFEE = Path("../shared/data/coffee/masks")

shape = (17, 13)
lesion_maps = hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 1, 1, 2, 255]))
leaf_maps = hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 1, 255]))


def maps(*rows):
    return np.array([[int(c) if c != "x" else 255 for c in row] for row in rows], np.uint8)


# --- severity ---------------------------------------------------------------------


@given(lesion_maps, leaf_maps)
@settings(max_examples=60, deadline=None)
def test_severity_of_lesions_within_the_leaf_is_lesion_over_leaf(lesion, leaf):
    diseased = (lesion > 0) & (lesion < 255)
    leaf = np.where(diseased & (leaf == 0), 1, leaf).astype(np.uint8)
    known = (lesion != 255) & (leaf != 255)
    on_leaf = known & (leaf == 1)
    measure = measure_severity(lesion, leaf, min_leaf_fraction=0.0)
    if not on_leaf.any():
        assert measure.severity_pct is None
        return
    assert measure.leaf_px == on_leaf.sum()
    assert measure.lesion_px == (on_leaf & diseased).sum()
    assert measure.severity_pct == pytest.approx(
        100 * (on_leaf & diseased).sum() / on_leaf.sum()
    )


@given(lesion_maps, leaf_maps)
@settings(max_examples=60, deadline=None)
def test_severity_is_a_percentage_and_the_leaf_only_grows(lesion, leaf):
    measure = measure_severity(lesion, leaf)
    assert 0 <= measure.affected_pct_of_image <= 100
    if measure.denominator == "leaf":
        assert 0 <= measure.severity_pct <= 100
        assert measure.lesion_px <= measure.leaf_px
    grown = whole_leaf(lesion, leaf)
    assert ((grown == leaf) | ((leaf == 0) & (lesion > 0) & (lesion < 255))).all()
    np.testing.assert_array_equal(whole_leaf(lesion, grown), grown)


def test_whole_leaf_includes_lesions_at_the_margin_and_in_holes():
    leaf = maps("11110000", "10110000", "11110000", "00000000", "00000000")
    lesion = maps("00002110", "01000000", "00000000", "00000000", "00000011")
    grown = maps("11111110", "11110000", "11110000", "00000000", "00000000")
    np.testing.assert_array_equal(whole_leaf(lesion, leaf), grown)
    measure = measure_severity(lesion, leaf)
    assert (measure.lesion_px, measure.leaf_px) == (4, 15)
    assert measure.severity_pct == pytest.approx(100 * 4 / 15)
    assert measure.affected_pct_of_image == pytest.approx(10.0)


def test_whole_leaf_includes_diagonal_neighbors():
    leaf, lesion = maps("100", "000", "000"), maps("000", "010", "002")
    assert measure_severity(lesion, leaf).lesion_px == 2


def test_severity_excludes_ignored_pixels():
    lesion, leaf = maps("x1100", "00000"), maps("1111x", "11000")
    measure = measure_severity(lesion, leaf)
    assert (measure.lesion_px, measure.leaf_px) == (2, 5)
    assert measure.affected_pct_of_image == pytest.approx(100 * 2 / 8)


def test_severity_without_a_leaf_is_undefined():
    lesion = maps("x110", "0000")
    for leaf in (None, maps("0000", "0000"), maps("xxxx", "xxxx")):
        measure = measure_severity(lesion, leaf)
        assert (measure.severity_pct, measure.leaf_px) == (None, None)
        assert (measure.denominator, measure.lesion_px) == ("image", 2)
        assert measure.affected_pct_of_image == pytest.approx(100 * 2 / 7)


def test_severity_treats_a_leaf_below_one_percent_as_noise():
    lesion, leaf = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    lesion[5:, 5:] = 1
    leaf[5, 5:8] = 1
    assert measure_severity(lesion, leaf).denominator == "image"
    leaf[5, 8] = 1
    assert measure_severity(lesion, leaf).denominator == "leaf"


def test_severity_of_unknown_pixels_is_undefined():
    measure = measure_severity(maps("xx"), maps("xx"))
    assert (measure.lesion_px, measure.affected_pct_of_image) == (0, 0.0)


def test_severity_of_real_leaves_is_lesion_over_leaf():
    if not COFFEE.is_dir():
        pytest.skip("no coffee leaves at ../shared/data")
    for path in sorted(COFFEE.glob("*.png"))[:5]:
        with Image.open(path) as mask:
            values = np.array(mask)
        lesion, leaf = (values == 2).astype(np.uint8), (values > 0).astype(np.uint8)
        measure = measure_severity(lesion, leaf)
        assert measure.severity_pct == pytest.approx(100 * lesion.sum() / leaf.sum())


# --- lesions ----------------------------------------------------------------------


def assert_agrees_with_regionprops(lesion, probability):
    lesions = find_lesions(lesion, probability)
    expected = [
        (class_id, region)
        for class_id in (1, 2)
        for region in regionprops(
            label(lesion == class_id, connectivity=2),
            intensity_image=probability.astype(np.float64),
        )
    ]
    assert len(lesions) == len(expected)
    by_place = {(s.class_id, s.box_y, s.box_x, s.area_px): s for s in lesions}
    for class_id, region in expected:
        top, left, bottom, right = region.bbox
        spot = by_place[class_id, top, left, int(region.area)]
        assert (spot.box_height, spot.box_width) == (bottom - top, right - left)
        assert (spot.y, spot.x) == pytest.approx(region.centroid)
        assert spot.confidence == pytest.approx(region.intensity_mean)
        assert spot.eccentricity == pytest.approx(region.eccentricity, abs=1e-6)
        perimeter = perimeter_crofton(np.pad(region.image, 1), directions=4)
        assert spot.perimeter_px == pytest.approx(perimeter)


@given(lesion_maps, st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_lesions_agree_with_regionprops(lesion, seed):
    probability = np.random.default_rng(seed).random(shape).astype(np.float16)
    lesions = find_lesions(lesion, probability)
    places = [(spot.class_id, spot.box_y, spot.box_x, spot.area_px) for spot in lesions]
    if len(set(places)) == len(places):  # nested rings can share a box and an area
        assert_agrees_with_regionprops(lesion, probability)


def test_lesions_agree_across_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(severity_module, "_ROWS_AT_ONCE", 5)
    lesion = np.zeros((64, 48), np.uint8)
    lesion[3:40, 5:9] = lesion[38:44, 2:30] = 1
    lesion[50:60, 20:45] = lesion[10, 40] = 2
    y, x = np.mgrid[:64, :48]
    lesion[(y - 20) ** 2 + (x - 25) ** 2 < 90] = 2
    assert_agrees_with_regionprops(lesion, (x / 48).astype(np.float16))


def test_perimeter_of_a_disc_is_that_of_a_circle():
    y, x = np.mgrid[:101, :101]
    disc = ((y - 50) ** 2 + (x - 50) ** 2 <= 40**2).astype(np.uint8)
    (spot,) = find_lesions(disc, disc.astype(np.float16))
    assert spot.perimeter_px == pytest.approx(2 * math.pi * 40, rel=0.03)
    assert spot.eccentricity == pytest.approx(0.0, abs=0.01)
    assert (spot.x, spot.y, spot.confidence) == (50, 50, 1.0)


def test_lesions_are_numbered_by_size_without_small_ones():
    lesion = maps("1022200", "0000001", "0110001")
    kept = remove_small_lesions(lesion, 2)
    lesions = find_lesions(kept, np.ones(lesion.shape, np.float16))
    assert [(spot.id, spot.class_id, spot.area_px) for spot in lesions] == [
        (1, 2, 3),
        (2, 1, 2),
        (3, 1, 2),
    ]
    assert (lesions[1].box_x, lesions[2].box_x) == (6, 1)
    assert {spot.on_leaf for spot in lesions} == {None}


@given(lesion_maps, leaf_maps)
@settings(max_examples=40, deadline=None)
def test_lesions_on_the_leaf_add_up_to_the_severity(lesion, leaf):
    leaf = np.where(leaf == 255, 0, leaf).astype(np.uint8)
    lesions = find_lesions(lesion, np.ones(shape, np.float16), leaf=leaf)
    measure = measure_severity(lesion, leaf, min_leaf_fraction=0.0)
    if measure.denominator == "leaf":
        assert sum(spot.area_px for spot in lesions if spot.on_leaf) == measure.lesion_px


def test_lesions_of_a_clean_leaf_are_none():
    clean = np.zeros((5, 5), np.uint8)
    assert find_lesions(clean, clean.astype(np.float16)) == []


def test_lesions_of_many_thousands_are_measured():
    lesion = np.zeros((600, 600), np.uint8)
    lesion[::4, ::4] = 1
    assert len(find_lesions(lesion, lesion.astype(np.float16))) == 150 * 150


@given(lesion_maps, st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_small_lesions_are_removed_as_by_scikit_image(lesion, least):
    expected = np.where(lesion == 255, 255, 0).astype(np.uint8)
    for class_id in (1, 2):
        kept = remove_small_objects(
            lesion == class_id, max_size=max(least - 1, 0), connectivity=2
        )
        expected[kept] = class_id
    before = lesion.copy()
    np.testing.assert_array_equal(remove_small_lesions(lesion, least), expected)
    np.testing.assert_array_equal(lesion, before)


# --- both -------------------------------------------------------------------------


def test_assess_removes_small_lesions_first():
    lesion = np.zeros((40, 40), np.uint8)
    lesion[5:10, 5:10] = 1
    lesion[20, 20] = 2
    lesion[30:36, 34:40] = 2
    leaf = np.zeros((40, 40), np.float16)
    leaf[:, :30] = 0.9
    assessment = assess(Prediction(lesion, (lesion > 0).astype(np.float16), leaf))
    assert assessment.min_lesion_px == 20
    assert [spot.area_px for spot in assessment.lesions] == [36, 25]
    assert [spot.area_px for spot in assessment.counted] == [25]
    assert assessment.measure.severity_pct == pytest.approx(100 * 25 / 1200)
    assert assessment.prediction.lesion[20, 20] == 0
    unknown = assess(Prediction(lesion, (lesion > 0).astype(np.float16), None))
    assert len(unknown.counted) == 2
    assert unknown.measure.affected_pct_of_image == pytest.approx(100 * 61 / 1600)
