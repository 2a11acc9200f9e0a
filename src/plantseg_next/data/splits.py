"""Splits and labeled fractions: drawn by groups, seeded, the same on every machine.

Images of one group (the same leaf, scene or near-duplicate) never part. Everything is
drawn from digests of group names, so the order of the rows does not matter and a row
more changes little.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from plantseg_next.data.manifest import Manifest, Row, Split
from plantseg_next.errors import UsageError

FRACTIONS = (0.7, 0.15, 0.15)
"""Usual shares of training, validation and test."""

Groups = dict[str, list[Row]]


def assign(
    manifest: Manifest, *, seed: int, fractions: tuple[float, float, float] = FRACTIONS
) -> Manifest:
    """Return the manifest with a split for every row.

    Stated splits stay. A data set that states none is divided by groups, its image-level
    labels spread evenly as far as the groups allow; rows without mask and label become
    "unlabeled". One that has "train" but no "val" gives part of "train" to "val". In
    one that states splits for some rows only, the others join the split of their group,
    or else "train", where they cannot flatter a score. One without a single mask can
    judge nothing: all its labels are to learn from.

    Args:
        manifest: Rows of any number of data sets; each is divided by itself.
        seed: Draws another division.
        fractions: Of training, validation and test; they sum to 1.

    Returns:
        The number of rows of a split misses its share by less than 4/3 of the largest
        group.

    Raises:
        UsageError: If the shares do not sum to 1, or one is negative.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            f"`shares` are {fractions}, and sum to {sum(fractions):g}.",
            needed="three shares of at least 0 that sum to 1",
            fix="use for example 0.7, 0.15, 0.15",
        )
    split_of: dict[str, Split] = {}
    for rows in _by(manifest.rows, lambda row: row.source).values():
        split_of |= _assign_source(rows, seed, fractions)
    return manifest.only(replace(row, split=split_of[row.key]) for row in manifest.rows)


def labeled_fraction(manifest: Manifest, fraction: float, *, seed: int) -> Manifest:
    """Return the manifest with the masks of some training rows hidden.

    Hidden rows get the split "unlabeled"; their mask path stays in the row. For one
    seed the fractions are nested: what is labeled at 1/8 is labeled at 1/4 too. Each
    data set and image-level label keeps its share, and at least one group.

    Args:
        manifest: With splits.
        fraction: Of the training rows with masks that keep them, in (0, 1].
        seed: Draws another choice.

    Raises:
        UsageError: If ``fraction`` is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UsageError(
            f"`share` is {fraction:g}.",
            needed="a share of the labeled training images, above 0 and at most 1",
            fix="use for example 0.125 for one eighth",
        )
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


def group_near_duplicates(manifest: Manifest, pairs: Iterable[tuple[str, str]]) -> Manifest:
    """Return the manifest with rows that show the same scene in one group.

    Whole groups are joined, and pairs chain. Rows of different data sets, which never
    share a group, are left alone; so are splits that are already there.

    Args:
        manifest: The rows.
        pairs: Keys of two rows each, such as ``CheckReport.same_scene``.
    """
    rows = {row.key: row for row in manifest.rows}
    leader: dict[str, str] = {}

    def find(group: str) -> str:
        while group in leader:
            group = leader[group]
        return group

    for one, other in pairs:
        first, second = sorted((find(rows[one].group_key), find(rows[other].group_key)))
        if rows[one].source == rows[other].source and first != second:
            leader[second] = first
    joined = set(leader) | set(leader.values())
    return manifest.only(
        replace(row, group=find(row.group_key).removeprefix(f"{row.source}/"))
        if row.group_key in joined
        else row
        for row in manifest.rows
    )


def _assign_source(
    rows: Sequence[Row], seed: int, shares: tuple[float, float, float]
) -> dict[str, Split]:
    stated = {row.split for row in rows if row.split is not None}
    labeled = [row for row in rows if row.mask or row.disease]
    split_of: dict[str, Split] = {row.key: "unlabeled" for row in rows}
    if not any(row.mask for row in rows):
        shares = (1.0, 0.0, 0.0)
    if not stated - {"unlabeled"}:
        free = [row for row in labeled if row.split is None]
        names: tuple[Split, ...] = ("train", "val", "test")
        return split_of | _divide(free, seed, dict(zip(names, shares, strict=True)))

    group_split: dict[str, Split] = {r.group_key: r.split for r in rows if r.split}
    split_of |= {r.key: group_split.get(r.group_key, "train") for r in labeled}
    split_of |= {row.key: row.split for row in rows if row.split is not None}
    if "train" in stated and "val" not in stated and shares[1] > 0:
        train = [row for row in labeled if split_of[row.key] == "train"]
        val = shares[1] / (shares[0] + shares[1])
        split_of |= _divide(train, seed, {"train": 1 - val, "val": val})
    return split_of


def _divide(
    rows: Sequence[Row], seed: int, shares: Mapping[Split, float]
) -> dict[str, Split]:
    """Give each group in turn to the split that lags most behind its share.

    Strata come one after another, so the division is even within each and in total.
    """
    split_of: dict[str, Split] = {}
    given = dict.fromkeys(shares, 0)
    for groups in _strata(rows, seed):
        for group in groups.values():
            total = sum(given.values()) + len(group)
            name = max(shares, key=lambda s: shares[s] * total - given[s])
            given[name] += len(group)
            split_of |= dict.fromkeys((row.key for row in group), name)
    return split_of


def _strata(rows: Iterable[Row], seed: int) -> Iterator[Groups]:
    """Return the groups of each stratum, both in a drawn order.

    A stratum is a data set with an image-level label; that of a group is the one that
    most of its rows carry.
    """
    strata: dict[tuple[str, str], Groups] = defaultdict(dict)
    for key, group in _by(rows, lambda row: row.group_key).items():
        labels = Counter(row.disease or "" for row in group)
        label = min(labels, key=lambda name: (-labels[name], name))
        strata[group[0].source, label][key] = group
    for name in sorted(strata):
        groups = strata[name]
        yield {key: groups[key] for key in sorted(groups, key=lambda k: _draw(seed, k))}


def _draw(seed: int, name: str) -> bytes:
    return sha256(f"{seed}/{name}".encode()).digest()


def _by(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups
