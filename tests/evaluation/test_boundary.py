"""Boundary F1: compared with brute-force distances, and its empty cases."""

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from plantseg_next.evaluation.boundary import (
    boundary_counts,
    boundary_f1,
    boundary_tolerance,
)

masks = hnp.arrays(np.uint8, (13, 11), elements=st.integers(0, 1))


def outline(mask):
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    inner = binary_erosion(mask, cross, border_value=1)
    return np.argwhere(mask.astype(bool) & ~inner)


@given(masks, masks, st.sampled_from([1.0, 1.5, 2.3, 5.0]))
@settings(max_examples=60, deadline=None)
def test_boundary_counts_agree_with_brute_force(truth, predicted, tolerance):
    counts = boundary_counts(truth, predicted, tolerance_px=tolerance)
    of_truth, of_predicted = outline(truth), outline(predicted)
    matched = (0, 0)
    if len(of_truth) and len(of_predicted):
        distance = cdist(of_predicted, of_truth)
        matched = (
            (distance.min(axis=1) <= tolerance).sum(),
            (distance.min(axis=0) <= tolerance).sum(),
        )
    assert counts.tolist() == [matched[0], len(of_predicted), matched[1], len(of_truth)]


@given(masks)
@settings(max_examples=30, deadline=None)
def test_boundary_f1_of_identical_masks_is_one(mask):
    score = boundary_f1(boundary_counts(mask, mask))
    assert score == 1.0 if len(outline(mask)) else np.isnan(score)


def test_boundary_tolerance_is_a_fraction_of_the_diagonal_but_at_least_a_pixel():
    assert boundary_tolerance(300, 400) == pytest.approx(3.75)
    assert boundary_tolerance(30, 40) == 1.0


def test_boundary_f1_of_a_shift_is_one_within_the_tolerance_and_zero_beyond():
    truth = np.zeros((300, 400), np.uint8)
    truth[100:200, 100] = 1
    assert boundary_f1(boundary_counts(truth, np.roll(truth, 3, axis=1))) == 1.0
    assert boundary_f1(boundary_counts(truth, np.roll(truth, 4, axis=1))) == 0.0


def test_boundary_f1_of_empty_masks():
    empty, spot = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    spot[4, 4] = 1
    assert np.isnan(boundary_f1(boundary_counts(empty, empty)))
    assert boundary_f1(boundary_counts(spot, empty)) == 0.0
    assert boundary_f1(boundary_counts(empty, spot)) == 0.0


def test_boundary_excludes_the_border_of_the_image():
    whole = np.ones((8, 8), np.uint8)
    assert boundary_counts(whole, whole).tolist() == [0, 0, 0, 0]


def test_boundary_excludes_the_border_of_ignored_pixels():
    truth = np.zeros((20, 20), np.uint8)
    truth[5:15, 5:10] = 3
    truth[:, 10:] = 255
    predicted = np.zeros((20, 20), np.uint8)
    predicted[5:15, 5:18] = 1
    matched_p, n_p, matched_t, n_t = boundary_counts(truth, predicted)
    assert (matched_p, matched_t) == (n_p, n_t) == (18, 18)


def test_boundary_counts_of_another_size_are_refused(monkeypatch):
    # As in production: the shape check of the tests would raise first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="never resize the truth"):
        boundary_counts(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
