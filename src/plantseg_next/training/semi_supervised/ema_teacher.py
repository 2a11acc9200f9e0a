"""The EMA teacher: an exponential moving average of the student's weights.

Axes: b tile, k class, h row, w column, n pass with dropout.

Source: Tarvainen and Valpola 2017 (Mean Teacher), arXiv:1703.01780.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.func import functional_call

from plantseg_next.models.segmenter import Scores, Segmenter
from plantseg_next.training.schedule import teacher_decay
from plantseg_next.uncertainty.confidence import Kind, confidence, dropout_on, probability

DROPOUT_PASSES = 4


@dataclass(frozen=True)
class TeacherPrediction:
    """The teacher's prediction of one head, at the size of the tile.

    Args:
        logits: ``(b, k, h, w)``, without dropout.
        passes: ``(n, b, k, h, w)`` with dropout; ``None`` where no mask needs them.
    """

    logits: Tensor
    passes: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["TeacherPrediction"]) -> "TeacherPrediction":
        """Return the predictions for many tiles as one, in order."""
        passes = [part.passes for part in parts if part.passes is not None]
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat(passes, dim=1) if passes else None,
        )

    @cached_property
    def label(self) -> Int[Tensor, "b h w"]:
        """The most probable class."""
        return self.logits.argmax(1)

    @cached_property
    def probability(self) -> Float[Tensor, "b h w"]:
        """Of the most probable class."""
        return probability(self.logits)

    def measured(self, *kinds: Kind) -> dict[Kind, Tensor]:
        """Return the confidence of each pixel by several measures."""
        return {kind: confidence(kind, self.logits, self.passes) for kind in kinds}


class EmaTeacher:
    """Moving average of a student; always in eval mode, never differentiated.

    Parameters and float buffers are averaged; integer buffers (counters) are copied.
    Frozen parameters of the student are shared, not copied.

    Args:
        student: Copied in its current state.
        decay: Largest fraction of the old teacher that an update keeps, in [0, 1).
        offload_to_cpu: Whether its weights stay in main memory and are copied to the
            device of the images for each forward pass.
        bfloat16: Whether its forward pass runs in bfloat16, as the student's does; its
            weights stay in float32, because small updates would be rounded to zero.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        decay: float,
        bfloat16: bool = False,
        offload_to_cpu: bool = False,
    ) -> None:
        frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
        self.network = copy.deepcopy(student, frozen).eval().requires_grad_(False)
        self.decay = decay
        self.bfloat16 = bfloat16
        self.offload_to_cpu = offload_to_cpu
        self.updates = 0
        self._on_device: dict[str, Tensor] | None = None

    @torch.no_grad()
    def __call__(
        self, image: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]
    ) -> Scores:
        """Return the teacher's predictions for images."""
        scores: Scores = self._call(self.network, "", image)
        return scores

    def predict(
        self, image: Tensor, *, with_dropout: bool = False
    ) -> tuple[Scores, TeacherPrediction, TeacherPrediction]:
        """Return the scores, and predictions of lesion and leaf at the size of the tile.

        Args:
            image: ``(b, 3, h, w)``.
            with_dropout: Whether to add ``DROPOUT_PASSES`` passes with dropout.
        """
        size = (image.shape[2], image.shape[3])
        scores = self(image)
        full = scores.resized(size)
        if not with_dropout:
            return scores, TeacherPrediction(full.lesion), TeacherPrediction(full.leaf)
        with dropout_on(self.network):
            passes = [self(image).resized(size) for _ in range(DROPOUT_PASSES)]
        lesion = torch.stack([scores.lesion for scores in passes])
        leaf = torch.stack([scores.leaf for scores in passes])
        return (
            scores,
            TeacherPrediction(full.lesion, lesion),
            TeacherPrediction(full.leaf, leaf),
        )

    def layer_cam(
        self, image: Tensor, disease: Tensor, against: Tensor
    ) -> Float[Tensor, "b h4 w4"]:
        """Return the activation map of a disease; see ``Segmenter.layer_cam``."""
        module = _LayerCam(self.network)
        cam: Tensor = self._call(module, "network.", image, disease, against)
        return cam

    def _call(self, module: nn.Module, prefix: str, image: Tensor, *args: Tensor) -> Any:  # noqa: ANN401
        """Call the network, or a module that contains it under a prefix."""
        with (
            self.on_device(image.device),
            torch.autocast(
                image.device.type,
                torch.bfloat16,
                enabled=self.bfloat16,
                cache_enabled=False,
            ),
        ):
            if self._on_device is None:
                return module(image, *args)
            weights = {f"{prefix}{n}": tensor for n, tensor in self._on_device.items()}
            return functional_call(module, weights, (image, *args))

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        """Keep a copy of offloaded weights on a device within this context.

        Weights that are used in bfloat16 alone are copied in bfloat16.
        """
        if self._on_device is not None or not self.offload_to_cpu:
            yield
            return
        encoder = getattr(self.network, "encoder", None)
        in_float32 = encoder is not None and encoder.stays_in_float32(device)
        self._on_device = {
            name: tensor.to(
                device,
                # Convolution and linear weights: autocast casts exactly these.
                torch.bfloat16
                if self.bfloat16
                and tensor.ndim > 1
                and name.endswith(".weight")
                and not (in_float32 and name.startswith("encoder."))
                else tensor.dtype,
                copy=True,
            )
            for name, tensor in _tensors(self.network).items()
        }
        try:
            yield
        finally:
            self._on_device = None

    @torch.no_grad()
    def update(self, student: nn.Module, *, steps: int) -> None:
        """Update the average; call once after every optimizer step.

        Args:
            student: After the step.
            steps: Steps of the run, which bound the decay; see ``teacher_decay``.
        """
        decay = teacher_decay(self.updates, steps=steps, greatest=self.decay)
        old, new = _tensors(self.network), _tensors(student)
        averaged = [
            name
            for name, tensor in old.items()
            if tensor.is_floating_point() and tensor is not new[name]
        ]
        torch._foreach_lerp_(
            [old[n] for n in averaged],
            [new[n].detach().to(old[n].device) for n in averaged],
            1 - decay,
        )
        for name, tensor in old.items():
            if not tensor.is_floating_point():
                tensor.copy_(new[name])
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]


class _LayerCam(nn.Module):
    """Call ``layer_cam`` as a forward pass: ``functional_call`` calls nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, disease: Tensor, against: Tensor) -> Tensor:
        return cast("Segmenter", self.network).layer_cam(image, disease, against)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())
