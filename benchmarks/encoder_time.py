"""What an encoder costs: a training step and the prediction of an image, in turn.

    python benchmarks/encoder_time.py --encoders tf_efficientnet_lite0 tf_efficientnet_lite1

A step is that of the command line with everything else at its default: 8 tiles of 192 px,
supervised. Normalization is that of ImageNet weights where a package carries them. The
image has 1,024 x 768 pixels. All encoders take one step, then one image, then the next
round, so that a machine that slows down slows all of them; medians are kept, and their
ratios to the first encoder.
"""

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
import results_table
import torch
from memory_error import tiles

from plantseg_next.experiment import Experiment
from plantseg_next.inference.predictor import make_predictor
from plantseg_next.models.bundle import Card
from plantseg_next.models.pretrained import PACKAGED
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.runtime import find_device
from plantseg_next.structures import ClassMap
from plantseg_next.training.learner import build_learner

RESULTS = Path(__file__).parent / "results" / "encoder_time.csv"
ENCODERS = (
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite2",
    "convnextv2_atto",
)
CLASSES = ClassMap(("lesion",), ("spot",), has_leaf=True)
IMAGE_HW = (768, 1024)


def main() -> None:
    """Time them, and add a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = find_device("cpu")
    plain = Experiment().with_settings(["unlabelled.method=supervised"])
    drawn = tiles(plain, with_lessons=False)
    learners, predictors, weights = {}, {}, {}
    for encoder in arguments.encoders:
        start = "imagenet" if encoder in PACKAGED else "random"
        settings = plain.with_settings([f"model.encoder={encoder}", f"model.start={start}"])
        network = build_segmenter(settings.model, CLASSES)
        weights[encoder] = sum(p.numel() for p in network.parameters())
        learners[encoder] = build_learner(
            network, settings, device, CLASSES, with_lessons=False
        )
        other = build_segmenter(settings.model, CLASSES).eval()
        card = Card(CLASSES, settings.model, settings.data.tile_px, None)
        predictors[encoder] = make_predictor(other, card, device.kind)
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE_HW, 3), np.uint8)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(1 + arguments.rounds):  # the first chooses kernels
        for encoder in arguments.encoders:
            began = time.perf_counter()
            learners[encoder].find_gradients(
                drawn, step=9, steps=10, micro_batch=8, rehearsal=True
            )
            learners[encoder].apply(step=9, steps=10)
            stepped = time.perf_counter()
            predictors[encoder](image)
            seconds[encoder, "step"].append(stepped - began)
            seconds[encoder, "image"].append(time.perf_counter() - stepped)
    first = arguments.encoders[0]
    for encoder in arguments.encoders:
        row = {"encoder": encoder, "weights_m": round(weights[encoder] / 1e6, 2)}
        for what in ("step", "image"):
            own, base = seconds[encoder, what][1:], seconds[first, what][1:]
            ratio = median(a / b for a, b in zip(own, base, strict=True))
            row |= {f"{what}_s": round(median(own), 3), f"{what}_ratio": round(ratio, 2)}
        row |= {"threads": torch.get_num_threads(), "cores": os.cpu_count() or 0}
        print(row, flush=True)
        results_table.append(RESULTS, row | results_table.stamp())


if __name__ == "__main__":
    main()
