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
    """Return so many rows a data set; of "a_rust" with the name "rust"."""
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


@pytest.mark.parametrize(("balance", "share"), [(0.0, 0.9), (0.5, 0.75), (1.0, 0.5)])
def test_balance_is_a_temperature_over_diseases(balance, share):
    rows = rows_of(a_rust=90, a_mildew=10)
    mixture = MixtureSampler(rows, DataSettings(balance=balance))
    found = Counter(row.disease for row in drawn(mixture, rows))
    assert found["rust"] / 4000 == pytest.approx(share, abs=0.03)


def test_a_data_set_of_twice_the_weight_is_drawn_twice_as_often():
    rows = rows_of(a=10, b=10, c=10)
    settings = DataSettings(balance=0, weights={"a": 2.0, "c": 0.0})
    found = Counter(row.source for row in drawn(MixtureSampler(rows, settings), rows))
    assert found["a"] / found["b"] == pytest.approx(2, rel=0.1)
    assert found["c"] == 0
    assert len({row.key for row in drawn(MixtureSampler(rows, settings), rows)}) == 20


def test_a_weight_may_fade():
    rows = rows_of(a=10, b=10)
    mixture = MixtureSampler(rows, DataSettings(weights={"a": (1.0, 0.0, 100)}))
    early = Counter(row.source for row in drawn(mixture, rows, n=20))
    late = Counter(row.source for row in drawn(mixture, rows, n=200, first=100))
    assert early["a"] > 3
    assert late["a"] == 0


@given(st.floats(0, 1), st.integers(0, 10**6), st.integers(1, 50))
def test_any_draws_in_a_row_hold_the_stated_mix(share, first, n):
    rows = rows_of(a=3, b_rust=3)
    mixture = MixtureSampler(rows, DataSettings(), named_fraction=share)
    named = sum(
        rows[mixture.index(draw, 0.5)].disease is not None
        for draw in range(first, first + n)
    )
    assert abs(named - share * n) <= 1 + 1e-6 * first


@pytest.mark.parametrize(("whole", "sparse", "share"), [(5, 50, 0.25), (9, 1, 0.1)])
def test_points_do_not_take_the_place_of_masks(whole, sparse, share):
    rows = [*rows_of(a=whole), *(replace(r, sparse=True) for r in rows_of(b=sparse))]
    found = Counter(row.sparse for row in drawn(MixtureSampler(rows, DataSettings()), rows))
    assert found[True] == 4000 * share


def test_points_alone_are_drawn_like_masks():
    rows = [replace(row, sparse=True) for row in rows_of(a=3)]
    assert (
        len({row.key for row in drawn(MixtureSampler(rows, DataSettings()), rows, n=100)})
        == 3
    )


def test_names_do_not_count_where_nobody_asks_or_all_have_one():
    for rows in (rows_of(a=3), rows_of(a_rust=3)):
        mixture = MixtureSampler(rows, DataSettings(), named_fraction=0.5)
        assert len({row.key for row in drawn(mixture, rows, n=100)}) == 3


def test_weights_of_an_unknown_data_set_are_refused():
    with pytest.raises(UsageError, match=r"data\.weights has `coffe`") as caught:
        refuse_unknown(DataSettings(weights={"coffe": 1.0}), ["coffee", "rice"])
    assert "the nearest is `coffee`" in str(caught.value)


def test_weights_are_settings():
    pair = "data.weights={a: 2, b: [1.0, 0.2, 2000]}"
    settings = Settings().with_settings([pair])
    assert settings.data.weights == (("a", 2.0), ("b", (1.0, 0.2, 2000)))
    again = Settings.from_tree(settings.model_dump(mode="json"), origin="test")
    assert again == settings
    with pytest.raises(UsageError, match="is below 0, or over no draw"):
        Settings().with_settings(["data.weights={a: -1}"])
