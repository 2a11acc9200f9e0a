"""Leaks: images or scenes in more than one split."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from plantseg_next.data.quality.inspect import ImageStats
from plantseg_next.data.quality.issues import Issue
from plantseg_next.data.quality.near_duplicates import Fingerprint, near_duplicates

TOLERATED_FRACTION = 0.01
"""Fraction of validation or test that may have a near-duplicate in another split.

Below it, metrics change by less than between two seeds; above it, they are too high.
"""

_REGROUP = (
    "give each scene one name in the column `group` of index.csv and draw the splits "
    "again, or remove one of the two"
)
_EVALUATED = ("val", "test")


Alike = list[tuple[str, str, float]]
"""Digests of two images of one scene, and the correlation of their fine detail."""


def find_alike(all_stats: Sequence[ImageStats], n_first: int | None = None) -> Alike:
    """Return the near-duplicates among different files.

    Args:
        all_stats: Statistics of the rows; of files of one digest, the first is compared.
        n_first: Only with at least one of so many first rows; default: all.
    """
    first = _first_of_each(all_stats)
    n_distinct = sum(n_first is None or i < n_first for i, _ in first.values())
    digests = list(first)
    prints = [_print_of(stats) for _, stats in first.values()]
    return [
        (digests[pair.first], digests[pair.second], pair.correlation)
        for pair in near_duplicates(prints, n_first=n_distinct)
    ]


def same_scenes(
    all_stats: Sequence[ImageStats],
    n_first: int | None = None,
    alike: Alike | None = None,
) -> list[tuple[ImageStats, ImageStats]]:
    """Return pairs of rows whose images are copies or near-duplicates.

    Each exact copy is paired with the first one, and only the first is compared with
    other images. Near-duplicates are sorted, most similar first.

    Args:
        all_stats: Statistics of the rows.
        n_first: Near-duplicates only with at least one of so many first rows; default:
            all.
        alike: Near-duplicates of these rows and perhaps others, if they are known.
    """
    first = _first_of_each(all_stats)
    copies = [
        (first[stats.file.sha256][1], stats)
        for i, stats in enumerate(all_stats)
        if stats.file is not None and first[stats.file.sha256][0] != i
    ]
    near = []
    known = find_alike(all_stats, n_first) if alike is None else alike
    for one, other, correlation in known:
        if one in first and other in first:
            pair = sorted((first[one], first[other]), key=_position)
            (i, stats), (j, other_stats) = pair
            if n_first is None or i < n_first:
                near.append((-correlation, i, j, stats, other_stats))
    near.sort(key=lambda pair: pair[:3])
    return copies + [(stats, other_stats) for *_, stats, other_stats in near]


def _first_of_each(all_stats: Sequence[ImageStats]) -> dict[str, tuple[int, ImageStats]]:
    """Return the first row of each digest, with its position."""
    first: dict[str, tuple[int, ImageStats]] = {}
    for i, stats in enumerate(all_stats):
        if stats.file is not None:
            first.setdefault(stats.file.sha256, (i, stats))
    return first


def _print_of(stats: ImageStats) -> Fingerprint:
    assert stats.file is not None, "only images that can be read are compared"  # noqa: S101
    return stats.file.print_


def _position(item: tuple[int, ImageStats]) -> int:
    return item[0]


def find_leaks(
    all_stats: Sequence[ImageStats], pairs: Sequence[tuple[ImageStats, ImageStats]]
) -> Iterator[Issue]:
    """Yield groups, copies and near-duplicates across splits, and copies within one.

    Copies and stated groups across splits are errors. Near-duplicates are detected by
    similarity, so a few across splits are a warning; more than ``TOLERATED_FRACTION`` of
    validation or test are an error. The split "unlabeled" counts as training; if all
    rows are unlabeled, as in a time series of one plant, near-duplicates are not
    reported.

    Args:
        all_stats: Statistics of all rows.
        pairs: From ``same_scenes``.
    """
    yield from _groups(all_stats)
    yield from _copies(all_stats)
    if any(stats.row.split != "unlabeled" for stats in all_stats):
        alike = [pair for pair in pairs if not _are_copies(pair)]
        yield from _near_duplicates(all_stats, alike)


def _groups(all_stats: Sequence[ImageStats]) -> Iterator[Issue]:
    groups: dict[str, list[ImageStats]] = defaultdict(list)
    for stats in all_stats:
        if stats.row.group:
            groups[stats.row.group_key].append(stats)
    crossing = [group for group in groups.values() if _is_crossing(group)]
    if crossing:
        yield Issue(
            "group-across-splits",
            "error",
            f"Groups with images in more than one split, so that metrics would be "
            f"too high: {len(crossing)}. The first: {crossing[0][0].row.group_key}.",
            "draw the splits again by group, or correct the split column",
            tuple(stats.row.image for group in crossing for stats in group),
        )


def _copies(all_stats: Sequence[ImageStats]) -> Iterator[Issue]:
    by_digest: dict[str, list[ImageStats]] = defaultdict(list)
    for stats in all_stats:
        if stats.file is not None:
            by_digest[stats.file.sha256].append(stats)
    copies = [group for group in by_digest.values() if len(group) > 1]
    crossing = [group for group in copies if _is_crossing(group)]
    if crossing:
        yield Issue(
            "copy-across-splits",
            "error",
            "Image files that are, byte for byte, in more than one split, so that "
            f"metrics would be too high: {len(crossing)}.",
            _REGROUP,
            tuple(stats.row.image for group in crossing for stats in group),
        )
    inside = [group for group in copies if not _is_crossing(group)]
    if inside:
        extra = sum(len(group) - 1 for group in inside)
        yield Issue(
            "copies",
            "warning",
            f"Image files that are exact copies of others in their split: {extra}.",
            "remove the copies; until then they count twice",
            tuple(stats.row.image for group in inside for stats in group),
        )


def _near_duplicates(
    all_stats: Sequence[ImageStats], pairs: Sequence[tuple[ImageStats, ImageStats]]
) -> Iterator[Issue]:
    crossing = [p for p in pairs if _is_crossing(p) and not any(map(_is_unused, p))]
    if crossing:
        yield _crossing_issue(all_stats, crossing)
    inside = [p for p in pairs if not _is_crossing(p) and not _is_grouped(p)]
    if inside:
        free = all(stats.row.split is None for pair in inside for stats in pair)
        yield Issue(
            "near-duplicates",
            "warning" if free else "note",
            "Pairs of images that show the same scene (repeated, mirrored or rotated) "
            f"without a common group: {len(inside)}.",
            "nothing where `train` draws the splits: it keeps them in one split; if you "
            "state splits, give each scene one name in the column `group` of index.csv",
            tuple(stats.row.image for pair in inside for stats in pair),
        )


def _crossing_issue(
    all_stats: Sequence[ImageStats], pairs: Sequence[tuple[ImageStats, ImageStats]]
) -> Issue:
    concerned = {stats.row.key: stats.row.split for pair in pairs for stats in pair}
    total = {name: sum(f.row.split == name for f in all_stats) for name in _EVALUATED}
    fraction = {
        name: sum(split == name for split in concerned.values()) / n
        for name, n in total.items()
        if n
    }
    affected = " and ".join(
        f"{100 * part:.1f} % of {name}" for name, part in fraction.items() if part
    )
    return Issue(
        "near-duplicate-across-splits",
        "error" if max(fraction.values()) > TOLERATED_FRACTION else "warning",
        "Pairs of images that show the same scene (repeated, mirrored or rotated) in "
        f"two splits: {len(pairs)}. They affect {affected}, where metrics would be too "
        "high.",
        _REGROUP,
        tuple(stats.row.image for pair in pairs for stats in pair),
    )


def _is_crossing(all_stats: Iterable[ImageStats]) -> bool:
    """Return whether the rows are in more than one of training, validation and test."""
    splits = {stats.row.split for stats in all_stats} - {None}
    uses = {"train" if split == "unlabeled" else split for split in splits}
    return len(uses) > 1


def _is_unused(stats: ImageStats) -> bool:
    """Return whether an image of validation or test has nothing to be evaluated on."""
    row = stats.row
    return row.split in _EVALUATED and row.mask is None and row.disease is None


def _are_copies(pair: tuple[ImageStats, ImageStats]) -> bool:
    first, second = (stats.file for stats in pair)
    return first is not None and second is not None and first.sha256 == second.sha256


def _is_grouped(pair: tuple[ImageStats, ImageStats]) -> bool:
    return pair[0].row.group_key == pair[1].row.group_key
