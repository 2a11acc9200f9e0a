"""Encoders of timm, by their name alone: planned, trained, killed and resumed.

    python benchmarks/encoders_by_name.py --work FOLDER

For each encoder the command line plans a run on drawn leaves within a budget, trains it as
planned, and trains it again, killed at a random step and resumed by the same command. A
row an encoder goes into the CSV: the planned memory, whether the run took all its steps,
and whether the killed one ended with the same models and history, bit for bit. Weights are
random: the point is that no line of the package must change for an encoder.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import results_table

from plantseg_next.models.bundle import read_card
from plantseg_next.synthetic.folders import write_drawn_folder

RESULTS = Path(__file__).parent / "results" / "encoders_by_name.csv"
ENCODERS = ("resnet18", "efficientnet_b0")
STEPS = 50
SETTINGS = [
    "model.start=random", "data.tile_px=128", "data.workers=0", "data.labeled_fraction=0.3",
    "semi.warmup_fraction=0", "training.minutes=null", f"training.steps={STEPS}",
    "training.batch=4", "training.validations=2", "training.validation_images=6",
    "training.checkpoint_minutes=0",
]  # fmt: skip


def words(encoder: str) -> list[str]:
    """Return the options of every command."""
    pairs = [*SETTINGS, f"model.encoder={encoder}"]
    return [word for pair in pairs for word in ("--set", pair)]


def command(verb: str, *arguments: str | Path, encoder: str) -> list[str]:
    """Return a command line."""
    parts = [sys.executable, "-m", "plantseg_next", verb, *map(str, arguments)]
    return [*parts, *words(encoder)]


def bits_of(run: Path) -> tuple[str, ...]:
    """Return what must be equal: the best model, the last one, and the history."""
    models = (read_card(run / name).sha256 for name in ("best", "last"))
    return (*models, (run / "history.csv").read_text())


def row_of(encoder: str, work: Path, memory: str) -> dict[str, object]:
    """Plan, train, kill and resume a run; return its row."""
    data, run, killed = work / "leaves", work / encoder / "run", work / encoder / "killed"
    shutil.rmtree(work / encoder, ignore_errors=True)
    run.parent.mkdir(parents=True)
    plan = run.parent / "plan.json"
    planning = command("plan", data, "--memory", memory, "--out", plan, encoder=encoder)
    subprocess.run(planning, check=True)
    planned = json.loads(plan.read_text())
    began = time.perf_counter()
    train = command("train", data, "--out", run, "--memory", memory, encoder=encoder)
    subprocess.run(train, check=True)
    seconds = time.perf_counter() - began
    again = command("train", data, "--out", killed, "--memory", memory, encoder=encoder)
    process = subprocess.Popen(again)
    at = random.Random(encoder).randrange(5, STEPS - 5)  # noqa: S311 - a moment
    while process.poll() is None:
        written = (killed / "checkpoints").glob("*.safetensors")
        if any(int(path.stem.rsplit("-", 1)[1]) >= at for path in written):
            process.kill()
        time.sleep(0.005)
    subprocess.run(again, check=True)
    events = (killed / "events.jsonl").read_text()
    steps = json.loads((run / "progress.json").read_text())["step"]
    return {
        "encoder": encoder,
        "budget": memory,
        "planned_mb": planned["needs_mb"],
        "steps": steps,
        "killed_at_step": at,
        "resumed": int('"resumed"' in events),
        "identical": int(bits_of(run) == bits_of(killed)),
        "train_s": round(seconds, 1),
    }


def main() -> None:
    """Measure every encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--memory", default="2GB")
    arguments = parser.parse_args()
    if not (arguments.work / "leaves").exists():
        write_drawn_folder(arguments.work / "leaves", 60, seed=1, size_hw=(160, 160))
    for encoder in arguments.encoders:
        row = row_of(encoder, arguments.work, arguments.memory)
        print(row)
        results_table.append(RESULTS, row | results_table.stamp())


if __name__ == "__main__":
    main()
