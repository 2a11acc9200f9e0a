"""How large the code is and how it hangs together, at this commit or another.

    python benchmarks/structure.py [COMMIT]

Prints lines of ``src``, settings, files and lines of the default training step, levels of
packages, import cycles of modules, and words that ``tests/test_vocabulary.py`` refuses.
The words and the count are those of this commit, so that two commits are comparable.
"""

import ast
import re
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
STEP = {
    "step": [
        "training/step.py", "training/losses.py",
        "training/semi_supervised/pseudo_labels.py",
        "training/semi_supervised/confidence_mask.py",
    ],
    "step, as the review counted it": [
        "training/step.py", "training/losses.py",
        "training/semi_supervised/pseudo_labels.py",
        "training/semi_supervised/confidence_mask.py",
        "training/trainer.py", "training/engine.py", "models/segmenter.py",
        "structures.py", "data/dataset.py", "training/oom.py", "training/schedule.py",
        "training/semi_supervised/ema_teacher.py", "training/semi_supervised/mixing.py",
        "training/semi_supervised/pseudo_labeled_batch.py",
        "training/semi_supervised/image_labels.py", "uncertainty/confidence.py",
    ],
    "step, at 22ec636": [
        "training/trainer.py", "training/learner.py", "training/step.py",
        "training/losses.py", "models/segmenter.py", "training/accumulation.py",
        "structures.py", "data/streams.py", "training/recovery.py",
        "training/schedules.py", "training/lessons/lessons.py",
        "training/lessons/gating.py", "training/lessons/teacher.py",
        "training/lessons/mixing.py", "training/lessons/taught.py",
        "training/lessons/weak_labels.py",
    ],
}  # fmt: skip


def n_lines(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_text("utf-8").splitlines())


def n_settings(package: Path) -> int:
    """Return the number of leaves of the settings tree, by its source text."""
    paths = [package / f"{name}.py" for name in ("settings", "experiment")]
    source = next(path for path in paths if path.exists())
    classes = [n for n in ast.parse(source.read_text()).body if isinstance(n, ast.ClassDef)]
    parts = [node for node in classes if any("_Part" in ast.unparse(b) for b in node.bases)]
    names = "|".join(node.name for node in parts)
    fields = [
        ast.unparse(field.annotation)
        for node in parts
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]
    return sum(not re.search(rf"\b({names})\b", field) for field in fields)


def graph_of(package: Path) -> dict[str, set[str]]:
    """Return which modules each module imports."""
    sys.path.insert(0, str(package.parent))
    graph = grimp.build_graph(package.name, cache_dir=None)
    modules = {
        module: set(graph.find_modules_directly_imported_by(module))
        for module in graph.modules
    }
    modules.pop(package.name)  # the function `load` imports what it starts
    return modules


def n_cyclic(graph: dict[str, set[str]]) -> int:
    """Return how many modules can reach themselves."""

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return seen

    return sum(module in reaches(module) for module in graph)


def n_levels(graph: dict[str, set[str]], package: str) -> int:
    """Return the longest chain of packages and top-level modules that import another."""

    def room(module: str) -> str:
        return module.removeprefix(f"{package}.").split(".")[0]

    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        others = {room(other) for other in imported if other != package}
        rooms.setdefault(room(module), set()).update(others - {room(module)})
    rooms.pop("__main__", None)

    @cache
    def height(name: str) -> int:
        return 1 + max(map(height, rooms.get(name, ())), default=0)

    return max(map(height, rooms))


def n_refused_words(package: Path) -> int:
    """Return how often a refused word occurs in the package."""
    test = runpy.run_path(str(ROOT / "tests" / "test_vocabulary.py"))
    parts_of, file_names = test["parts_of"], test["FILE_NAMES"]
    pattern = re.compile(rf"\b({'|'.join(test['WORDS'])})\b", re.IGNORECASE)
    return sum(
        len({match[0] for match in pattern.finditer(f"{plain} {parts_of(plain)}")})
        for path in package.rglob("*.py")
        if path.name not in ("old_settings.py", "bundle.py")
        for line in path.read_text("utf-8").splitlines()
        if not any(phrase in line for phrase in test["ALLOWED"])
        for plain in [file_names.sub("", line)]
    )


def report(root: Path) -> None:
    """Print the numbers of a checkout."""
    package = root / "src" / "plantseg_next"
    files = sorted(package.rglob("*.py"))
    drawn = sum(n_lines(p) for p in files if "synthetic" in p.parts)
    print(f"files              {len(files)}")
    print(f"lines              {sum(map(n_lines, files))}, of synthetic/ {drawn}")
    print(f"files > 450 lines  {sum(n_lines(path) > 450 for path in files)}")
    print(f"settings           {n_settings(package)}")
    for name, parts in STEP.items():
        found = [path for part in parts if (path := package / part).exists()]
        if len(found) == len(parts):
            print(f"{name}: {len(found)} files, {sum(map(n_lines, found))} lines")
    graph = graph_of(package)
    print(f"levels             {n_levels(graph, package.name)}")
    print(f"modules in cycles  {n_cyclic(graph)}")
    print(f"refused words      {n_refused_words(package)}")


def main() -> None:
    """Print the numbers of this tree, or of a commit."""
    if len(sys.argv) == 1:
        report(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", sys.argv[1], "src"],  # noqa: S607
            check=True,
            capture_output=True,
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)  # noqa: S607
        report(Path(folder))


if __name__ == "__main__":
    main()
