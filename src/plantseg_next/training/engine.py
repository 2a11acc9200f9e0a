"""A learner: the network with its optimizer and its teacher, on their device.

It takes a step in two parts. ``backward`` may fail for lack of memory and be tried
again; ``optimizer_step`` changes the weights and comes after all that can fail.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from plantseg_next.data.dataset import TrainBatch, to_micro_batches
from plantseg_next.models.segmenter import Segmenter
from plantseg_next.runtime import Device
from plantseg_next.settings import Settings
from plantseg_next.structures import IGNORE, NO_LESION, Batch, ClassMap, UnlabeledBatch
from plantseg_next.training import losses
from plantseg_next.training.accumulation import RngState
from plantseg_next.training.schedule import warmup_cosine
from plantseg_next.training.semi_supervised.ema_teacher import EmaTeacher
from plantseg_next.training.semi_supervised.image_labels import ImageLabelSupervision
from plantseg_next.training.semi_supervised.pseudo_labels import PseudoLabeler
from plantseg_next.training.step import learn

FINE_TUNING_DECAY = 0.75
WARMUP_FRACTION = 0.05
"""Of the steps: those in which the rate rises."""
MAX_GRADIENT_NORM = 1.0


class Engine:
    """Learn from what is drawn, a step at a time.

    Args:
        network: Trained in place.
        settings: The whole tree.
        device: Where to compute.
        pseudo_labeler: What is learned from tiles without labels.
    """

    def __init__(
        self,
        network: Segmenter,
        settings: Settings,
        device: Device,
        pseudo_labeler: PseudoLabeler | None = None,
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
        network.set_checkpointing(settings.memory.activation_checkpointing)
        self._settings = settings
        self.device = device
        self._label_counts = self._label_counts_now = torch.zeros(2, dtype=torch.long)
        self._model, self._optimizer = self._fabric.setup(
            network, make_optimizer(network, settings)
        )
        self.network = network
        self.pseudo_labeler = pseudo_labeler
        if pseudo_labeler is not None and not pseudo_labeler.teacher.offload_to_cpu:
            pseudo_labeler.teacher.network.to(self._fabric.device)

    @property
    def eval_model(self) -> nn.Module:
        """The network to judge and to keep: the teacher where there is one."""
        return (
            self.network
            if self.pseudo_labeler is None
            else self.pseudo_labeler.teacher.network
        )

    def backward(
        self, batch: TrainBatch, *, step: int, steps: int, micro_batch: int, profile: bool
    ) -> tuple[dict[str, Tensor], bool]:
        """Add up the gradients of a step.

        Args:
            batch: What the step learns from.
            step: Steps already taken.
            steps: Steps of the run.
            micro_batch: Labeled tiles a forward pass.
            profile: Whether to give lessons that count for nothing; see ``Lessons``.

        Returns:
            The parts of the loss, and whether the gradient is finite.
        """
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        lesion = batch.labeled.lesion
        is_none = lesion == NO_LESION
        is_lesion = (lesion != IGNORE) & ~is_none
        self._label_counts_now = self._label_counts + torch.stack(
            [is_none.sum(), is_lesion.sum()]
        )
        parts = [
            to_device(part, self._fabric.device)
            for part in to_micro_batches(batch, micro_batch)
        ]
        if self.pseudo_labeler is not None:
            self.pseudo_labeler.begin_step(step, steps, parts, profile=profile)
        parts_of_loss = learn(
            self._model,
            parts,
            self._settings.loss,
            self._fabric.backward,
            self.pseudo_labeler,
            loss_chunk_rows=self._settings.memory.loss_chunk_rows,
            log_prior_odds=losses.class_log_prior_odds(self._label_counts_now).to(
                self._fabric.device
            ),
        )
        norm = self._fabric.clip_gradients(
            self._model,
            self._optimizer,
            max_norm=MAX_GRADIENT_NORM,
            error_if_nonfinite=False,
        )
        return parts_of_loss, norm is None or bool(torch.isfinite(norm))

    def optimizer_step(self, *, step: int, steps: int, lr_scale: float = 1.0) -> None:
        """Take the step that the gradients ask for; the teacher follows.

        Args:
            step: Steps already taken.
            steps: Steps of the run.
            lr_scale: Of the learning rate, beside its schedule.
        """
        warmup = round(steps * WARMUP_FRACTION)
        factor = lr_scale * warmup_cosine(step, steps=steps, warmup=warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._optimizer.step()
        self._label_counts = self._label_counts_now
        if self.pseudo_labeler is not None:
            self.pseudo_labeler.teacher.update(self.network, steps=steps)

    def save_rng(self) -> Callable[[], None]:
        """Return what undoes a ``backward`` that failed, chance included."""
        chance = RngState.current()
        memory = (
            None if self.pseudo_labeler is None else self.pseudo_labeler.light_state_dict()
        )

        def undo() -> None:
            self.zero_grad()
            chance.restore()
            if self.pseudo_labeler is not None and memory is not None:
                self.pseudo_labeler.load_light_state_dict(memory)

        return undo

    def zero_grad(self) -> None:
        """Give back the gradients' memory."""
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "seen": self._label_counts,
            "lessons": None
            if self.pseudo_labeler is None
            else self.pseudo_labeler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the learner whose state it is."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._label_counts = state["seen"].cpu()
        # A file knows no channels-last; in another layout sums may round otherwise.
        for parameter, held in self._optimizer.state.items():
            for name, value in held.items():
                if value.shape == parameter.shape:
                    held[name] = torch.empty_like(parameter).copy_(value)
        if self.pseudo_labeler is not None:
            self.pseudo_labeler.load_state_dict(state["lessons"])


