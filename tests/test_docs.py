"""Every link of the documents leads somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "benchmarks").rglob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """Return what headings of a page are linked by, as GitHub and MkDocs make it."""
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", page.read_text("utf-8"), re.M):
        words = re.sub(r"[^\w\- ]", "", heading.lower().replace("`", ""))
        found.add(words.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for path, anchor in LINK.findall(text):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {path}#{anchor}"


def test_every_page_stands_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation


def codes_of(path: Path) -> set[str]:
    """Return the codes of the issues that a module makes."""
    codes = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id.endswith(("Issue", "Refusal", "_issue")):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            codes |= set(texts[:1]) - {"error"}  # of a refusal, which has its own code
    return codes


def test_every_code_of_check_is_in_the_guide_and_no_other():
    from plantseg_next.data.quality.refusals import _FAILURES

    package = ROOT / "src" / "plantseg_next"
    modules = [package / "workflows/check.py", *(package / "data/quality").glob("*.py")]
    made = set().union(*map(codes_of, modules)) | set(_FAILURES)
    made |= {f"no-masks-in-{split}" for split in ("train", "val", "test")}
    page = (ROOT / "docs" / "guide" / "data.md").read_text("utf-8")
    rows = page[page.index("| code | level |") :].splitlines()
    listed = {
        code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])
    }
    assert listed == made


def test_every_setting_stands_in_the_reference():
    from plantseg_next.settings import setting_names

    page = (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8")
    for name in setting_names():
        assert f"`{name}`" in page or f"`{name.split('.')[-1]}`" in page, name
