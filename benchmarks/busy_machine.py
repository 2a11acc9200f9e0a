"""Threads beside another program: what a step takes with one, with two, and as chosen.

    python benchmarks/busy_machine.py --work FOLDER --pairs 3

The same short run on drawn leaves, by the command line, with every number of threads in
turn: on a machine that does nothing else, beside a program that keeps a core busy, and
beside one that gives way (``nice``). ``as chosen`` says nothing of threads, so the run
looks for itself (``cores.py``).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import results_table

from plantseg_next.synthetic.leaves import write_drawn_folder

RESULTS = Path(__file__).parent / "results" / "busy_machine.csv"
BESIDE = {"nothing": [], "a busy program": [0], "a busy program that gives way": [19]}
"""Niceness of the other programs."""
CHOSEN = "as chosen"


@contextmanager
def others(niceness: list[int]) -> Iterator[None]:
    """Keep a core busy for each of these."""
    busy = [
        subprocess.Popen([sys.executable, "-c", f"import os; os.nice({n})\nwhile 1: pass"])
        for n in niceness
    ]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def run(data: Path, out: Path, threads: str, steps: int) -> tuple[float, int]:
    """Return tiles a second, and how many threads the run took."""
    shutil.rmtree(out, ignore_errors=True)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    if threads != CHOSEN:
        environment["OMP_NUM_THREADS"] = threads
    settings = {
        "data.tile_px": 128,
        "data.workers": 0,
        "model.encoder": "convnextv2_atto",
        "training.minutes": "null",
        "training.steps": steps,
        "training.validations": 1,
        "training.validation_pictures": 8,
    }
    command = [sys.executable, "-m", "plantseg_next", "train", str(data), "--out", str(out)]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (row,) = results_table.read(out / "resources.csv")
    facts = json.loads((out / "run.json").read_text())
    return float(row["tiles_per_s"]), int(facts["threads"])


def main() -> None:
    """Measure in turn, and write a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", nargs="+", default=["1", "2", CHOSEN])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    data = arguments.work / "leaves"
    if not data.exists():
        write_drawn_folder(data, 60, seed=0, size_hw=(192, 192))
    for pair in range(arguments.pairs):
        for beside, niceness in BESIDE.items():
            for threads in arguments.threads:
                with others(niceness):
                    rate, taken = run(
                        data, arguments.work / "run", threads, arguments.steps
                    )
                row = {
                    "beside": beside,
                    "threads": threads,
                    "pair": pair,
                    "taken": taken,
                    "tiles_per_s": rate,
                    "cores": os.cpu_count(),
                    **results_table.stamp(),
                }
                print(row, flush=True)
                results_table.append(arguments.out, row)


if __name__ == "__main__":
    main()
