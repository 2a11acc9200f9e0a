"""The code and its documents use the field's words; the earlier ones do not grow back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {
    r"lessons?": "pseudo-labels, or the unsupervised loss",
    r"taught|teach(es|ing)?": "pseudo-labeled; learned from",
    r"opinions?|verdicts?": "prediction, confidence",
    r"believ\w*": "passes the confidence mask, trusted",
    r"(un)?judg\w+": "evaluate, validate; unmeasured",
    r"unsteady|(un)?steadiness": "inconsistent predictions, augmentation consistency",
    r"tall(y|ies)": "counts, statistics",
    r"watchers?": "callback",
    r"pictures?": "image",
    r"ledgers?": "tracker",
    r"abroad|strangers?": "target domain, non-plant images",
    r"rehears\w*": "profile",
    r"forecast\w*": "time left, estimate",
    r"tells?|told|hears?|heard": "reports, receives",
    r"goes on|go on with|set aside|anew": "resume, archive, again",
    r"weak labels?|WeakLabels?": "image-level labels",
    r"\w*labelled\w*|\w*colour\w*|optimiser\w*|\w*normalis\w*|recognis\w*|gr[e]y": (
        "American spelling: labeled, color, optimizer, normalize, recognize, gray"
    ),
    r"\w+_share|share_\w+": "fraction",
}
"""Words that are refused, and what to write instead."""
FILE_NAMES = re.compile(r"\S*\w+\.(csv|py)\S*|`[0-9a-f]{7}:\S+`")
"""Rows of earlier measurements are kept in files of their earlier names."""
ALLOWED = (
    # What others write in their files and folders is read under their names.
    '"photos", "pictures"',
    '"image", "picture")',
    '"unlabelled": "unlabeled"',
)


def files() -> list[Path]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    scripts = [*sorted((ROOT / "benchmarks").rglob("*.py")), ROOT / "mkdocs_hooks.py"]
    return [*sorted((ROOT / "src").rglob("*.py")), *scripts, *sorted(pages)]


def parts_of(name: str) -> str:
    """Return an identifier as words, beside the identifier itself."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_file_uses_the_words_of_the_field(path):
    text = path.read_text("utf-8")
    if path.name == "old_settings.py":  # it names them to say what they are called now
        text = re.sub(r"RENAMED = \{.*?^\}|REMOVED = .*?^\)", "", text, flags=re.M | re.S)
    if path.name == "CHANGELOG.md":  # its table names what was renamed
        text = re.sub(r"^\|.*$", "", text, flags=re.M)
    if path.name == "bundle.py":
        text = re.sub(r"OLD_NAMES = \{.*?^\}", "", text, flags=re.M | re.S)
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if any(phrase in line for phrase in ALLOWED):
            continue
        line = FILE_NAMES.sub("", line)  # noqa: PLW2901
        both = f"{line} {parts_of(line)}"
        for words, instead in WORDS.items():
            found += [
                f"{path.name}:{number}: {match[0]!r}: write {instead}"
                for match in re.finditer(rf"\b({words})\b", both, re.I)
            ]
    assert not found, "\n".join(sorted(set(found)))
