"""What checkpoints, history, monitor, pulse and curves cost, in parts of a run's time.

    python benchmarks/watching_cost.py coffee --work FOLDER --pairs 4

The same run, with all of it and with none of it, in turn; the validations stay. The ratio
of each pair is one observation; what the watched run spent inside all of it, in parts of
the rest, is another, with less noise. Both end with the same weights, which is checked.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import results_table
import torch

from plantseg_next.data import splits
from plantseg_next.data.layouts import read_folder
from plantseg_next.experiment import Experiment
from plantseg_next.learning import Plan, build_trainer
from plantseg_next.models.tensor_files import tensors_digest
from plantseg_next.training.checkpoints import Checkpoints, Saved
from plantseg_next.training.record import Record
from plantseg_next.training.watching.watchers import Watcher

RESULTS = Path(__file__).parent / "results" / "watching_cost.csv"


class NoCheckpoints(Checkpoints):
    """Keep nothing."""

    def save(self, state: dict[str, Any], *, step: int, also_keep: int = -1) -> Saved:  # noqa: ARG002
        """Return as if it had been kept."""
        return Saved(self.folder, 0, 0.0)


class Clock:
    """Add up what some methods take, one within another counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_running = False

    def time(self, holder: object, names: Iterable[str]) -> None:
        """Time these methods of an object from now on."""
        for name in names:
            setattr(holder, name, self._timed(getattr(holder, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as it is called
            if self._is_running:
                return method(*args, **kwargs)
            self._is_running, began = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
                self._is_running = False

        return timed


def run(plan: Plan, folder: Path, *, watched: bool) -> tuple[float, float, str]:
    """Return the seconds of a run, those spent watching, and the digest of its weights."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    Record(plan.settings, {}, plan.pixels, {}).write(folder, plan.manifest)
    trainer = build_trainer(plan, folder)
    if not watched:
        trainer._watchers = []  # noqa: SLF001 - nobody else would want this
        trainer._checkpoints = NoCheckpoints(folder)  # noqa: SLF001
    clock = Clock()
    told = [name for name in dir(Watcher) if name.startswith("on_")]
    for watcher in trainer._watchers:  # noqa: SLF001
        clock.time(watcher, told)
    clock.time(trainer._checkpoints, ["save"])  # noqa: SLF001
    began = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - began
    weights = trainer._learner.network.state_dict()  # noqa: SLF001
    return seconds, clock.seconds, tensors_digest(weights)


def main() -> None:
    """Run the pairs, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--validations", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    settings = Experiment().with_settings(
        [
            "training.minutes=null",
            f"training.steps={arguments.steps}",
            f"training.validations={arguments.validations}",
            *arguments.settings,
        ]
    )
    manifest = splits.assign(read_folder(arguments.data), seed=0)
    manifest = splits.labelled_fraction(manifest, settings.data.labelled_share, seed=0)
    plan = Plan.of(manifest, settings, arguments.data)
    ratios = []
    for pair in range(arguments.pairs):
        # In turn, and the one that comes first in turn too.
        found = {
            watched: run(plan, arguments.work / "run", watched=watched)
            for watched in ((True, False) if pair % 2 else (False, True))
        }
        (on, spent, digest), (off, _, other) = found[True], found[False]
        row = {
            "data": arguments.data.name,
            "steps": arguments.steps,
            "validations": arguments.validations,
            "settings": " ".join(arguments.settings),
            "pair": pair,
            "with_s": round(on, 2),
            "without_s": round(off, 2),
            "ratio": round(on / off, 4),
            "watching_pct": round(100 * spent / (on - spent), 2),
            "same_weights": int(digest == other),
            "threads": torch.get_num_threads(),
            **results_table.stamp(),
        }
        print(row, flush=True)
        results_table.append(arguments.out, row)
        ratios.append(on / off)
    spread = stdev(ratios) if len(ratios) > 1 else 0.0
    print(f"ratio {fmean(ratios):.4f}, standard deviation of a pair {spread:.4f}")


if __name__ == "__main__":
    main()
