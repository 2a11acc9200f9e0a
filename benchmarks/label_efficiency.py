"""How few masks are enough: methods beside their labelled-only twin, at shares of masks.

    python benchmarks/label_efficiency.py coffee potato rice --work FOLDER --steps 3000

The data sets become one, near-duplicates joined into groups before splits are drawn. A
share of the training masks is kept, by group, the same for every method; the other
pictures are unlabelled. Every method takes the same number of optimiser steps, and its
last model is judged on the test split: nothing is chosen by masks that are hidden. A row
a run goes into the CSV; what is in it is not repeated, so the script can be killed and
called again.
"""

import argparse
import csv
import subprocess
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

from plantseg_next import api
from plantseg_next.data import splits
from plantseg_next.data.checks import check
from plantseg_next.data.layouts import read_folder
from plantseg_next.data.manifest import Manifest, merge
from plantseg_next.experiment import Experiment


def one_data_set(folders: list[Path], path: Path) -> Manifest:
    """Return the merged data set with splits, from disk if it was made before."""
    if path.exists():
        return Manifest.read(path)
    parts = []
    for folder in folders:
        part = read_folder(folder)
        part = splits.join_groups(part, check(part).same_scene)
        free = part.only(replace(row, split=None) for row in part.rows)
        parts.append(free)
    manifest = splits.assign(merge(parts), seed=0)
    manifest.write(path)
    return manifest


def run(data: Path, out: Path, settings: Experiment) -> dict[str, Any]:
    """Train and judge once; return the figures."""
    trained = api.train(data, out, settings, say=lambda line: print(" ", line, flush=True))
    report = api.evaluate(out / "last")
    by_source = {s.name: round(s.lesion_dice, 4) for s in report.sources}
    return {
        "steps": trained.outcome.steps,
        "minutes": round(trained.outcome.minutes, 2),
        "n_labelled": trained.n_train,
        **{f"dice_{name}": dice for name, dice in by_source.items()},
        "mean_dice": round(fmean(by_source.values()), 4),
        "leaf_iou": round(report.leaf_iou.value, 4),
        "rho_c": round(report.severity.rho_c.value, 4),
    }


def main() -> None:
    """Run what is missing, smallest shares first, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--shares", nargs="+", default=["1/32", "1/8", "3/10", "1"])
    parser.add_argument(
        "--methods", nargs="+", default=["supervised", "mean_teacher", "weak_to_strong"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", default="", help="name of what --set changes")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/label_efficiency.csv")
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = arguments.work / "manifest.json"
    one_data_set(arguments.data, data)
    done: list[dict[str, Any]] = []
    if arguments.out.exists():
        done = list(csv.DictReader(arguments.out.open()))
    for seed in arguments.seeds:
        for share in arguments.shares:
            for method in arguments.methods:
                if share == "1" and method != "supervised":
                    continue  # nothing is left without a mask
                name = {
                    "method": method,
                    "variant": arguments.variant,
                    "share": share,
                    "seed": str(seed),
                    "tile": str(arguments.tile),
                    "planned_steps": str(arguments.steps),
                }
                if any(all(row[k] == v for k, v in name.items()) for row in done):
                    continue
                print(name, flush=True)
                settings = Experiment().with_settings(
                    [
                        f"seed={seed}",
                        f"data.labelled_share={float(Fraction(share))}",
                        f"data.tile_px={arguments.tile}",
                        "training.minutes=null",
                        f"training.steps={arguments.steps}",
                        "training.validations=4",
                        "training.validation_pictures=30",
                        f"unlabelled.method={method}",
                        *arguments.settings,
                    ]
                )
                place = arguments.work / f"run_{time.time():.0f}"
                found = run(data, place, settings)
                commit = subprocess.run(
                    ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
                    capture_output=True,
                    text=True,
                    check=False,
                ).stdout.strip()
                stamp = {"commit": commit, "date": time.strftime("%Y-%m-%d %H:%M")}
                done.append(name | found | stamp)
                print(" ", found, flush=True)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                with arguments.out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(done[0]), lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(done)


if __name__ == "__main__":
    main()
