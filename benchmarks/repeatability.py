"""How far two runs of one seed part, and what it costs that they do not.

    python benchmarks/repeatability.py coffee --work FOLDER

The same run with one and with two threads, twice each, in turn, and with
``deterministic=true``: whether the weights are equal to the last bit, how far loss and
score at the end are from the first run's, and how long it took. On a GPU, if there is one.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import results_table

from plantseg_next.models.bundle import read_card

RESULTS = Path(__file__).parent / "results" / "repeatability.csv"
RUNS = (
    ("2 threads", 2, False),
    ("1 thread", 1, False),
    ("2 threads, deterministic", 2, True),
    ("2 threads, again", 2, False),
    ("1 thread, again", 1, False),
    ("2 threads, deterministic, again", 2, True),
)


def main() -> None:
    """Run them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    pairs = ["training.minutes=null", f"training.steps={arguments.steps}"]
    pairs += ["training.validations=1", *arguments.settings]
    for name, threads, deterministic in RUNS:
        run = arguments.work / name.replace(", ", "-").replace(" ", "-")
        own = [*pairs, f"deterministic={str(deterministic).lower()}"]
        command = [sys.executable, "-m", "plantseg_next", "train", str(arguments.data)]
        command += ["--out", str(run), *(word for p in own for word in ("--set", p))]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        began = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = round(time.perf_counter() - began, 1)
        row = {"run": name, "settings": " ".join(arguments.settings)}
        row |= results_table.end_of(run)
        row |= {"weights": read_card(run / "last").sha256[:12]}
        row |= {"seconds": seconds, **results_table.stamp()}
        results_table.append(RESULTS, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
