"""The table of ``label_efficiency.py`` as text and as an image, with intervals.

    python benchmarks/label_efficiency_plot.py --steps 3000

The score is the mean over data sets of the pooled lesion Dice. Its interval draws test
groups and seeds again, 2,000 times; that of a difference draws the same ones for both
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
COLORS = {"supervised": "0.4", "mean_teacher": "#d08770", "weak_to_strong": "#2e7d32"}
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
    stacked: dict[str, list[list[np.ndarray]]] = defaultdict(list)
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


Run = dict[str, str]
"""A row of the table."""


def counts_of(row: Run, table: Path) -> Counts:
    """Return what the run of a row left of every test group."""
    words = (row["method"], row["variant"], row["share"].replace("/", "of"))
    name = "-".join(word for word in (*words, row["steps"], row["seed"]) if word)
    return read_counts(table.with_suffix("") / f"{name}.csv")


def print_table(found: dict[tuple[str, str], np.ndarray], rows: list[Run]) -> None:
    """Print every method at every share, with its gain over the labeled-only twin."""
    for share in shares_of(rows):
        n_labeled = next(row["n_labeled"] for row in rows if row["share"] == share)
        print(f"{share} of the masks ({n_labeled} images)")
        for method in METHODS:
            if (method, share) not in found:
                continue
            mine, twin = found[method, share], found["supervised", share]
            n = sum((row["method"], row["share"]) == (method, share) for row in rows)
            gain = f"  above its twin: {text_of(mine - twin)}" if mine is not twin else ""
            print(f"  {method:15} {n} seeds  {text_of(mine)}{gain}")


def print_ablation(plain: list[Run], changed: list[Run], table: Path) -> None:
    """Print every variant beside the plain runs of the same seeds."""
    plain_of = {(r["method"], r["share"], r["seed"]): r for r in plain}
    cells = defaultdict(list)
    for row in changed:
        if (row["method"], row["share"], row["seed"]) in plain_of:
            cells[row["method"], row["share"], row["variant"]].append(row)
    for (method, share, variant), rows in sorted(cells.items()):
        twins = [plain_of[method, share, row["seed"]] for row in rows]
        mine, twin = (scores([counts_of(r, table) for r in runs]) for runs in (rows, twins))
        val = np.mean([float(r["val_mean_dice"]) for r in rows])
        print(
            f"{method} {share} {variant:20} {len(rows)} seeds  {text_of(mine)}  "
            f"change {text_of(mine - twin)}  validation {val:.3f}"
        )


def shares_of(rows: list[Run]) -> list[str]:
    """Return the shares in the table, in order."""
    return sorted({row["share"] for row in rows}, key=Fraction)


def draw(found: dict[tuple[str, str], np.ndarray], rows: list[Run], out: Path) -> None:
    """Draw every method over the share of the masks."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in METHODS:
        mine = [share for share in shares_of(rows) if (method, share) in found]
        if not mine:
            continue
        x = [100 * float(Fraction(share)) for share in mine]
        values = np.array([found[method, share] for share in mine])
        low, high = np.quantile(values[:, 1:], [0.025, 0.975], axis=1)
        axes.plot(x, values[:, 0], "o-", label=method, color=COLORS[method])
        axes.fill_between(x, low, high, alpha=0.15, color=COLORS[method], linewidth=0)
    n_labeled = {row["share"]: row["n_labeled"] for row in rows}
    axes.set_xscale("log")
    axes.set_xticks(
        [100 * float(Fraction(share)) for share in n_labeled],
        [f"{share}\n({n})" for share, n in n_labeled.items()],
    )
    axes.set_xlabel("share of the training masks (images)")
    axes.set_ylabel("lesion Dice, mean of the data sets")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out, dpi=150)


def main() -> None:
    """Print the table and the ablation, and draw the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", required=True)
    parser.add_argument("--table", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS.with_suffix(".png"))
    arguments = parser.parse_args()
    rows = [
        row
        for row in sorted(results_table.read(arguments.table), key=lambda r: int(r["seed"]))
        if row["steps"] == arguments.steps
    ]
    plain = [row for row in rows if not row["variant"]]
    runs: dict[tuple[str, str], list[Counts]] = defaultdict(list)
    for row in plain:
        runs[row["method"], row["share"]].append(counts_of(row, arguments.table))
    found = {cell: scores(many) for cell, many in runs.items()}
    print_table(found, plain)
    print_ablation(plain, [row for row in rows if row["variant"]], arguments.table)
    draw(found, plain, arguments.out)


if __name__ == "__main__":
    main()
