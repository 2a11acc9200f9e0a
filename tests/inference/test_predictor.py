from dataclasses import replace

import numpy as np
import pytest

import toy_encoder
from plantseg_next.inference.backends import TileLogits, TorchBackend
from plantseg_next.inference.predictor import Predictor, softmax, tile_probabilities
from plantseg_next.structures import ClassMap

CLASSES = ClassMap(("red", "blue"), ("healthy", "red ill", "blue ill"), has_leaf=True)


def logits_of(lesion: np.ndarray, leaf: np.ndarray, disease: np.ndarray) -> TileLogits:
    """Return logits that have these probabilities."""
    with np.errstate(divide="ignore"):
        return TileLogits(np.log(lesion), np.log(leaf) - np.log1p(-leaf), np.log(disease))


def color_backend(tiles: np.ndarray) -> TileLogits:
    """Predict red pixels as class 1, blue ones as class 2, green ones as leaf."""
    red, green, blue = tiles.astype(np.float32).transpose(3, 0, 1, 2) / 255
    lesion = np.stack([1 - np.maximum(red, blue), red * (red >= blue), blue * (blue > red)])
    lesion = np.moveaxis(lesion / lesion.sum(0).clip(1e-6), 0, 1).astype(np.float32)
    means = np.stack([green.mean((1, 2)), red.mean((1, 2)), blue.mean((1, 2))], axis=1)
    disease = (means + 1e-6) / (means + 1e-6).sum(1, keepdims=True)
    return logits_of(lesion, green, disease.astype(np.float32))


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

    def undecided(tiles: np.ndarray) -> TileLogits:
        t, h, w, _ = tiles.shape
        lesion = np.empty((t, 3, h, w), np.float32)
        lesion[:, 0], lesion[:, 1], lesion[:, 2] = 0.4, 0.25, 0.35
        return logits_of(
            lesion, np.zeros((t, h, w), np.float32), np.ones((t, 3), np.float32) / 3
        )

    prediction = Predictor(undecided, CLASSES, 64, None)(make_image(64, 64))
    assert (prediction.lesion == 2).all()


@pytest.fixture(scope="module")
def network():
    from plantseg_next.models.segmenter import build_segmenter
    from plantseg_next.settings import ModelSettings

    model = ModelSettings(encoder=toy_encoder.NAME, start="random", width=32, layers=1)
    return build_segmenter(model, CLASSES)


@pytest.mark.parametrize("training", [True, False])
def test_backend_returns_logits_and_restores_the_mode_of_the_network(network, training):
    import torch

    network.train(training)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    logits = TorchBackend(network)(tiles)
    assert {module.training for module in network.modules()} == {training}
    with torch.inference_mode():
        x = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
        scores = network.eval()(x).resized((64, 64))
    np.testing.assert_array_equal(logits.lesion, scores.lesion)
    np.testing.assert_array_equal(logits.disease, scores.disease)
    assert [part.dtype for part in logits] == [np.float32] * 3
    for lesion, leaf, expected, leaf_expected in zip(
        logits.lesion,
        logits.leaf,
        scores.lesion.softmax(1),
        scores.leaf.softmax(1)[:, 1],
        strict=True,
    ):
        probabilities = tile_probabilities(lesion, leaf)
        np.testing.assert_allclose(probabilities[:-1].sum(0), 1, rtol=1e-5)
        np.testing.assert_allclose(probabilities[:-1], expected, atol=1e-6)
        np.testing.assert_allclose(probabilities[-1], leaf_expected, atol=1e-6)


@pytest.mark.parametrize(("k", "h", "w"), [(2, 512, 512), (116, 40, 512), (3, 1, 1)])
def test_probabilities_equal_those_of_torch(k, h, w):
    import torch

    rng = np.random.default_rng(0)
    lesion = rng.normal(0, 30, (k, h, w)).astype(np.float32)
    leaf = rng.normal(0, 30, (2, h, w)).astype(np.float32)
    before = lesion.copy()
    probabilities = tile_probabilities(lesion, leaf[1] - leaf[0])
    np.testing.assert_array_equal(lesion, before)
    assert probabilities.dtype == np.float32
    for found, logits in ((probabilities[:-1], lesion), (probabilities[-1:], leaf)):
        expected = torch.from_numpy(logits).softmax(0).numpy()
        np.testing.assert_allclose(found, expected[-len(found) :], atol=1e-6)


def test_softmax_of_extreme_logits_and_of_no_class_raises_no_warning():
    logits = np.array([[-np.inf, 1e4, 3], [1e4, -1e4, 3]], np.float32)
    expected = [[0, 1, 0.5], [1, 0, 0.5]]
    np.testing.assert_array_equal(softmax(logits, np.empty_like(logits)), expected)
    leaf = np.array([[-np.inf, -1e4, 0, 1e4, np.inf]], np.float32)
    probabilities = tile_probabilities(np.zeros((2, 1, 5), np.float32), leaf)
    np.testing.assert_array_equal(probabilities[-1], [[0, 0, 0.5, 1, 1]])
    none = np.zeros(0, np.float32)
    assert softmax(none, none.copy()).shape == (0,)


def test_prediction_of_a_network_equals_its_untiled_softmax(network):
    import torch

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    prediction = Predictor(TorchBackend(network.eval()), CLASSES, 64, None)(image)
    with torch.inference_mode():
        scores = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        scores = scores.resized((64, 64))
    lesion = scores.lesion.softmax(1)[0, 1:].sum(0).numpy()
    leaf = scores.leaf.softmax(1)[0, 1].numpy()
    np.testing.assert_allclose(prediction.lesion_probability, lesion, atol=5e-4)
    np.testing.assert_allclose(prediction.leaf_probability, leaf, atol=5e-4)
    disease = scores.disease.softmax(1)[0].numpy()
    np.testing.assert_allclose(prediction.disease_probability, disease, atol=1e-6)
