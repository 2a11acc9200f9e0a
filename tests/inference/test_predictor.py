from dataclasses import replace

import numpy as np
import pytest

import toy_encoder
from plantseg_next.inference.backends import TileScores, TorchBackend
from plantseg_next.inference.predictor import Predictor
from plantseg_next.structures import ClassMap

CLASSES = ClassMap(("red", "blue"), ("healthy", "red ill", "blue ill"), has_leaf=True)


def color_backend(tiles: np.ndarray) -> TileScores:
    """Predict red pixels as class 1, blue ones as class 2, green ones as leaf."""
    red, green, blue = tiles.astype(np.float32).transpose(3, 0, 1, 2) / 255
    lesion = np.stack([1 - np.maximum(red, blue), red * (red >= blue), blue * (blue > red)])
    lesion = np.moveaxis(lesion / lesion.sum(0).clip(1e-6), 0, 1).astype(np.float32)
    means = np.stack([green.mean((1, 2)), red.mean((1, 2)), blue.mean((1, 2))], axis=1)
    disease = (means + 1e-6) / (means + 1e-6).sum(1, keepdims=True)
    return TileScores(lesion, green, disease.astype(np.float32))


def make_image(h: int, w: int) -> np.ndarray:
    image = np.zeros((h, w, 3), np.uint8)
    image[:, :, 1] = 255
    image[: h // 2, : w // 2] = (255, 0, 0)
    image[h // 2 :, w // 2 :] = (0, 0, 255)
    return image


@pytest.mark.parametrize(("h", "w"), [(64, 64), (200, 130), (20, 300), (1, 1)])
def test_predictor_stitches_pixels_at_their_position(h, w):
    image = make_image(h, w)
    prediction = Predictor(color_backend, CLASSES, 64, None)(image)
    expected = np.where(image[..., 0] > 0, 1, np.where(image[..., 2] > 0, 2, 0))
    np.testing.assert_array_equal(prediction.lesion, expected)
    np.testing.assert_array_equal(prediction.leaf, image[..., 1] > 0)
    assert sum(prediction.disease_probability) == pytest.approx(1, abs=1e-3)


def test_predictor_of_a_shrunk_image_returns_its_own_size():
    image = make_image(300, 500)
    prediction = Predictor(color_backend, CLASSES, 64, 100)(image)
    assert prediction.lesion.shape == (300, 500)
    assert prediction.lesion_probability.shape == (300, 500)
    expected = np.where(image[..., 0] > 0, 1, np.where(image[..., 2] > 0, 2, 0))
    assert (prediction.lesion == expected).mean() > 0.97


def test_predictor_without_a_leaf_head_predicts_no_leaf():
    prediction = Predictor(color_backend, replace(CLASSES, has_leaf=False), 64, None)(
        make_image(64, 64)
    )
    assert prediction.leaf_probability is None
    assert prediction.leaf is None


def test_predictor_sums_class_probabilities_before_the_threshold():
    """Lesion if the classes together are likelier than none; then the likeliest class."""

    def undecided(tiles: np.ndarray) -> TileScores:
        t, h, w, _ = tiles.shape
        lesion = np.empty((t, 3, h, w), np.float32)
        lesion[:, 0], lesion[:, 1], lesion[:, 2] = 0.4, 0.25, 0.35
        return TileScores(
            lesion, np.zeros((t, h, w), np.float32), np.ones((t, 3), np.float32) / 3
        )

    prediction = Predictor(undecided, CLASSES, 64, None)(make_image(64, 64))
    assert (prediction.lesion == 2).all()


def test_backend_restores_the_mode_of_the_network():
    from plantseg_next.models.segmenter import build_segmenter
    from plantseg_next.settings import ModelSettings

    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", width=32, layers=1), CLASSES
    ).train()
    scores = TorchBackend(network)(np.zeros((2, 64, 64, 3), np.uint8))
    assert network.training
    assert scores.lesion.shape == (2, 3, 64, 64)
    np.testing.assert_allclose(scores.lesion.sum(1), 1, rtol=1e-5)
