"""What more data sets cost a run: memory at its peak, and pictures a second.

    python benchmarks/many_data_sets.py --work FOLDER

Folders of drawn leaves with masks, each with its own mask values; 1, 2, 3 and 5 of them in
one run, in turn and the whole of it three times. Decoded pictures are not kept: of few
pictures a larger part would be found in the cache, whatever their data sets. Rates are
medians over the parts of the run between validations, without the first.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import results_table
import yaml

from plantseg_next.synthetic.leaves import write_drawn_folder

RESULTS = Path(__file__).parent / "results" / "many_data_sets.csv"
COUNTS = (1, 2, 3, 5)
SETTINGS = (
    "training.minutes=null",
    "training.steps=120",
    "training.validations=4",
    "training.validation_pictures=10",
    "data.tile_px=128",
    "data.cache_mib=0",
    "data.labelled_share=0.5",
    # Tiles without masks are read, and nothing is asked about them: lessons begin when a
    # lesion is found, sooner in one run than in the other: that hid what reading costs.
    "unlabelled.weight=0",
)


def main() -> None:
    """Measure, and append to the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    folders = [arguments.work / f"set_{i}" for i in range(max(COUNTS))]
    for i, folder in enumerate(folders):
        if not folder.is_dir():
            write_drawn_folder(folder, 100, seed=i, size_hw=(320, 320))
            path = folder / "classes.yaml"
            names = yaml.safe_load(path.read_text())
            path.write_text(yaml.safe_dump(names, sort_keys=bool(i % 2)))
    for repeat in range(arguments.repeats):
        for n in COUNTS:
            run = arguments.work / f"run_{n}_{repeat}"
            shutil.rmtree(run, ignore_errors=True)
            command = [sys.executable, "-m", "plantseg_next", "train"]
            command += [*map(str, folders[:n]), "--out", str(run)]
            command += [word for pair in SETTINGS for word in ("--set", pair)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows = results_table.read(run / "resources.csv")[1:]
            peak = json.loads((run / "progress.json").read_text())["ram_peak_mib"]
            row = {
                "data_sets": n,
                "repeat": repeat,
                "peak_mib": round(peak),
                "tiles_per_s": median(float(r["tiles_per_s"]) for r in rows),
                "waited_pct": median(float(r["waited_pct"]) for r in rows),
            }
            results_table.append(RESULTS, row | results_table.stamp())
            print(row, flush=True)


if __name__ == "__main__":
    main()
