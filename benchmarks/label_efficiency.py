"""How few masks are enough: methods beside their labelled-only twin, at shares of masks.

    python benchmarks/label_efficiency.py coffee potato rice --work FOLDER

The data sets become one, near-duplicates joined into groups before splits are drawn. A
share of the training masks is kept, by group, the same for every method; the other
pictures are unlabelled. Every method takes the same number of optimiser steps, and its
last model is judged on the test split: nothing is chosen by masks that are hidden. A row
a run goes into the CSV; what is in it is not repeated, so the script can be killed and
called again.
"""

import argparse
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import results_table

from plantseg_next import api
from plantseg_next.data import splits
from plantseg_next.data.checks import check
from plantseg_next.data.layouts import read_folder
from plantseg_next.data.manifest import Manifest, merge
from plantseg_next.experiment import Experiment

RESULTS = Path(__file__).parent / "results" / "label_efficiency.csv"
METHODS = ("supervised", "mean_teacher", "weak_to_strong")


def one_data_set(folders: list[Path], path: Path) -> Manifest:
    """Return the merged data set with splits, from disk if it was made before."""
    if path.exists():
        return Manifest.read(path)
    parts = []
    for folder in folders:
        part = read_folder(folder)
        part = splits.join_groups(part, check(part).same_scene)
        parts.append(part.only(replace(row, split=None) for row in part.rows))
    manifest = splits.assign(merge(parts), seed=0)
    manifest.write(path)
    return manifest


def run(data: Path, out: Path, settings: Experiment) -> dict[str, Any]:
    """Train and judge once; return the figures."""
    trained = api.train(data, out, settings, say=lambda line: print(" ", line, flush=True))
    report = api.evaluate(out / "last")
    report.write(out / "report")
    by_source = {s.name: round(s.lesion_dice, 4) for s in report.sources}
    return {
        "minutes": round(trained.outcome.minutes, 2),
        "n_labelled": trained.n_train,
        **{f"dice_{name}": dice for name, dice in by_source.items()},
        "mean_dice": round(fmean(by_source.values()), 4),
        "leaf_iou": round(report.leaf_iou.value, 4),
        "rho_c": round(report.severity.rho_c.value, 4),
    }


def main() -> None:
    """Run what is missing, a seed after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--long-side", type=int, default=384)
    parser.add_argument("--shares", nargs="+", default=["1/32", "1/8", "3/10", "1"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", default="", help="name of what --set changes")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = arguments.work / "manifest.json"
    one_data_set(arguments.data, data)
    done = results_table.read(arguments.out)
    wanted = [
        (seed, share, method)
        for seed in arguments.seeds
        for share in arguments.shares
        for method in arguments.methods
        if share != "1" or method == "supervised"  # nothing is left without a mask
    ]
    for seed, share, method in wanted:
        name = {
            "method": method,
            "variant": arguments.variant,
            "share": share,
            "seed": str(seed),
            "steps": str(arguments.steps),
            "tile": str(arguments.tile),
            "long_side": str(arguments.long_side),
        }
        if any(all(row[key] == value for key, value in name.items()) for row in done):
            continue
        print(name, flush=True)
        settings = Experiment().with_settings(
            [
                f"seed={seed}",
                f"data.labelled_share={float(Fraction(share))}",
                f"data.tile_px={arguments.tile}",
                f"data.long_side_px={arguments.long_side}",
                "training.minutes=null",
                f"training.steps={arguments.steps}",
                "training.validations=4",
                "training.validation_pictures=30",
                f"unlabelled.method={method}",
                *arguments.settings,
            ]
        )
        words = (method, arguments.variant, share.replace("/", "of"), arguments.steps, seed)
        place = arguments.work / "-".join(str(word) for word in words if word != "")
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
        found = run(data, place, settings)
        done.append(name | found | results_table.stamp())
        print(" ", found, flush=True)
        results_table.write(arguments.out, done)


if __name__ == "__main__":
    main()
