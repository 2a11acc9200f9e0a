"""Real predictions for the eye: image, truth and prediction side by side.

    python benchmarks/contact_sheet.py MODEL DATA [DATA ...] --out sheet.png

Takes test images where the data set has them, otherwise any, spread evenly over the
range of their lesion Dice: the worst, the best, and some between.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from plantseg_next.data import splits
from plantseg_next.data.formats import read_folder
from plantseg_next.evaluation.metrics import confusion_matrix, dice, foreground_counts
from plantseg_next.evaluation.report import EvalItem
from plantseg_next.inference.pipeline import load_pipeline
from plantseg_next.structures import ClassMap, is_lesion
from plantseg_next.workflows.evaluate import eval_items
from plantseg_next.workflows.validate import some_rows

CELL_HW = (220, 300)
ANY_LESION = ClassMap(("any lesion",))


def outlined(image: np.ndarray, lesion: np.ndarray, leaf: np.ndarray | None) -> np.ndarray:
    """Return the image in a cell, lesions outlined in magenta and the leaf in cyan."""
    height, width = CELL_HW
    scale = min(height / image.shape[0], width / image.shape[1])
    h, w = (max(1, round(n * scale)) for n in image.shape[:2])
    cell = np.full((height, width, 3), 255, np.uint8)
    small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    masks = [(is_lesion(lesion), (255, 0, 255))]
    if leaf is not None:
        masks.insert(0, (leaf == 1, (0, 255, 255)))
    for mask, color in masks:
        shrunk = cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
        found, _ = cv2.findContours(shrunk, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(small, found, -1, color, 1)
    cell[:h, :w] = small
    return cell


def main() -> None:
    """Predict, sort, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=6)
    parser.add_argument("--images", type=int, default=40)
    arguments = parser.parse_args()
    model = load_pipeline(arguments.model)
    predictor, card = model.predictor, model.card
    columns = []
    for data in arguments.data:
        manifest = splits.assign(read_folder(data), seed=0)
        test = manifest.split("test").labeled
        chosen = some_rows(test if len(test) else manifest, arguments.images, 0)
        shown = []
        for one in eval_items(predictor, card.classes, chosen, ANY_LESION):
            if not isinstance(one, EvalItem):
                continue  # it could not be read
            truth, found = one.sample, one.prediction
            confusion = confusion_matrix(truth.lesion, found.lesion, 2)
            score = float(
                dice(foreground_counts(confusion))
            )  # NaN: no lesion mask is known
            trio = [
                outlined(truth.image, np.zeros_like(truth.lesion), None),
                outlined(truth.image, truth.lesion, truth.leaf),
                outlined(truth.image, found.lesion, found.leaf),
            ]
            cv2.putText(
                trio[2],
                "" if np.isnan(score) else f"{score:.2f}",
                (4, 214),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.7,
                (200, 0, 0),
                2,
            )
            shown.append((np.nan_to_num(score, nan=1.0), np.hstack(trio)))
        shown.sort(key=lambda pair: pair[0])
        take = np.linspace(0, len(shown) - 1, arguments.each).round().astype(int)
        columns.append(np.vstack([shown[i][1] for i in take]))
    cv2.imwrite(str(arguments.out), np.hstack(columns)[:, :, ::-1])


if __name__ == "__main__":
    main()
