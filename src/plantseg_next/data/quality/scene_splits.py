"""Drawing splits, and adding data sets, without leaks into training."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, count, product
from typing import Literal

from plantseg_next.data import splits
from plantseg_next.data.manifest import Manifest, Row, Split, common_classes
from plantseg_next.data.quality.inspect import ImageStats, inspect, of_rows
from plantseg_next.data.quality.leaks import Alike, find_alike, same_scenes
from plantseg_next.data.quality.near_duplicates import Fingerprint, near_duplicates
from plantseg_next.errors import count_of

Reason = Literal["unreadable", "also labeled", "also evaluated"]


@dataclass(frozen=True)
class ExcludedImage:
    """An image that is excluded from training.

    Args:
        row: The image.
        reason: "also evaluated": it, or a near-duplicate, is in validation or test.
    """

    row: Row
    reason: Reason


@dataclass(frozen=True)
class Inspection:
    """What is known of the images of a manifest.

    Args:
        all_stats: Statistics of every row, in any order.
        alike: Near-duplicates among them.
    """

    all_stats: Sequence[ImageStats]
    alike: Alike


def draw_splits(
    manifest: Manifest,
    *,
    seed: int,
    log: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    known: Inspection | None = None,
) -> Manifest:
    """Return the manifest with a split for every row; each scene is in one split.

    As ``splits.assign``, but near-duplicates within a data set are put into one group
    first. An image that would be learned from without a mask, but shows the scene or is
    of the group of a validation or test image, gets the split of that image, where it
    is not learned from. Stated "train", "val" and "test" are kept, and a data set
    whose splits are all stated is not inspected.

    Args:
        manifest: Of any number of data sets.
        seed: Random seed.
        log: Receives a line about merged groups, and one about images that are not
            learned from.
        on_progress: Called after each image with the number done and the total.
        known: What is known of the images, if they were inspected before.
    """
    names = splits.drawn_sources(manifest)
    rows = [row for row in manifest.rows if row.source in names]
    rows.sort(key=_is_bare)
    n_labeled = sum(not _is_bare(row) for row in rows)
    all_stats = _stats_of(manifest.only(rows), known, on_progress)
    scenes = same_scenes(all_stats, n_labeled, known.alike if known else None)
    pairs = [
        (first.row.key, second.row.key)
        for first, second in scenes
        if not _is_bare(second.row)
        and len({first.row.split, second.row.split} - {None}) <= 1
    ]
    grouped = splits.group_near_duplicates(manifest, pairs)
    drawn = splits.assign(grouped, seed=seed)
    n_groups = [len({row.group_key for row in m.rows}) for m in (manifest, grouped)]
    n_merged = n_groups[0] - n_groups[1]
    if n_merged:
        log(
            f"near-duplicates: {count_of(n_merged, 'group')} merged with another that "
            "shows the same scene, so that each scene is in one split"
        )
    moved = _evaluated_scenes(drawn, all_stats, scenes)
    if moved:
        log(
            "images without a mask not learned from, because they show the scene of a "
            f"validation or test image: {len(moved)}"
        )
    return drawn.only(
        replace(row, split=moved.get(row.key, row.split)) for row in drawn.rows
    )


def inspect_all(
    manifest: Manifest, on_progress: Callable[[int, int], None] = lambda *_: None
) -> Inspection:
    """Return what is known of all images and masks: each file is read once."""
    rows = sorted(manifest.rows, key=_is_bare)
    all_stats = inspect(manifest.only(rows), on_progress)
    return Inspection(all_stats, find_alike(all_stats))


def _stats_of(
    manifest: Manifest, known: Inspection | None, on_progress: Callable[[int, int], None]
) -> list[ImageStats]:
    if known is None:
        return inspect(manifest, on_progress, masks=False)
    return of_rows(known.all_stats, manifest.rows)


def _is_bare(row: Row) -> bool:
    """Return whether a row is to be learned from without its mask."""
    return row.split == "unlabeled" or not (row.split or row.mask or row.disease)


def _evaluated_scenes(
    drawn: Manifest,
    all_stats: Sequence[ImageStats],
    scenes: Sequence[tuple[ImageStats, ImageStats]],
) -> dict[str, Split]:
    """Return the split of every scene in validation or test that unlabeled rows show.

    Returns:
        From keys of unlabeled rows.
    """
    digests = {f.row.key: f.file.sha256 if f.file else f.row.key for f in all_stats}
    rows = [row for row in drawn.rows if row.key in digests]
    evaluated: dict[str, Split] = {}  # groups and digests
    for row in rows:
        if row.split in ("val", "test"):
            evaluated |= {row.group_key: row.split, digests[row.key]: row.split}
    for first, second in scenes:
        split = evaluated.get(digests[first.row.key])
        if split and _is_bare(second.row):
            evaluated[digests[second.row.key]] = split
    moved = {}
    for row in rows:
        split = evaluated.get(digests[row.key]) or evaluated.get(row.group_key)
        if split and row.split == "unlabeled":
            moved[row.key] = split
    return moved


def add_datasets(
    manifest: Manifest,
    others: Sequence[Manifest],
    *,
    masks: bool,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Manifest, tuple[ExcludedImage, ...]]:
    """Return the data set with the images of others added for training.

    Splits and image-level labels of the others are ignored. Excluded are images that
    cannot be read, and near-duplicates of a training, validation or test image: metrics
    on a test image are too high if it was trained on, even without its mask.

    Args:
        manifest: With splits.
        others: Data sets to add; sources are renamed where names clash.
        masks: Whether to train on their masks, for example pseudo-labels; unlabeled
            rows of the same file are then dropped. Otherwise the rows are unlabeled
            and masks are ignored.
        on_progress: Called after each image with the number done and the total.

    Returns:
        The merged manifest, and the excluded images.
    """
    taken = {row.source for row in manifest.rows}
    added: list[Row] = []
    codings = dict(manifest.codings)
    for other in others:
        names = {source: _free(source, taken) for source in {r.source for r in other.rows}}
        taken |= set(names.values())
        added += [
            replace(
                row,
                key=f"{names[row.source]}/{row.key}",
                source=names[row.source],
                mask=row.mask if masks else None,
                disease=None,
                split="train" if masks and row.mask else "unlabeled",
            )
            for row in other.rows
        ]
        codings |= {names[s]: c for s, c in other.codings.items() if masks and s in names}
    own = [row for row in manifest.rows if row.split in ("train", "val", "test")]
    all_stats = inspect(manifest.only((*own, *added)), on_progress, masks=False)
    excluded = [
        ExcludedImage(stats.row, "unreadable")
        for stats in all_stats[len(own) :]
        if stats.file is None
    ]
    n_own = sum(stats.file is not None for stats in all_stats[: len(own)])
    rows, prints = _readable(all_stats)
    reasons: dict[str, Reason] = {}
    for pair in near_duplicates(prints, n_first=n_own):
        if pair.first < n_own <= pair.second:
            evaluated = rows[pair.first].split != "train"
            if evaluated or rows[pair.second].key not in reasons:
                key = rows[pair.second].key
                reasons[key] = "also evaluated" if evaluated else "also labeled"
    excluded += [ExcludedImage(row, reasons[row.key]) for row in rows if row.key in reasons]
    kept = [row for row in rows[n_own:] if row.key not in reasons]
    files = {row.image.resolve() for row in kept if row.split == "train"}
    joined = (
        *(
            row
            for row in manifest.rows
            if row.split != "unlabeled" or row.image.resolve() not in files
        ),
        *kept,
    )
    classes = common_classes(joined, codings)
    return replace(manifest, rows=joined, classes=classes, codings=codings), tuple(excluded)


def drop_leaks(
    manifest: Manifest,
    *,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    known: Inspection | None = None,
) -> tuple[Manifest, tuple[ExcludedImage, ...]]:
    """Return the data sets without near-duplicates across data sets and splits.

    Within a data set, groups and ``check`` find them. Of two images of one scene in
    different data sets, a test image is kept before a validation image, that before a
    training image, and an image with a mask before one without.

    Args:
        manifest: Of many data sets, with splits.
        on_progress: Called after each image with the number done and the total.
        known: What is known of the images, if they were inspected before.

    Returns:
        The manifest without them, and the excluded images. Images that cannot be read
        stay in it.
    """
    ordered = sorted(manifest.rows, key=lambda row: row.split == "unlabeled")
    n_first = sum(row.split != "unlabeled" for row in ordered)
    all_stats = _stats_of(manifest.only(ordered), known, on_progress)
    reasons: dict[str, Reason] = {}
    alike = known.alike if known else None
    for first, second in _pairs_of_rows(all_stats, n_first, alike):
        rows = first.row, second.row
        if rows[0].source == rows[1].source:
            continue
        kept_row, dropped = sorted(rows, key=_priority, reverse=True)
        if kept_row.split != dropped.split or (
            dropped.mask is None and kept_row.mask is not None
        ):
            evaluated = kept_row.split in ("val", "test")
            reasons[dropped.key] = "also evaluated" if evaluated else "also labeled"
    kept = manifest.only(row for row in manifest.rows if row.key not in reasons)
    excluded = (
        ExcludedImage(row, reasons[row.key]) for row in manifest.rows if row.key in reasons
    )
    return kept, tuple(excluded)


def _pairs_of_rows(
    all_stats: Sequence[ImageStats], n_first: int, alike: Alike | None
) -> Iterator[tuple[ImageStats, ImageStats]]:
    """Yield every pair of rows of one scene, copies of a near-duplicate included."""
    copies = defaultdict(list)
    for stats in all_stats:
        if stats.file is not None:
            copies[stats.file.sha256].append(stats)
    for same in copies.values():
        yield from combinations(same, 2)
    for first, second in same_scenes(all_stats, n_first, alike):
        one, other = (stats.file.sha256 for stats in (first, second) if stats.file)
        if one != other:
            yield from product(copies[one], copies[other])


def _readable(all_stats: Sequence[ImageStats]) -> tuple[list[Row], list[Fingerprint]]:
    """Return the rows of the images that can be read, and their fingerprints."""
    files = [(stats.row, stats.file) for stats in all_stats if stats.file is not None]
    return [row for row, _ in files], [file.print_ for _, file in files]


def _priority(row: Row) -> tuple[int, bool]:
    return ("unlabeled", "train", "val", "test").index(row.split or "train"), bool(row.mask)


def describe_excluded(left: Sequence[ExcludedImage]) -> Iterator[str]:
    """Yield one sentence per reason, with the number of images and the first."""
    because: dict[Reason, str] = {
        "unreadable": "cannot be read",
        "also labeled": "show the scene of a labeled image",
        "also evaluated": "show the scene of a validation or test image",
    }
    for reason, text in because.items():
        rows = [image.row for image in left if image.reason == reason]
        if rows:
            yield (
                f"images excluded, because they {text}: {len(rows)}; "
                f"the first is {rows[0].image}"
            )


def _free(name: str, taken: set[str]) -> str:
    """Return the name, with a number if a source already has it."""
    names = (f"{name} {i}" if i > 1 else name for i in count(1))
    return next(free for free in names if free not in taken)
