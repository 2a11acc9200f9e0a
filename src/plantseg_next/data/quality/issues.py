"""What the checks found, for people and for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

Severity = Literal["error", "warning", "note"]
_SHOWN_FILES = 4


@dataclass(frozen=True)
class Issue:
    """One thing found, in one or many files.

    Args:
        code: A stable name for programs, such as "size-mismatch".
        severity: "error" spoils training or judging; "warning" should be looked at;
            "note" is worth knowing.
        text: What was found, one sentence.
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
    """A data set in numbers.

    Args:
        name: Of the data set.
        layout: How it was recognized, in words.
        coding: How its masks are read, in words; empty without masks.
        images: Number of rows.
        masks: Number of rows with a mask.
        splits: Rows a split; "not split" where none is stated.
        lesion_fraction: Of the annotated pixels, a lesion class; in [0, 1].
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
    """All findings about a manifest, worst first.

    Args:
        sources: One summary a data set.
        issues: Sorted by severity.
        same_scene: Keys of two rows each, copies and near-duplicates of one another;
            for ``splits.join_groups``.
    """

    sources: tuple[SourceSummary, ...]
    issues: tuple[Issue, ...]
    same_scene: tuple[tuple[str, str], ...] = ()

    @property
    def spoils_training(self) -> bool:
        """Whether there is any error."""
        return any(finding.severity == "error" for finding in self.issues)

    def of(self, severity: Severity) -> tuple[Issue, ...]:
        """Return the findings of one severity."""
        return tuple(f for f in self.issues if f.severity == severity)

    def to_json(self) -> str:
        """Return everything as JSON, with the complete lists of files."""
        table = asdict(self) | {"spoils_training": self.spoils_training}
        return json.dumps(table, indent=1, ensure_ascii=False, default=str)

    def to_text(self) -> str:
        """Return the report for people, with the first few files of each finding."""
        lines = [line for source in self.sources for line in _source_lines(source)]
        for severity in get_args(Severity):
            if found := self.of(severity):
                lines += ["", _count(len(found), severity).upper()]
                lines += [line for finding in found for line in _lines(finding)]
        n_errors = len(self.of("error"))
        confidence_stats = (
            f"{_count(n_errors, 'error')} would spoil training or judging."
            if n_errors
            else "Nothing found that would spoil training or judging."
        )
        return "\n".join([*lines, "", confidence_stats])


def sort_issues(findings: Sequence[Issue]) -> tuple[Issue, ...]:
    """Return the findings, errors first, otherwise in their order."""
    order = get_args(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def shorten(names: Sequence[object], limit: int = _SHOWN_FILES) -> str:
    """Return the first few names in one line.

    Example:
        >>> shorten(["a", "b", "c", "d", "e"], limit=3)
        'a, b, c and 2 more'
    """
    shown = ", ".join(str(name) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _source_lines(source: SourceSummary) -> list[str]:
    lines = [
        f"{source.name}: {_count(source.images, 'image')}, {_count(source.masks, 'mask')}",
        f"  read as  {source.layout}",
    ]
    if source.coding:
        lines.append(f"  masks    {source.coding}")
    splits = ", ".join(f"{name} {n}" for name, n in source.splits.items())
    lines.append(f"  splits   {splits}")
    if source.lesion_fraction:
        order = sorted(source.lesion_fraction.items(), key=lambda item: -item[1])
        shares = [f"{name} {100 * share:.2g} %" for name, share in order]
        lines.append(f"  lesions  {shorten(shares, 8)} of the annotated pixels")
    return lines


def _lines(finding: Issue) -> list[str]:
    lines = [f"  [{finding.code}] {finding.text}"]
    if finding.files:
        names = ["/".join(path.parts[-2:]) for path in finding.files]
        lines.append(f"      files:  {shorten(names)}")
    if finding.fix:
        lines.append(f"      to do:  {finding.fix}")
    return lines
