"""A learner: the network with its optimizer and its teacher, on their device.

It takes a step in two parts. ``find_gradients`` may fail for lack of memory and be tried
again; ``apply`` changes the weights and comes after all that can fail.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from plantseg_next.data.dataset import Drawn, split
from plantseg_next.models.segmenter import Segmenter
from plantseg_next.runtime import Device
from plantseg_next.settings import Experiment
from plantseg_next.structures import IGNORE, NO_LESION, Batch, ClassMap, Views
from plantseg_next.training import losses
from plantseg_next.training.accumulation import Chance
from plantseg_next.training.schedule import warmup_cosine
from plantseg_next.training.semi_supervised.ema_teacher import Teacher
from plantseg_next.training.semi_supervised.image_labels import WeakLabels
from plantseg_next.training.semi_supervised.pseudo_labels import Lessons
from plantseg_next.training.step import learn

FINE_TUNING_DECAY = 0.75
WARMUP_FRACTION = 0.05
"""Of the steps: those in which the rate rises."""
MAX_GRADIENT_NORM = 1.0


class Learner:
    """Learn from what is drawn, a step at a time.

    Args:
        network: Trained in place.
        settings: The whole tree.
        device: Where to compute.
        lessons: What is learned from tiles without labels.
    """

    def __init__(
        self,
        network: Segmenter,
        settings: Experiment,
        device: Device,
        lessons: Lessons | None = None,
    ) -> None:
        # Fabric would tell the user of the precision, in its own words.
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        self._fabric = Fabric(
            accelerator="gpu" if device.kind == "cuda" else "cpu",
            devices=1,
            precision=("bf16-mixed" if uses_bfloat16(settings, device) else "32-true"),
        )
        # A weight is used once a forward pass; kept in low precision until its end, all of
        # them would take half as much again as they do.
        torch.set_autocast_cache_enabled(False)
        network.recompute(settings.memory.recomputed)
        self._settings = settings
        self.device = device
        self._seen = self._seen_now = torch.zeros(2, dtype=torch.long)
        self._model, self._optimizer = self._fabric.setup(
            network, make_optimizer(network, settings)
        )
        self.network = network
        self.lessons = lessons
        if lessons is not None and not lessons.teacher.away:
            lessons.teacher.network.to(self._fabric.device)

    @property
    def judged(self) -> nn.Module:
        """The network to judge and to keep: the teacher where there is one."""
        return self.network if self.lessons is None else self.lessons.teacher.network

    def find_gradients(
        self, drawn: Drawn, *, step: int, steps: int, micro_batch: int, rehearsal: bool
    ) -> tuple[dict[str, Tensor], bool]:
        """Add up the gradients of a step.

        Args:
            drawn: What the step learns from.
            step: Steps already taken.
            steps: Steps of the run.
            micro_batch: Labeled tiles a forward pass.
            rehearsal: Whether to give lessons that count for nothing; see ``Lessons``.

        Returns:
            The parts of the loss, and whether the gradient is finite.
        """
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        lesion = drawn.labeled.lesion
        is_none = lesion == NO_LESION
        is_lesion = (lesion != IGNORE) & ~is_none
        self._seen_now = self._seen + torch.stack([is_none.sum(), is_lesion.sum()])
        parts = [to_device(part, self._fabric.device) for part in split(drawn, micro_batch)]
        if self.lessons is not None:
            self.lessons.begin_step(step, steps, parts, rehearsal=rehearsal)
        parts_of_loss = learn(
            self._model,
            parts,
            self._settings.loss,
            self._fabric.backward,
            self.lessons,
            rows=self._settings.memory.loss_rows,
            rarity=losses.rarity_of(self._seen_now).to(self._fabric.device),
        )
        norm = self._fabric.clip_gradients(
            self._model,
            self._optimizer,
            max_norm=MAX_GRADIENT_NORM,
            error_if_nonfinite=False,
        )
        return parts_of_loss, norm is None or bool(torch.isfinite(norm))

    def apply(self, *, step: int, steps: int, rate_factor: float = 1.0) -> None:
        """Take the step that the gradients ask for; the teacher follows.

        Args:
            step: Steps already taken.
            steps: Steps of the run.
            rate_factor: Of the learning rate, beside its schedule.
        """
        warmup = round(steps * WARMUP_FRACTION)
        factor = rate_factor * warmup_cosine(step, steps=steps, warmup=warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._optimizer.step()
        self._seen = self._seen_now
        if self.lessons is not None:
            self.lessons.teacher.update(self.network, steps=steps)

    def snapshot(self) -> Callable[[], None]:
        """Return what undoes a ``find_gradients`` that failed, chance included."""
        chance = Chance.now()
        memory = None if self.lessons is None else self.lessons.memory()

        def undo() -> None:
            self.forget_gradients()
            chance.restore()
            if self.lessons is not None and memory is not None:
                self.lessons.load_memory(memory)

        return undo

    def forget_gradients(self) -> None:
        """Give back the gradients' memory."""
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "seen": self._seen,
            "lessons": None if self.lessons is None else self.lessons.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the learner whose state it is."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._seen = state["seen"].cpu()
        # A file knows no channels-last; in another layout sums may round otherwise.
        for parameter, held in self._optimizer.state.items():
            for name, value in held.items():
                if value.shape == parameter.shape:
                    held[name] = torch.empty_like(parameter).copy_(value)
        if self.lessons is not None:
            self.lessons.load_state_dict(state["lessons"])


