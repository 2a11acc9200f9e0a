"""Numbers of annotation files are finite, whole where they must be, and small enough."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantseg_next.data.formats.numbers import finite, finite_array, whole

pytestmark = pytest.mark.unit

REFUSED = [
    (math.nan, "x is NaN"),
    (math.inf, "x is inf, beyond 2,147,483,647"),
    (-math.inf, "x is -inf, beyond"),
    (1e308, "x is 1e+308, beyond"),
    ("1e999", "x is '1e999', beyond"),
    (10**400, "x is a number of 401 digits, beyond"),
    (True, "x is True, not a finite number"),
    (None, "x is None, not a finite number"),
    ([1], "x is list of 1, not a finite number"),
    ("nan", "x is 'nan', not a finite number"),
    ("Infinity", "x is 'Infinity', not"),
    ("1_000", "x is '1_000', not"),
    ("0x10", "x is '0x10', not"),
    ("٣", "x is '٣', not"),
    ("", "x is '', not"),
    ("9" * 5000, f"x is '{'9' * 39}..., beyond"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED)
def test_a_value_that_is_no_number_of_an_image_is_refused(value, message):
    """After voxel51/fiftyone#1309: NaN and infinities in points."""
    for convert in (finite, whole):
        if convert is whole and isinstance(value, int) and value is not True:
            continue
        with pytest.raises(ValueError, match=re.escape(message)):
            convert(value, "x")
    place = message.replace("x is", "number 2 of the outline is")
    with pytest.raises(ValueError, match=re.escape(place)):
        finite_array([0.5, value], "the outline")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "the width is -1, not 0 to 2,147,483,647"),
        (2**31, "the width is 2147483648, not 0 to 2,147,483,647"),
        (10**400, "the width is a number of 401 digits, not 0 to"),
        (0.5, "the width is 0.5, not a whole number"),
        ("1.5", "the width is '1.5', not a whole number"),
    ],
)
def test_a_number_that_is_not_whole_or_out_of_range_is_refused(value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        whole(value, "the width")


def test_numbers_and_their_texts_are_read():
    assert [whole(v, "x") for v in (3, 3.0, "3", " 3.0 ", "3e0", np.int64(3))] == [3] * 6
    assert [finite(v, "x") for v in (-2, "-2.", np.float32(-2), "-.2e1")] == [-2.0] * 4
    assert whole(-5, "x", least=-9) == -5


@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1) | st.floats(-1e9, 1e9)))
def test_many_numbers_are_read_as_one_by_one(values):
    assert finite_array(values, "x").tolist() == [finite(v, "x") for v in values]
    assert finite_array(map(repr, values), "x").tolist() == [float(v) for v in values]
