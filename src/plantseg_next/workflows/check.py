"""Check a data set before a run, with the splits that the run would draw."""

from collections.abc import Iterator
from dataclasses import replace

from plantseg_next.data.manifest import Manifest
from plantseg_next.data.quality.check import check as check_manifest
from plantseg_next.data.quality.issues import CheckReport, Issue, sort_issues
from plantseg_next.data.quality.scene_splits import draw_splits
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
    drawn = draw_splits(
        stated, seed=seed, on_progress=progress_for(progress, "comparing images")
    )
    split_of = {row.key: row.split for row in drawn.rows}  # with the stated groups
    manifest = stated.only(replace(row, split=split_of[row.key]) for row in stated.rows)
    report = check_manifest(manifest, on_progress=progress_for(progress, "checking"))
    issues = (*report.issues, *_empty_splits(drawn, str(sources)))
    return replace(report, issues=sort_issues(issues))


def _empty_splits(manifest: Manifest, origin: str) -> Iterator[Issue]:
    """Yield the error with which ``train`` would refuse images without a split."""
    if not len(manifest.labeled):
        return  # another issue says so
    for split in ("train", "val"):
        try:
            labeled_rows(manifest, split, origin)
        except UsageError as error:
            yield Issue(f"no-masks-in-{split}", "error", error.came, error.fix)
