"""ARCHITECTURE.md lists every module, and import-linter reports forbidden imports."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--config", folder / "pyproject.toml", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("evaluation/metrics.py", "from plantseg_next.inference import severity"),
        ("models/encoders.py", "from plantseg_next import api"),
        ("data/tiling.py", "from plantseg_next.models import encoders"),
    ],
)
def test_forbidden_import_fails_the_lint(tmp_path, module, line):
    shutil.copytree(ROOT / "src", tmp_path / "src")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "src" / "plantseg_next" / module
    path.write_text(path.read_text("utf-8") + f"\n{line}\n", "utf-8")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_architecture_lists_every_module():
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    package = ROOT / "src" / "plantseg_next"
    for path in package.rglob("*.py"):
        if path.name != "__init__.py" and path.parent.name != "formats":
            assert path.name in page, f"{path.name} is not in ARCHITECTURE.md"