def build_learner(
    network: Segmenter,
    settings: Experiment,
    device: Device,
    classes: ClassMap,
    *,
    with_lessons: bool,
    with_names: bool = False,
) -> Learner:
    """Return the learner of a run; its teacher starts as a copy of the network.

    Args:
        network: Trained in place.
        settings: The whole tree.
        device: Where to compute.
        classes: Of the network.
        with_lessons: Whether there is anything without masks to learn from.
        with_names: Whether some of that has names.
    """
    network.to(memory_format=torch.channels_last)  # the layout of the fastest convolutions
    if settings.memory.frozen:
        network.encoder.requires_grad_(False)
    lessons = None
    if with_lessons:
        teacher = Teacher(
            network,
            decay=settings.unlabeled.decay,
            bfloat16=uses_bfloat16(settings, device),
            away=settings.memory.teacher == "host",
        )
        weak = WeakLabels(settings.names, classes) if with_names else None
        lessons = Lessons(teacher, settings.unlabeled, classes, weak)
    return Learner(network, settings, device, lessons)


def make_optimizer(network: Segmenter, settings: Experiment) -> torch.optim.Optimizer:
    """Return the optimizer that the settings ask for.

    Source:
        Loshchilov and Hutter 2019 (AdamW), arXiv:1711.05101; Shazeer and Stern 2018
        (Adafactor), arXiv:1804.04235, with AdamW's rate instead of a relative one.
    """
    groups = parameter_groups(network, settings)
    rate = settings.training.rate
    if settings.memory.optimizer == "adafactor":
        # One weight at a time: all at once would need as much memory as all weights.
        return torch.optim.Adafactor(groups, lr=rate, foreach=False)
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def uses_bfloat16(settings: Experiment, device: Device) -> bool:
    """Return whether forward passes run in bfloat16; weights stay in float32."""
    if settings.training.precision == "auto":
        return device.has_bfloat16
    return settings.training.precision == "bfloat16"


def parameter_groups(network: Segmenter, settings: Experiment) -> list[dict[str, Any]]:
    """Return the optimizer's groups: a rate a depth, no decay for scales and biases.

    The rate of an encoder layer is that of the layer above times the layer decay
    (Clark et al. 2020, ELECTRA, arXiv:2003.10555; Bao et al. 2021, BEiT,
    arXiv:2106.08254), so that published features change least near the image.
    """
    training = settings.training
    decay = training.layer_decay
    if decay is None:
        decay = 1.0 if settings.model.encoder_weights == "none" else FINE_TUNING_DECAY
    depths = {f"encoder.{name}": n for name, n in network.encoder.depths().items()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (depths.get(name, 0), parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": training.rate * decay**depth,
            "weight_decay": training.weight_decay if decayed else 0.0,
        }
        for (depth, decayed), parameters in groups.items()
    ]


def to_device(drawn: Drawn, device: torch.device) -> Drawn:
    """Return the tiles on a device; bytes stay bytes, a step's images are many."""
    labeled, views = drawn
    return Drawn(
        batch_to_device(labeled, device),
        views
        and Views(
            weak=views.weak.to(device, non_blocking=True),
            strong=views.strong.to(device, non_blocking=True),
            inside=views.inside.to(device, non_blocking=True),
            disease=views.disease.to(device, non_blocking=True),
            keys=views.keys,
        ),
    )


def batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """Return labeled tiles on a device, as ``to_device`` does."""
    return Batch(
        image=batch.image.to(device, non_blocking=True),
        lesion=batch.lesion.to(device, non_blocking=True),
        leaf=batch.leaf.to(device, non_blocking=True),
        disease=batch.disease.to(device, non_blocking=True),
        keys=batch.keys,
        points=None if batch.points is None else batch.points.to(device, non_blocking=True),
    )
