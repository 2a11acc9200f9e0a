"""What keeps a data set from being trained on: `train` refuses it, and `check` reports it.

Both use these functions, so neither knows a reason that the other does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plantseg_next.data.manifest import Manifest
from plantseg_next.data.quality.inspect import Failure, ImageStats, shown_mask
from plantseg_next.data.quality.leaks import find_leaks, same_scenes
from plantseg_next.data.splits import labeled_rows
from plantseg_next.errors import PlantSegError, UsageError

_FAILURES = {
    "unreadable-image": "Images that cannot be read",
    "unreadable-mask": "Masks that cannot be read",
    "jpeg-mask": "Masks in a lossy format, whose compression creates false classes",
    "size-mismatch": "Masks of another size than their image, upright or as stored",
    "unknown-mask-value": "Masks with a value whose meaning is unknown",
}


@dataclass(frozen=True)
class Refusal:
    """A reason not to train.

    Args:
        code: As in ``Issue.code``.
        error: What `train` raises.
        files: The files concerned.
    """

    code: str
    error: PlantSegError
    files: tuple[Path, ...] = ()


def refusals(manifest: Manifest, origin: object) -> Iterator[Refusal]:
    """Yield why nothing can be learned, as far as no file has to be read.

    Args:
        manifest: With splits.
        origin: Name of the images, for the errors.
    """
    n_named = sum(row.disease is not None for row in manifest.rows)
    if not len(manifest.labeled):
        yield _without_masks(n_named, origin)
        return
    if not manifest.classes.lesions:
        yield Refusal(
            "no-lesion-in-train",
            UsageError(
                f"The masks of `{origin}` name no lesion class.",
                needed="masks that mark lesions; leaf masks alone are not enough",
                fix="state in classes.yaml which value is a lesion, or draw the lesions",
            ),
        )
    for split in ("train", "val"):
        try:
            labeled_rows(manifest, split, origin)
        except UsageError as error:
            yield Refusal(f"no-masks-in-{split}", error)


def refusals_of_files(
    manifest: Manifest, all_stats: Sequence[ImageStats], origin: object
) -> Iterator[Refusal]:
    """Yield why the images with masks of training and validation cannot be used.

    Args:
        manifest: With splits.
        all_stats: Statistics of its rows, or of more.
        origin: Name of the images, for the errors.
    """
    yield from failures([stats for stats in all_stats if is_needed(stats)])
    train = [stats for stats in all_stats if stats.row.split == "train"]
    masks = [stats.mask for stats in train if stats.mask is not None]
    is_named = bool(manifest.classes.lesions)
    if is_named and masks and not any(mask.lesion_px for mask in masks):
        yield Refusal(
            "no-lesion-in-train",
            UsageError(
                f"None of the {len(masks)} training masks of `{origin}` shows a lesion.",
                needed="masks of diseased leaves, beside those of healthy ones",
                fix="draw the lesions, or state in classes.yaml which value is a lesion",
            ),
        )


def failures(all_stats: Sequence[ImageStats]) -> Iterator[Refusal]:
    """Yield one error for all files that fail in one way."""
    for code, what in _FAILURES.items():
        failed = [
            (stats, failure)
            for stats in all_stats
            for failure in stats.failures
            if failure.code == code
        ]
        if failed:
            files = tuple(_file_of(stats, failure) for stats, failure in failed)
            error = failed[0][1].error
            came = f"{what}: {len(failed)}. The first: {error.came}"
            kind = type(error)
            yield Refusal(code, kind(came, needed=error.needed, fix=error.fix), files)


def spoiled(all_stats: Sequence[ImageStats]) -> Iterator[str]:
    """Yield the errors of ``check`` with which training starts all the same.

    These are images that train does not need, and leaks between splits.

    Args:
        all_stats: Statistics of all rows, those of validation and test first.
    """
    n_evaluated = sum(stats.row.split in ("val", "test") for stats in all_stats)
    for refusal in failures([stats for stats in all_stats if not is_needed(stats)]):
        yield f"error [{refusal.code}]: {refusal.error.came} They are not used."
    for issue in find_leaks(all_stats, same_scenes(all_stats, n_evaluated)):
        if issue.severity == "error":
            yield f"error [{issue.code}]: {issue.text} To do: {issue.fix}"


def is_needed(stats: ImageStats) -> bool:
    """Return whether training starts only if the files of a row can be used."""
    return stats.row.mask is not None and stats.row.split in ("train", "val")


def _file_of(stats: ImageStats, failure: Failure) -> Path:
    is_image = failure.code == "unreadable-image"
    return stats.row.image if is_image else shown_mask(stats.row)


def _without_masks(n_named: int, origin: object) -> Refusal:
    if n_named:
        return Refusal(
            "no-masks",
            UsageError(
                f"No image of `{origin}` has a mask. The image-level labels ({n_named}) "
                "can be learned from beside masks, but not alone.",
                needed="a data set with masks, even a small one",
                fix="add its folder: check and train take several",
            ),
        )
    return Refusal(
        "nothing-to-learn",
        UsageError(
            f"No image of `{origin}` has a mask or an image-level label. A model can "
            "predict these images, but not be trained on them alone.",
            needed="masks of at least a few images",
            fix="add masks with the names of the images in a folder `masks`; or learn from "
            "these images beside a data set with masks: train DATA --unlabeled FOLDER",
        ),
    )
