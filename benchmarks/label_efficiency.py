"""How few masks are enough: methods beside their labeled-only twin, at shares of masks.

    python benchmarks/label_efficiency.py coffee potato rice --work FOLDER

The data sets become one, near-duplicates joined into groups before splits are drawn. A
share of the training masks is kept, by group, the same for every method; the other
images are unlabeled. Every method takes the same number of optimizer steps, and its
last model is evaluated on the test split: nothing is chosen by masks that are hidden. A row
a run goes into the CSV, and the pixels of every test group into a file beside it, from
which ``label_efficiency_plot.py`` draws intervals. What is in the CSV is not repeated, and
a run that was killed is resumed: the script can be called again at any time.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import results_table

from plantseg_next import api
from plantseg_next.data import splits
from plantseg_next.data.formats import read_folder
from plantseg_next.data.manifest import Manifest, merge
from plantseg_next.data.quality.check import check
from plantseg_next.evaluation.metrics import confusion_matrix, foreground_counts
from plantseg_next.evaluation.report import EvalItem, evaluate
from plantseg_next.evaluation.report_tables import Report
from plantseg_next.inference.pipeline import load_pipeline
from plantseg_next.settings import Settings
from plantseg_next.structures import SkippedImage
from plantseg_next.workflows.evaluate import eval_items, severity_pct
from plantseg_next.workflows.training_data import DataSources

RESULTS = Path(__file__).parent / "results" / "label_efficiency.csv"
GroupCounts = dict[tuple[str, str], np.ndarray]
METHODS = ("supervised", "mean_teacher", "weak_to_strong")


def one_data_set(folders: list[Path], path: Path) -> Manifest:
    """Return the merged data set with splits, from disk if it was made before."""
    if path.exists():
        return Manifest.read(path)
    parts = []
    for folder in folders:
        part = read_folder(folder)
        part = splits.group_near_duplicates(part, check(part).same_scene)
        parts.append(part.only(replace(row, split=None) for row in part.rows))
    manifest = splits.assign(merge(parts), seed=0)
    manifest.write(path)
    return manifest


def counted(
    items: Iterable[EvalItem | SkippedImage], stats: GroupCounts, n_classes: int
) -> Iterator[EvalItem | SkippedImage]:
    """Pass predictions on, adding their lesion pixels to those of their group."""
    for item in items:
        if isinstance(item, EvalItem):
            pixels = confusion_matrix(item.sample.lesion, item.prediction.lesion, n_classes)
            stats[item.source, item.group] += foreground_counts(pixels)
        yield item


def settings_of(
    *, seed: int, share: str, steps: int, tile: int = 128, long_side: int = 384
) -> Settings:
    """Return the settings that all runs share."""
    return Settings().with_settings(
        [
            f"seed={seed}",
            f"data.labeled_fraction={float(Fraction(share))}",
            f"data.tile_px={tile}",
            f"data.long_side_px={long_side}",
            "training.minutes=null",
            f"training.steps={steps}",
            "training.validations=4",
            "training.validation_images=30",
        ]
    )


def evaluate_last(run: Path, rows: Manifest) -> tuple[Report, GroupCounts]:
    """Return the report of a run's last model, and the pixels of every group."""
    model = load_pipeline(run / "last")
    predictor, card = model.predictor, model.card
    stats: GroupCounts = defaultdict(lambda: np.zeros(3, np.int64))
    items = eval_items(predictor, card.classes, rows, card.classes)
    items = counted(items, stats, card.classes.n_lesion_logits)
    report = evaluate(
        items, card.classes, severity=severity_pct, source_domain=card.sources
    )
    return report, stats


def write_counts(path: Path, *stats: GroupCounts) -> None:
    """Write the pixels of every group of one evaluation or more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("source", "group", "overlap_px", "truth_px", "predicted_px"))
        for one in stats:
            writer.writerows((*names, *one[names].tolist()) for names in sorted(one))


def run(
    data: Path | DataSources, out: Path, settings: Settings, counts: Path
) -> dict[str, Any]:
    """Train and evaluate once; keep the counts of groups, and return the metrics."""
    trained = api.train(data, out, settings, log=lambda line: print(" ", line, flush=True))
    manifest = Manifest.read(out / "manifest.json")
    val, _ = evaluate_last(out, manifest.split("val").labeled)
    report, stats = evaluate_last(out, manifest.split("test").labeled)
    write_counts(counts, stats)
    several = len(report.classes) > 2  # "no lesion" is one
    by_source = {s.name: round(s.lesion_dice.value, 4) for s in report.sources}
    return {
        "minutes": round(trained.summary.minutes, 2),
        "n_labeled": trained.n_train,
        **{f"dice_{name}": dice for name, dice in by_source.items()},
        "mean_dice": round(fmean(by_source.values()), 4),
        "val_mean_dice": round(fmean(s.lesion_dice.value for s in val.sources), 4),
        "leaf_iou": round(report.leaf_iou.value, 4),
        "rho_c": round(report.severity.rho_c.value, 4),
    } | ({"disease_miou": round(report.disease_miou.value, 4)} if several else {})


def main() -> None:
    """Run what is missing, a seed after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--long-side", type=int, default=384)
    parser.add_argument("--shares", nargs="+", default=["1/32", "1/8", "3/10", "1"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", default="", help="name of what --set changes")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = arguments.work / "manifest.json"
    one_data_set(arguments.data, data)
    done = results_table.read(arguments.out)
    wanted = [
        (seed, share, method)
        for seed in arguments.seeds
        for share in arguments.shares
        for method in arguments.methods
        if share != "1" or method == "supervised"  # nothing is left without a mask
    ]
    for seed, share, method in wanted:
        name = {
            "method": method,
            "variant": arguments.variant,
            "share": share,
            "seed": str(seed),
            "steps": str(arguments.steps),
            "tile": str(arguments.tile),
            "long_side": str(arguments.long_side),
        }
        if results_table.holds(done, name):
            continue
        print(name, flush=True)
        settings = settings_of(
            seed=seed,
            share=share,
            steps=arguments.steps,
            tile=arguments.tile,
            long_side=arguments.long_side,
        ).with_settings([f"semi.method={method}", *arguments.settings])
        words = (method, arguments.variant, share.replace("/", "of"), arguments.steps, seed)
        called = "-".join(str(word) for word in words if word != "")
        place = arguments.work / called  # a killed run is resumed
        found = run(data, place, settings, arguments.out.with_suffix("") / f"{called}.csv")
        print(" ", found, flush=True)
        results_table.append(arguments.out, name | found | results_table.stamp())


if __name__ == "__main__":
    main()
