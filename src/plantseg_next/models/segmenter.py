"""The network: encoder, decoder and three heads over one map.

Two segmentation heads, not one, because data sets mark different things: PlantSeg marks
lesions only, so severity (lesion over leaf) cannot be learned from it; others mark the
leaf too. Each head learns from the pixels that are annotated for it.

Axes: b tile, k class, h row, w column, d image-level disease.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from plantseg_next.models.cpu_backward import GroupNorm
from plantseg_next.models.decoder import Decoder, SeparableConv, resize_to
from plantseg_next.models.encoders import Encoder, build_encoder
from plantseg_next.settings import Checkpointable, ModelSettings
from plantseg_next.structures import ClassMap

STEM_CHANNELS = 24
LEAF_LOGITS = 2  # not leaf, leaf: an energy score needs two logits


class Scores(NamedTuple):
    """Logits of the three heads; softmax over ``k``, over the leaf's two, over ``d``.

    Args:
        lesion: ``(b, k, h, w)``, class 0 is "no lesion".
        leaf: ``(b, 2, h, w)``: not leaf, leaf.
        disease: ``(b, d)``; ``d`` may be 0.
    """

    lesion: Tensor
    leaf: Tensor
    disease: Tensor

    def resized(self, size_hw: tuple[int, int]) -> "Scores":
        """Return the scores with both maps resized to ``size_hw``, bilinearly."""
        lesion, leaf = (
            F.interpolate(m, size_hw, mode="bilinear", align_corners=False)
            for m in (self.lesion, self.leaf)
        )
        return Scores(lesion, leaf, self.disease)

    def row_slice(self, rows: slice, size_hw: tuple[int, int]) -> "Scores":
        """Return some rows of ``resized(size_hw)``, without computing the others.

        Args:
            rows: Start and stop; no step.
            size_hw: A whole multiple of the maps' own size.
        """
        scale = size_hw[0] // self.lesion.shape[2]
        # A resized row depends on at most one row of the map beyond its own.
        first = max(0, rows.start // scale - 1)
        last = min(self.lesion.shape[2], -(-rows.stop // scale) + 1)
        own = slice(rows.start - first * scale, rows.stop - first * scale)
        near = Scores(
            self.lesion[:, :, first:last], self.leaf[:, :, first:last], self.disease
        )
        lesion, leaf, disease = near.resized(((last - first) * scale, size_hw[1]))
        return Scores(lesion[:, :, own], leaf[:, :, own], disease)


class GlobalStatsPool(nn.Module):
    """Pool mean and standard deviation of every encoder stage into one vector.

    Shallow stages are included: early in training, color and texture identify a leaf
    better than deep features do. Each statistic has its own LayerNorm, as in ConvNeXt's
    classifier, so that a few large channels do not dominate. Statistics taken after the
    decoder's GroupNorm, which normalizes every tile, identified half as many diseases
    after 240 steps.

    Args:
        channels: Channels of c2, c3, c4 and c5.
        width: Length of the vector.
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels for _ in range(2))
        self.proj = nn.Sequential(nn.Linear(2 * sum(channels), width), nn.GELU())

    def forward(self, *stages: Float[Tensor, "b _ _ _"]) -> Float[Tensor, "b c"]:
        """Return the vector of every tile."""
        statistics = [
            s for c in stages for s in (c.mean((2, 3)), c.std((2, 3), correction=0))
        ]
        return self.proj(
            torch.cat([n(s) for n, s in zip(self.norms, statistics, strict=True)], dim=1)
        )


