"""Adding data sets without leaking validation and test images into training."""

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
    prints: list[Fingerprint] = []
    rows: list[Row] = []
    excluded: list[ExcludedImage] = []
    total = len(own) + len(added)
    for i, row in enumerate([*own, *added]):
        try:
            prints.append(fingerprint(read_image(row.image)))
            rows.append(row)
        except DataError:
            if i < len(own):
                raise
            excluded.append(ExcludedImage(row, "unreadable"))
        on_progress(i + 1, total)
    n_own = len(own)
    reasons: dict[str, Reason] = {}
    for pair in near_duplicates(prints):
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
    manifest: Manifest, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[Manifest, tuple[ExcludedImage, ...]]:
    """Return the data sets without near-duplicates across data sets and splits.

    Within a data set, groups and ``check`` find them. Of two images of one scene in
    different data sets, a test image is kept before a validation image, that before a
    training image, and an image with a mask before one without.

    Args:
        manifest: Of many data sets, with splits.
        on_progress: Called after each image with the number done and the total.

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
