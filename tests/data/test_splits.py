from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.splits import (
    FRACTIONS,
    assign,
    group_near_duplicates,
    labeled_fraction,
)
from plantseg_next.structures import ClassMap


def manifest_of(rows) -> Manifest:
    return Manifest(tuple(rows), ClassMap(("rust",)), {})


FACTS = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(["rust", "phoma", None]), st.booleans()),
    min_size=1,
    max_size=60,
)


def drawn(facts, split=None) -> Manifest:
    """Return rows of one source in groups of any size, with and without labels."""
    return manifest_of(
        Row(
            key=f"{i}",
            image=Path(f"{i}.jpg"),
            source="s",
            mask=Path(f"{i}.png") if has_mask else None,
            group=f"{group}" if group else "",
            disease=disease,
            split=split,
        )
        for i, (group, disease, has_mask) in enumerate(facts)
    )


def is_labeled(row: Row) -> bool:
    return bool(row.mask or row.disease)


def splits_of(manifest: Manifest) -> dict[str, str | None]:
    return {row.key: row.split for row in manifest.rows}


@given(FACTS, st.integers(0, 5))
def test_assign_keeps_groups_together_and_splits_every_row(facts, seed):
    groups = defaultdict(set)
    for row in assign(drawn(facts), seed=seed).rows:
        assert row.split is not None
        assert (row.split == "unlabeled") == (not is_labeled(row))
        if is_labeled(row):
            groups[row.group_key].add(row.split)
    assert all(len(splits) == 1 for splits in groups.values())


@given(FACTS, st.integers(0, 5))
def test_assign_meets_fractions_within_group_size(facts, seed):
    assume(any(has_mask for *_, has_mask in facts))
    rows = [row for row in assign(drawn(facts), seed=seed).rows if is_labeled(row)]
    largest = max(Counter(row.group_key for row in rows).values(), default=0)
    for name, fraction in zip(("train", "val", "test"), FRACTIONS, strict=True):
        n = sum(row.split == name for row in rows)
        assert abs(n - fraction * len(rows)) <= 4 / 3 * largest