class Segmenter(nn.Module):
    """Score every pixel for lesion and leaf, and the tile for disease.

    The fused map at stride 4 is combined with a few channels at stride 2, computed from
    the image: a rust pustule of three pixels is lost at stride 4, and stride 2 is the
    cheapest resolution that keeps it.

    Args:
        encoder: Pyramid of features. The segmenter normalizes the image itself, with
            the encoder's mean and standard deviation.
        classes: Names of the class ids; they determine the number of logits.
        width: Channels of the decoder.
        layers: Attention layers of the decoder.
        dropout: Fraction dropped in the decoder, in [0, 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        classes: ClassMap,
        *,
        width: int = 96,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        assert isinstance(encoder, nn.Module)  # noqa: S101 - not part of the protocol
        self.encoder = encoder
        self.decoder = Decoder(
            encoder.channels, width=width, layers=layers, dropout=dropout
        )
        self.stem_stride2 = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, padding=1, bias=False),
            GroupNorm(8, STEM_CHANNELS),
            nn.GELU(),
            SeparableConv(STEM_CHANNELS, STEM_CHANNELS),
        )
        half = width // 2
        self.reduce = nn.Conv2d(width, half, 1)
        self.fuse = nn.Sequential(
            SeparableConv(half + STEM_CHANNELS, half), SeparableConv(half, half)
        )
        self.lesion_head = nn.Conv2d(half, classes.n_lesion_logits, 1)
        self.leaf_head = nn.Conv2d(half, LEAF_LOGITS, 1)
        self.global_stats = GlobalStatsPool(encoder.channels, width)
        # A bias of the lesion classes from the whole tile: lesions of two diseases may
        # have the same color, but seldom occur on the same leaf.
        self.class_bias_from_global = nn.Linear(width, classes.n_lesion_logits)
        self.disease_head = (
            nn.Linear(width, len(classes.diseases)) if classes.diseases else None
        )
        self._checkpointed: frozenset[Checkpointable] = frozenset()
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1))

    def set_checkpointing(self, parts: Collection[Checkpointable]) -> None:
        """Recompute the activations of these parts in the backward pass: less memory.

        Args:
            parts: Stages of the encoder, the decoder, and "fine": the layers at stride 2.
        """
        self._checkpointed = frozenset(parts)
        self.encoder.set_checkpointing([n for n in range(1, 5) if f"stage_{n}" in parts])

    def forward(
        self,
        image: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"],
        *,
        complementary_dropout: bool = False,
    ) -> Scores:
        """Return logits for images of any size that is a multiple of 32.

        The maps have stride 2; ``Scores.resized`` resizes them to the image.

        Args:
            image: The images: bytes, or numbers in [0, 1].
            complementary_dropout: Whether the second half of the batch shows the same
                tiles as the first, and each half keeps the encoder channels that the
                other half drops.
        """
        x = self._normalized(image)
        stages: tuple[Tensor, ...] = self.encoder(x)
        if complementary_dropout:
            stages = tuple(drop_complementary_channels(stage) for stage in stages)
        whole = self.global_stats(*stages)
        fused = self._maybe_checkpoint("decoder", self.decoder, *stages)
        # Checkpointed one by one: the backward pass then holds one of them at a time.
        detail = self._maybe_checkpoint("fine", self.stem_stride2, x)  # (b, 24, h/2, w/2)
        joint = self._maybe_checkpoint("fine", self._fuse_with_stem, fused, detail)
        joint = self._maybe_checkpoint("fine", self.fuse[1], joint)
        lesion = (
            self.lesion_head(joint) + self.class_bias_from_global(whole)[:, :, None, None]
        )
        disease = (
            whole.new_zeros(len(whole), 0)
            if self.disease_head is None
            else self.disease_head(whole)
        )
        return Scores(lesion, self.leaf_head(joint), disease)

    def layer_cam(
        self,
        image: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"],
        disease: Tensor,
        against: Float[Tensor, " d"],
    ) -> Float[Tensor, "b h4 w4"]:
        """Return class activation maps of the image-level head, at stride 4.

        Args:
            image: The images.
            disease: Index of the disease of each image; an invalid index gives zeros.
            against: Weights of the diseases that it is contrasted with; they sum to one.

        Returns:
            In [0, 1]: the mean of the maps of c2, c3 and c4, each divided by its maximum
            in the image.

        Source:
            Jiang et al. 2021 (LayerCAM), doi:10.1109/TIP.2021.3089943: every activation
            is weighted by its own positive gradient, so that fine stages can be used.
            Our departures: the gradient is that of a logit difference, for example
            diseased minus healthy. The head reads every stage directly, so a stage's
            gradient is taken through its own statistics only, not through the encoder:
            on coffee, potato and rice the CAM seeds were as precise as with the whole
            gradient.
        """
        assert self.disease_head is not None, "no image-level classes"  # noqa: S101
        known = (disease < self.disease_head.out_features)[:, None]
        with torch.no_grad():
            stages = self.encoder(self._normalized(image))
        with torch.enable_grad():
            leaves = [stage.detach().requires_grad_() for stage in stages]
            logits = self.disease_head(self.global_stats(*leaves))
            index = disease.long().clamp_max(self.disease_head.out_features - 1)[:, None]
            difference = (
                logits.gather(1, index) - (logits * against).sum(1, keepdim=True)
            ) * known
            gradients = torch.autograd.grad(difference.sum(), leaves[:3])
        maps = []
        for stage, gradient in zip(stages, gradients, strict=False):
            map_ = (gradient.relu() * stage).sum(1, keepdim=True).relu().float()
            map_ = map_ / map_.amax((2, 3), keepdim=True).clamp_min(1e-12)
            maps.append(resize_to(map_, stages[0]))
        cam: Tensor = torch.cat(maps, 1).mean(1)
        return cam

    def _normalized(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            image = image.float().div_(255).contiguous(memory_format=torch.channels_last)
        return (image - self.mean) / self.std

    def _fuse_with_stem(self, fused: Tensor, detail: Tensor) -> Float[Tensor, "b c h w"]:
        """Return the fused map combined with the stem's map, at stride 2."""
        fused = resize_to(self.reduce(fused), detail)
        joint: Tensor = self.fuse[0](torch.cat([fused, detail], dim=1))
        return joint

    def _maybe_checkpoint(
        self, part: Checkpointable, compute: Callable[..., Tensor], *inputs: Tensor
    ) -> Tensor:
        if part in self._checkpointed and torch.is_grad_enabled():
            output: Tensor = checkpoint(compute, *inputs, use_reentrant=False)
            return output
        return compute(*inputs)


def drop_complementary_channels(
    stage: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """Return the features with half the channels of each tile dropped, the rest doubled.

    The second view of a tile keeps the channels that the first view drops. Half of the
    tiles keep all channels.

    Source:
        Yang et al. 2025 (UniMatch V2), arXiv:2410.10777.
    """
    half = len(stage) // 2
    keep = 2 * torch.randint(0, 2, (half, stage.shape[1], 1, 1), device=stage.device)
    keep = keep.where(torch.rand(half, 1, 1, 1, device=stage.device) < 0.5, 1)
    return stage * torch.cat([keep, 2 - keep]).to(stage.dtype)


def build_segmenter(
    settings: ModelSettings, classes: ClassMap, *, fetch: bool = True
) -> Segmenter:
    """Return a new network for these classes; ``fetch`` as in ``build_encoder``.

    Raises:
        UsageError: If there is no such encoder, or its weights cannot be obtained.
        DataError: If its weights are damaged.
    """
    encoder = build_encoder(
        settings.encoder,
        weights=settings.encoder_weights,
        fetch=fetch,
    )
    return Segmenter(
        encoder,
        classes,
        width=settings.width,
        layers=settings.layers,
        dropout=settings.dropout,
    )
