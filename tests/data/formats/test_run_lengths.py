"""Embedded masks: bounded, exact, and equal to what pycocotools decodes."""

import base64
import io
import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as reference

from plantseg_next.data.formats.run_lengths import (
    decode_compressed_counts,
    decode_counts,
    decode_png_mask,
    decode_rle,
    decode_row_runs,
)

pytestmark = pytest.mark.unit

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


def runs_of(flat):
    """Return the lengths of the runs of a flat mask, beginning with background."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


def as_png(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


@settings(max_examples=200, deadline=None)
@given(masks)
def test_compressed_counts_are_read_as_by_pycocotools(mask):
    encoded = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(decode_rle(encoded, mask.shape), mask)
    text = encoded["counts"].decode()
    np.testing.assert_array_equal(decode_compressed_counts(text, mask.shape), mask)


@settings(max_examples=200, deadline=None)
@given(masks)
def test_counts_in_a_list_are_read_by_columns(mask):
    counts = runs_of(mask.ravel(order="F"))
    assert sum(counts) == mask.size
    np.testing.assert_array_equal(decode_counts(counts, mask.shape), mask)


@settings(max_examples=200, deadline=None)
@given(masks, st.integers(-9, 9), st.integers(-9, 9))
def test_row_runs_are_placed_and_cut_at_the_rim(part, left, top):
    size = (40, 40)
    h, w = part.shape
    canvas = np.zeros((60, 60), bool)
    canvas[top + 9 : top + 9 + h, left + 9 : left + 9 + w] = part
    if top + h <= 0 or left + w <= 0:
        with pytest.raises(ValueError, match="outside its image"):
            decode_row_runs(runs_of(part.ravel()), left, top, w, h, size)
        return
    text = ", ".join(map(str, runs_of(part.ravel())))
    mask = decode_row_runs(text, str(left), str(top), str(w), str(h), size)
    np.testing.assert_array_equal(mask, canvas[9:49, 9:49])


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=130), max_size=30), array_shapes(max_side=20))
def test_letters_decode_to_a_full_mask_or_are_refused(text, shape):
    shape = (*shape, 1)[:2]
    with suppress(ValueError):
        mask = decode_compressed_counts(text, shape)
        assert mask.shape == shape


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (None, "run lengths are None, not an object of size and counts"),
        ({"size": [2, 2]}, "run lengths are dict of 1, not an object"),
        ({"size": None, "counts": [4]}, "the size of run lengths is None"),
        (
            {"size": [2, 3], "counts": [6]},
            "run lengths of 3 x 2 pixels, for an image of 2 x 2",
        ),
        ({"size": [float("nan"), 2], "counts": [4]}, "the rows of a mask is NaN"),
        ({"size": [2, 2], "counts": None}, "the counts of run lengths are None"),
        ({"size": [2, 2], "counts": 7}, "the counts of run lengths are 7, not a list"),
        ({"size": [2, 2], "counts": []}, "runs of 0 pixels in sum, for a mask of 4"),
        ({"size": [2, 2], "counts": [3]}, "runs of 3 pixels in sum, for a mask of 4"),
        ({"size": [2, 2], "counts": [3, 2]}, "runs of 5 pixels in sum, for a mask of 4"),
        ({"size": [2, 2], "counts": [5, -1]}, "run 1 is 5, not 0 to 4"),
        ({"size": [2, 2], "counts": [1, -1, 4]}, "run 2 is -1, not 0 to 4"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "run 1 is 1.5, not a whole number"),
        ({"size": [2, 2], "counts": [True, 3]}, "run 1 is True, not a finite number"),
        ({"size": [2, 2], "counts": ["a"]}, "run 1 is 'a', not a finite number"),
        ({"size": [2, 2], "counts": [10**500]}, "run 1 is a number of 501 digits"),
        ({"size": [2, 2], "counts": [0] * 99}, "99 runs, too many for 4 pixels"),
        ({"size": [2, 2], "counts": "4~"}, "letters other than 0 to o"),
        ({"size": [2, 2], "counts": "4é"}, "letters other than 0 to o"),
        ({"size": [2, 2], "counts": "P"}, "ends within a run"),
        ({"size": [2, 2], "counts": "PPPPPPP0"}, "a run is stated in 8 letters"),
        ({"size": [2, 2], "counts": "3"}, "runs of 3 pixels in sum, for a mask of 4"),
        ({"size": [2, 2], "counts": "O"}, "run 1 is -1, not 0 to 4"),
        ({"size": [2, 2], "counts": "0" * 999}, "142 runs, too many for 4 pixels"),
    ],
)
def test_run_lengths_that_do_not_fill_their_image_are_refused(rle, message):
    """After ppwwyyxx/cocoapi#12 and isarandi/rlemasklib#7: memory outside was written."""
    with pytest.raises(ValueError, match=re.escape(message)):
        decode_rle(rle, (2, 2))


