"""How long a picture takes as asked for and as planned for a budget, on this machine.

    python benchmarks/picture_time.py

The stated cases of ``what_fits.py``: planned for a GPU, run on the CPU, a few labelled
and as many taught tiles a step, in turn. The optimiser's part is that of a picture in a
batch of 32. A step at the full batch as asked for would not fit into most machines.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import results_table
from memory_error import tiles
from what_fits import CASES, CLASSES, GPU
from what_fits import RESULTS as FITS

from plantseg_next.data.streams import Drawn
from plantseg_next.experiment import Experiment
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.runtime import find_device
from plantseg_next.training.learner import Learner, build_learner
from plantseg_next.training.memory.planner import plan_memory

RESULTS = Path(__file__).parent / "results" / "picture_time.csv"
BATCH = 32
FEW = 4
STEPS = 3


def learner_of(settings: Experiment) -> Learner:
    """Return a learner on the CPU."""
    network = build_segmenter(settings.model, CLASSES)
    return build_learner(network, settings, find_device("cpu"), CLASSES, with_lessons=True)


def picture_s(learner: Learner, drawn: Drawn, micro_batch: int) -> float:
    """Take a step; return its seconds a picture."""
    began = time.perf_counter()
    learner.find_gradients(drawn, step=9, steps=10, micro_batch=micro_batch, rehearsal=True)
    between = time.perf_counter()
    learner.apply(step=9, steps=10)
    ended = time.perf_counter()
    return (between - began) / FEW + (ended - between) / BATCH


def measure(encoder: str, tile_px: int, budget_gb: float) -> None:
    """Add a row."""
    asked = Experiment().with_settings(
        [f"model.encoder={encoder}", f"data.tile_px={tile_px}", f"training.batch={BATCH}"]
    )
    plan = plan_memory(asked, CLASSES, GPU, round(budget_gb * 1e9), with_lessons=True)
    few = plan.settings.training.model_copy(update={"batch": FEW})
    drawn = tiles(plan.settings.model_copy(update={"training": few}), with_lessons=True)
    ways = {
        "asked": (learner_of(asked), FEW),
        "planned": (learner_of(plan.settings), plan.settings.training.tiles_at_once),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 + STEPS):
        for way, (learner, micro_batch) in ways.items():
            seconds[way].append(picture_s(learner, drawn, micro_batch))
    asked_s, planned_s = (median(times[1:]) for times in seconds.values())
    row = {
        "case": f"{encoder} {tile_px} in {budget_gb}",
        "asked_s": round(asked_s, 3),
        "planned_s": round(planned_s, 3),
        "ratio": round(planned_s / asked_s, 2),
        "estimate_for_gpu": round(plan.slower, 2),
    }
    results_table.append(RESULTS, row | results_table.stamp())
    print(row, flush=True)


def main() -> None:
    """Measure what is not in the table, each case in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, help="number of the case to measure")
    one = parser.parse_args().one
    if one is not None:
        measure(*CASES[one])
        return
    done = {row["case"] for row in results_table.read(RESULTS)}
    fits = {row["case"] for row in results_table.read(FITS) if row["fits"] == "True"}
    for i, (encoder, tile_px, budget_gb) in enumerate(CASES):
        name = f"{encoder} {tile_px} in {budget_gb}"
        if name in fits - done:
            subprocess.run([sys.executable, __file__, "--one", str(i)], check=True)


if __name__ == "__main__":
    main()
