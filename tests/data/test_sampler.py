from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plantseg_next.data.manifest import Row
from plantseg_next.data.sampler import MixtureSampler, refuse_unknown
from plantseg_next.errors import UsageError
from plantseg_next.settings import DataSettings, Settings


def rows_of(**counts: int) -> list[Row]:
    """Return rows per data set; ``a_rust`` is data set "a" with label "rust"."""
    return [
        Row(f"{name}/{i}", Path("x.png"), name.split("_")[0], disease=_name(name))
        for name, n in counts.items()
        for i in range(n)
    ]


def _name(text: str) -> str | None:
    return text.split("_")[1] if "_" in text else None


def drawn(mixture, rows, n=4000, first=0):
    rng = np.random.default_rng(0)
    return [rows[mixture.index(first + i, rng.random())] for i in range(n)]


@pytest.mark.parametrize(("balance", "fraction"), [(0.0, 0.9), (0.5, 0.75), (1.0, 0.5)])
def test_balance_sets_frequency_of_diseases(balance, fraction):
    rows = rows_of(a_rust=90, a_mildew=10)
    mixture = MixtureSampler(rows, DataSettings(balance=balance))
    counts = Counter(row.disease for row in drawn(mixture, rows))
    assert counts["rust"] / 4000 == pytest.approx(fraction, abs=0.03)


def test_weight_scales_frequency_of_data_set():
    rows = rows_of(a=10, b=10, c=10)
    settings = DataSettings(balance=0, weights={"a": 2.0, "c": 0.0})
    counts = Counter(row.source for row in drawn(MixtureSampler(rows, settings), rows))
    assert counts["a"] / counts["b"] == pytest.approx(2, rel=0.1)
    assert counts["c"] == 0
    assert len({row.key for row in drawn(MixtureSampler(rows, settings), rows)}) == 20


def test_weight_schedule_ends_at_zero():
    rows = rows_of(a=10, b=10)
    mixture = MixtureSampler(rows, DataSettings(weights={"a": (1.0, 0.0, 100)}))
    early = Counter(row.source for row in drawn(mixture, rows, n=20))
    late = Counter(row.source for row in drawn(mixture, rows, n=200, first=100))
    assert early["a"] > 3
    assert late["a"] == 0


@given(st.floats(0, 1), st.integers(0, 10**6), st.integers(1, 50))
def test_named_fraction_holds_for_consecutive_draws(fraction, first, n):
    rows = rows_of(a=3, b_rust=3)
    mixture = MixtureSampler(rows, DataSettings(), named_fraction=fraction)
    named = sum(
        rows[mixture.index(draw, 0.5)].disease is not None
        for draw in range(first, first + n)
    )
    assert abs(named - fraction * n) <= 1 + 1e-6 * first


@pytest.mark.parametrize(("whole", "sparse", "fraction"), [(5, 50, 0.25), (9, 1, 0.1)])
def test_sparse_masks_are_limited_to_sparse_fraction(whole, sparse, fraction):
    rows = [*rows_of(a=whole), *(replace(r, sparse=True) for r in rows_of(b=sparse))]
    counts = Counter(
        row.sparse for row in drawn(MixtureSampler(rows, DataSettings()), rows)
    )
    assert counts[True] == 4000 * fraction


def test_only_sparse_masks_are_all_sampled():
    rows = [replace(row, sparse=True) for row in rows_of(a=3)]
    assert (
        len({row.key for row in drawn(MixtureSampler(rows, DataSettings()), rows, n=100)})
        == 3
    )


def test_named_fraction_without_two_streams_samples_all_rows():
    for rows in (rows_of(a=3), rows_of(a_rust=3)):
        mixture = MixtureSampler(rows, DataSettings(), named_fraction=0.5)
        assert len({row.key for row in drawn(mixture, rows, n=100)}) == 3


def test_refuse_unknown_weights_suggests_nearest():
    with pytest.raises(UsageError, match=r"data\.weights has `coffe`") as caught:
        refuse_unknown(DataSettings(weights={"coffe": 1.0}), ["coffee", "rice"])
    assert "the nearest is `coffee`" in str(caught.value)


def test_weights_round_trip_in_settings():
    pair = "data.weights={a: 2, b: [1.0, 0.2, 2000]}"
    settings = Settings().with_settings([pair])
    assert settings.data.weights == (("a", 2.0), ("b", (1.0, 0.2, 2000)))
    again = Settings.from_tree(settings.model_dump(mode="json"), origin="test")
    assert again == settings
    with pytest.raises(UsageError, match="is below 0, or over 0 samples"):
        Settings().with_settings(["data.weights={a: -1}"])
