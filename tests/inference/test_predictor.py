from dataclasses import replace

import numpy as np
import pytest

import toy_encoder
from plantseg_next.inference.backends import TileScores, TorchBackend
from plantseg_next.inference.predictor import Predictor
from plantseg_next.structures import ClassMap

CLASSES = ClassMap(("red", "blue"), ("healthy", "red ill", "blue ill"), has_leaf=True)


def color_backend(tiles: np.ndarray) -> TileScores:
    """Red pixels are class 1, blue ones class 2, green ones leaf."""
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
def test_every_pixel_is_predicted_where_it_is(h, w):
    image = make_image(h, w)
    found = Predictor(color_backend, CLASSES, 64, None)(image)
    expected = np.where(image[..., 0] > 0, 1, np.where(image[..., 2] > 0, 2, 0))
    np.testing.assert_array_equal(found.lesion, expected)
    np.testing.assert_array_equal(found.leaf, image[..., 1] > 0)
    assert sum(found.disease_probability) == pytest.approx(1, abs=1e-3)


def test_a_large_image_comes_back_at_its_own_size():
    image = make_image(300, 500)
    found = Predictor(color_backend, CLASSES, 64, 100)(image)
    assert found.lesion.shape == (300, 500)
    assert found.lesion_probability.shape == (300, 500)
    expected = np.where(image[..., 0] > 0, 1, np.where(image[..., 2] > 0, 2, 0))
    assert (found.lesion == expected).mean() > 0.97


def test_without_a_leaf_head_no_leaf_is_claimed():
    found = Predictor(color_backend, replace(CLASSES, has_leaf=False), 64, None)(
        make_image(64, 64)
    )
    assert found.leaf_probability is None
    assert found.leaf is None


def test_two_half_sure_classes_are_one_sure_lesion():
    """A lesion is one where any class is likelier than none; its name comes after."""

    def torn(tiles: np.ndarray) -> TileScores:
        t, h, w, _ = tiles.shape
        lesion = np.empty((t, 3, h, w), np.float32)
        lesion[:, 0], lesion[:, 1], lesion[:, 2] = 0.4, 0.25, 0.35
        return TileScores(
            lesion, np.zeros((t, h, w), np.float32), np.ones((t, 3), np.float32) / 3
        )

    found = Predictor(torn, CLASSES, 64, None)(make_image(64, 64))
    assert (found.lesion == 2).all()


def test_a_network_is_left_in_the_mode_it_was_in():
    from plantseg_next.models.segmenter import build_segmenter
    from plantseg_next.settings import ModelSettings

    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", width=32, layers=1), CLASSES
    ).train()
    scores = TorchBackend(network)(np.zeros((2, 64, 64, 3), np.uint8))
    assert network.training
    assert scores.lesion.shape == (2, 3, 64, 64)
    np.testing.assert_allclose(scores.lesion.sum(1), 1, rtol=1e-5)
