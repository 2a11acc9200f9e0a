"""Check a data set before a run, with the splits that the run would draw."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.data.quality.check import FEW_LABELS
from plantseg_next.data.quality.check import check as check_manifest
from plantseg_next.data.quality.inspect import of_rows
from plantseg_next.data.quality.issues import CheckReport, Issue, sort_issues
from plantseg_next.data.quality.scene_splits import (
    ExcludedImage,
    draw_splits,
    drop_leaks,
    inspect_all,
)
from plantseg_next.data.splits import labeled_rows
from plantseg_next.errors import UsageError, count_of
from plantseg_next.files import AnyPath
from plantseg_next.workflows.progress import Progress, progress_for
from plantseg_next.workflows.sheet import refuse_sheet, write_sheet
from plantseg_next.workflows.training_data import DataSources


def check(
    data: AnyPath | DataSources,
    *,
    seed: int = 0,
    sheet: AnyPath | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Return the errors, warnings and notes about a data set.

    Args:
        data: Any folder that ``train`` takes; or several folders and the use of each.
        seed: Seed of the later run; it chooses the splits where the data set states none.
        sheet: HTML file to write, with images and masks to look at: those that may be
            wrong, and a sample. An earlier sheet is replaced.
        progress: Called after every image.

    Raises:
        UsageError: If the layout of a data set is not recognized, or ``sheet`` does not
            end in .html.
        OutputError: If the sheet cannot be written, or is another file.
        DataError: If a file that describes a data set cannot be used.
    """
    if sheet is not None:
        refuse_sheet(Path(sheet))
    sources = DataSources.of(data)
    stated = sources.read()
    known = inspect_all(stated, progress_for(progress, "checking"))
    drawn = draw_splits(stated, seed=seed, known=known)
    excluded: tuple[ExcludedImage, ...] = ()
    if len(sources.folders) > 1:
        drawn, excluded = drop_leaks(drawn, known=known)
    split_of = {row.key: row.split for row in drawn.rows}
    manifest = stated.only(  # with the stated groups
        replace(row, split=split_of[row.key]) for row in stated.rows if row.key in split_of
    )
    report = check_manifest(manifest, origin=sources, drawn=drawn, known=known)
    issues = (*report.issues, *_excluded(excluded), *_no_test(drawn, sources))
    issues = (*issues, *_outside(manifest, sources.folders))
    report = replace(report, issues=sort_issues(issues))
    if sheet is not None:
        write_sheet(
            Path(sheet),
            manifest,
            of_rows(known.all_stats, manifest.rows),
            report,
            progress_for(progress, "comparing masks with images"),
        )
    return replace(report, next_steps=tuple(next_steps(report, sources)))


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


def _no_test(manifest: Manifest, origin: DataSources) -> Iterator[Issue]:
    """Yield how ``evaluate`` would refuse a test split without masks."""
    if len(manifest.labeled):
        try:
            labeled_rows(manifest, "test", origin)
        except UsageError as error:
            yield Issue("no-masks-in-test", "warning", error.came, error.fix)


def next_steps(report: CheckReport, sources: DataSources) -> Iterator[str]:
    """Yield what to do next with a data set: sentences, and a command that works."""
    codes = {issue.code for issue in report.of("error")}
    folders = " ".join(quote(str(folder)) for folder in sources.folders)
    named = "".join(
        f" {option} {quote(str(path))}"
        for option, path in (
            ("--classes", sources.classes),
            ("--class-names", sources.names),
        )
        if path is not None
    )
    if "nothing-to-learn" in codes or "no-masks" in codes:
        yield "Measure these images with the model of the package:"
        for folder in sources.folders:
            yield f"  plantseg-next predict starter {quote(str(folder))} --out RESULTS"
        yield f"To train, label at least {FEW_LABELS} of them, or a data set like them."
        return
    n_train = sum(of.masks for of in report.labels if of.split == "train")
    if codes & {"no-masks-in-train", "no-masks-in-val"}:
        n_labeled = sum(of.masks for of in report.labels)
        missing = 3 - n_labeled
        if missing > 0:
            more = f"at least {count_of(missing, 'more image')}"
            yield (
                f"Label {more}: training, validation and test need one each, and metrics "
                f"{FEW_LABELS} or more. So far: {n_labeled}."
            )
    if codes:
        yield "Mend what is listed as an error above, then check again:"
        yield f"  plantseg-next check {folders}{named}"
        return
    if any(re.fullmatch(r"class \d+", found.name) for found in report.classes):
        yield (
            "Name the classes: write a classes.yaml with a line for each value, as "
            "`1: rust`."
        )
    if n_train < FEW_LABELS:
        yield f"Label at least {FEW_LABELS - n_train} more images for metrics to rely on."
    yield f"  plantseg-next train {folders}{named} --out RUN"
