"""Check a data set before a run, with the splits that the run would draw."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from plantseg_next.data.manifest import MANIFEST_FILE, Manifest, Split
from plantseg_next.data.quality.check import check as check_manifest
from plantseg_next.data.quality.issues import (
    CheckReport,
    Issue,
    Severity,
    sort_issues,
)
from plantseg_next.data.quality.scene_splits import (
    ExcludedImage,
    draw_splits,
    drop_leaks,
)
from plantseg_next.data.splits import labeled_rows
from plantseg_next.errors import UsageError
from plantseg_next.files import AnyPath
from plantseg_next.workflows.progress import Progress, progress_for
from plantseg_next.workflows.training_data import DataSources


def check(
    data: AnyPath | DataSources,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Return the errors, warnings and notes about a data set.

    Args:
        data: Any folder that ``train`` takes; or several folders and the use of each.
        seed: Seed of the later run; it chooses the splits where the data set states none.
        progress: Called after every image.
    """
    sources = DataSources.of(data)
    stated = sources.read()
    on_progress = progress_for(progress, "comparing images")
    drawn = draw_splits(stated, seed=seed, on_progress=on_progress)
    excluded: tuple[ExcludedImage, ...] = ()
    if len(sources.folders) > 1:
        drawn, excluded = drop_leaks(drawn, on_progress=on_progress)
    split_of = {row.key: row.split for row in drawn.rows}
    manifest = stated.only(  # with the stated groups
        replace(row, split=split_of[row.key]) for row in stated.rows if row.key in split_of
    )
    report = check_manifest(manifest, on_progress=progress_for(progress, "checking"))
    issues = (*report.issues, *_excluded(excluded), *_empty_splits(drawn, str(sources)))
    issues = (*issues, *_outside(manifest, sources.folders))
    return replace(report, issues=sort_issues(issues))


def _outside(manifest: Manifest, folders: Sequence[Path]) -> Iterator[Issue]:
    """Yield the images that a manifest names elsewhere on the disk."""
    if images := manifest.outside(folders):
        yield Issue(
            "image-elsewhere",
            "note",
            f"Images outside the given folders, named by a `{MANIFEST_FILE}`: "
            f"{len(images)}, for example `{images[0]}`.",
            "nothing, if the manifest is your own; of others, look at what it names",
            images,
        )


def _excluded(images: Sequence[ExcludedImage]) -> Iterator[Issue]:
    """Yield what ``train`` leaves out of several data sets."""
    if images:
        yield Issue(
            "same-scene-in-two-data-sets",
            "warning",
            "Images that `train` leaves out, because another data set has the same scene "
            f"in another split, or with a mask: {len(images)}. They are not in the "
            "numbers above.",
            "nothing, if the data sets share images",
            tuple(image.row.image for image in images),
        )


def _empty_splits(manifest: Manifest, origin: str) -> Iterator[Issue]:
    """Yield how ``train`` and ``evaluate`` would refuse a split without masks."""
    if not len(manifest.labeled):
        return  # another issue says so
    severities: dict[Split, Severity] = {
        "train": "error",
        "val": "error",
        "test": "warning",
    }
    for split, severity in severities.items():
        try:
            labeled_rows(manifest, split, origin)
        except UsageError as error:
            yield Issue(f"no-masks-in-{split}", severity, error.came, error.fix)
