"""Issues found by the checks, as text and as JSON."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from plantseg_next.data.quality.lesion_sizes import MIN_ACROSS_PX, LesionClass
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
class SplitLabels:
    """How many images of a split have which label.

    Args:
        split: Its name; "not split" if none is stated.
        masks: Images with a mask that can be used.
        with_lesions: Of these, images that show a lesion.
        image_labels: Images with an image-level label alone.
        unlabeled: Images with neither.
    """

    split: str
    masks: int
    with_lesions: int
    image_labels: int
    unlabeled: int


@dataclass(frozen=True)
class CheckReport:
    """All issues of a manifest, worst first, and what can be learned from it.

    Args:
        sources: One summary per data set.
        issues: Sorted by severity.
        same_scene: Pairs of keys of copies and near-duplicates; for
            ``splits.group_near_duplicates``.
        classes: What the masks show of each lesion class.
        labels: How many labels each split has.
        severity: Whether severity can be learned, and from how many images.
        next_steps: What to do next: text, or a command.
    """

    sources: tuple[SourceSummary, ...]
    issues: tuple[Issue, ...]
    same_scene: tuple[tuple[str, str], ...] = ()
    classes: tuple[LesionClass, ...] = ()
    labels: tuple[SplitLabels, ...] = ()
    severity: str = ""
    next_steps: tuple[str, ...] = ()

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
        lines += [*_label_lines(self.labels), *_class_lines(self.classes)]
        n_errors = len(self.of("error"))
        summary = (
            f"{count_of(n_errors, 'error')} would spoil training or evaluation."
            if n_errors
            else "Nothing found that would spoil training or evaluation."
        )
        lines += ["", *([self.severity] if self.severity else []), summary]
        steps = [f"  {step}" for step in self.next_steps]
        return "\n".join([*lines, *(["", "WHAT TO DO NEXT", *steps] if steps else [])])


def sort_issues(findings: Sequence[Issue]) -> tuple[Issue, ...]:
    """Return the issues sorted by severity, otherwise in their order."""
    order = get_args(Severity)
    return tuple(sorted(findings, key=lambda issue: order.index(issue.severity)))


def printable(text: str) -> str:
    r"""Return text with control characters and what is not UTF-8 escaped.

    Example:
        >>> printable("a\x1b[31m\udcff\u202e b")
        'a\\x1b[31m\\xff\\u202e b'
    """
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the end of each path: two parts, or more if two paths end alike.

    Example:
        >>> distinct_names([Path("a/x/1.png"), Path("b/x/1.png"), Path("b/x/2.png")])
        ['a/x/1.png', 'b/x/1.png', 'x/2.png']
    """
    depth = dict.fromkeys(paths, 2)
    while True:
        same = defaultdict(list)
        for path, n in depth.items():
            same["/".join(path.parts[-n:])].append(path)
        alike = [path for group in same.values() if len(group) > 1 for path in group]
        deeper = [path for path in alike if depth[path] < len(path.parts)]
        if not deeper:
            return ["/".join(path.parts[-depth[path] :]) for path in paths]
        depth |= {path: depth[path] + 1 for path in deeper}


def _label_lines(labels: Sequence[SplitLabels]) -> list[str]:
    """Return the table of labels of each split."""
    if not labels:
        return []
    rows: list[tuple[str, ...]] = [
        ("", "masks", "with lesions", "image-level labels only", "no label")
    ]
    rows += [
        (of.split, *map(str, (of.masks, of.with_lesions, of.image_labels, of.unlabeled)))
        for of in labels
    ]
    return ["", "LABELS OF EACH SPLIT", *_table(rows)]


def _class_lines(classes: Sequence[LesionClass]) -> list[str]:
    """Return the table of lesion classes."""
    if not classes:
        return []
    small = f"under {MIN_ACROSS_PX:.0f} px"
    rows = [("", "images", "pixels", "lesions", "median", small)]
    rows += [
        (
            found.name,
            str(found.images),
            f"{found.pixels:,}",
            f"{found.lesions:,}",
            f"{found.median_across_px:.1f} px",
            f"{100 * found.too_small:.0f} %",
        )
        for found in classes
    ]
    title = "LESION CLASSES, and how far a lesion is across at the training scale"
    return ["", title, *_table(rows)]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell:>{n}}" for cell, n in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


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
    lines = [f"  [{issue.code}] {printable(issue.text)}"]
    if issue.files:
        names = [printable(name) for name in distinct_names(issue.files)]
        lines.append(f"      files:  {shorten(names)}")
    if issue.fix:
        lines.append(f"      to do:  {issue.fix}")
    return lines
