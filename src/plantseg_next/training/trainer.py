"""The dull loop: batches in, steps taken, the best model told of.

Lightning Fabric brings device and precision; the order of things is ours. What a step
learns is in ``step.py``, what a batch holds in ``data/streams.py``.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from plantseg_next.data.streams import Drawn
from plantseg_next.errors import TrainingError, UsageError
from plantseg_next.experiment import Experiment, TrainingSettings
from plantseg_next.runtime import Device
from plantseg_next.structures import Batch, Views
from plantseg_next.training.guards import Event
from plantseg_next.training.lessons import Lessons
from plantseg_next.training.schedules import warmup_cosine
from plantseg_next.training.step import learn

ENCODER_STAGES = 4
UNTIMED_STEPS = 10  # they pay for starting workers and choosing kernels
TIMED_STEPS = 20
FINE_TUNING_DECAY = 0.75


@dataclass(frozen=True)
class Validation:
    """How good the network is on the validation split.

    Args:
        score: The one number by which the best model is chosen; higher is better.
        figures: All numbers, by name.
        details: Further numbers, for the history only.
        events: What looks wrong.
    """

    score: float
    figures: Mapping[str, float]
    details: Mapping[str, float] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


@runtime_checkable
class Watcher(Protocol):
    """Whoever hears how a run goes: the progress bar, the history, the disk."""

    def on_step(self, step: int, steps: int, parts: Mapping[str, Tensor]) -> None:
        """Hear of an optimiser step, and of how many there will be."""

    def on_validation(self, step: int, validation: Validation, *, best: bool) -> None:
        """Hear of a validation, and whether it is the best so far."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        steps: Optimiser steps taken.
        best: The best validation.
        minutes: Wall time, validations included.
    """

    steps: int
    best: Validation
    minutes: float


def fit(
    network: nn.Module,
    batches: Callable[[int], Iterator[Drawn]],
    validate: Callable[[nn.Module], Validation],
    settings: Experiment,
    device: Device,
    watchers: Sequence[Watcher],
    lessons: Lessons | None = None,
) -> Outcome:
    """Train a network; watchers hear of it and keep the models.

    Args:
        network: Pictures in [0, 1] to ``Scores``; trained in place.
        batches: From a number of micro-batches to an iterator over them.
        validate: Judges the network as it stands.
        settings: Everything else.
        device: Where to compute.
        watchers: Told of every step and validation, in order.
        lessons: What is learned from tiles without labels. Its teacher is then the one
            that is judged: it is the better network.

    Raises:
        TrainingError: If a gradient is not finite; the step is not taken.
        UsageError: If the batch is not a multiple of the micro-batch.
    """
    training = settings.training
    accumulated = training.batch // micro_batch(training)
    # Fabric would tell the user of the precision, in its own words.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator="gpu" if device.kind == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if uses_bfloat16(training, device) else "32-true",
    )
    # Channels-last is the layout in which convolutions are fastest, here and on GPUs.
    network.to(memory_format=torch.channels_last)
    model, optimiser = fabric.setup(
        network, torch.optim.AdamW(parameter_groups(network, settings), lr=training.rate)
    )
    if lessons is not None:
        lessons.teacher.network.to(fabric.device)
    judged = network if lessons is None else lessons.teacher.network
    source = batches(training.steps * accumulated)
    pace = Pace(training)
    best: Validation | None = None
    step = 0
    while step < pace.steps:
        model.train()
        set_rate(optimiser, step, pace.steps, training.warmup_share)
        drawn = [to_device(next(source), fabric.device) for _ in range(accumulated)]
        if lessons is not None:
            lessons.begin_step(step, pace.steps, drawn, rehearsal=pace.is_timing(step))
        optimiser.zero_grad(set_to_none=True)
        parts = learn(model, drawn, settings.loss, fabric.backward, lessons)
        norm = fabric.clip_gradients(
            model, optimiser, max_norm=training.clip, error_if_nonfinite=False
        )
        _refuse_infinite(norm, step)
        optimiser.step()
        step += 1
        if lessons is not None:
            lessons.teacher.update(network, steps=pace.steps)
        for watcher in watchers:
            watcher.on_step(step, pace.steps, parts)
        if pace.measures_at(step) or is_due(step, pace.steps, training.validations):
            before = time.perf_counter()
            found = validate(judged)
            pace.learn(step, validation_s=time.perf_counter() - before)
            is_best = best is None or found.score >= best.score
            best = found if is_best else best
            for watcher in watchers:
                watcher.on_validation(step, found, best=is_best)
    assert best is not None, "a run ends with a validation"  # noqa: S101
    return Outcome(step, best, pace.minutes)


class Pace:
    """Turn the minutes of a run into steps, once, from its first steps.

    After that the number of steps stands, and with it the learning rate at every step: a
    run does not depend on what else the machine does.

    Args:
        settings: ``minutes`` and the greatest number of ``steps``.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._started = time.perf_counter()
        self._ends: list[float] = []  # of the timed steps
        self.steps = settings.steps

    @property
    def minutes(self) -> float:
        """Wall time so far."""
        return (time.perf_counter() - self._started) / 60

    def is_timing(self, step: int) -> bool:
        """Return whether the step after this one is among those that are timed."""
        return self._settings.minutes is not None and step < UNTIMED_STEPS + TIMED_STEPS

    def measures_at(self, step: int) -> bool:
        """Return whether this step ends the timing; a validation is then timed too."""
        last = UNTIMED_STEPS + TIMED_STEPS
        if self._settings.minutes is None or not UNTIMED_STEPS <= step <= last:
            return False
        self._ends.append(time.perf_counter())
        return step == last

    def learn(self, step: int, *, validation_s: float) -> None:
        """Fix the number of steps, if this was the step that ends the timing."""
        if self._settings.minutes is None or step != UNTIMED_STEPS + TIMED_STEPS:
            return
        # The median: now and then a step waits for a cold file or another program.
        step_s = median(b - a for a, b in pairwise(self._ends))
        left_s = self._settings.minutes * 60 - (time.perf_counter() - self._started)
        left_s -= validation_s * self._settings.validations
        self.steps = min(self.steps, step + max(1, int(left_s / step_s)))


