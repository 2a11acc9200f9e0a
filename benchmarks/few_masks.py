"""A new crop with few masks, from each start.

    python benchmarks/few_masks.py potato rice --work FOLDER --masks 10 50 \
        --starts starter imagenet random

Some masks of the training split are kept (by group, at least one of every disease, drawn
again for every seed), a model is trained on them from each start, and its last weights are
evaluated on the test split, which chooses nothing. ``random`` is ConvNeXt-V2 atto, the best
random start known here. A row a run is added to the CSV; what is in it is not repeated.
"""

import argparse
from pathlib import Path
from typing import Any

import results_table
from zero_shot import evaluate

from plantseg_next import api
from plantseg_next.data import splits
from plantseg_next.data.formats import read_folder
from plantseg_next.data.manifest import Manifest
from plantseg_next.inference.pipeline import load_pipeline
from plantseg_next.settings import Settings

RESULTS = Path(__file__).parent / "results" / "few_masks.csv"
START = {
    "starter": ["model.start=starter"],
    "imagenet": ["model.start=imagenet"],
    "random": ["model.start=random", "model.encoder=convnextv2_atto"],
}


def run(data: Path, out: Path, name: dict[str, str], settings: list[str]) -> dict[str, Any]:
    """Train and evaluate once."""
    manifest = splits.assign(read_folder(data), seed=0)
    n_train = len(manifest.split("train").labeled)
    chosen = Settings().with_settings(
        [
            f"seed={name['seed']}",
            f"data.labeled_fraction={int(name['masks']) / n_train}",
            f"data.tile_px={name['tile']}",
            f"training.steps={name['steps']}",
            f"semi.method={name['method']}",
            "training.minutes=null",
            "training.validations=1",
            "training.validation_images=10",
            *START[name["start"]],
            *settings,
        ]
    )
    trained = api.train(data, out, chosen, log=lambda line: print(" ", line, flush=True))
    predictor = load_pipeline(out / "last").predictor
    test = Manifest.read(out / "manifest.json").split("test").labeled
    found = evaluate(predictor, test)
    return {
        "n_masks": trained.n_train,
        "minutes": round(trained.summary.minutes, 2),
        **{
            column: found[column]
            for column in (
                "images", "lesion_dice", "dice_low", "dice_high", "precision", "recall",
                "leaf_iou", "severity_rho_c",
            )
        },
    }  # fmt: skip


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--masks", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--starts", nargs="+", choices=list(START), default=list(START))
    parser.add_argument("--methods", nargs="+", default=["supervised"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for data in arguments.data:
            for masks in arguments.masks:
                for start in arguments.starts:
                    for method in arguments.methods:
                        name = {
                            "data": data.name,
                            "start": start,
                            "masks": str(masks),
                            "method": method,
                            "seed": str(seed),
                            "steps": str(arguments.steps),
                            "tile": str(arguments.tile),
                            "settings": " ".join(arguments.settings),
                        }
                        if results_table.holds(results_table.read(arguments.out), name):
                            continue
                        print(name, flush=True)
                        called = "-".join(v for v in name.values() if v).replace("/", "_")
                        found = run(data, arguments.work / called, name, arguments.settings)
                        print(" ", found, flush=True)
                        results_table.append(
                            arguments.out, name | found | results_table.stamp()
                        )


if __name__ == "__main__":
    main()
