"""What each way to save memory is worth: peak, time, and the loss after fifty steps.

    python benchmarks/memory_techniques.py --work FOLDER
    python benchmarks/memory_techniques.py --work FOLDER --losses

The first: a technique and the plain learner take the same steps on the same drawn leaves
from the same start, in turn: the ratio of their times is measured within one process. The
peak is what PyTorch's profiler adds up (see ``memory_error.py``).

The second: how far the loss of the last ten of fifty steps is from the plain learner's,
with a smaller network, from several starts. "without: channels-last" changes nothing but
the rounding and is the measure of the others.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

import results_table
import torch
from memory_error import ALL_PARTS, allocated
from torch import Tensor

from plantseg_next.data.loading import loader
from plantseg_next.data.streams import Drawn
from plantseg_next.experiment import Experiment
from plantseg_next.learning import Plan, Sources, gather, tiles_of
from plantseg_next.models import cpu_backward
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.runtime import find_device
from plantseg_next.structures import ClassMap
from plantseg_next.synthetic.leaves import write_drawn_folder
from plantseg_next.training.learner import Learner, build_learner
from plantseg_next.training.memory.allocator import MIB

RESULTS = Path(__file__).parent / "results" / "memory_techniques.csv"
LOSSES = RESULTS.with_name("memory_techniques_loss.csv")
STEPS = 50
WARM = 5  # steps whose time does not count
PLAIN = [
    "model.encoder=convnextv2_nano",
    "data.tile_px=160",
    "data.labelled_share=0.5",
    "data.workers=0",
    "training.batch=8",
    "unlabelled.starts=0",
]
SMALLER = ["model.encoder=convnextv2_atto", "data.tile_px=96"]
# What is dropped by chance depends on how a step is parted: it would hide what does not.
SMALLER += ["model.dropout=0", "model.drop_path=0"]
STARTS = (0, 1, 2)


@dataclass(frozen=True)
class Technique:
    """One way to save memory, or to waste it.

    Args:
        name: For the table.
        settings: What it changes.
        change: What it does to a learner, where no setting does it.
        many_classes: Whether it is to be shown with 116 lesion classes.
    """

    name: str
    settings: tuple[str, ...] = ()
    change: Callable[[Learner], None] | None = None
    many_classes: bool = False


def zero_gradients(learner: Learner) -> None:
    """Fill gradients with zeros between steps instead of giving them back."""
    optimiser: Any = learner._optimiser  # noqa: SLF001
    plain = optimiser.zero_grad
    optimiser.zero_grad = lambda set_to_none=True: plain(set_to_none=False)  # noqa: ARG005


def teacher_in_float32(learner: Learner) -> None:
    """Let the teacher compute as its weights are kept."""
    assert learner.lessons is not None  # noqa: S101
    learner.lessons.teacher.bfloat16 = False


def weights_stay_cast(learner: Learner) -> None:
    """Keep every weight's low-precision copy until the forward pass ends."""

    @contextmanager
    def keeping() -> Iterator[None]:
        torch.set_autocast_cache_enabled(True)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(False)

    under(learner, keeping)


def slow_layers_in_bfloat16(learner: Learner) -> None:
    """Find the gradients of all layers in bfloat16, on a CPU too."""
    under(learner, lambda: patch.object(cpu_backward, "is_faster", lambda _: False))


