import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantseg_next.training.watching.forecast import Estimate, Forecast, in_words


def stepped(forecast, seconds, *, first=1, with_lessons=False):
    for step, duration in enumerate(seconds, first):
        forecast.note_step(step, duration, with_lessons=with_lessons)


def test_nothing_is_known_at_first():
    assert Forecast(validations=2).left(0, 100) is None


def test_even_steps_end_when_arithmetic_says():
    forecast = Forecast(validations=4)
    stepped(forecast, [0.5] * 100)
    forecast.note_validation(3.0)
    left = forecast.left(100, 1000)
    assert left.seconds == pytest.approx(900 * 0.5 + 4 * 3)
    assert left.low == pytest.approx(left.seconds / 1.05)
    assert left.high == pytest.approx(left.seconds * 1.05)


def test_a_rehearsed_validation_counts_until_there_is_one():
    forecast = Forecast(validations=4)
    forecast.expect_validation(5.0)
    stepped(forecast, [0.5] * 100)
    assert forecast.left(100, 1000).seconds == pytest.approx(900 * 0.5 + 4 * 5)
    forecast.note_validation(3.0)
    assert forecast.left(600, 1000).seconds == pytest.approx(400 * 0.5 + 2 * 3)


def test_validations_that_are_over_are_not_waited_for():
    forecast = Forecast(validations=4)
    stepped(forecast, [0.5] * 100)
    forecast.note_validation(3.0)
    assert forecast.left(600, 1000).seconds == pytest.approx(400 * 0.5 + 2 * 3)


def test_lessons_to_come_cost_what_their_rehearsal_did():
    forecast = Forecast(validations=1, lessons_start=0.5)
    stepped(forecast, [1.0] * 30, with_lessons=True)
    stepped(forecast, [0.4] * 70, first=31)
    assert forecast.left(100, 1000).seconds == pytest.approx(400 * 0.4 + 500 * 1.0)


def test_lessons_that_have_begun_go_on():
    forecast = Forecast(validations=1, lessons_start=0.5)
    stepped(forecast, [0.4] * 60)
    stepped(forecast, [1.0] * 40, first=61, with_lessons=True)
    assert forecast.left(100, 1000).seconds == pytest.approx(900.0)


def test_lessons_that_wait_for_a_lesion_are_counted_on():
    """They may begin later than planned; how much later nobody knows."""
    forecast = Forecast(validations=1, lessons_start=0.1)
    stepped(forecast, [1.0] * 30, with_lessons=True)
    stepped(forecast, [0.4] * 470, first=31)
    assert forecast.left(500, 1000).seconds == pytest.approx(500.0)


def test_the_start_of_a_run_is_forgotten():
    forecast = Forecast(validations=1)
    stepped(forecast, [9.0] * 10 + [2.0] * 100 + [1.0] * 100)
    assert forecast.left(210, 310).seconds == pytest.approx(100.0)


def test_an_uneven_past_widens_the_interval():
    even, uneven = Forecast(validations=1), Forecast(validations=1)
    stepped(even, [1.0] * 410)
    stepped(uneven, [1.0] * 10 + ([1.0] * 20 + [3.0] * 20) * 10)
    even, uneven = even.left(410, 1000), uneven.left(410, 1000)
    assert (uneven.high - uneven.low) / uneven.seconds > 0.3
    assert (even.high - even.low) / even.seconds == pytest.approx(1.05 - 1 / 1.05)


def test_after_a_pause_nothing_ends_before_it_began():
    forecast = Forecast(validations=1)
    stepped(forecast, [1.0] * 200 + [900.0] + [1.0] * 40)  # the computer slept
    left = forecast.left(241, 300)
    assert 0 < left.low < left.seconds < left.high


@given(
    st.lists(st.floats(0.001, 100), min_size=11, max_size=200),
    st.integers(0, 1000),
    st.sampled_from([None, 0.0, 0.3, 1.0]),
)
def test_the_estimate_lies_in_its_interval(seconds, left, start):
    forecast = Forecast(validations=3, lessons_start=start)
    stepped(forecast, seconds)
    found = forecast.left(len(seconds), len(seconds) + left)
    assert 0 <= found.low <= found.seconds <= found.high
    assert found.seconds <= left * max(seconds) * 1.001


def test_durations_are_said_as_people_do():
    assert str(Estimate(754.0, 700.0, 810.0)) == "about 12 min (11 min to 13 min)"
    assert str(Estimate(7200.0, 7200.0, 7200.0)) == "about 2 h 0 min"
    assert in_words(59.6) == "1 min"
