"""A model in memory: every kind of input, threads, and what is refused."""

import copy
import io
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import plantseg_next
from plantseg_next import api
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


def assert_same(found, expected):
    """Assert that two results are equal, bit for bit, but for the name."""
    assert found.row | {"image": ""} == expected.row | {"image": ""}
    assert found.lesions == expected.lesions
    for name in ("image", "lesion", "lesion_probability", "leaf"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    probabilities = [r.assessment.prediction.leaf_probability for r in (found, expected)]
    np.testing.assert_array_equal(*probabilities)


def test_path_bytes_image_and_array_give_the_same(model, leaf):
    with Image.open(leaf) as image:
        sources = [str(leaf), leaf, leaf.read_bytes(), image.copy(), np.asarray(image)]
    found = [model.predict(source) for source in sources]
    assert 1 < found[0].severity_pct < 99
    for other in found[1:]:
        assert_same(other, found[0])
    assert [one.name for one in found] == ["leaf.png", "leaf.png", "", "", ""]


def test_four_threads_at_once_give_the_same(model, leaf):
    """Different images at once: a thread must not see the arrays of another."""
    with Image.open(leaf) as image:
        array = np.asarray(image)
    images = [leaf, leaf.read_bytes(), array[:, ::-1], array[:96], np.rot90(array)] * 2
    expected = [model.predict(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(model.predict, images), expected, strict=True):
            assert_same(found, alone)


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


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "YCbCr", "1", "I;16"])
def test_image_of_any_mode_equals_its_rgb_from_memory_bytes_and_path(
    model, leaf, tmp_path, mode
):
    with Image.open(leaf) as image:
        rgb, gray = image.copy(), image.convert("L")
    if mode == "I;16":
        image, rgb = Image.fromarray(257 * np.asarray(gray, np.uint16)), gray
    else:
        image, rgb = rgb.convert(mode), rgb.convert(mode)
    path = tmp_path / "leaf.tif"
    image.save(path)
    expected = model.predict(np.array(rgb.convert("RGB")))
    assert expected.image.shape == (160, 192, 3)
    assert image.mode == mode
    with Image.open(path) as lazy:
        for source in (image, path, str(path), path.read_bytes(), lazy):
            assert_same(model.predict(source), expected)


