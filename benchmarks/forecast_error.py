"""How well a run knows when it will end, from its first tenth on.

    python benchmarks/forecast_error.py coffee --work FOLDER

Runs of different length, with and without lessons, on photographs that nothing has read
before. What ``progress.json`` says is compared with when the run ended: the error in parts
of the whole duration, the largest and the mean from a tenth of the steps on, and how often
the end lay in the stated interval.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import results_table

from plantseg_next import api
from plantseg_next.experiment import Experiment
from plantseg_next.training.watching.status import PROGRESS
from plantseg_next.training.watching.watchers import Event, Stepped, Watcher

RESULTS = Path(__file__).parent / "results" / "forecast_error.csv"
RUNS = (
    ("supervised", 80),
    ("supervised", 300),
    ("supervised", 800),
    ("weak_to_strong", 120),
    ("weak_to_strong", 400),
)


class Listener(Watcher):
    """Note what the run says of its end, now and then."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._path = folder / PROGRESS
        self._every = max(1, steps // 40)
        self.began = time.time()
        self.said: list[tuple[float, float, float]] = []  # ends: expected, low, high

    def on_step(self, stepped: Stepped) -> Sequence[Event]:
        """Read what anyone could read."""
        if stepped.step == 1:
            self.began = time.time() - stepped.seconds
        if stepped.step * 10 >= stepped.steps and stepped.step % self._every == 0:
            told = json.loads(self._path.read_text())
            if told["left_s"] is not None:
                self.said.append(tuple(told["time"] + s for s in told["left_s"]))
        return ()


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    done = {(r["method"], r["steps"]) for r in results_table.read(arguments.out)}
    for method, steps in RUNS:
        if (method, str(steps)) in done:
            continue
        folder = arguments.work / f"{method}-{steps}"
        shutil.rmtree(folder, ignore_errors=True)
        listener = Listener(folder, steps)
        settings = Experiment().with_settings(
            [
                "training.minutes=null",
                f"training.steps={steps}",
                "training.validations=4",
                "data.labelled_share=0.3",
                f"unlabelled.method={method}",
            ]
        )
        api.train(arguments.data, folder, settings, watchers=[listener])
        ended = json.loads((folder / PROGRESS).read_text())["time"]
        duration = ended - listener.began
        errors = [abs(end - ended) / duration for end, _, _ in listener.said]
        row = {
            "data": arguments.data.name,
            "method": method,
            "steps": steps,
            "seconds": round(duration, 1),
            "looks": len(errors),
            "first_error": round(errors[0], 4),
            "worst_error": round(max(errors), 4),
            "mean_error": round(fmean(errors), 4),
            "in_interval": round(fmean(a <= ended <= b for _, a, b in listener.said), 3),
            **results_table.stamp(),
        }
        print(row, flush=True)
        results_table.append(arguments.out, row)


if __name__ == "__main__":
    main()
