import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantseg_next.data.manifest import MaskCoding
from plantseg_next.data.mask_values import decode_mask
from plantseg_next.errors import DataError
from plantseg_next.structures import IGNORE, ClassMap

MEANINGS = ["background", "leaf", "ignore", "rust", "phoma"]
CLASSES = ClassMap(("phoma", "rust"))
LESION = {"background": 0, "leaf": 0, "ignore": IGNORE, "phoma": 1, "rust": 2}
LEAF = {"background": 0, "leaf": 1, "ignore": IGNORE, "phoma": 1, "rust": 1}


@given(
    st.dictionaries(st.integers(0, 65535), st.sampled_from(MEANINGS), min_size=1),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_decode_mask_maps_every_pixel(meaning, marks_leaf, random):
    coding = MaskCoding(meaning, marks_leaf, "test")
    picked = [[random.choice(list(meaning)) for _ in range(5)] for _ in range(3)]
    lesion, leaf = decode_mask(np.array(picked, np.uint16), coding, CLASSES)
    for row, lesion_row, leaf_row in zip(picked, lesion, leaf, strict=True):
        names = [meaning[value] for value in row]
        annotated = bool(coding.lesions)
        assert lesion_row.tolist() == [LESION[n] if annotated else IGNORE for n in names]
        assert leaf_row.tolist() == [LEAF[n] if marks_leaf else IGNORE for n in names]


def test_decode_mask_mixes_colors_and_gray_levels():
    coding = MaskCoding({0: "background", "#ff8000": "rust"}, False, "test")
    mask = np.array([[[0, 0, 0], [255, 128, 0]]], np.uint8)
    lesion, leaf = decode_mask(mask, coding, CLASSES)
    assert lesion.tolist() == [[0, 2]]
    assert leaf.tolist() == [[IGNORE, IGNORE]]


def test_decode_mask_unknown_value_error_states_value_and_fraction():
    coding = MaskCoding({0: "background", 1: "rust"}, False, "stated in classes.yaml")
    mask = np.zeros((10, 10), np.uint8)
    mask[0, :3], mask[1, 0] = 7, 9
    with pytest.raises(DataError) as caught:
        decode_mask(mask, coding, CLASSES, name="leaf.png")
    text = str(caught.value)
    assert "`leaf.png` holds the value 7 on 3 % of its pixels, and 1 other" in text
    assert "only the values 0, 1 (stated in classes.yaml)" in text


def test_decode_mask_unknown_color_error_states_color():
    coding = MaskCoding({"#000000": "background", "#ff0000": "rust"}, False, "test")
    mask = np.full((2, 2, 3), 10, np.uint8)
    with pytest.raises(DataError, match="holds the value #0a0a0a on 100 %"):
        decode_mask(mask, coding, CLASSES)


def test_decode_mask_colored_mask_requires_color_coding():
    coding = MaskCoding({0: "background", 1: "rust"}, False, "test")
    with pytest.raises(DataError, match="is a colored mask"):
        decode_mask(np.zeros((2, 2, 3), np.uint8), coding, CLASSES)
