"""The engine: the network with its optimizer and its teacher, on their device.

A step has two parts. ``backward`` may run out of memory and be retried;
``optimizer_step`` changes the weights and comes after everything that may fail.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from plantseg_next.data.dataset import TrainBatch, to_micro_batches
from plantseg_next.models.segmenter import Segmenter
from plantseg_next.runtime import Device, random_state, restore_random_state
from plantseg_next.settings import Settings
from plantseg_next.structures import (
    NO_LESION,
    Batch,
    ClassMap,
    UnlabeledBatch,
    is_lesion,
)
from plantseg_next.training.schedule import warmup_cosine
from plantseg_next.training.semi_supervised.ema_teacher import EmaTeacher
from plantseg_next.training.semi_supervised.image_labels import ImageLabelSupervision
from plantseg_next.training.semi_supervised.pseudo_labels import PseudoLabeler
from plantseg_next.training.sparse_labels import class_log_prior_odds
from plantseg_next.training.step import train_step

B = TypeVar("B", Batch, UnlabeledBatch)
FINE_TUNING_DECAY = 0.75
WARMUP_FRACTION = 0.05
"""Fraction of the steps in which the learning rate rises."""
MAX_GRADIENT_NORM = 1.0


class Engine:
    """Run training steps; the teacher starts as a copy of the network.

    Args:
        network: Trained in place.
        settings: The whole tree.
        device: Where to compute.
        classes: Of the network.
        with_unlabeled: Whether there are images without masks to learn from.
        with_image_labels: Whether some of those have image-level labels.
    """

    def __init__(
        self,
        network: Segmenter,
        settings: Settings,
        device: Device,
        classes: ClassMap,
        *,
        with_unlabeled: bool,
        with_image_labels: bool = False,
    ) -> None:
        network.to(memory_format=torch.channels_last)  # fastest layout for convolutions
        if settings.memory.freeze_encoder:
            network.encoder.requires_grad_(False)
        bfloat16 = uses_bfloat16(settings, device)
        self._settings = settings
        self.device = device
        self.network = network
        self.pseudo_labeler: PseudoLabeler | None = None
        if with_unlabeled:
            teacher = EmaTeacher(
                network,
                decay=settings.semi.ema_decay,
                bfloat16=bfloat16,
                offload_to_cpu=settings.memory.ema_offload,
            )
            self.pseudo_labeler = PseudoLabeler(
                teacher,
                settings.semi,
                classes,
                ImageLabelSupervision(settings.image_labels, classes)
                if with_image_labels
                else None,
            )
        self._fabric = _fabric(device, bfloat16=bfloat16)
        network.set_checkpointing(settings.memory.activation_checkpointing)
        self._label_counts = self._label_counts_now = torch.zeros(2, dtype=torch.long)
        self._model, self._optimizer = self._fabric.setup(
            network, make_optimizer(network, settings)
        )
        if self.pseudo_labeler is not None and not settings.memory.ema_offload:
            self.pseudo_labeler.teacher.network.to(self._fabric.device)

    @property
    def eval_model(self) -> nn.Module:
        """The network to evaluate and to save: the teacher where there is one."""
        return (
            self.network
            if self.pseudo_labeler is None
            else self.pseudo_labeler.teacher.network
        )

    def backward(
        self, batch: TrainBatch, *, step: int, steps: int, micro_batch: int, profile: bool
    ) -> tuple[dict[str, Tensor], bool]:
        """Accumulate the gradients of a step.

        Args:
            batch: The step's tiles.
            step: Steps already taken.
            steps: Steps of the run.
            micro_batch: Labeled tiles in a forward pass.
            profile: Whether steps are timed; see ``PseudoLabeler.weights``.

        Returns:
            Each loss by name, unweighted, and whether the gradient is finite.
        """
        self._model.train()
        self.zero_grad()
        lesion = batch.labeled.lesion
        self._label_counts_now = self._label_counts + torch.stack(
            [(lesion == NO_LESION).sum(), is_lesion(lesion).sum()]
        )
        odds = class_log_prior_odds(self._label_counts_now).to(self._fabric.device)
        micro_batches = [
            TrainBatch(
                to_device(labeled, self._fabric.device),
                views and to_device(views, self._fabric.device),
            )
            for labeled, views in to_micro_batches(batch, micro_batch)
        ]
        labeler, unsup = self.pseudo_labeler, None
        with _without_autocast_cache():
            if labeler is not None:
                unsup = labeler.weights(step, steps, micro_batches, profile=profile)
            terms = train_step(
                self._model,
                [part.labeled for part in micro_batches],
                self._settings.loss,
                self._fabric.backward,
                # The teacher predicts while there are no gradients in memory yet.
                pseudo_labeled=labeler.make_targets(micro_batches)
                if labeler is not None and unsup is not None
                else (),
                unsup=unsup,
                complementary_dropout=self._settings.semi.strong_views > 1,
                loss_chunk_rows=self._settings.memory.loss_chunk_rows,
                log_prior_odds=odds,
            )
        norm = self._fabric.clip_gradients(
            self._model,
            self._optimizer,
            max_norm=MAX_GRADIENT_NORM,
            error_if_nonfinite=False,
        )
        return terms, norm is None or bool(torch.isfinite(norm))

    def optimizer_step(self, *, step: int, steps: int, lr_scale: float = 1.0) -> None:
        """Apply the gradients, then update the teacher.

        Args:
            step: Steps already taken.
            steps: Steps of the run.
            lr_scale: Factor on the learning rate, besides its schedule.
        """
        warmup = round(steps * WARMUP_FRACTION)
        factor = lr_scale * warmup_cosine(step, steps=steps, warmup=warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._optimizer.step()
        self._label_counts = self._label_counts_now
        if self.pseudo_labeler is not None:
            self.pseudo_labeler.teacher.update(self.network, steps=steps)

    def undo_point(self) -> Callable[[], None]:
        """Return a function that undoes a failed ``backward``, random state included."""
        rng = random_state()
        labeler_state = (
            None if self.pseudo_labeler is None else self.pseudo_labeler.state_dict()
        )

        def undo() -> None:
            self.zero_grad()
            restore_random_state(rng)
            if self.pseudo_labeler is not None and labeler_state is not None:
                self.pseudo_labeler.load_state_dict(labeler_state)

        return undo

    def zero_grad(self) -> None:
        """Free the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "label_counts": self._label_counts,
        }
        if self.pseudo_labeler is not None:
            state["pseudo_labeler"] = self.pseudo_labeler.state_dict()
            state["teacher"] = self.pseudo_labeler.teacher.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state.

        Raises:
            Exception: Of any kind, if it is not a state of this network.
        """
        self.network.load_state_dict(state["network"])
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self._optimizer.param_groups
        ]
        self._optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self._optimizer.param_groups, groups, strict=True):
            group.update(own)  # rates and decay are those of the settings
            group.pop("peak", None)  # the name of base_lr in earlier checkpoints
        self._label_counts = state["label_counts"].cpu().view(2)
        # Files do not store channels-last; in another layout sums may round differently.
        for parameter, moments in self._optimizer.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)
                elif name.startswith("exp_avg"):
                    raise ValueError(f"{name} has the shape {tuple(value.shape)}")
        if self.pseudo_labeler is not None:
            self.pseudo_labeler.load_state_dict(state["pseudo_labeler"])
            self.pseudo_labeler.teacher.load_state_dict(state["teacher"])

    def is_finite(self) -> bool:
        """Return whether all weights are finite, those of the teacher too."""
        return all(
            bool(torch.isfinite(parameter).all())
            for network in {self.network, self.eval_model}
            for parameter in network.parameters()
        )


def _fabric(device: Device, *, bfloat16: bool) -> Fabric:
    """Return Fabric for one device; it would log the precision to the user."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return Fabric(
            accelerator="gpu" if device.kind == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if bfloat16 else "32-true",
        )
    finally:
        logger.setLevel(level)


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Keep no copies of weights in low precision until the end of a forward pass.

    Every weight is used once per forward pass; the copies would take half as much memory
    again as all weights.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def make_optimizer(network: Segmenter, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer of the settings.

    Source:
        Loshchilov and Hutter 2019 (AdamW), arXiv:1711.05101; Shazeer and Stern 2018
        (Adafactor), arXiv:1804.04235, with AdamW's learning rate instead of a relative one.
    """
    groups = parameter_groups(network, settings)
    lr = settings.training.lr
    if settings.memory.optimizer == "adafactor":
        # One weight at a time: all at once would need as much memory as all weights.
        return torch.optim.Adafactor(groups, lr=lr, foreach=False)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def uses_bfloat16(settings: Settings, device: Device) -> bool:
    """Return whether forward passes run in bfloat16; weights stay in float32."""
    if settings.training.precision == "auto":
        return device.has_bfloat16
    return settings.training.precision == "bfloat16"


def parameter_groups(network: Segmenter, settings: Settings) -> list[dict[str, Any]]:
    """Return parameter groups: a rate for each depth, no decay of scales and biases.

    The learning rate of an encoder layer is that of the layer above times the layer decay
    (Clark et al. 2020, ELECTRA, arXiv:2003.10555; Bao et al. 2021, BEiT,
    arXiv:2106.08254), so that pretrained features change least near the image.
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
            "base_lr": training.lr * decay**depth,
            "weight_decay": training.weight_decay if decayed else 0.0,
        }
        for (depth, decayed), parameters in groups.items()
    ]


def to_device(batch: B, device: torch.device) -> B:
    """Return tiles on a device; images stay bytes, which take less memory."""
    moved: dict[str, Any] = {
        field.name: value.to(device, non_blocking=True)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return replace(batch, **moved)
