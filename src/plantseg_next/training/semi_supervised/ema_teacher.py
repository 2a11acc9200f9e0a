"""The teacher: a slow running mean of the student, who is surer than the student is.

Source: Tarvainen and Valpola 2017 (Mean Teacher), arXiv:1703.01780.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call

from plantseg_next.models.segmenter import Scores, Segmenter
from plantseg_next.training.schedule import teacher_decay


class EmaTeacher:
    """Follow a student; always in eval, never differentiated.

    Parameters and float buffers are averaged; integer buffers (counters) are copied.
    What the student never changes is not kept twice.

    Args:
        student: Copied as it stands.
        decay: Greatest share of the old teacher that an update keeps, in [0, 1).
        offload_to_cpu: Whether its weights wait in main memory and visit the device of
            the images that it looks at, instead of being there all the time.
        bfloat16: Whether it computes in bfloat16, as its student does; its weights stay
            in float32, or small steps would round away.
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
        """Return what the teacher says of images."""
        found: Scores = self._call(self.network, "", image)
        return found

    def layer_cam(
        self, image: Tensor, disease: Tensor, against: Tensor
    ) -> Float[Tensor, "b h4 w4"]:
        """Return where the teacher sees a disease; see ``Segmenter.locate``."""
        seer = _LayerCam(self.network)
        found: Tensor = self._call(seer, "network.", image, disease, against)
        return found

    def _call(self, module: nn.Module, prefix: str, image: Tensor, *more: Tensor) -> Any:  # noqa: ANN401
        """Call the network, or a module that holds it under a prefix."""
        with (
            self.on_device(image.device),
            torch.autocast(image.device.type, torch.bfloat16, enabled=self.bfloat16),
        ):
            if self._on_device is None:
                return module(image, *more)
            weights = {f"{prefix}{n}": tensor for n, tensor in self._on_device.items()}
            return functional_call(module, weights, (image, *more))

    @contextmanager
    def on_device(self, device: torch.device) -> Iterator[None]:
        """Keep the weights on a device for a while, if they are away.

        Weights that are only ever used in bfloat16 go in bfloat16.
        """
        if self._on_device is not None or not self.offload_to_cpu:
            yield
            return
        encoder = getattr(self.network, "encoder", None)
        in_float32 = encoder is not None and encoder.stays_in_float32(device)
        self._on_device = {
            name: tensor.to(
                device,
                # Of convolutions and linear layers: what autocast casts, as it casts it.
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
        """Move towards the student; call once an optimizer step, after it.

        Args:
            student: As it stands after the step.
            steps: Length of the run, which bounds the decay; see ``teacher_decay``.
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
        """Return what a checkpoint must hold."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the teacher whose state it is."""
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]


class _LayerCam(nn.Module):
    """Call ``locate`` as a forward pass: with other weights, only that can be called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, disease: Tensor, against: Tensor) -> Tensor:
        return cast("Segmenter", self.network).layer_cam(image, disease, against)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())
