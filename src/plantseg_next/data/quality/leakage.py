"""More images beside a data set, kept from leaking what it is judged by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from plantseg_next.data.image_io import read_image
from plantseg_next.data.manifest import Manifest, Row, common_classes
from plantseg_next.data.quality.near_duplicates import (
    Fingerprint,
    fingerprint,
    near_duplicates,
)
from plantseg_next.errors import DataError

Reason = Literal["unreadable", "also labeled", "also judged"]


@dataclass(frozen=True)
class ExcludedImage:
    """An image that is not learned from.

    Args:
        row: The image.
        reason: "also judged": it, or a near-duplicate, is in validation or test.
    """

    row: Row
    reason: Reason


def add_datasets(
    manifest: Manifest,
    others: Sequence[Manifest],
    *,
    masks: bool,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Manifest, tuple[ExcludedImage, ...]]:
    """Return the data set with the images of others as more to learn from.

    Splits of the others do not count, nor do their image-level labels. Left out are
    images that cannot be read, and those that show the scene of a labeled or judged
    image: a test image that was learned from, even without its mask, flatters the
    score.

    Args:
        manifest: With splits.
        others: Whose images are to be joined; sources are renamed where names clash.
        masks: Whether their masks are learned from, as pseudo-labels are; unlabeled
            rows of the same file are then dropped. Otherwise masks are not looked at,
            and the rows are unlabeled.
        on_progress: Hears of every image.

    Returns:
        The joined table, and what was left out of it.
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
    prints: list[Fingerprint] = []
    rows: list[Row] = []
    left: list[ExcludedImage] = []
    total = len(own) + len(added)
    for i, row in enumerate([*own, *added]):
        try:
            prints.append(fingerprint(read_image(row.image)))
            rows.append(row)
        except DataError:
            if i < len(own):
                raise
            left.append(ExcludedImage(row, "unreadable"))
        on_progress(i + 1, total)
    n_own = len(own)
    reasons: dict[str, Reason] = {}
    for pair in near_duplicates(prints):
        if pair.first < n_own <= pair.second:
            evaluated = rows[pair.first].split != "train"
            if evaluated or rows[pair.second].key not in reasons:
                key = rows[pair.second].key
                reasons[key] = "also judged" if evaluated else "also labeled"
    left += [ExcludedImage(row, reasons[row.key]) for row in rows if row.key in reasons]
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
    return replace(manifest, rows=joined, classes=classes, codings=codings), tuple(left)


def drop_leaks(
    manifest: Manifest, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[Manifest, tuple[ExcludedImage, ...]]:
    """Return the data sets without what one learns from that another is judged by.

    Within a data set that is for its groups and for ``check``; of two that hold the same
    scene, nobody knows. A test image outweighs a validation image, that a training
    image, and an image with a mask one without.

    Args:
        manifest: Of many data sets, with splits.
        on_progress: Hears of every image.

    Raises:
        DataError: If an image cannot be read.
    """
    prints = []
    for i, row in enumerate(manifest.rows):
        prints.append(fingerprint(read_image(row.image)))
        on_progress(i + 1, len(manifest))
    reasons: dict[str, Reason] = {}
    for pair in near_duplicates(prints):
        rows = manifest.rows[pair.first], manifest.rows[pair.second]
        if rows[0].source == rows[1].source:
            continue
        stays, goes = sorted(rows, key=_weight, reverse=True)
        if stays.split != goes.split or (goes.mask is None and stays.mask is not None):
            evaluated = stays.split in ("val", "test")
            reasons[goes.key] = "also judged" if evaluated else "also labeled"
    kept = manifest.only(row for row in manifest.rows if row.key not in reasons)
    left = (
        ExcludedImage(row, reasons[row.key]) for row in manifest.rows if row.key in reasons
    )
    return kept, tuple(left)


def _weight(row: Row) -> tuple[int, bool]:
    return ("unlabeled", "train", "val", "test").index(row.split or "train"), bool(row.mask)


def describe_excluded(left: Sequence[ExcludedImage]) -> Iterator[str]:
    """Yield a sentence a reason, with how many images it concerns and the first."""
    because: dict[Reason, str] = {
        "unreadable": "cannot be read",
        "also labeled": "show the scene of a labeled image",
        "also judged": "show the scene of a validation or test image",
    }
    for reason, text in because.items():
        rows = [one.row for one in left if one.reason == reason]
        if rows:
            yield (
                f"images left out, because they {text}: {len(rows)}; "
                f"the first is {rows[0].image}"
            )


def _free(name: str, taken: set[str]) -> str:
    """Return the name, or one like it that no source has."""
    names = (f"{name} {i}" if i > 1 else name for i in count(1))
    return next(free for free in names if free not in taken)
