"""Concordance and its parts: compared with its definition by squared differences."""

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
    """Lin's first definition: 1 - E[(x-y)^2] / E[(x-y)^2 if independent]."""
    every_pair = np.subtract.outer(x, y)
    return 1 - np.mean((x - y) ** 2) / np.mean(every_pair**2)


@given(severities, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_concordance_agrees_with_its_definition(x, seed):
    y = x + np.random.default_rng(seed).normal(2.0, 5.0, x.size)
    agreement = severity_agreement(x, y)
    if np.ptp(x) == 0:
        assert math.isnan(agreement.rho_c)
        return
    assert agreement.rho_c == pytest.approx(by_expectation(x, y), abs=1e-9)
    assert agreement.rho_c == pytest.approx(concordance(y, x), abs=1e-12)
    assert agreement.r == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert agreement.rho_c == pytest.approx(agreement.r * agreement.c_b, abs=1e-9)
    assert 0 < agreement.c_b <= 1 + 1e-12


def test_error_and_limits_equal_values_by_hand():
    agreement = severity_agreement(
        np.array([10.0, 20.0, 40.0]), np.array([12.0, 21.0, 46.0])
    )
    assert agreement.n == 3
    assert agreement.mean_difference == pytest.approx(3.0)
    assert agreement.rmse == pytest.approx(math.sqrt((4 + 1 + 36) / 3))
    half = stats.norm.ppf(0.975) * math.sqrt((1 + 4 + 9) / 2)
    assert agreement.limit_low == pytest.approx(3 - half)
    assert agreement.limit_high == pytest.approx(3 + half)


def test_concordance_of_twice_the_severity_is_low():
    x = np.linspace(0, 40, 9)
    agreement = severity_agreement(x, 2 * x)
    assert agreement.r == pytest.approx(1.0)
    assert agreement.rho_c < 0.65


def test_agreement_excludes_pairs_with_missing_values():
    x = np.array([1.0, 2.0, 3.0, np.nan, 9.0])
    y = np.array([1.0, 2.0, 3.0, 7.0, np.nan])
    agreement = severity_agreement(x, y)
    assert (agreement.n, agreement.rho_c, agreement.rmse) == (3, 1.0, 0.0)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_agreement_of_too_few_images_has_no_concordance(n):
    x = np.arange(n, dtype=np.float64)
    agreement = severity_agreement(x, x + 1)
    assert np.isnan([agreement.rho_c, agreement.r, agreement.c_b]).all()
    assert math.isnan(agreement.rmse) == (n == 0)
    assert math.isnan(agreement.limit_low) == (n < 2)


def test_concordance_of_constant_values():
    varied, constant = np.array([1.0, 2.0, 3.0]), np.full(3, 0.1)
    assert math.isnan(severity_agreement(constant, varied).rho_c)
    flat = severity_agreement(varied, constant)
    assert flat.rho_c == pytest.approx(0.0)
    assert math.isnan(flat.r)
    assert math.isnan(flat.c_b)
