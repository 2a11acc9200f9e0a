"""A model in memory: every kind of input, threads, and what is refused."""

import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import plantseg_next
from plantseg_next.errors import DataError, UsageError
from plantseg_next.synthetic.leaves import draw_leaf

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model():
    return plantseg_next.load("starter")


@pytest.fixture(scope="module")
def leaf(tmp_path_factory):
    """Return the path of a drawn diseased leaf."""
    path = tmp_path_factory.mktemp("leaf") / "leaf.png"
    drawn = draw_leaf(
        1, size_hw=(160, 192), disease="blight", age_days=20.0, natural_ground=False
    )
    Image.fromarray(drawn.image).save(path)
    return path


def test_path_bytes_image_and_array_give_the_same(model, leaf):
    with Image.open(leaf) as image:
        sources = [str(leaf), leaf, leaf.read_bytes(), image.copy(), np.asarray(image)]
    found = [model.predict(source) for source in sources]
    assert 1 < found[0].severity_pct < 99
    for other in found[1:]:
        assert other.severity_pct == found[0].severity_pct
        np.testing.assert_array_equal(other.lesion, found[0].lesion)
        np.testing.assert_array_equal(other.lesion_probability, found[0].lesion_probability)
    assert [one.name for one in found] == ["leaf.png", "leaf.png", "", "", ""]


def test_four_threads_at_once_give_the_same(model, leaf):
    expected = model.predict(leaf)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.predict, [leaf] * 8))
    for one in found:
        assert one.row == expected.row
        np.testing.assert_array_equal(one.lesion, expected.lesion)


def test_result_holds_arrays_measures_and_a_row(model, leaf):
    found = model.predict(leaf)
    assert found.lesion.shape == found.leaf.shape == found.image.shape[:2] == (160, 192)
    assert found.leaf.dtype == bool
    assert found.lesions
    assert found.row["severity_pct"] == found.severity_pct
    assert found.row["image"] == "leaf.png"
    assert found.row["scale"] == found.scale == 1
    assert model.predict(leaf, name="mine").row["image"] == "mine"
    few = model.predict(leaf, min_lesion_px=100_000)
    assert few.lesions == ()
    assert few.severity_pct == 0


def test_exif_orientation_is_applied_to_bytes_and_images(model, leaf):
    with Image.open(leaf) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        file = io.BytesIO()
        image.save(file, "PNG", exif=exif)
    found = model.predict(file.getvalue())
    assert found.image.shape == (192, 160, 3)
    with Image.open(io.BytesIO(file.getvalue())) as turned:
        np.testing.assert_array_equal(model.predict(turned).image, found.image)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pil_image_of_any_mode_is_predicted(model, leaf, mode):
    with Image.open(leaf) as image:
        found = model.predict(image.convert(mode))
    assert found.image.shape == (160, 192, 3)


@pytest.mark.parametrize(
    ("array", "came", "fix"),
    [
        (np.zeros((8, 8, 3)), "type float64", r"round\(255 \* image\)"),
        (np.zeros((8, 8, 3), np.float32), "type float32", r"round\(255 \* image\)"),
        (np.zeros((8, 8, 3), np.uint16), "type uint16", "convert it to uint8"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)", "one image at a time"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)", "channels last"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)", "alpha channel"),
    ],
)
def test_array_that_would_be_misread_is_refused(model, array, came, fix):
    with pytest.raises(UsageError, match=came) as caught:
        model.predict(array)
    assert "uint8 of shape (height, width, 3)" in caught.value.needed
    assert re.search(fix, caught.value.fix)


def test_empty_array_bytes_that_are_no_image_and_missing_file_are_refused(model, tmp_path):
    with pytest.raises(DataError, match="it is empty"):
        model.predict(np.zeros((0, 8, 3), np.uint8))
    with pytest.raises(DataError, match="The given bytes are not an image: 16 bytes"):
        model.predict(b"this is no image")
    with pytest.raises(UsageError, match="does not exist"):
        model.predict(tmp_path / "none.jpg")


def test_loading_and_predicting_change_no_global_state(leaf):
    code = f"""
import logging, random, torch
import numpy as np
import plantseg_next
torch.manual_seed(1); random.seed(1); np.random.seed(1)
def state():
    return (torch.get_num_threads(), torch.get_rng_state().sum().item(), random.random(),
            np.random.get_state()[1].sum(), torch.is_autocast_cache_enabled(),
            logging.getLogger().level, torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled())
first = state(); random.seed(1)
plantseg_next.load("starter").predict({str(leaf)!r})
assert state() == first, (first, state())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_network_in_training_mode_is_left_in_it(model):
    network = model.predictor.backend._network
    assert not network.training
    assert torch.is_grad_enabled()
