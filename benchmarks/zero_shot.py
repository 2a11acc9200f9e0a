"""A model on data sets that it never saw: the starter by default.

    python benchmarks/zero_shot.py potato rice wild --healthy cardamom/healthy \
        --plants peanut_field wheat_field

Lesion Dice, precision and recall over all images with masks, with 95 % intervals by groups;
leaf IoU and severity where masks mark the leaf; the median severity of images that are
known to be healthy; and of photographs whose masks mark plants on natural ground, the leaf
IoU and the part of the ground that is called lesion (of the half that ``make_starter.py``
does not learn from). A row a data set is added to the CSV.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import results_table
from make_starter import in_first_half

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample, read_image
from plantseg_next.data.manifest import Manifest
from plantseg_next.evaluation.intervals import bootstrap_interval
from plantseg_next.evaluation.metrics import dice, precision, recall
from plantseg_next.evaluation.severity_agreement import concordance
from plantseg_next.inference.pipeline import load_pipeline
from plantseg_next.inference.predictor import Predictor
from plantseg_next.inference.severity import measure_severity
from plantseg_next.models.start import STARTER_FOLDER
from plantseg_next.structures import IGNORE

COLUMNS = (
    "data", "images", "lesion_dice", "dice_low", "dice_high", "precision", "recall",
    "leaf_iou", "severity_rho_c", "median_severity_pct", "ground_called_lesion_pct",
)  # fmt: skip
RESAMPLES = 2000


def dice_of(counts: np.ndarray) -> float:
    """Return Dice of pixels: overlap, truth, predicted."""
    return float(dice(counts))


def evaluate(predictor: Predictor, rows: Manifest) -> dict[str, Any]:
    """Return the metrics of one data set."""
    groups: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3, np.int64))
    leaf, ground = np.zeros(2, np.int64), np.zeros(2, np.int64)
    severity: list[tuple[float, float]] = []
    found_pct = []
    for image in rows.rows:
        truth = load_sample(image, rows)
        found = predictor(truth.image)
        known = truth.lesion != IGNORE
        a, b = (truth.lesion > 0) & known, (found.lesion > 0) & known
        groups[image.group_key] += np.array([(a & b).sum(), a.sum(), b.sum()])
        own = measure_severity(found.lesion, found.leaf).severity_pct
        found_pct.append(own or 0.0)
        if found.leaf is None or not (truth.leaf != IGNORE).any():
            continue
        a, b = truth.leaf == 1, (found.leaf == 1) & (truth.leaf != IGNORE)
        leaf += np.array([(a & b).sum(), (a | b).sum()])
        off = truth.leaf == 0
        ground += np.array([((found.lesion > 0) & off).sum(), off.sum()])
        true = measure_severity(truth.lesion, truth.leaf).severity_pct
        if known.any() and true is not None:
            severity.append((true, own or 0.0))
    counts = np.array(list(groups.values()))
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {
        "images": len(rows),
        "median_severity_pct": round(float(np.median(found_pct)), 2),
    }
    if counts[:, 1].any():
        interval = bootstrap_interval(counts, dice_of, n_resamples=RESAMPLES)
        total = counts.sum(0)
        row |= {
            "lesion_dice": round(dice_of(total), 4),
            "dice_low": round(interval.low, 4),
            "dice_high": round(interval.high, 4),
            "precision": round(float(precision(total)), 4),
            "recall": round(float(recall(total)), 4),
        }
    if leaf[1]:
        row["leaf_iou"] = round(float(leaf[0] / leaf[1]), 4)
        row["ground_called_lesion_pct"] = round(float(100 * ground[0] / ground[1]), 3)
    if len(severity) > 1:
        row["severity_rho_c"] = round(concordance(*np.array(severity).T), 4)
    return row


def healthy(predictor: Predictor, folder: Path) -> dict[str, Any]:
    """Return the median severity of images without any lesion."""
    found = []
    for row in read_folder(folder).rows:
        prediction = predictor(read_image(row.image))
        measured = measure_severity(prediction.lesion, prediction.leaf).severity_pct
        found.append(measured or 0.0)
    return dict.fromkeys(COLUMNS, "") | {
        "images": len(found),
        "median_severity_pct": round(float(np.median(found)), 2),
    }


def main() -> None:
    """Evaluate every data set, print, and keep a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--healthy", type=Path, nargs="*", default=[])
    parser.add_argument("--plants", type=Path, nargs="*", default=[])
    parser.add_argument("--split", help="of the data sets; all by default")
    parser.add_argument("--model", type=Path, default=STARTER_FOLDER)
    parser.add_argument("--name", default="starter")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/zero_shot.csv")
    )
    arguments = parser.parse_args()
    model = load_pipeline(arguments.model)
    predictor, card = model.predictor, model.card
    for folder in (*arguments.data, *arguments.plants, *arguments.healthy):
        if folder in arguments.healthy:
            row = healthy(predictor, folder)
        else:
            rows = read_folder(folder).labeled
            if folder in arguments.plants:
                rows = rows.only(r for r in rows.rows if not in_first_half(r.group))
            if arguments.split:
                rows = rows.only(r for r in rows.rows if r.split == arguments.split)
            row = evaluate(predictor, rows)
        row["data"] = folder.name
        named = {"model": arguments.name, "digest": card.sha256[:12]} | row
        print({k: v for k, v in named.items() if v != ""}, flush=True)
        results_table.append(arguments.out, named | results_table.stamp())


if __name__ == "__main__":
    main()
