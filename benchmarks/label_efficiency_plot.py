"""The table of ``label_efficiency.py`` as text and as a picture, with intervals.

    python benchmarks/label_efficiency_plot.py --steps 3000

The score is the mean over data sets of the pooled lesion Dice. Its interval draws test
groups and seeds anew, 2,000 times; that of a difference draws the same ones for both
methods, so that what all methods find hard cancels.
"""

import argparse
import csv
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import matplotlib as mpl
import numpy as np
import results_table
from label_efficiency import METHODS, RESULTS

mpl.use("Agg")
from matplotlib import pyplot as plt

DRAWS = 2000
COLOURS = {"supervised": "0.4", "mean_teacher": "#d08770", "weak_to_strong": "#2e7d32"}
Counts = dict[tuple[str, str], np.ndarray]
"""Overlap, true and predicted pixels of each source and group."""


def read_counts(path: Path) -> Counts:
    """Return what a run left of every test group."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {(source, group): np.array(n, float) for source, group, *n in rows}


def scores(runs: list[Counts], seed: int = 0) -> np.ndarray:
    """Return the mean Dice as it is, and over ``DRAWS`` draws of groups and runs.

    Runs of two methods in the same order see the same draws.
    """
    rng = np.random.default_rng(seed)
    stacked = defaultdict(list)
    for source, group in sorted(runs[0]):
        stacked[source].append([run[source, group] for run in runs])
    dice = []
    which = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=DRAWS)
    weights_of_runs = np.vstack([np.ones(len(runs)), which])  # (d + 1, r)
    for groups in stacked.values():
        counts = np.array(groups)  # (g, r, 3)
        n = len(counts)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)
        total = np.einsum("dg,grc->drc", np.vstack([np.ones(n), drawn]), counts)
        of_runs = 2 * total[..., 0] / (total[..., 1] + total[..., 2])  # (d + 1, r)
        dice.append((of_runs * weights_of_runs).sum(1) / weights_of_runs.sum(1))
    return np.mean(dice, axis=0)


def text_of(found: np.ndarray) -> str:
    """Return value and 95 % interval."""
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return f"{found[0]:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", required=True)
    parser.add_argument("--table", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS.with_suffix(".png"))
    arguments = parser.parse_args()
    runs: dict[tuple[str, str], list[Counts]] = defaultdict(list)
    n_labelled: dict[str, str] = {}
    rows = results_table.read(arguments.table)
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        if row["variant"] or row["steps"] != arguments.steps:
            continue
        parts = (row["method"], row["share"].replace("/", "of"), row["steps"], row["seed"])
        counts = read_counts(arguments.table.with_suffix("") / f"{'-'.join(parts)}.csv")
        runs[row["method"], row["share"]].append(counts)
        n_labelled[row["share"]] = row["n_labelled"]
    found = {cell: scores(many) for cell, many in runs.items()}
    shares = sorted(n_labelled, key=Fraction)
    for share in shares:
        print(f"{share} of the masks ({n_labelled[share]} pictures)")
        for method in METHODS:
            if (method, share) not in found:
                continue
            mine, twin = found[method, share], found["supervised", share]
            n = len(runs[method, share])
            gain = f"  above its twin: {text_of(mine - twin)}" if mine is not twin else ""
            print(f"  {method:15} {n} seeds  {text_of(mine)}{gain}")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in METHODS:
        mine = [share for share in shares if (method, share) in found]
        if not mine:
            continue
        x = [100 * float(Fraction(share)) for share in mine]
        values = np.array([found[method, share] for share in mine])
        low, high = np.quantile(values[:, 1:], [0.025, 0.975], axis=1)
        axes.plot(x, values[:, 0], "o-", label=method, color=COLOURS[method])
        axes.fill_between(x, low, high, alpha=0.15, color=COLOURS[method], linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(
        [100 * float(Fraction(share)) for share in shares],
        [f"{share}\n({n_labelled[share]})" for share in shares],
    )
    axes.set_xlabel("share of the training masks (pictures)")
    axes.set_ylabel("lesion Dice, mean of the data sets")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.out, dpi=150)


if __name__ == "__main__":
    main()
