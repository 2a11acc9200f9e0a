"""How many tiles a second are read, by the number of processes that read.

    python benchmarks/reading_rate.py DATA --workers 0 2 4 8

Batches of labelled and unlabelled tiles are drawn and thrown away: what a GPU could at
most be fed. Decoded pictures are kept as by default, so that small data sets are soon read
from the cache, as in a run. Nothing else should run beside it.
"""

import argparse
import os
import time
from pathlib import Path

import results_table
import torch
from reading_memory import read_from

from plantseg_next.data.loading import loader
from plantseg_next.experiment import Experiment

RESULTS = Path(__file__).parent / "results" / "reading_rate.csv"


def main() -> None:
    """Measure, and append to the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Experiment().with_settings(
        ["data.labelled_share=0.125", *arguments.settings]
    )
    tiles = read_from(arguments.data, settings)
    batch, views = settings.training.batch, 1 + settings.unlabelled.strong_views
    for workers in arguments.workers:
        batches = loader(
            tiles,
            tiles=batch,
            start=0,
            stop=2 * arguments.batches,
            workers=workers,
            prefetch=settings.data.prefetch,
        )
        for _ in range(arguments.batches):  # workers start, caches fill
            next(batches)
        began = time.perf_counter()
        for _ in range(arguments.batches):
            next(batches)
        seconds = time.perf_counter() - began
        each = batch * (1 + views * settings.unlabelled.ratio)
        row = {
            "data": arguments.data.name,
            "settings": " ".join(arguments.settings),
            "cores": len(os.sched_getaffinity(0)),
            "workers": workers,
            "tiles_per_s": round(each * arguments.batches / seconds, 1),
        }
        print(row, flush=True)
        results_table.append(arguments.out, row | results_table.stamp())


if __name__ == "__main__":
    main()
