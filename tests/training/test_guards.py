import numpy as np

from plantseg_next.training.guards import collapse, drift

NAMES = ("rust", "blight")


def kinds(confusion, names=NAMES):
    return [event.kind for event in collapse(np.array(confusion), names)]


def test_no_lesion_at_all_is_an_event():
    confusion = np.array([[9000, 0, 0], [700, 0, 0], [50, 0, 0]])
    (event,) = collapse(confusion, NAMES)
    assert event.kind == "no-lesion"
    assert "750 pixels of the validation pictures are" in event.text


def test_a_class_that_is_called_by_anothers_name_is_swallowed():
    (event,) = collapse(np.array([[9000, 10, 0], [100, 800, 0], [100, 900, 0]]), NAMES)
    assert event.kind == "class-swallowed"
    assert "`blight` is never predicted; its pixels are called `rust`" in event.text


def test_a_class_that_is_seldom_seen_or_sometimes_found_is_none():
    assert kinds([[9000, 10, 0], [100, 800, 0], [1, 9, 0]]) == []
    assert kinds([[9000, 10, 0], [100, 800, 0], [100, 890, 10]]) == []
    assert kinds([[9000, 0], [0, 0]], ("lesion",)) == []


def test_a_teacher_that_goes_its_own_way_is_an_event():
    assert [e.kind for e in drift({"agreement": 0.1})] == ["teacher-drift"]
    assert list(drift({"agreement": 0.9})) == []
    assert list(drift({"agreement": float("nan")})) == []
