"""Splits and labeled fractions: drawn by groups, seeded, the same on every machine.

All images of a group (the same leaf, scene or near-duplicate) are in one split. Groups
are ordered by a hash of seed and name, so the order of the rows does not matter and an
added row changes little.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from plantseg_next.data.manifest import Manifest, Row, Split
from plantseg_next.errors import UsageError, count_of

FRACTIONS = (0.7, 0.15, 0.15)
"""Default fractions of training, validation and test."""

Groups = dict[str, list[Row]]


def assign(
    manifest: Manifest, *, seed: int, fractions: tuple[float, float, float] = FRACTIONS
) -> Manifest:
    """Return the manifest with a split for every row.

    Stated splits are kept. A data set without any is divided by groups and stratified
    by image-level label as far as the groups allow; rows without mask and label become
    "unlabeled". If it has "train" but no "val", part of "train" becomes "val". If only
    some rows have a split, the others get the split of their group, or else "train",
    where they cannot bias a metric. A data set without masks cannot be evaluated: all
    its labeled rows are "train".

    Args:
        manifest: Rows of any number of data sets; each is divided separately.
        seed: Random seed.
        fractions: Of training, validation and test; they sum to 1.

    Returns:
        The number of rows of a split differs from its fraction by less than 4/3 of the
        largest group.
    """
    assert min(fractions) >= 0, "a fraction is negative"  # noqa: S101
    assert abs(sum(fractions) - 1) < 1e-6, "fractions must sum to 1"  # noqa: S101
    split_of: dict[str, Split] = {}
    for rows in _by(manifest.rows, lambda row: row.source).values():
        split_of |= _assign_source(rows, seed, fractions)
    return manifest.only(replace(row, split=split_of[row.key]) for row in manifest.rows)


def drawn_sources(manifest: Manifest) -> frozenset[str]:
    """Return the data sets with masks for which ``assign`` draws splits.

    In these some rows have no split, or there is "train" without "val".
    """
    names = set()
    for name, rows in _by(manifest.rows, lambda row: row.source).items():
        stated = {row.split for row in rows}
        lacks_val = "train" in stated and "val" not in stated
        if any(row.mask for row in rows) and (None in stated or lacks_val):
            names.add(name)
    return frozenset(names)


def labeled_fraction(manifest: Manifest, fraction: float, *, seed: int) -> Manifest:
    """Return the manifest with the masks of some training rows hidden.

    Hidden rows get the split "unlabeled"; their mask path stays in the row. For one
    seed the subsets are nested: rows labeled at 1/8 are labeled at 1/4 too. The
    fraction holds for each data set and image-level label, with at least one group.

    Args:
        manifest: With splits.
        fraction: Fraction of the training rows with masks that keep them, in (0, 1].
        seed: Random seed.
    """
    assert 0 < fraction <= 1, "the settings refuse others"  # noqa: S101
    candidates = [r for r in manifest.rows if r.split == "train" and r.mask]
    kept: set[str] = set()
    for groups in _strata(candidates, seed):
        wanted = fraction * sum(len(rows) for rows in groups.values())
        taken = 0
        for rows in groups.values():
            if taken and taken + len(rows) / 2 > wanted:
                break
            taken += len(rows)
            kept |= {row.key for row in rows}
    hidden = {row.key for row in candidates} - kept
    return manifest.only(
        replace(row, split="unlabeled") if row.key in hidden else row
        for row in manifest.rows
    )


def labeled_rows(manifest: Manifest, split: Split, origin: object) -> Manifest:
    """Return the rows of a split that have a mask.

    Args:
        manifest: With splits.
        split: Its name.
        origin: Name of the images, for the error.

    Raises:
        UsageError: If there are none.
    """
    rows = manifest.split(split).labeled
    if len(rows):
        return rows
    counts = {name: len(manifest.split(name).labeled) for name in ("train", "val", "test")}
    came = (
        f"`{origin}` has no image with a mask in its {split} split (images with masks: "
        f"{', '.join(f'{name} {n}' for name, n in counts.items())})."
    )
    n_groups = len({row.group_key for row in manifest.labeled.rows})
    if sum(counts.values()) > n_groups and n_groups < len(counts):
        raise UsageError(
            f"{came} They are {count_of(n_groups, 'group')}: images of one "
            "scene, or of one `group` in index.csv, are kept in one split.",
            needed="labeled images of at least three groups",
            fix="add images of other leaves; or state the `split` of each in index.csv, "
            "and do not trust the metrics",
        )
    raise UsageError(
        came,
        needed="masks of at least a few images of every split",
        fix="label more images of other leaves; or, where folders or index.csv state the "
        f"splits, move some labeled images to {split}",
    )


def group_near_duplicates(manifest: Manifest, pairs: Iterable[tuple[str, str]]) -> Manifest:
    """Return the manifest with rows that show the same scene in one group.

    Whole groups are merged, transitively. Pairs across data sets are ignored, because
    groups are within a data set. Existing splits are kept.

    Args:
        manifest: The rows.
        pairs: Keys of two rows each, such as ``CheckReport.same_scene``.
    """
    rows = {row.key: row for row in manifest.rows}
    parent: dict[str, str] = {}

    def find(group: str) -> str:
        while group in parent:
            group = parent[group]
        return group

    for key, other in pairs:
        first, second = sorted((find(rows[key].group_key), find(rows[other].group_key)))
        if rows[key].source == rows[other].source and first != second:
            parent[second] = first
    merged = set(parent) | set(parent.values())
    return manifest.only(
        replace(row, group=find(row.group_key).removeprefix(f"{row.source}/"))
        if row.group_key in merged
        else row
        for row in manifest.rows
    )


def _assign_source(
    rows: Sequence[Row], seed: int, fractions: tuple[float, float, float]
) -> dict[str, Split]:
    stated = {row.split for row in rows if row.split is not None}
    labeled = [row for row in rows if row.mask or row.disease]
    split_of: dict[str, Split] = {row.key: "unlabeled" for row in rows}
    if not any(row.mask for row in rows):
        fractions = (1.0, 0.0, 0.0)
    if not stated - {"unlabeled"}:
        free = [row for row in labeled if row.split is None]
        names: tuple[Split, ...] = ("train", "val", "test")
        return split_of | _divide(free, seed, dict(zip(names, fractions, strict=True)))

    group_split: dict[str, Split] = {r.group_key: r.split for r in rows if r.split}
    split_of |= {r.key: group_split.get(r.group_key, "train") for r in labeled}
    split_of |= {row.key: row.split for row in rows if row.split is not None}
    if "train" in stated and "val" not in stated and fractions[1] > 0:
        train = [row for row in labeled if split_of[row.key] == "train"]
        val = fractions[1] / (fractions[0] + fractions[1])
        split_of |= _divide(train, seed, {"train": 1 - val, "val": val})
    return split_of


def _divide(
    rows: Sequence[Row], seed: int, fractions: Mapping[Split, float]
) -> dict[str, Split]:
    """Assign each group in turn to the split that is furthest below its fraction.

    Strata are divided one after another, so fractions hold within each and in total.
    """
    split_of: dict[str, Split] = {}
    assigned = dict.fromkeys(fractions, 0)
    for groups in _strata(rows, seed):
        for group in groups.values():
            total = sum(assigned.values()) + len(group)
            name = max(fractions, key=lambda s: fractions[s] * total - assigned[s])
            assigned[name] += len(group)
            split_of |= dict.fromkeys((row.key for row in group), name)
    return split_of


def _strata(rows: Iterable[Row], seed: int) -> Iterator[Groups]:
    """Return the groups of each stratum, in random order.

    A stratum is a data set and an image-level label; the label of a group is the most
    frequent one of its rows.
    """
    strata: dict[tuple[str, str], Groups] = defaultdict(dict)
    for key, group in _by(rows, lambda row: row.group_key).items():
        labels = Counter(row.disease or "" for row in group)
        label = min(labels, key=lambda name: (-labels[name], name))
        strata[group[0].source, label][key] = group
    for name in sorted(strata):
        groups = strata[name]
        yield {key: groups[key] for key in sorted(groups, key=lambda k: _hash(seed, k))}


def _hash(seed: int, name: str) -> bytes:
    return sha256(f"{seed}/{name}".encode()).digest()


def _by(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups
