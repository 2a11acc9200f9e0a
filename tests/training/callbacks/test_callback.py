"""The text of events and validations."""

import math

import pytest

from plantseg_next.training.callbacks.callback import Event, Validation, describe
from plantseg_next.training.callbacks.diagnostics import no_true_lesion


def test_event_states_its_advice_only_when_asked():
    event = Event("no-lesion", "No lesion.", "Lower training.lr.")
    assert event.stated(with_advice=False) == Event("no-lesion", "No lesion.")
    assert event.stated(with_advice=True).text == "No lesion. Lower training.lr."
    assert Event("a", "b").stated(with_advice=True) == Event("a", "b")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"lesion_dice": 0.8123, "n_images": 60, "lesion_dice_low": 0.7712,
             "lesion_dice_high": 0.8488},
            "lesion Dice 0.812 (0.77 to 0.85, 60 images)",
        ),
        (
            {"lesion_dice": 0.8, "disease_miou": 0.5, "leaf_iou": 0.9, "n_images": 1},
            "lesion Dice 0.800 (1 image), disease mIoU 0.500, leaf IoU 0.900",
        ),
        ({"lesion_dice": 0.8, "leaf_iou": 0.9}, "lesion Dice 0.800, leaf IoU 0.900"),
        ({"leaf_iou": 0.9, "n_images": 3},
         "no lesion Dice (no lesion in 3 images), leaf IoU 0.900"),
    ],
)  # fmt: skip
def test_validation_is_described_with_images_and_interval(values, text):
    assert describe(values) == text


def test_values_of_a_validation_hold_no_nan():
    validation = Validation(0.5, {"lesion_dice": 0.5}, n_images=3)
    assert math.isnan(validation.lesion_dice_low)
    assert validation.values() == {"lesion_dice": 0.5, "n_images": 3}
    assert str(validation) == "lesion Dice 0.500 (3 images)"


def test_validation_masks_without_a_lesion_are_an_event():
    event = no_true_lesion(7, with_leaf=True)
    assert event.kind == "no-dice"
    assert event.text.startswith("No lesion is marked in the 7 validation images, so")
    assert "`best` is chosen by leaf IoU alone." in event.text
