import numpy as np
import pytest

from plantseg_next.training.callbacks.diagnostics import (
    inconsistent_predictions,
    no_lesion_found,
    noise_of,
    non_plant_images,
    teacher_drift,
    trends,
)

NAMES = ("rust", "blight")


def kinds(confusion, names=NAMES):
    return [event.kind for event in no_lesion_found(np.array(confusion), names)]


def test_no_predicted_lesion_emits_event():
    confusion = np.array([[9000, 0, 0], [700, 0, 0], [50, 0, 0]])
    (event,) = no_lesion_found(confusion, NAMES)
    assert event.kind == "no-lesion"
    assert "750 pixels of the validation images are lesion" in event.text
    assert event.text.endswith("Early in a run this is normal.")
    assert event.advice == "If it lasts, lower training.lr, or raise loss.focal_tversky."


def test_class_predicted_as_another_emits_class_swallowed():
    (event,) = no_lesion_found(
        np.array([[9000, 10, 0], [100, 800, 0], [100, 900, 0]]), NAMES
    )
    assert event.kind == "class-swallowed"
    assert "`blight` is never predicted; its pixels are predicted as `rust`" in event.text


def test_rare_or_sometimes_predicted_class_emits_nothing():
    assert kinds([[9000, 10, 0], [100, 800, 0], [1, 9, 0]]) == []
    assert kinds([[9000, 10, 0], [100, 800, 0], [100, 890, 10]]) == []
    assert kinds([[9000, 0], [0, 0]], ("lesion",)) == []


def test_low_student_teacher_dice_emits_teacher_drift():
    assert [e.kind for e in teacher_drift({"student_teacher_dice": 0.1})] == [
        "teacher-drift"
    ]
    assert list(teacher_drift({"student_teacher_dice": 0.9})) == []
    assert list(teacher_drift({"student_teacher_dice": float("nan")})) == []


def test_non_green_images_emit_no_plants():
    metrics = {
        "non_green_fraction/labeled": 0.1,
        "non_green_fraction/cats": 0.9,
        "lesion_fraction/cats": 1,
    }
    (event,) = non_plant_images(metrics)
    assert event.kind == "no-plants"
    assert "In 90% of the tiles of `cats`, which has no masks," in event.text


@pytest.mark.parametrize(("target_domain", "n"), [(0.5, 1), (0.65, 0), (float("nan"), 0)])
def test_inconsistent_predictions_emit_an_event(target_domain, n):
    events = [
        *inconsistent_predictions(
            {
                "aug_consistency/rice": target_domain,
                "aug_consistency/labeled": 0.8,
                "student_teacher_dice": 0.1,
            }
        )
    ]
    assert [event.kind for event in events] == ["inconsistent-predictions"] * n
    assert all("`rice`, which has no masks, change with" in e.text for e in events)
    assert not [*inconsistent_predictions({"aug_consistency/rice": target_domain})]


def kinds_of_trends(scores, losses=()):
    return [event.kind for event in trends(scores, losses)]


def test_noise_of_scores_equals_their_standard_deviation():
    rng = np.random.default_rng(0)
    rising = np.linspace(0.2, 0.8, 200) + rng.normal(0, 0.02, 200)
    assert noise_of(rising.tolist()) == pytest.approx(0.02, rel=0.2)
    assert noise_of([0.1, 0.2, 0.3]) == 0.0


def test_rising_scores_emit_nothing():
    assert kinds_of_trends([0.1, 0.3, 0.42, 0.5, 0.57, 0.61, 0.66, 0.68, 0.71, 0.72]) == []


def test_two_validations_far_below_best_emit_regressing():
    rise = [0.1, 0.3, 0.42, 0.5, 0.57, 0.61]
    assert kinds_of_trends([*rise, 0.2, 0.2]) == ["regressing"]
    assert kinds_of_trends([*rise, 0.2]) == []  # one may be noise
    assert kinds_of_trends([*rise, 0.59, 0.58]) == []  # within noise


def test_half_a_run_without_progress_emits_plateau():
    assert kinds_of_trends([0.1, 0.5, 0.6, 0.7, 0.69, 0.7, 0.705, 0.7]) == ["plateau"]


def test_rising_loss_emits_diverging():
    assert kinds_of_trends([], [1.0, 0.5, 0.6, 0.7, 0.9]) == ["diverging"]
    assert kinds_of_trends([], [1.0, 0.5, 0.51, 0.52, 0.53]) == []
    assert kinds_of_trends([], [1.0, 0.5, 0.6, 0.7, 0.6]) == []