def is_due(step: int, steps: int, validations: int) -> bool:
    """Return whether a step is one of ``validations`` evenly spaced ones, or the last.

    Example:
        >>> [s for s in range(1, 11) if is_due(s, 10, 3)]
        [4, 7, 10]
    """
    return (
        step == steps or (step * validations) // steps > ((step - 1) * validations) // steps
    )


def micro_batch(training: TrainingSettings) -> int:
    """Return the tiles of one forward pass.

    Raises:
        UsageError: If the batch is not a multiple of them.
    """
    size = training.micro_batch or training.batch
    if training.batch % size:
        raise UsageError(
            f"training.batch is {training.batch} and training.micro_batch is {size}.",
            needed="a batch that is a multiple of the micro-batch",
            fix=f"--set training.batch={size * -(-training.batch // size)}",
        )
    return size


def uses_bfloat16(training: TrainingSettings, device: Device) -> bool:
    """Return whether forward passes run in bfloat16; weights stay in float32."""
    if training.precision == "auto":
        return device.has_bfloat16
    return training.precision == "bfloat16"


def parameter_groups(network: nn.Module, settings: Experiment) -> list[dict[str, Any]]:
    """Return the optimiser's groups: a rate a depth, no decay for scales and biases.

    The rate of an encoder stage is that of the stage above times the layer decay
    (Clark et al. 2020, ELECTRA, arXiv:2003.10555; Bao et al. 2021, BEiT,
    arXiv:2106.08254), so that published features change least near the picture.
    """
    training = settings.training
    decay = training.layer_decay
    if decay is None:
        decay = 1.0 if settings.model.weights == "none" else FINE_TUNING_DECAY
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        key = (height_above(name), parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": training.rate * decay**height,
            "weight_decay": training.weight_decay if decayed else 0.0,
        }
        for (height, decayed), parameters in groups.items()
    ]


def height_above(name: str) -> int:
    """Return how many stages lie between a parameter and the decoder; 0 outside.

    Example:
        >>> height_above("encoder.network.stages_3.blocks.0.mlp.fc1.weight")
        1
        >>> height_above("encoder.network.stem_0.weight")
        5
    """
    if not name.startswith("encoder."):
        return 0
    if "stages_" not in name:
        return ENCODER_STAGES + 1
    return ENCODER_STAGES - int(name.split("stages_")[1][0])


def set_rate(
    optimiser: torch.optim.Optimizer, step: int, steps: int, warmup_share: float
) -> None:
    """Set every group's rate for the coming step."""
    factor = warmup_cosine(step, steps=steps, warmup=round(steps * warmup_share))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def to_device(drawn: Drawn, device: torch.device) -> Drawn:
    """Return the tiles on a device, bytes turned into what the network wants."""
    labelled, views = drawn
    return Drawn(
        batch_to_device(labelled, device),
        views
        and Views(
            weak=_picture(views.weak, device),
            strong=torch.stack([_picture(view, device) for view in views.strong]),
            inside=views.inside.to(device, non_blocking=True),
            keys=views.keys,
        ),
    )


def batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """Return labelled tiles on a device, as ``to_device`` does."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return Batch(
        image=_picture(batch.image, device),
        lesion=moved(batch.lesion).long(),
        leaf=moved(batch.leaf).long(),
        disease=moved(batch.disease).long(),
        distance=moved(batch.distance),
        keys=batch.keys,
    )


def _picture(tensor: Tensor, device: torch.device) -> Tensor:
    image = tensor.to(device, non_blocking=True).float().div_(255)
    return image.contiguous(memory_format=torch.channels_last)


def _refuse_infinite(norm: Tensor | None, step: int) -> None:
    if norm is not None and not torch.isfinite(norm):
        raise TrainingError(
            f"The gradient of step {step} is not finite.",
            needed="a loss that stays finite",
            fix="--set training.rate at a third of its value, or precision=float32",
        )
