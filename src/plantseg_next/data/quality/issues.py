"""Issues found by the checks, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from plantseg_next.errors import count_of, shorten

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Issue:
    """One issue, in one or many files.

    Args:
        code: A stable name for programs, such as "size-mismatch".
        severity: "error" invalidates training or evaluation; "warning" should be
            checked; "note" is information.
        text: The issue, in one sentence.
        fix: What to do about it.
        files: All files concerned; pairs follow one another.
    """

    code: str
    severity: Severity
    text: str
    fix: str = ""
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SourceSummary:
    """Numbers of a data set.

    Args:
        name: Of the data set.
        layout: Description of the recognized layout.
        coding: Description of the mask coding; empty without masks.
        images: Number of rows.
        masks: Number of rows with a mask.
        splits: Rows per split; "not split" where none is stated.
        lesion_fraction: Fraction of annotated pixels per lesion class, in [0, 1].
    """

    name: str
    layout: str
    coding: str
    images: int
    masks: int
    splits: dict[str, int]
    lesion_fraction: dict[str, float]


@dataclass(frozen=True)
class CheckReport:
    """All issues of a manifest, worst first.

    Args:
        sources: One summary per data set.
        issues: Sorted by severity.
        same_scene: Pairs of keys of copies and near-duplicates; for
            ``splits.group_near_duplicates``.
    """

    sources: tuple[SourceSummary, ...]
    issues: tuple[Issue, ...]
    same_scene: tuple[tuple[str, str], ...] = ()

    @property
    def spoils_training(self) -> bool:
        """Whether there is any error."""
        return any(issue.severity == "error" for issue in self.issues)

    def of(self, severity: Severity) -> tuple[Issue, ...]:
        """Return the issues of one severity."""
        return tuple(f for f in self.issues if f.severity == severity)

    def to_json(self) -> str:
        """Return the report as JSON, with complete lists of files."""
        table = asdict(self) | {"spoils_training": self.spoils_training}
        return json.dumps(table, indent=1, ensure_ascii=False, default=str)

    def to_text(self) -> str:
        """Return the report as text, with the first files of each issue."""
        lines = [line for source in self.sources for line in _source_lines(source)]
        for severity in get_args(Severity):
            if issues := self.of(severity):
                lines += ["", count_of(len(issues), severity).upper()]
                lines += [line for issue in issues for line in _lines(issue)]
        n_errors = len(self.of("error"))
        summary = (
            f"{count_of(n_errors, 'error')} would spoil training or evaluation."
            if n_errors
            else "Nothing found that would spoil training or evaluation."
        )
        return "\n".join([*lines, "", summary])


def sort_issues(findings: Sequence[Issue]) -> tuple[Issue, ...]:
    """Return the issues sorted by severity, otherwise in their order."""
    order = get_args(Severity)
    return tuple(sorted(findings, key=lambda issue: order.index(issue.severity)))


def _source_lines(source: SourceSummary) -> list[str]:
    lines = [
        f"{source.name}: {count_of(source.images, 'image')}, "
        f"{count_of(source.masks, 'mask')}",
        f"  read as  {source.layout}",
    ]
    if source.coding:
        lines.append(f"  masks    {source.coding}")
    splits = ", ".join(f"{name} {n}" for name, n in source.splits.items())
    lines.append(f"  splits   {splits}")
    if source.lesion_fraction:
        order = sorted(source.lesion_fraction.items(), key=lambda item: -item[1])
        percents = [f"{name} {_percent(fraction)} %" for name, fraction in order]
        lines.append(f"  lesions  {shorten(percents, 8)} of the annotated pixels")
    return lines


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    return f"{percent:.2g}" if percent < 99.5 else f"{percent:.0f}"  # not 1e+02


def _lines(issue: Issue) -> list[str]:
    lines = [f"  [{issue.code}] {issue.text}"]
    if issue.files:
        names = ["/".join(path.parts[-2:]) for path in issue.files]
        lines.append(f"      files:  {shorten(names)}")
    if issue.fix:
        lines.append(f"      to do:  {issue.fix}")
    return lines