@pytest.mark.parametrize(
    ("array", "came", "fix"),
    [
        (np.zeros((8, 8, 3)), "type float64", r"round\(255 \* image\)"),
        (np.zeros((8, 8, 3), np.float32), "type float32", r"round\(255 \* image\)"),
        (np.full((8, 8, 3), np.nan), "type float64", r"round\(255 \* image\)"),
        (np.zeros((8, 8, 3), np.uint16), "type uint16", "convert it to uint8"),
        (np.zeros((8, 8, 3), bool), "type bool", "convert it to uint8"),
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


@pytest.mark.parametrize("image", [torch.zeros(8, 8, 3), [[0]], io.BytesIO(), None])
def test_image_of_another_kind_is_refused(model, image):
    with pytest.raises(
        UsageError, match=f"The image is of the type {type(image).__name__}"
    ) as caught:
        model.predict(image)
    assert "the bytes of a file, a PIL image, or a uint8 array" in caught.value.needed
    assert "numpy.asarray" in caught.value.fix


@pytest.mark.parametrize("size", [(5, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize("mode", ["array", "RGB", "P", "I;16"])
def test_empty_image_is_refused(model, mode, size):
    if mode == "array":
        image = np.zeros((*size[::-1], 3), np.uint8)
    else:
        image = Image.new(mode, size)
    text = rf"The image is empty: it has {size[0]} x {size[1]} pixels"
    with pytest.raises(DataError, match=text) as caught:
        model.predict(image)
    assert caught.value.needed == "an image of one pixel or more"


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1)])
def test_image_of_one_pixel_or_of_one_line_is_measured(model, shape):
    found = model.predict(np.full((*shape, 3), 90, np.uint8))
    assert found.lesion.shape == shape
    assert "no leaf found" in found.notes


def test_bytes_that_are_no_image_and_missing_file_are_refused(model, tmp_path):
    with pytest.raises(DataError, match="The given bytes are not an image: 16 bytes"):
        model.predict(b"this is no image")
    with pytest.raises(UsageError, match="does not exist"):
        model.predict(tmp_path / "none.jpg")


def test_loading_and_predicting_change_no_global_state(leaf):
    code = f"""
import logging, os, random, torch, warnings
import cv2
import numpy as np
import plantseg_next
import sympy  # PyTorch imports it later; it adds a filter of warnings
torch.manual_seed(1); random.seed(1); np.random.seed(1)
def state():
    return (torch.get_num_threads(), torch.get_rng_state().sum().item(),
            hash(random.getstate()), np.random.get_state()[1].sum(),
            torch.is_autocast_cache_enabled(), torch.is_autocast_enabled("cpu"),
            logging.getLogger().level, len(logging.getLogger().handlers),
            tuple(warnings.filters),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(),
            torch.get_num_interop_threads(), cv2.getNumThreads(), np.geterr(),
            dict(os.environ), os.getcwd())
first = state()
plantseg_next.load("starter").predict({str(leaf)!r})
assert state() == first, (first, state())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


STATES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": float64_by_default,
    "default device": lambda: torch.device("meta"),
    "numpy errors": lambda: np.errstate(all="raise"),
    "inference mode": torch.inference_mode,
    "gradients": lambda: torch.set_grad_enabled(True),
    "no gradients": lambda: torch.set_grad_enabled(False),
}


def state_of_caller():
    return (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        np.geterr(),
    )


@pytest.mark.parametrize("state", STATES)
def test_state_of_the_caller_changes_no_bit_and_is_kept(model, leaf, state):
    expected = model.predict(leaf)
    with STATES[state]():
        before = state_of_caller()
        found = [model.predict(leaf), plantseg_next.load("starter").predict(leaf)]
        assert state_of_caller() == before
    for one in found:
        assert_same(one, expected)


def test_threads_with_states_of_their_own_give_the_same(model, leaf):
    def predict(state):
        with STATES[state]():
            return model.predict(leaf)

    expected = model.predict(leaf)
    states = [state for state in STATES if state != "default dtype"]  # of the process
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(predict, 2 * states):
            assert_same(found, expected)


@pytest.mark.parametrize("number", [0, -3, 2.5, math.nan, "20", None])
def test_min_lesion_px_below_one_or_broken_is_refused(model, leaf, tmp_path, number):
    for predict in (
        lambda: model.predict(leaf, min_lesion_px=number),
        lambda: api.predict(None, leaf, tmp_path / "out", min_lesion_px=number),
    ):
        with pytest.raises(UsageError, match=f"min_lesion_px is {number!r}") as caught:
            predict()
        assert caught.value.needed == "a whole number of at least 1"
    assert not (tmp_path / "out").exists()


def test_one_line_of_python_prints_the_severity_and_writes_no_file(model, leaf, tmp_path):
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    with Image.open(leaf) as image:
        image.save(work / "leaf.jpg")
    line = (
        "import plantseg_next as p; "
        'print(p.load("starter").predict("leaf.jpg").severity_pct)'
    )
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", line],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert float(done.stdout) == model.predict(work / "leaf.jpg").severity_pct
    assert [path.name for path in work.iterdir()] == ["leaf.jpg"]
    assert list(home.iterdir()) == []


def test_predicting_does_not_set_the_mode_of_the_network(model, leaf, monkeypatch):
    """`train` and `eval` set an attribute that other threads read."""
    network = model.predictor.backend._network

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(network, "train", fail)
    model.predict(leaf)
    assert not any(module.training for module in network.modules())
    assert torch.is_grad_enabled()


def test_network_that_overflows_is_refused(model, leaf):
    """Weights that are finite may be too large for the sums of a network."""
    network = copy.deepcopy(model.predictor.backend._network)
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            parameter.fill_(3e38)
    backend = type(model.predictor.backend)(network, "cpu")
    overflowing = replace(model, predictor=replace(model.predictor, backend=backend))
    with pytest.raises(DataError, match="gives scores that are not finite") as caught:
        overflowing.predict(leaf)
    assert caught.value.fix == "take another copy of the model, or train it again"
