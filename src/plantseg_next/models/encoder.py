"""The encoder: ConvNeXt-V2 of any size, from timm, as a pyramid c2..c5.

Source: Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808; Liu et al. 2022, ConvNeXt,
arXiv:2201.03545. The network is timm's; its response normalisation is computed with fewer
maps in between. Code: Apache-2.0.

Licences of the *weights* differ from that of the code, and they bind whoever uses a model
fine-tuned from them. ConvNeXt-V2's published weights are CC BY-NC 4.0: no commercial use.
``weights="permissive"`` starts from ConvNeXt (V1) weights under Apache-2.0 instead: the
same topology without global response normalisation.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from jaxtyping import Float
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from plantseg_next.errors import UsageError
from plantseg_next.models.cpu_backward import DepthwiseConv

Weights = Literal["none", "noncommercial", "permissive"]

# timm's sizes of ConvNeXt-V2, each with the Apache-licensed ConvNeXt nearest to it.
SIZES: dict[str, str] = {
    "atto": "convnext_atto.d2_in1k",
    "femto": "convnext_femto.d1_in1k",
    "pico": "convnext_pico.d1_in1k",
    "nano": "convnext_nano.in12k_ft_in1k",
    "tiny": "convnext_tiny.in12k_ft_in1k",
    "small": "convnext_small.in12k_ft_in1k",
    "base": "convnext_base.fb_in22k",
    "large": "convnext_large.fb_in22k",
    "huge": "convnext_xlarge.fb_in22k",
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Origin:
    """Where an encoder's first weights came from, for the model card.

    Args:
        name: timm's name of the network and its weights, or "random".
        licence: Licence of the weights as timm states it; "none" for a random start.
    """

    name: str = "random"
    licence: str = "none"

    @property
    def notice(self) -> str:
        """One line for people, printed when training starts."""
        if self.name == "random":
            return "weights: random start, no licence attached"
        bound = " - no commercial use of the trained model" if "nc" in self.licence else ""
        return f"weights: {self.name}, licence {self.licence}{bound}"


class ResponseNorm(nn.Module):
    """Global response normalisation that keeps one map for the backward pass, not three.

    ``x + bias + weight * x * n`` is ``bias + x * (1 + weight * n)``: the factor has one
    number a channel, and only the last product is as large as the picture.

    Args:
        like: The layer whose weights to use.
    """

    def __init__(self, like: GlobalResponseNorm) -> None:
        super().__init__()
        self.eps, self.wb_shape = like.eps, like.wb_shape
        self.spatial_dim, self.channel_dim = like.spatial_dim, like.channel_dim
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map; channels where timm's layer has them."""
        # Summed in float32, whatever the map is in; asked for by autocast, the sum would
        # keep a float32 copy of the map for the backward pass.
        with torch.autocast(x.device.type, enabled=False):
            size = torch.linalg.vector_norm(
                x, dim=self.spatial_dim, keepdim=True, dtype=torch.float32
            )
        n = size / (size.mean(dim=self.channel_dim, keepdim=True) + self.eps)
        factor = 1 + self.weight.view(self.wb_shape) * n
        bias = self.bias.view(self.wb_shape)
        return torch.addcmul(bias.to(x.dtype), x, factor.to(x.dtype))


class Encoder(nn.Module):
    """Turn pictures into features at strides 4, 8, 16 and 32.

    Args:
        size: Size of ConvNeXt-V2, one of ``SIZES``.
        weights: Where to start: at random, from ConvNeXt-V2's published weights
            (non-commercial), or from Apache-licensed ConvNeXt weights.
        drop_path: Share of residual branches dropped in training, in [0, 1).
        fetch: Whether to fetch the published weights. A model read from disk has the
            topology that its first weights decided, and weights of its own.

    Raises:
        UsageError: If the size is unknown, or published weights cannot be fetched.
    """

    def __init__(
        self,
        size: str = "atto",
        *,
        weights: Weights = "none",
        drop_path: float = 0.0,
        fetch: bool = True,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise UsageError(
                f"The encoder size is {size!r}.",
                needed=f"one of {', '.join(SIZES)}",
                fix="--set model.encoder=atto for a small machine",
            )
        name = SIZES[size] if weights == "permissive" else f"convnextv2_{size}"
        try:
            self.network = timm.create_model(
                name,
                pretrained=fetch and weights != "none",
                features_only=True,
                drop_path_rate=drop_path,
            )
        except (OSError, RuntimeError) as error:  # the hub client raises either
            raise UsageError(
                f"The published weights of `{name}` could not be fetched: {error}",
                needed="a way to the model hub, or weights already in its cache",
                fix="--set model.weights=none for a random start",
            ) from error
        for block in list(self.network.modules()):
            if isinstance(getattr(block, "grn", None), GlobalResponseNorm):
                block.grn = ResponseNorm(block.grn)
            if isinstance(getattr(block, "conv_dw", None), nn.Conv2d):
                block.conv_dw = DepthwiseConv(block.conv_dw)
        self.channels: tuple[int, ...] = tuple(self.network.feature_info.channels())
        self.origin = Origin()
        if fetch and weights != "none":
            card = self.network.pretrained_cfg
            tag = f"{card.get('architecture', name)}.{card.get('tag', '')}".rstrip(".")
            self.origin = Origin(tag, card.get("license") or "not stated")

    def recompute(self, stages: Collection[int]) -> None:
        """Keep the inputs of the blocks of these stages only (1 to 4) for the gradient.

        What they compute is computed again in the backward pass: exact, and slower by
        the forward pass of these stages.
        """
        for number in range(1, 5):
            stage = self.network[f"stages_{number - 1}"]
            stage.grad_checkpointing = number in stages

    def forward(
        self, image: Float[Tensor, "b 3 h w"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c2, c3, c4 and c5, at strides 4, 8, 16 and 32."""
        c2, c3, c4, c5 = self.network(image)
        return c2, c3, c4, c5
