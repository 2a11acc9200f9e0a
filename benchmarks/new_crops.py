"""A crop without a mask: before and after its pictures join the run.

    python benchmarks/new_crops.py coffee potato --to rice --work FOLDER
    python benchmarks/new_crops.py rice --to potato --work FOLDER

The source crops have all their masks, the target none: its training pictures are
unlabelled. ``before`` learns from the sources alone, ``after`` from the target's pictures
too, with the same number of steps; ``--variant NAME --set ...`` changes how. The last
model is judged on the test pictures of sources and target. The figure is the ratio of
their lesion Dice, target over source, with an interval by groups: what part of the skill
at home survives abroad.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import results_table
from label_efficiency import Tally, judge_last, one_data_set, settings_of

from plantseg_next import api
from plantseg_next.data.manifest import Manifest

RESULTS = Path(__file__).parent / "results" / "new_crops.csv"
WAYS = {"before": "supervised", "after": "weak_to_strong"}


def without_masks(manifest: Manifest, target: str) -> Manifest:
    """Return the table with the target's training pictures unlabelled, and none to judge.

    Nothing is chosen by masks of the target, so its validation pictures are left out.
    """
    rows = []
    for row in manifest.rows:
        if row.source != target or row.split == "test":
            rows.append(row)
        elif row.split == "train":
            rows.append(replace(row, mask=None, disease=None, split="unlabelled"))
    return manifest.only(rows)


def dice(counts: np.ndarray) -> np.ndarray:
    """Return the lesion Dice of (overlap, truth, predicted) pixels."""
    return 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)


def ratio_of(tally: Tally, target: str, *, seed: int = 0) -> tuple[float, float, float]:
    """Return target over source, and a 95 % interval by resampled groups."""
    sources = sorted({source for source, _ in tally})
    chance = np.random.default_rng(seed)
    scores: dict[str, np.ndarray] = {}
    whole: dict[str, float] = {}
    for source in sources:
        counts = np.array([tally[key] for key in sorted(tally) if key[0] == source])
        draws = chance.multinomial(len(counts), [1 / len(counts)] * len(counts), 2000)
        scores[source] = dice(draws @ counts)
        whole[source] = float(dice(counts.sum(0)))
    home = [source for source in sources if source != target]
    found = scores[target] / np.mean([scores[source] for source in home], axis=0)
    middle = whole[target] / float(np.mean([whole[source] for source in home]))
    low, high = np.quantile(found, [0.025, 0.975])
    return middle, float(low), float(high)


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
            [f"unlabelled.method={WAYS[way]}", *arguments.settings]
        )
        words = (way, arguments.variant, arguments.steps, seed)
        place = work / "-".join(str(word) for word in words if word != "")
        trained = api.train(data, place, settings, say=lambda line: print(" ", line))
        report, tally = judge_last(place, Manifest.read(data).split("test").labelled)
        middle, low, high = ratio_of(tally, target)
        by_source = {s.name: round(s.lesion_dice, 4) for s in report.sources}
        found: dict[str, Any] = {
            "minutes": round(trained.outcome.minutes, 2),
            "target": by_source.pop(target),
            "source": round(float(np.mean(list(by_source.values()))), 4),
            "ratio": round(middle, 4),
            "ratio_low": round(low, 4),
            "ratio_high": round(high, 4),
        }
        print(" ", found, flush=True)
        results_table.append(arguments.out, name | found | results_table.stamp())


if __name__ == "__main__":
    main()