@pytest.mark.parametrize(
    ("runs", "box", "message"),
    [
        ("99999999999", (0, 0, 2, 2), "run 1 is '99999999999', beyond 2,147,483,647"),
        ("1,3", (0, 0, 3, 1), "the width of a mask is 3, not 1 to 2"),
        ("1,3", (0, 0, 2, 0), "the height of a mask is 0, not 1 to 2"),
        ("1,2", (0, 0, 2, 2), "runs of 3 pixels in sum, for a mask of 4"),
        ("", (0, 0, 1, 1), "run 1 is '', not a finite number"),
        ("1,,1", (0, 0, 2, 1), "run 2 is '', not a finite number"),
        ("1,nan", (0, 0, 2, 1), "run 2 is 'nan', not a finite number"),
        ("4", (2, 0, 2, 2), "a mask of 2 x 2 is outside its image"),
        ("4", ("inf", 0, 2, 2), "left of a mask is 'inf', not a finite number"),
        ("0," * 9_999, (0, 0, 1, 1), "5 runs, too many for 1 pixels"),
    ],
)
def test_row_runs_that_do_not_fill_their_part_are_refused(runs, box, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        decode_row_runs(runs, *box, (2, 2))


def test_masks_above_the_limit_are_refused_before_memory_is_allocated():
    with pytest.raises(ValueError, match="a mask of 30000 x 30000 pixels, more than"):
        decode_counts([9 * 10**8], (30_000, 30_000))
    with pytest.raises(ValueError, match="a mask of 4 x 3 pixels, more than 11"):
        decode_counts([12], (3, 4), 11)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_an_embedded_mask_is_true_where_it_is_not_zero(mode):
    values = np.eye(3, 5, dtype=np.uint8)
    image = Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    if mode == "1":
        image = Image.fromarray(values.astype(bool))
    text = as_png(image)
    np.testing.assert_array_equal(decode_png_mask(text), values > 0)
    broken = "\n".join(text[i : i + 20] for i in range(0, len(text), 20))
    np.testing.assert_array_equal(decode_png_mask(broken), values > 0)


def test_an_embedded_mask_that_is_damaged_is_refused_in_words():
    """After wkentaro/labelme#1275 and #393: base64 that was cut."""
    noise = np.random.default_rng(0).integers(0, 2, (99, 99), np.uint8)
    text = as_png(Image.fromarray(noise))
    for damaged, message in (
        (
            text[: len(text) // 8 * 4],
            "an embedded mask is damaged or truncated: image file",
        ),
        (text[:-1], "an embedded mask is not base64"),
        ("é", "an embedded mask is not base64"),
        (None, "an embedded mask is None, not a PNG image in base64"),
        (7.0, "an embedded mask is 7.0, not a PNG image in base64"),
        (base64.b64encode(b"hello").decode(), "an embedded mask is not a PNG image"),
        (as_png(Image.new("RGB", (3, 3))), "an embedded mask is in color (RGB), not gray"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            decode_png_mask(damaged)
    with pytest.raises(ValueError, match="an embedded mask of 99 x 99 pixels is too large"):
        decode_png_mask(text, 9_800)
    bomb = as_png(Image.new("1", (20_000, 10_000)))
    with pytest.raises(ValueError, match="an embedded mask is too large"):
        decode_png_mask(bomb)
