"""Train on drawn leaves alone, and judge on real ones.

    python benchmarks/drawn_to_real.py REAL [REAL ...] --minutes 6 --work FOLDER

Prints lesion Dice, precision and recall of each real data set (all of its pictures with
masks: none was learned from) beside chance: precision of a guess is the lesion share of
the pixels, and the best Dice without looking is that of calling everything a lesion.
"""

import argparse
import time
from pathlib import Path

import results_table

from plantseg_next import api
from plantseg_next.experiment import Experiment
from plantseg_next.synthetic.leaves import write_drawn_folder


def main() -> None:
    """Draw, train, judge, print, and keep a row a data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--leaves", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/drawn_to_real.csv")
    )
    arguments = parser.parse_args()
    leaves = arguments.work / f"leaves_{arguments.leaves}"
    if not leaves.exists():
        write_drawn_folder(leaves, arguments.leaves, seed=0, size_hw=(256, 256))
    run = arguments.work / f"run_{arguments.seed}_{time.time():.0f}"
    settings = Experiment().with_settings(
        [f"training.minutes={arguments.minutes}", f"seed={arguments.seed}"]
    )
    trained = api.train(leaves, run, settings, say=print)
    for real in arguments.real:
        report = api.evaluate(run, real, split="all")
        pixels = {row.name: row.truth_px for row in report.classes}
        share = 1 - pixels["no lesion"] / sum(pixels.values())
        row = {
            "real": real.name,
            "pictures": report.n_lesion_pictures,
            "seed": arguments.seed,
            "minutes": round(trained.outcome.minutes, 2),
            "steps": trained.outcome.steps,
            "lesion_dice": round(report.lesion_dice.value, 4),
            "dice_low": round(report.lesion_dice.low, 4),
            "dice_high": round(report.lesion_dice.high, 4),
            "precision": round(report.lesion_precision.value, 4),
            "recall": round(report.lesion_recall.value, 4),
            "leaf_iou": round(report.leaf_iou.value, 4),
            "severity_rho_c": round(report.severity.rho_c.value, 4),
            "chance_precision": round(share, 4),
            "chance_dice": round(2 * share / (1 + share), 4),
            **results_table.stamp(),
        }
        print(row, flush=True)
        results_table.append(arguments.out, row)


if __name__ == "__main__":
    main()
