"""Concordance and its parts: against the definition as an expected squared distance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from plantseg_next.evaluation.severity_agreement import concordance, severity_agreement

severities = hnp.arrays(
    np.float64, st.integers(3, 20), elements=st.integers(0, 1000).map(lambda n: n / 10)
)


def by_expectation(x, y):
    """Lin's first definition: 1 - E[(x-y)^2] / E[(x-y)^2 were they independent]."""
    every_pair = np.subtract.outer(x, y)
    return 1 - np.mean((x - y) ** 2) / np.mean(every_pair**2)


@given(severities, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_concordance_agrees_with_its_definition(x, seed):
    y = x + np.random.default_rng(seed).normal(2.0, 5.0, x.size)
    found = severity_agreement(x, y)
    if np.ptp(x) == 0:
        assert math.isnan(found.rho_c)
        return
    assert found.rho_c == pytest.approx(by_expectation(x, y), abs=1e-9)
    assert found.rho_c == pytest.approx(concordance(y, x), abs=1e-12)
    assert found.r == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert found.rho_c == pytest.approx(found.r * found.c_b, abs=1e-9)
    assert 0 < found.c_b <= 1 + 1e-12


def test_error_and_limits_by_hand():
    found = severity_agreement(np.array([10.0, 20.0, 40.0]), np.array([12.0, 21.0, 46.0]))
    assert found.n == 3
    assert found.mean_difference == pytest.approx(3.0)
    assert found.rmse == pytest.approx(math.sqrt((4 + 1 + 36) / 3))
    half = stats.norm.ppf(0.975) * math.sqrt((1 + 4 + 9) / 2)
    assert found.limit_low == pytest.approx(3 - half)
    assert found.limit_high == pytest.approx(3 + half)


def test_twice_the_disease_is_not_forgiven():
    x = np.linspace(0, 40, 9)
    found = severity_agreement(x, 2 * x)
    assert found.r == pytest.approx(1.0)
    assert found.rho_c < 0.65


def test_missing_values_leave_their_pair_out():
    x = np.array([1.0, 2.0, 3.0, np.nan, 9.0])
    y = np.array([1.0, 2.0, 3.0, 7.0, np.nan])
    found = severity_agreement(x, y)
    assert (found.n, found.rho_c, found.rmse) == (3, 1.0, 0.0)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_images_have_an_error_but_no_concordance(n):
    x = np.arange(n, dtype=np.float64)
    found = severity_agreement(x, x + 1)
    assert np.isnan([found.rho_c, found.r, found.c_b]).all()
    assert math.isnan(found.rmse) == (n == 0)
    assert math.isnan(found.limit_low) == (n < 2)


def test_constants():
    varied, constant = np.array([1.0, 2.0, 3.0]), np.full(3, 0.1)
    assert math.isnan(severity_agreement(constant, varied).rho_c)
    dead = severity_agreement(varied, constant)
    assert dead.rho_c == pytest.approx(0.0)
    assert math.isnan(dead.r)
    assert math.isnan(dead.c_b)