def build_engine(
    network: Segmenter,
    settings: Settings,
    device: Device,
    classes: ClassMap,
    *,
    with_unlabeled: bool,
    with_image_labels: bool = False,
) -> Engine:
    """Return the learner of a run; its teacher starts as a copy of the network.

    Args:
        network: Trained in place.
        settings: The whole tree.
        device: Where to compute.
        classes: Of the network.
        with_unlabeled: Whether there is anything without masks to learn from.
        with_image_labels: Whether some of that has names.
    """
    network.to(memory_format=torch.channels_last)  # the layout of the fastest convolutions
    if settings.memory.freeze_encoder:
        network.encoder.requires_grad_(False)
    pseudo_labeler = None
    if with_unlabeled:
        teacher = EmaTeacher(
            network,
            decay=settings.semi.ema_decay,
            bfloat16=uses_bfloat16(settings, device),
            offload_to_cpu=settings.memory.ema_offload,
        )
        weak = (
            ImageLabelSupervision(settings.image_labels, classes)
            if with_image_labels
            else None
        )
        pseudo_labeler = PseudoLabeler(teacher, settings.semi, classes, weak)
    return Engine(network, settings, device, pseudo_labeler)


def make_optimizer(network: Segmenter, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer that the settings ask for.

    Source:
        Loshchilov and Hutter 2019 (AdamW), arXiv:1711.05101; Shazeer and Stern 2018
        (Adafactor), arXiv:1804.04235, with AdamW's rate instead of a relative one.
    """
    groups = parameter_groups(network, settings)
    rate = settings.training.lr
    if settings.memory.optimizer == "adafactor":
        # One weight at a time: all at once would need as much memory as all weights.
        return torch.optim.Adafactor(groups, lr=rate, foreach=False)
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def uses_bfloat16(settings: Settings, device: Device) -> bool:
    """Return whether forward passes run in bfloat16; weights stay in float32."""
    if settings.training.precision == "auto":
        return device.has_bfloat16
    return settings.training.precision == "bfloat16"


def parameter_groups(network: Segmenter, settings: Settings) -> list[dict[str, Any]]:
    """Return the optimizer's groups: a rate a depth, no decay for scales and biases.

    The rate of an encoder layer is that of the layer above times the layer decay
    (Clark et al. 2020, ELECTRA, arXiv:2003.10555; Bao et al. 2021, BEiT,
    arXiv:2106.08254), so that published features change least near the image.
    """
    training = settings.training
    decay = training.layer_decay
    if decay is None:
        decay = 1.0 if settings.model.encoder_weights == "none" else FINE_TUNING_DECAY
    depths = {f"encoder.{name}": n for name, n in network.encoder.layer_depths().items()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (depths.get(name, 0), parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": training.lr * decay**depth,
            "weight_decay": training.weight_decay if decayed else 0.0,
        }
        for (depth, decayed), parameters in groups.items()
    ]


def to_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    """Return the tiles on a device; bytes stay bytes, a step's images are many."""
    labeled, views = batch
    return TrainBatch(
        batch_to_device(labeled, device),
        views
        and UnlabeledBatch(
            weak=views.weak.to(device, non_blocking=True),
            strong=views.strong.to(device, non_blocking=True),
            valid=views.valid.to(device, non_blocking=True),
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
        sparse_target=None
        if batch.sparse_target is None
        else batch.sparse_target.to(device, non_blocking=True),
    )
