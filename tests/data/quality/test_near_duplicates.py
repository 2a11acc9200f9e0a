import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from plantseg_next.data.image_io import read_image
from plantseg_next.data.quality.near_duplicates import (
    find_pairs,
    fingerprint,
    near_duplicates,
    perceptual_hash,
)

SHARED = Path(__file__).parents[3] / "../shared/data"


def scene(seed: int) -> np.ndarray:
    """Return a random image with coarse and fine structure."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((6, 8, 3)), (240, 180), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.random((40, 60, 3)), (240, 180), interpolation=cv2.INTER_CUBIC)
    return (255 * np.clip(0.6 * coarse + 0.4 * fine, 0, 1)).astype(np.uint8)


def recompressed(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=30)
    return np.array(Image.open(file))


CHANGES = {
    "recompressed": recompressed,
    "resized": lambda image: cv2.resize(image, (131, 97), interpolation=cv2.INTER_AREA),
    "brighter": lambda image: np.clip(image * 1.2 + 10, 0, 255).astype(np.uint8),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "upside down": lambda image: np.ascontiguousarray(image[::-1]),
    "turned": lambda image: np.ascontiguousarray(np.rot90(image)),
    "transposed": lambda image: np.ascontiguousarray(image.swapaxes(0, 1)),
    "cropped": lambda image: np.ascontiguousarray(image[2:-2, 2:-2]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_near_duplicates_transformed_copy_is_found(change):
    images = [scene(seed) for seed in range(12)]
    prints = [fingerprint(image) for image in [*images, change(images[3])]]
    (pair,) = near_duplicates(prints)
    assert (pair.first, pair.second) == (3, 12)
    assert 0.6 <= pair.correlation <= 1


def test_near_duplicates_with_first_images_only():
    prints = [fingerprint(scene(0))] * 4
    pairs = near_duplicates(prints, n_first=1)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (0, 3)]
    assert near_duplicates(prints, n_first=0) == []


def test_near_duplicates_even_images_do_not_match():
    even = [np.full((50, 50, 3), gray, np.uint8) for gray in (0, 90, 200)]
    assert near_duplicates([fingerprint(image) for image in even]) == []
    assert near_duplicates([]) == []


def test_perceptual_hash_matches_scipy_dct():
    gray = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    low = dctn(gray.astype(np.float64), norm="ortho")[1:9, 1:9].ravel()
    bits = "".join("1" if value > np.median(low) else "0" for value in low)
    assert perceptual_hash(gray) == int(bits, 2)


def test_find_pairs_matches_brute_force():
    rng = np.random.default_rng(0)
    # More rows than a block, and few bits, so that pairs cross blocks.
    hashes = rng.integers(0, 2**12, (300, 2), np.uint64)
    expected = {
        (i, j, v)
        for i in range(300)
        for j in range(i + 1, 300)
        for v in range(2)
        if (int(hashes[i, 0]) ^ int(hashes[j, v])).bit_count() <= 1
    }
    assert {tuple(row) for row in find_pairs(hashes, 1).tolist()} == expected


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared collections are absent")
def test_near_duplicates_leaves_on_plain_background_do_not_match():
    paths = sorted((SHARED / "potato" / "images").glob("*.jpg"))[::4]
    prints = [fingerprint(read_image(path)) for path in paths]
    assert near_duplicates(prints) == []
