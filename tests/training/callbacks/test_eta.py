import pytest

from plantseg_next.training.callbacks.eta import RECENT, EtaEstimator


def test_eta_is_unknown_before_the_first_step():
    assert EtaEstimator(validations=2).left_s(0, 100, 0.0) is None


def test_eta_of_even_steps_is_arithmetic():
    eta = EtaEstimator(validations=4)
    for _ in range(100):
        eta.add_step(0.5, unsupervised=False)
    eta.add_validation(3.0)
    assert eta.left_s(100, 1000, 50.0) == pytest.approx(900 * 0.5 + 4 * 3)
    assert eta.left_s(600, 1000, 50.0) == pytest.approx(400 * 0.5 + 2 * 3)


def test_eta_follows_recent_steps():
    eta = EtaEstimator(validations=1)
    for seconds in [5.0] * 30 + [0.5] * RECENT:
        eta.add_step(seconds, unsupervised=False)
    assert eta.left_s(100, 200, 0.0) == pytest.approx(100 * 0.5)


def test_eta_counts_unsupervised_steps_to_come_by_those_timed():
    eta = EtaEstimator(validations=1, unsup_start=0.5)
    for _ in range(30):
        eta.add_step(1.0, unsupervised=True)
    for _ in range(70):
        eta.add_step(0.4, unsupervised=False)
    assert eta.left_s(100, 1000, 0.0) == pytest.approx(400 * 0.4 + 500 * 1.0)
    assert eta.left_s(600, 1000, 0.0) == pytest.approx(400 * 1.0)


def test_eta_of_a_run_in_minutes_is_bounded_by_them():
    eta = EtaEstimator(validations=1, minutes=4.0)
    assert eta.left_s(0, 100_000, 10.0) == 230
    eta.add_step(3.5, unsupervised=False)  # the number of steps is not known yet
    assert eta.left_s(1, 100_000, 10.0) == 230
    assert eta.left_s(1, 11, 10.0) == pytest.approx(35)
    assert eta.left_s(1, 11, 250.0) == 0
