import numpy as np
import pytest

from plantseg_next.training.callbacks.diagnostics import (
    few_right_pseudo_labels,
    inconsistent_predictions,
    no_lesion_found,
    noise_of,
    non_plant_images,
    trends,
)

NAMES = ("rust", "blight")


def kinds(confusion, names=NAMES):
    return [event.kind for event in no_lesion_found(np.array(confusion), names)]


def test_no_lesion_at_all_is_an_event():
    confusion = np.array([[9000, 0, 0], [700, 0, 0], [50, 0, 0]])
    (event,) = no_lesion_found(confusion, NAMES)
    assert event.kind == "no-lesion"
    assert "750 pixels of the validation images are" in event.text


def test_a_class_that_is_called_by_anothers_name_is_swallowed():
    (event,) = no_lesion_found(
        np.array([[9000, 10, 0], [100, 800, 0], [100, 900, 0]]), NAMES
    )
    assert event.kind == "class-swallowed"
    assert "`blight` is never predicted; its pixels are called `rust`" in event.text


def test_a_class_that_is_seldom_seen_or_sometimes_found_is_none():
    assert kinds([[9000, 10, 0], [100, 800, 0], [1, 9, 0]]) == []
    assert kinds([[9000, 10, 0], [100, 800, 0], [100, 890, 10]]) == []
    assert kinds([[9000, 0], [0, 0]], ("lesion",)) == []


def test_a_teacher_that_goes_its_own_way_is_an_event():
    assert [e.kind for e in few_right_pseudo_labels({"student_teacher_dice": 0.1})] == [
        "teacher-drift"
    ]
    assert list(few_right_pseudo_labels({"student_teacher_dice": 0.9})) == []
    assert list(few_right_pseudo_labels({"student_teacher_dice": float("nan")})) == []


def test_images_without_any_green_may_show_no_plants():
    metrics = {
        "non_green_fraction/labeled": 0.1,
        "non_green_fraction/cats": 0.9,
        "lesion_fraction/cats": 1,
    }
    (event,) = non_plant_images(metrics)
    assert event.kind == "no-plants"
    assert "In 90% of what was looked at in the images of `cats`" in event.text


@pytest.mark.parametrize(
    ("target_domain", "told"), [(0.5, 1), (0.65, 0), (float("nan"), 0)]
)
def test_lesions_that_change_with_the_light_are_told(target_domain, told):
    events = [
        *inconsistent_predictions(
            {
                "aug_consistency/rice": target_domain,
                "aug_consistency/labeled": 0.8,
                "student_teacher_dice": 0.1,
            }
        )
    ]
    assert [event.kind for event in events] == ["unsteady"] * told
    assert all("`rice`, of which no mask is known, changes" in e.text for e in events)
    assert not [*inconsistent_predictions({"aug_consistency/rice": target_domain})]


def course(scores, losses=()):
    return [event.kind for event in trends(scores, losses)]


def test_the_noise_of_a_course_is_that_of_its_scores():
    rng = np.random.default_rng(0)
    rising = np.linspace(0.2, 0.8, 200) + rng.normal(0, 0.02, 200)
    assert noise_of(rising.tolist()) == pytest.approx(0.02, rel=0.2)
    assert noise_of([0.1, 0.2, 0.3]) == 0.0


def test_a_steady_rise_is_no_event():
    assert course([0.1, 0.3, 0.42, 0.5, 0.57, 0.61, 0.66, 0.68, 0.71, 0.72]) == []


def test_two_validations_far_below_the_best_are_a_regression():
    rise = [0.1, 0.3, 0.42, 0.5, 0.57, 0.61]
    assert course([*rise, 0.2, 0.2]) == ["regressing"]
    assert course([*rise, 0.2]) == []  # one may be chance
    assert course([*rise, 0.59, 0.58]) == []  # within noise


def test_half_a_run_without_progress_is_a_plateau():
    assert course([0.1, 0.5, 0.6, 0.7, 0.69, 0.7, 0.705, 0.7]) == ["plateau"]


def test_a_loss_that_rises_and_rises_diverges():
    assert course([], [1.0, 0.5, 0.6, 0.7, 0.9]) == ["diverging"]
    assert course([], [1.0, 0.5, 0.51, 0.52, 0.53]) == []
    assert course([], [1.0, 0.5, 0.6, 0.7, 0.6]) == []
