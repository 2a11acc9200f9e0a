"""Pseudo-labels for the eye: image, hidden mask, and what a model is sure of.

    python benchmarks/pseudo_label_sheet.py RUN --out sheet.png

Takes images whose masks the run did not learn from, spread evenly over the range of
how right their pseudo-labels are. Doubtful pixels, which would be ignored, are gray.
Prints for each image which fraction of it passes the threshold, and of the lesion pixels
that pass (kept) how many are lesion; of the true ones, how many pass as none.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from contact_sheet import outlined

from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.evaluation.report import EvalItem
from plantseg_next.inference.pipeline import load_pipeline
from plantseg_next.structures import IGNORE, is_lesion
from plantseg_next.workflows.evaluate import eval_items
from plantseg_next.workflows.pseudo_label import sure_mask
from plantseg_next.workflows.validate import some_rows


def main() -> None:
    """Label, sort, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--shown", type=int, default=20)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--columns", type=int, default=2)
    arguments = parser.parse_args()
    hidden = Manifest.read(arguments.run / MANIFEST_FILE).split("unlabeled").labeled
    model = load_pipeline(arguments.run / "last")
    predictor, card = model.predictor, model.card
    chosen = some_rows(hidden, arguments.images, 0)
    shown = []
    for one in eval_items(predictor, card.classes, chosen, card.classes):
        if not isinstance(one, EvalItem):
            continue  # it could not be read
        truth = one.sample
        mask, _ = sure_mask(one.prediction, threshold=arguments.threshold, has_leaf=False)
        known = (truth.lesion != IGNORE) & (mask != IGNORE)
        kept, true = is_lesion(mask) & known, is_lesion(truth.lesion) & known
        right = (kept & true).sum() / max(kept.sum(), 1)
        lost = (true & ~kept).sum() / max(is_lesion(truth.lesion).sum(), 1)
        agreement = 2 * (kept & true).sum() / max(kept.sum() + true.sum(), 1)
        gray = cv2.cvtColor(truth.image, cv2.COLOR_RGB2GRAY)[..., None] // 2 + 96
        doubted = np.where((mask == IGNORE)[..., None], gray, truth.image)
        trio = [
            outlined(truth.image, np.zeros_like(truth.lesion), None),
            outlined(truth.image, truth.lesion, None),
            outlined(doubted.astype(np.uint8), np.where(kept, 1, 0), None),
        ]
        line = (
            f"{truth.key:28} confident {100 * (mask != IGNORE).mean():5.1f} %  "
            f"lesions kept {100 * right:5.1f} % right  "
            f"true lesions called none {100 * lost:5.1f} %"
        )
        shown.append((float(agreement), np.hstack(trio), line))
    shown.sort(key=lambda item: item[0])
    take = np.linspace(0, len(shown) - 1, arguments.shown).round().astype(int)
    for i in take:
        print(shown[i][2])
    rows = -(-arguments.shown // arguments.columns)
    cells = [shown[i][1] for i in take]
    cells += [np.full_like(cells[0], 255)] * (rows * arguments.columns - len(cells))
    columns = [
        np.vstack(cells[c * rows : (c + 1) * rows]) for c in range(arguments.columns)
    ]
    cv2.imwrite(str(arguments.out), np.hstack(columns)[:, :, ::-1])


if __name__ == "__main__":
    main()
