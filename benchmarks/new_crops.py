"""A crop without a mask: before and after its images join the run.

    python benchmarks/new_crops.py coffee potato --to rice --work FOLDER
    python benchmarks/new_crops.py rice --to potato --work FOLDER

The source crops have all their masks, the target none: its training images are
unlabeled. ``before`` learns from the sources alone, ``after`` from the target's images
too, with the same number of steps; ``--variant NAME --set ...`` changes how. The last
model is evaluated on the test images of sources and target. The metric is the ratio of
their lesion Dice, target over source, with an interval by groups: what part of the skill
in the source domain survives in the target domain.

Beside it stands what the model can be asked without a mask
(``training/semi_supervised/unlabeled_metrics.py``), and in
``new_crops_unlabeled_metrics.csv`` the same at every validation beside the lesion Dice on
the target's validation images, which the run never sees: whether those signs predict it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import results_table
from label_efficiency import evaluate_last, one_data_set, settings_of

from plantseg_next import api
from plantseg_next.data.manifest import Manifest
from plantseg_next.models.bundle import read_bundle
from plantseg_next.settings import Settings
from plantseg_next.training.callbacks.callback import Callback, Event, Validation
from plantseg_next.training.semi_supervised.unlabeled_metrics import unlabeled_set_metrics
from plantseg_next.workflows.validate import some_rows, views_without_masks

RESULTS = Path(__file__).parent / "results" / "new_crops.csv"
SIGNS = "new_crops_unlabeled_metrics.csv"
TARGET_IMAGES = 40
WAYS = {"before": "supervised", "after": "weak_to_strong"}


def without_masks(manifest: Manifest, target: str) -> Manifest:
    """Return the table with the target's training images unlabeled, and none to validate.

    Nothing is chosen by masks of the target, so its validation images are left out.
    """
    rows = []
    for row in manifest.rows:
        if row.source != target or row.split == "test":
            rows.append(row)
        elif row.split == "train":
            rows.append(replace(row, mask=None, disease=None, split="unlabeled"))
    return manifest.only(rows)


class Course(Callback):
    """Keep what is measured of the target at every validation, and how right it is.

    Args:
        run: Folder of the run.
        name: Of the run, for the table.
        signs: The table.
        target: Images with masks that the run does not have.
        learned: Images with masks that the run learns from.
        settings: Of the run.
    """

    def __init__(
        self,
        run: Path,
        name: dict[str, str],
        signs: Path,
        target: Manifest,
        learned: Manifest,
        settings: Settings,
    ) -> None:
        self._run = run
        self._name = name
        self._signs = signs
        self._target = target
        bare = target.only(replace(row, mask=None, disease=None) for row in target.rows)
        self._views = views_without_masks(
            learned, bare, settings, (1,) * target.classes.n_lesion_logits
        )
        self.newest: dict[str, Any] = {}

    def on_validation(
        self,
        step: int,
        validation: Validation,
        *,
        best: bool,  # noqa: ARG002
    ) -> Sequence[Event]:
        """Evaluate the model that the run has just written."""
        network, _ = read_bundle(self._run / "last")
        network.eval().requires_grad_(False)
        found = unlabeled_set_metrics(network, self._views, at_once=8)
        self.newest = {name: round(value, 4) for name, value in found.items()}
        report, _ = evaluate_last(self._run, self._target)
        row = {
            "step": step,
            "home_dice": round(validation.metrics["lesion_dice"], 4),
            "target_dice": round(report.sources[0].lesion_dice.value, 4),
            **{
                name.replace(f"/{self._target.rows[0].source}", "/target"): value
                for name, value in self.newest.items()
            },
        }
        results_table.append(self._signs, self._name | row | results_table.stamp())
        return ()


def main() -> None:
    """Run what is missing, a seed after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", default="", help="name of what --set changes")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    target = arguments.to.name
    pair = f"{'+'.join(path.name for path in arguments.data)} to {target}"
    work = arguments.work / pair.replace(" ", "_")
    work.mkdir(parents=True, exist_ok=True)
    whole = one_data_set([*arguments.data, arguments.to], work / "manifest.json")
    data = work / "without_masks.json"
    if not data.exists():
        without_masks(whole, target).write(data)
    done = results_table.read(arguments.out)
    for seed, way in ((s, w) for s in arguments.seeds for w in arguments.ways):
        name = {
            "pair": pair,
            "way": way,
            "variant": arguments.variant,
            "seed": str(seed),
            "steps": str(arguments.steps),
        }
        if results_table.holds(done, name):
            continue
        print(name, flush=True)
        settings = settings_of(seed=seed, share="1", steps=arguments.steps).with_settings(
            [
                f"semi.method={WAYS[way]}",
                "training.validations=8",
                *arguments.settings,
            ]
        )
        words = (way, arguments.variant, arguments.steps, seed)
        place = work / "-".join(str(word) for word in words if word != "")
        target_val = whole.split("val").labeled
        target_val = target_val.only(r for r in target_val.rows if r.source == target)
        learned = Manifest.read(data).split("train").labeled
        target_val = some_rows(target_val, TARGET_IMAGES, 0)
        signs = arguments.out.with_name(SIGNS)
        course = Course(place, name, signs, target_val, learned, settings)
        trained = api.train(
            data, place, settings, callbacks=[course], log=lambda line: print(" ", line)
        )
        report, _ = evaluate_last(place, Manifest.read(data).split("test").labeled)
        by_source = {s.name: round(s.lesion_dice.value, 4) for s in report.sources}
        found: dict[str, Any] = {
            "minutes": round(trained.summary.minutes, 2),
            "target": by_source.pop(target),
            "source": round(float(np.mean(list(by_source.values()))), 4),
            "ratio": round(report.target_domain.value, 4),
            "ratio_low": round(report.target_domain.low, 4),
            "ratio_high": round(report.target_domain.high, 4),
        }
        print(" ", found, flush=True)
        results_table.append(arguments.out, name | found | results_table.stamp())


if __name__ == "__main__":
    main()