def under(learner: Learner, context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Let a learner find its gradients within a context."""
    find_gradients = learner.find_gradients

    def within(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with context():
            return find_gradients(*args, **kwargs)

    setattr(learner, "find_gradients", within)  # noqa: B010


EXACT = (f"memory.recomputed={ALL_PARTS}", "training.micro_batch=1")
TECHNIQUES = (
    Technique("two tiles at once", ("training.micro_batch=2",)),
    Technique("fine parts and decoder recomputed", ("memory.recomputed=[fine,decoder]",)),
    Technique("stages 1 and 2 recomputed", ("memory.recomputed=[stage_1,stage_2]",)),
    Technique("everything recomputed", (f"memory.recomputed={ALL_PARTS}",)),
    Technique("losses in stripes of 64 rows", ("memory.loss_rows=64",)),
    Technique("the same, 116 classes", ("memory.loss_rows=64",), many_classes=True),
    Technique("teacher away", ("memory.teacher=host",)),
    Technique("Adafactor", ("memory.optimiser=adafactor",)),
    Technique("frozen encoder", ("memory.frozen=true",)),
    Technique("one tile at once, everything recomputed", EXACT),
    Technique(
        "all together",
        (*EXACT, "memory.optimiser=adafactor", "memory.teacher=host"),
    ),
    Technique("without: bfloat16", ("training.precision=float32",)),
    Technique("without: channels-last", ("memory.channels_last=false",)),
    Technique("without: gradients given back", (), zero_gradients),
    Technique("without: teacher in bfloat16", (), teacher_in_float32),
    Technique("without: casts dropped after use", (), weights_stay_cast),
    Technique("without: slow layers' gradients in float32", (), slow_layers_in_bfloat16),
    Technique("cache cleared after every step", ("memory.clears_cache=true",)),
)


PLAIN_STEP = Technique("plain")


def prepare(work: Path) -> Path:
    """Draw the leaves, once."""
    folder = work / "leaves"
    if not folder.is_dir():
        write_drawn_folder(folder, 120, seed=0, size_hw=(256, 256))
    return folder


def batches(
    folder: Path, n: int, technique: Technique, *more: str
) -> tuple[list[Drawn], ClassMap]:
    """Return what the steps learn from, and its classes."""
    settings = Experiment().with_settings([*PLAIN, *more])
    manifest = gather(Sources(folder), settings)
    plan = Plan.of(manifest, settings, str(folder))
    tiles = tiles_of(plan.learned, plan.unlabelled, settings, plan.pixels)
    drawn = loader(tiles, tiles=settings.training.batch, start=0, stop=n, workers=0)
    classes = manifest.classes
    if technique.many_classes:
        names = tuple(f"disease {i}" for i in range(115))
        classes = ClassMap(names, classes.diseases, classes.has_leaf)
    return list(islice(drawn, n)), classes


def learner_of(
    settings: Experiment, classes: ClassMap, technique: Technique, start: int = 0
) -> Learner:
    """Return a learner with a technique; what it starts from depends on `start` alone."""
    torch.manual_seed(start)
    network = build_segmenter(settings.model, classes)
    device = find_device("cpu")
    found = build_learner(network, settings, device, classes, with_lessons=True)
    if technique.change is not None:
        technique.change(found)
    return found


def take(learner: Learner, settings: Experiment, drawn: Drawn, step: int) -> Tensor:
    """Take a step; return the sum of the parts of its loss."""
    torch.manual_seed(step)
    size = settings.training.tiles_at_once
    # As in the middle of a run, so that lessons count.
    at = {"step": STEPS, "steps": 2 * STEPS}
    parts, _ = learner.find_gradients(drawn, micro_batch=size, rehearsal=True, **at)
    learner.apply(**at)
    return torch.stack([part.float() for part in parts.values()]).sum()


def measure(technique: Technique, folder: Path) -> dict[str, float]:
    """Return peak, ratio of times and losses of one technique."""
    drawn, classes = batches(folder, STEPS, technique)
    found: dict[str, Any] = {}
    learners = {}
    for name, which in (("plain", PLAIN_STEP), ("changed", technique)):
        settings = Experiment().with_settings(
            [*PLAIN, *(which.settings if name == "changed" else ())]
        )
        learners[name] = (learner_of(settings, classes, which), settings)
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    losses: dict[str, list[float]] = {name: [] for name in learners}
    for step, one in enumerate(drawn):
        for name, (learner, settings) in learners.items():
            began = time.perf_counter()
            losses[name].append(float(take(learner, settings, one, step)))
            seconds[name].append(time.perf_counter() - began)
    for name, (learner, settings) in learners.items():
        learner.forget_gradients()
        gc.collect()
        found[f"{name}_peak"] = allocated(
            lambda: take(learner, settings, drawn[0], 0),  # noqa: B023
            learner,
            drawn[0],
        )
        found[f"{name}_loss"] = fmean(losses[name][-10:])
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["changed"], strict=True)][
        WARM:
    ]
    return found | {"slower": median(ratios), "step_s": median(seconds["plain"][WARM:])}


def loss_of(technique: Technique, folder: Path, start: int) -> float:
    """Return the loss of the last ten of fifty steps of the smaller network."""
    drawn, classes = batches(folder, STEPS, technique, *SMALLER)
    settings = Experiment().with_settings([*PLAIN, *SMALLER, *technique.settings])
    learner = learner_of(settings, classes, technique, start)
    return fmean(
        [float(take(learner, settings, one, i)) for i, one in enumerate(drawn)][-10:]
    )


def compare_losses(folder: Path) -> None:
    """Add a row for every technique and start that is not in the table yet."""
    done = {(row["technique"], row["start"]) for row in results_table.read(LOSSES)}
    for start in STARTS:
        for many in (False, True):
            plain = None
            for technique in TECHNIQUES:
                if technique.many_classes != many or (technique.name, str(start)) in done:
                    continue
                if plain is None:
                    same = replace(PLAIN_STEP, many_classes=many)
                    plain = loss_of(same, folder, start)
                loss = loss_of(technique, folder, start)
                row = {
                    "technique": technique.name,
                    "start": start,
                    "loss": round(loss, 5),
                    "apart": round(loss - plain, 5),
                }
                results_table.append(LOSSES, row | results_table.stamp())
                print(row, flush=True)


def main() -> None:
    """Measure every technique that is not in the table yet, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--one", help="measure this technique and print it as JSON")
    parser.add_argument("--losses", action="store_true", help="compare losses only")
    arguments = parser.parse_args()
    folder = prepare(arguments.work)
    if arguments.losses:
        compare_losses(folder)
        return
    by_name = {technique.name: technique for technique in TECHNIQUES}
    if arguments.one is not None:
        print(json.dumps(measure(by_name[arguments.one], folder)))
        return
    done = {row["technique"] for row in results_table.read(RESULTS)}
    for name in by_name.keys() - done:
        ran = subprocess.run(
            [sys.executable, __file__, "--work", str(arguments.work), "--one", name],
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(ran.stdout.strip().splitlines()[-1])
        row = {
            "technique": name,
            "peak_mib": round(found["changed_peak"] / MIB, 1),
            "plain_peak_mib": round(found["plain_peak"] / MIB, 1),
            "time_ratio": round(found["slower"], 3),
            "plain_step_s": round(found["step_s"], 3),
            "loss": round(found["changed_loss"], 5),
            "plain_loss": round(found["plain_loss"], 5),
        }
        results_table.append(RESULTS, row | results_table.stamp())
        print(row, flush=True)


if __name__ == "__main__":
    main()
