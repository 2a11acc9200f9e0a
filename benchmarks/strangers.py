"""Whether pictures that are no plants wreck a run that takes them for unlabelled leaves.

    python benchmarks/strangers.py coffee potato rice --work FOLDER

The labelled share of ``label_efficiency.py`` is learned with the sample photographs of
scikit-image (a cat, coins, bricks, a rocket, a page of text) as its only unlabelled
pictures. Its twin with nothing else is that table's row without lessons, of the same seed.
Beside the scores stands what share of the strangers' pixels was taught, and as lesion.
"""

import argparse
import csv
import shutil
from fractions import Fraction
from pathlib import Path

import results_table
import skimage
from label_efficiency import one_data_set, run, settings_of

from plantseg_next.data import splits
from plantseg_next.learning import Sources

RESULTS = Path(__file__).parent / "results" / "strangers.csv"
LEAST_BYTES = 20_000  # icons and masks are no photographs


def strangers(folder: Path) -> Path:
    """Return a folder of photographs without plants."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (Path(skimage.__file__).parent / "data").iterdir():
        if path.suffix in {".png", ".jpg"} and path.stat().st_size > LEAST_BYTES:
            shutil.copy(path, folder)
    return folder


def main() -> None:
    """Train, and append to the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--share", default="1/32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    manifest = one_data_set(arguments.data, arguments.work / "manifest.json")
    folder = strangers(arguments.work / "strangers")
    for seed in arguments.seeds:
        fraction = float(Fraction(arguments.share))
        few = splits.labelled_fraction(manifest, fraction, seed=seed)
        few = few.only(row for row in few.rows if row.split != "unlabelled")
        few.write(arguments.work / f"few_{seed}.json")
        settings = settings_of(seed=seed, share="1", steps=arguments.steps)
        place = arguments.work / f"strangers-{seed}"
        shutil.rmtree(place, ignore_errors=True)
        sources = Sources(arguments.work / f"few_{seed}.json", unlabelled=(folder,))
        found = run(sources, place, settings, place / "counts.csv")
        with (place / "history.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        gate = {name: last[name] for name in ("taught", "taught_lesion", "agreement")}
        row = {"strangers": len(list(folder.iterdir())), "share": arguments.share}
        row |= {"seed": seed, "steps": arguments.steps}
        print(row | found | gate, flush=True)
        results_table.append(arguments.out, row | found | gate | results_table.stamp())


if __name__ == "__main__":
    main()
