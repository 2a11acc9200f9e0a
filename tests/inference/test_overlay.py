"""Overlays: size, caption, outlines and colors."""

import numpy as np
import pytest

from plantseg_next.inference.overlay import (
    LEAF_COLOR,
    OKABE_ITO,
    class_colors,
    draw_overlay,
    summary,
)
from plantseg_next.inference.severity import assess
from plantseg_next.structures import ClassMap, Prediction

CLASSES = ClassMap(("rust", "cercospora leaf spot"), (), True)


def assessed(height, width, *, leaf=True, min_lesion_px=1):
    lesion = np.zeros((height, width), np.uint8)
    lesion[height // 4 : height // 2, width // 4 : width // 2] = 1
    lesion[-1, -1] = 2
    on_leaf = np.ones((height, width), np.float16)
    on_leaf[:, : width // 8] = 0
    prediction = Prediction(
        lesion, (lesion > 0).astype(np.float16), on_leaf if leaf else None
    )
    return assess(prediction, min_lesion_px=min_lesion_px)


@pytest.mark.parametrize(
    ("size", "long_side"),
    [((256, 256), 512), ((3000, 4000), 1600), ((600, 700), 700), ((8, 2000), 1600)],
)
def test_overlay_size_is_bounded_with_a_caption_below(size, long_side):
    image = np.full((*size, 3), 90, np.uint8)
    drawn = draw_overlay(image, assessed(*size), CLASSES)
    height = round(size[0] * long_side / max(size))
    assert drawn.shape[1] == round(size[1] * long_side / max(size))
    assert height + 30 < drawn.shape[0] < height + 200


def test_overlay_outlines_have_class_and_leaf_colors():
    image = np.full((1200, 1400, 3), 90, np.uint8)
    drawn = draw_overlay(image, assessed(1200, 1400), CLASSES)
    assert tuple(drawn[300, 500]) == OKABE_ITO[0]
    assert tuple(drawn[1000, 175]) == LEAF_COLOR
    assert tuple(drawn[1100, 800]) == (90, 90, 90)
    tint = 90 + 0.25 * (np.array(OKABE_ITO[0]) - 90)
    assert np.abs(drawn[440, 520] - tint).max() <= 1


def test_overlay_of_a_large_image_shows_a_single_pixel():
    drawn = draw_overlay(np.zeros((3000, 4000, 3), np.uint8), assessed(3000, 4000), CLASSES)
    assert (np.abs(drawn[1195:1200, -5:].astype(int) - OKABE_ITO[1]).sum(-1) < 30).any()


def test_overlay_of_a_narrow_image_is_widened_for_the_caption():
    drawn = draw_overlay(np.zeros((900, 20, 3), np.uint8), assessed(900, 20), CLASSES)
    assert drawn.shape[1] == 256


def test_overlay_does_not_change_the_image():
    image = np.full((512, 512, 3), 90, np.uint8)
    draw_overlay(image, assessed(512, 512), CLASSES)
    assert (image == 90).all()


def test_summary_states_the_denominator_and_the_filter():
    assert summary(assessed(80, 80, min_lesion_px=20)) == (
        "severity 7.1 % of the leaf, 1 lesion >= 20 px"
    )
    assert summary(assessed(80, 80, leaf=False)) == (
        "affected 6.3 % of the image, 2 lesions"
    )


def test_class_colors_are_distinct_then_repeat():
    assert len(set(class_colors(21))) == 21
    assert class_colors(116)[21] == OKABE_ITO[0]