@given(FACTS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_assign_does_not_depend_on_row_order(facts, seed, random):
    manifest = drawn(facts)
    shuffled = list(manifest.rows)
    random.shuffle(shuffled)
    one, two = (assign(m, seed=seed) for m in (manifest, manifest.only(shuffled)))
    assert splits_of(one) == splits_of(two)
    once = labeled_fraction(one, 0.3, seed=seed)
    again = labeled_fraction(two, 0.3, seed=seed)
    assert splits_of(once) == splits_of(again)


def leaves(n: int, **changes) -> list[Row]:
    row = Row("", Path("a.jpg"), "s", Path("a.png"))
    return [replace(row, key=f"{i}", **changes) for i in range(n)]


def test_assign_stratifies_by_label():
    rows = [replace(r, disease="rust" if int(r.key) % 4 else "phoma") for r in leaves(400)]
    counts = Counter((r.split, r.disease) for r in assign(manifest_of(rows), seed=1).rows)
    for name, fraction in zip(("train", "val", "test"), FRACTIONS, strict=True):
        assert abs(counts[name, "rust"] - 300 * fraction) <= 1
        assert abs(counts[name, "phoma"] - 100 * fraction) <= 2


def test_assign_data_set_without_masks_is_train_only():
    named = drawn([(i, "rust", False) for i in range(20)] + [(50, None, False)])
    splits = splits_of(assign(named, seed=0))
    assert Counter(splits.values()) == {"train": 20, "unlabeled": 1}
    assert set(
        splits_of(assign(drawn([(1, "rust", False)], "train"), seed=0)).values()
    ) == {"train"}


def test_assign_depends_on_seed():
    manifest = manifest_of(leaves(100))
    assert splits_of(assign(manifest, seed=0)) != splits_of(assign(manifest, seed=1))


def test_assign_keeps_stated_splits():
    rows = [
        *leaves(3, split="train"),
        *(replace(r, key=f"v{r.key}", split="val") for r in leaves(2)),
    ]
    assert assign(manifest_of(rows), seed=0) == manifest_of(rows)


def test_assign_takes_val_from_train_by_groups():
    rows = [replace(r, group=f"{int(r.key) // 2}") for r in leaves(100, split="train")]
    test = [replace(r, key=f"t{r.key}") for r in leaves(20, split="test")]
    assigned = assign(manifest_of([*rows, *test]), seed=0)
    counts = Counter(row.split for row in assigned.rows)
    assert counts["test"] == 20
    assert abs(counts["val"] - 100 * 0.15 / 0.85) <= 2
    groups = {(r.group, r.split) for r in assigned.rows if r.group}
    assert len(groups) == 50


def test_assign_partial_splits_go_to_group_or_train():
    stated = leaves(2, split="val", group="7")
    rows = [
        *stated,
        *(replace(r, key=f"x{r.key}") for r in leaves(1, group="7")),
        *(replace(r, key=f"y{r.key}") for r in leaves(1)),
        *(replace(r, key=f"z{r.key}") for r in leaves(1, mask=None)),
    ]
    assigned = splits_of(assign(manifest_of(rows), seed=0))
    assert (assigned["x0"], assigned["y0"], assigned["z0"]) == ("val", "train", "unlabeled")


def test_group_near_duplicates_is_transitive_within_source():
    rows = [replace(r, group=("x", "x", "y", "", "", "z")[int(r.key)]) for r in leaves(6)]
    other = replace(rows[0], key="t/0", source="t", group="")
    pairs = [("0", "2"), ("3", "1"), ("4", "t/0")]
    joined = group_near_duplicates(manifest_of([*rows, other]), pairs).rows
    groups = [row.group_key for row in joined]
    assert len(set(groups[:4])) == 1
    assert len(set(groups[3:])) == 4
    assert group_near_duplicates(manifest_of(rows), []) == manifest_of(rows)


def test_assign_invalid_fractions_are_refused():
    with pytest.raises(AssertionError, match="must sum to 1"):
        assign(manifest_of(leaves(1)), seed=0, fractions=(0.8, 0.2, 0.2))


@given(FACTS, st.integers(0, 5))
def test_labeled_fraction_is_nested_and_grouped(facts, seed):
    manifest = drawn(facts, split="train")
    previous: set[str] = set()
    for fraction in (0.05, 0.125, 0.25, 0.5, 1.0):
        rows = labeled_fraction(manifest, fraction, seed=seed).rows
        masked = [row for row in rows if row.mask]
        kept = {row.key for row in masked if row.split == "train"}
        assert previous <= kept
        assert {r.group_key for r in masked if r.key in kept}.isdisjoint(
            r.group_key for r in masked if r.key not in kept
        )
        previous = kept
    assert previous == {row.key for row in manifest.rows if row.mask}


def test_labeled_fraction_holds_per_label_and_hides_the_rest():
    rows = [
        replace(r, disease=("rust", "phoma")[int(r.key) % 2])
        for r in leaves(160, split="train")
    ]
    rare = [replace(r, key="rare", disease="rare") for r in leaves(1, split="train")]
    test = [replace(r, key=f"t{r.key}") for r in leaves(8, split="test")]
    assigned = labeled_fraction(manifest_of([*rows, *rare, *test]), 1 / 8, seed=3)
    counts = Counter((row.split, row.disease) for row in assigned.rows)
    assert counts["train", "rust"] == counts["train", "phoma"] == 10
    assert counts["train", "rare"] == 1
    assert counts["test", None] == 8
    assert all(row.mask is not None for row in assigned.rows)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_labeled_fraction_outside_range_is_refused(fraction):
    with pytest.raises(AssertionError, match="the settings refuse others"):
        labeled_fraction(manifest_of(leaves(1)), fraction, seed=0)
