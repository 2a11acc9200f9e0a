"""Whether a change of the code leaves what is learned as it was, to the bit.

    python benchmarks/equality_digest.py
    python benchmarks/equality_digest.py --against HEAD~1

Trains three short seeded runs on drawn leaves and prints a digest of the weights of each:
supervised; the default method with image-level labels; mean teacher with every
confidence. With ``--against`` the script and the package of that commit are run too,
and the digests must be equal. They depend on the machine and its libraries, not on the
names of parameters or settings.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from plantseg_next import api
from plantseg_next.models.bundle import read_weights
from plantseg_next.settings import Settings
from plantseg_next.synthetic.folders import write_drawn_folder
from plantseg_next.workflows.training_data import DataSources

STEPS = 20
SHARED = [
    "device=cpu",
    "data.tile_px=64",
    "data.workers=0",
    "training.minutes=null",
    f"training.steps={STEPS}",
    "training.batch=4",
    "training.micro_batch=2",
    "training.validations=2",
    "training.validation_images=3",
]
UNLABELED = [
    "model.encoder=test_convnext",
    "model.start=random",
    "data.labeled_fraction=0.3",
    "semi.warmup_fraction=0",
    "semi.rampup_fraction=0.1",
]
RUNS = {
    "supervised": ["semi.method=supervised"],
    "weak_to_strong": [*UNLABELED, "semi.strong_views=2", "image_labels.fraction=0.5"],
    "mean_teacher": [
        *UNLABELED,
        "semi.method=mean_teacher",
        "image_labels.fraction=0.5",
        "semi.confidence=[probability, energy, entropy, dropout]",
    ],
}


def make_data(folder: Path) -> list[Path]:
    """Return a data set with masks, and one whose folders name a disease."""
    write_drawn_folder(folder / "leaves", 24, seed=1, size_hw=(96, 96))
    write_drawn_folder(folder / "more", 8, seed=9, size_hw=(96, 96))
    for i, image in enumerate(sorted((folder / "more" / "images").iterdir())):
        named = folder / "village" / ("Plant___Rust" if i % 2 else "Plant___healthy")
        named.mkdir(parents=True, exist_ok=True)
        image.rename(named / image.name)
    return [folder / "leaves", folder / "village"]


def digest(model: Path) -> str:
    """Return a digest of a model's tensors, whatever they are called."""
    state, _ = read_weights(model)
    each = sorted(
        hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for t in state.values()
    )
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def digests() -> dict[str, str]:
    """Return the digest of every run."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        leaves, village = make_data(work)
        for run, changes in RUNS.items():
            settings = Settings().with_settings([*SHARED, *changes])
            data = leaves if run == "supervised" else DataSources([leaves, village])
            api.train(data, work / run, settings)
            found[run] = digest(work / run / "last")
    return found


def digests_of(commit: str) -> dict[str, str]:
    """Return the digests that this script finds in another commit."""
    here = Path(__file__)
    root = here.parents[1]
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        git = ["git", "-C", str(root), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            output = subprocess.run(
                [sys.executable, tree / here.relative_to(root)],
                env=os.environ | {"PYTHONPATH": str(tree / "src")},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)
    return dict(line.split() for line in output.splitlines())


def main() -> None:
    """Print the digests; exit with 1 where another commit has others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="COMMIT")
    arguments = parser.parse_args()
    found = digests()
    for run, value in found.items():
        print(f"{run:<16}{value}")
    if arguments.against:
        if digests_of(arguments.against) != found:
            sys.exit(f"not as at {arguments.against}")
        print(f"equal to {arguments.against}")


if __name__ == "__main__":
    main()
