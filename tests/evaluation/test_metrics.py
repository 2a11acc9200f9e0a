"""Overlap metrics: compared with counts by hand, scikit-image and loops."""

from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import contingency_table

from plantseg_next.errors import DataError
from plantseg_next.evaluation.metrics import (
    Confusion,
    Overlap,
    class_counts,
    confusion_matrix,
    dice,
    foreground_counts,
    iou,
    mean_defined,
    precision,
    recall,
)
from plantseg_next.structures import Prediction, Sample

K = 4
shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)
pairs = shapes.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, 255])),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, K - 1)),
    )
)


def scores_of(truth, predicted, n_classes):
    """Return the scores of each class and of all, and the confusion matrix."""
    sample = Sample("a", np.zeros((*truth.shape, 3), np.uint8), truth, truth)
    prediction = Prediction(predicted, np.zeros(truth.shape, np.float16), None)
    confusion, overlap = Confusion(n_classes), Overlap(n_classes)
    for metric in (confusion, overlap):
        metric.update(sample, prediction)
    return SimpleNamespace(
        confusion=confusion.counts, **confusion.compute(), **overlap.compute()
    )


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_confusion_agrees_with_a_loop(pair):
    truth, predicted = pair
    expected = np.zeros((K, K), np.int64)
    for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    np.testing.assert_array_equal(confusion_matrix(truth, predicted, K), expected)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_scores_agree_with_sets_of_pixels(pair):
    truth, predicted = pair
    known = truth != 255
    scores = scores_of(truth, predicted, K)
    for k in range(K):
        t, p = (truth == k) & known, (predicted == k) & known
        both, either = (t & p).sum(), (t | p).sum()
        for score, part, whole in (
            (scores.iou[k], both, either),
            (scores.dice[k], 2 * both, t.sum() + p.sum()),
            (scores.precision[k], both, p.sum()),
            (scores.recall[k], both, t.sum()),
        ):
            assert score == part / whole if whole else np.isnan(score)
    t, p = (truth > 0) & known, (predicted > 0) & known
    if (t | p).any():
        assert scores.lesion_iou == pytest.approx((t & p).sum() / (t | p).sum())


def test_confusion_agrees_with_scikit_image_across_blocks():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (1100, 1000), dtype=np.uint8)
    predicted = rng.integers(0, 3, truth.shape, dtype=np.uint8)
    expected = contingency_table(truth, predicted).toarray()
    np.testing.assert_array_equal(confusion_matrix(truth, predicted, 3), expected)


def test_confusion_of_255_classes_includes_id_254():
    truth = np.array([[254, 115, 255]], np.uint8)
    confusion = confusion_matrix(truth, np.array([[115, 254, 200]], np.uint8), 255)
    assert confusion.sum() == 2
    assert confusion[254, 115] == confusion[115, 254] == 1


def test_iou_of_an_absent_class_is_undefined_and_of_a_false_class_zero():
    # class 1 is in neither, class 2 is predicted only, class 3 is true only
    truth = np.array([[0, 0, 0, 3]], np.uint8)
    predicted = np.array([[0, 0, 2, 0]], np.uint8)
    scores = scores_of(truth, predicted, K)
    np.testing.assert_array_equal(scores.iou, [0.5, np.nan, 0.0, 0.0])
    np.testing.assert_array_equal(scores.precision, [2 / 3, np.nan, 0.0, np.nan])
    np.testing.assert_array_equal(scores.recall, [2 / 3, np.nan, np.nan, 0.0])
    assert scores.mean_iou == pytest.approx(0.5 / 3)
    assert scores.disease_miou == 0.0
    assert scores.mean_accuracy == pytest.approx(1 / 3)


def test_lesion_scores_ignore_confusion_of_lesion_classes():
    truth, predicted = np.full((2, 2), 1, np.uint8), np.full((2, 2), 2, np.uint8)
    scores = scores_of(truth, predicted, 3)
    assert scores.disease_miou == 0.0
    assert scores.lesion_dice == scores.lesion_iou == 1.0
    assert scores.lesion_precision == scores.lesion_recall == 1.0


def test_scores_of_ignored_pixels_are_undefined_without_a_warning():
    scores = scores_of(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8), 2)
    assert scores.confusion.sum() == 0
    assert np.isnan([scores.mean_iou, scores.disease_miou, scores.lesion_dice]).all()
    assert np.isnan(mean_defined(np.array([np.nan])))


def test_class_counts_are_additive():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 9, (2, K, K))
    for count in (class_counts, foreground_counts):
        np.testing.assert_array_equal(count(a) + count(b), count(a + b))
    counts = class_counts(a)
    assert dice(counts)[1] == pytest.approx(2 * iou(counts)[1] / (1 + iou(counts)[1]))
    p, r = precision(counts)[2], recall(counts)[2]
    assert dice(counts)[2] == pytest.approx(2 * p * r / (p + r))


def test_confusion_of_an_unknown_predicted_class_is_refused():
    truth = np.array([[0, 1]], np.uint8)
    with pytest.raises(DataError, match=r"The prediction holds the class ids \[7\]") as e:
        confusion_matrix(truth, np.array([[0, 7]], np.uint8), 2)
    assert "needed: ids from 0 to 1, or 255 for unknown truth" in str(e.value)
    assert "evaluate a model on the classes that it was trained for" in str(e.value)


def test_confusion_of_an_unknown_true_class_is_refused():
    with pytest.raises(DataError, match=r"The true mask holds the class ids \[3\]"):
        confusion_matrix(np.array([[3]], np.uint8), np.array([[0]], np.uint8), 2)


def test_confusion_of_another_size_is_refused(monkeypatch):
    # As in production: the shape check of the tests would raise first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="never resize the truth"):
        confusion_matrix(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 2)
