"""What reading pictures takes of main memory, foreseen and measured.

    python benchmarks/reading_memory.py --work FOLDER

Drawn leaves are read by 0 to 3 workers while nothing else is done but wait for them, so
that all that is read ahead is there. Measured is what the processes of the run have to
themselves together (what several of them share once), beyond what the main process had
before; foreseen is the rule of ``training/memory/reading.py``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import results_table
import torch

from plantseg_next.data.loading import loader
from plantseg_next.data.streams import MixedDataset
from plantseg_next.experiment import Experiment
from plantseg_next.learning import Plan, Sources, gather, tiles_of
from plantseg_next.synthetic.leaves import write_drawn_folder
from plantseg_next.training.memory.reading import CACHE_GROWTH, batch_bytes, reading_bytes

RESULTS = Path(__file__).parent / "results" / "reading_memory.csv"
BATCHES = 40
CASES = [
    ["data.workers=0", "training.batch=8", "data.tile_px=192"],
    ["data.workers=0", "training.batch=32", "data.tile_px=256"],
    ["data.workers=1", "training.batch=8", "data.tile_px=192"],
    ["data.workers=2", "training.batch=32", "data.tile_px=256"],
    ["data.workers=2", "training.batch=32", "data.tile_px=256", "data.prefetch=1"],
    ["data.workers=3", "training.batch=16", "data.tile_px=512", "data.prefetch=2"],
    ["data.workers=2", "training.batch=8", "data.tile_px=192", "data.cache_mib=150"],
]


def private_bytes() -> int:
    """Return what this process and its workers hold in memory that no file backs."""
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        maps = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        found = {line.split(":")[0]: line.split()[1] for line in maps.splitlines()[1:]}
        total += 1024 * (int(found["Pss_Anon"]) + int(found["Pss_Shmem"]))
    return total


def read_from(data: Path, settings: Experiment) -> MixedDataset:
    """Return what a run on a data set draws."""
    plan = Plan.of(gather(Sources(data), settings), settings, str(data))
    return tiles_of(plan.learned, plan.unlabelled, settings, plan.pixels)


def measure(folder: Path, pairs: list[str]) -> dict[str, float]:
    """Return what reading takes with these settings, foreseen and measured, in bytes."""
    torch.set_num_threads(1)
    settings = Experiment().with_settings(
        ["data.cache_mib=0", "data.labelled_share=0.5", *pairs]
    )
    tiles = read_from(folder, settings)
    before = private_bytes()
    data = settings.data
    workers = data.workers or 0
    batches = loader(
        tiles,
        tiles=settings.training.batch,
        start=0,
        stop=BATCHES,
        workers=workers,
        prefetch=data.prefetch,
    )
    most = 0
    for _ in range(BATCHES - (data.prefetch + 1) * workers):
        held = next(batches)
        most = max(most, private_bytes() - before)
    time.sleep(3)
    most = max(most, private_bytes() - before)
    del held
    batch = batch_bytes(settings, with_lessons=True)
    cache = max(1, workers) * CACHE_GROWTH * data.cache_mib * 2**20
    return {
        "foreseen": reading_bytes(workers, data.prefetch, batch) + cache,
        "measured": most,
        "batch": batch,
    }


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--one", nargs="+", help="measure these settings, print JSON")
    arguments = parser.parse_args()
    folder = arguments.work / "leaves"
    if not folder.is_dir():
        write_drawn_folder(folder, 120, seed=0, size_hw=(600, 600))
    if arguments.one:
        print(json.dumps(measure(folder, arguments.one)))
        return
    for case in CASES:
        command = [sys.executable, __file__, "--work", str(arguments.work), "--one", *case]
        ran = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ
        )
        found = json.loads(ran.stdout.strip().splitlines()[-1])
        row = {
            "settings": " ".join(case),
            "batch_mb": round(found["batch"] / 1e6, 1),
            "foreseen_mb": round(found["foreseen"] / 1e6),
            "measured_mb": round(found["measured"] / 1e6),
        }
        print(row, flush=True)
        results_table.append(RESULTS, row | results_table.stamp())


if __name__ == "__main__":
    main()
