"""Whether a run inside a budget learns what the run without one learns.

    python benchmarks/planned_loss.py coffee --work FOLDER --memory 1.3GB 1.21GB

Runs of equal steps, for each seed: as asked for; within each budget; and as asked for with
the numbers in memory in another order, which changes nothing but the rounding: the
measure of the others. Nothing is dropped by chance, for what is dropped depends on
how a step is parted. A row a run: the loss over the last part of it, its score
and the memory seen. Runs that are there go on or are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import results_table

RESULTS = Path(__file__).parent / "results" / "planned_loss.csv"
SEEDS = (0, 1, 2)


def seen_mib(run: Path) -> int:
    """Return the most memory that a run was seen to take."""
    return round(
        max(float(r["ram_mib"]) for r in results_table.read(run / "resources.csv"))
    )


def main() -> None:
    """Run what is missing, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--memory", nargs="+", default=["1.3GB", "1.21GB"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    ways = {
        "as asked": [],
        **{f"planned, {m}": ["--memory", m] for m in arguments.memory},
        "other rounding": ["--set", "memory.channels_last=false"],
    }
    pairs = ["training.minutes=null", f"training.steps={arguments.steps}"]
    pairs += ["training.validations=4", "model.dropout=0", "model.drop_path=0"]
    pairs += arguments.settings
    known = {(row["seed"], row["run"]) for row in results_table.read(arguments.out)}
    for seed in SEEDS:
        for way, options in ways.items():
            if (str(seed), way) in known:
                continue
            run = arguments.work / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
            command = [sys.executable, "-m", "plantseg_next", "train"]
            command += [str(arguments.data), "--out", str(run), *options]
            command += [w for p in [*pairs, f"seed={seed}"] for w in ("--set", p)]
            subprocess.run(command, check=True)
            row: dict[str, Any] = {"seed": seed, "run": way, **results_table.end_of(run)}
            row["seen_mib"] = seen_mib(run)
            changed = {}
            if (run / "plan.json").exists():
                changed = json.loads((run / "plan.json").read_text())["settings"]
            row["planned"] = " ".join(f"{name}={value}" for name, value in changed.items())
            results_table.append(arguments.out, row | results_table.stamp())
            print(row, flush=True)
    rows = {(row["seed"], row["run"]): row for row in results_table.read(arguments.out)}
    for figure in ("loss", "lesion_dice"):
        for way in list(ways)[1:]:
            apart = [
                float(rows[str(s), way][figure]) - float(rows[str(s), "as asked"][figure])
                for s in SEEDS
            ]
            most = max(map(abs, apart))
            print(f"{figure}: {way} - as asked: {fmean(apart):+.4f}, at most {most:.4f}")


if __name__ == "__main__":
    main()
