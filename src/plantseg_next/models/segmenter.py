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
from plantseg_next.models.decoder import Decoder, SeparableConv
from plantseg_next.models.encoders import Encoder, build_encoder
from plantseg_next.settings import Checkpointable, ModelSettings
from plantseg_next.structures import ClassMap

STEM_CHANNELS = 24
LEAF_LOGITS = 2  # not leaf, leaf: one logit alone has no energy to doubt by


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
        # A row of the resized map looks at most one row of the map beyond its own.
        first = max(0, rows.start // scale - 1)
        last = min(self.lesion.shape[2], -(-rows.stop // scale) + 1)
        own = slice(rows.start - first * scale, rows.stop - first * scale)
        near = Scores(
            self.lesion[:, :, first:last], self.leaf[:, :, first:last], self.disease
        )
        lesion, leaf, disease = near.resized(((last - first) * scale, size_hw[1]))
        return Scores(lesion[:, :, own], leaf[:, :, own], disease)


class GlobalStatsPool(nn.Module):
    """Say in one vector what the whole tile looks like.

    Mean and spread of every stage of the encoder, shallow ones included: color and
    texture name a leaf long before a deep stage has learned to. Each statistic has a
    LayerNorm of its own, as ConvNeXt's classifier has, or a few large channels drown the
    rest. Taken behind the decoder's GroupNorm, which makes every tile alike, the same
    statistics named half as many diseases after 240 steps.

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

    The fused map at stride 4 is joined by a thin path at stride 2 straight from the
    image: a rust pustule of three pixels is gone at stride 4, and this is the cheapest
    place that still sees it.

    Args:
        encoder: Pyramid of features; normalization of the image is done here, not by
            the caller, so that it cannot be forgotten.
        classes: Names behind the ids; fixes the number of logits.
        width: Channels of the decoder.
        layers: Attention layers of the decoder.
        dropout: Share dropped in the decoder, in [0, 1).
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
        assert isinstance(encoder, nn.Module)  # noqa: S101 - a protocol cannot say so
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
        # What the whole tile looks like helps to name its lesions: two diseases may share
        # a color, but seldom a leaf.
        self.class_bias_from_global = nn.Linear(width, classes.n_lesion_logits)
        self.disease_head = (
            nn.Linear(width, len(classes.diseases)) if classes.diseases else None
        )
        self._checkpointed: frozenset[Checkpointable] = frozenset()
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1))

    def set_checkpointing(self, parts: Collection[Checkpointable]) -> None:
        """Compute what these parts keep for the gradient again instead: less memory.

        Args:
            parts: Stages of the encoder, the decoder, and "fine": what lies at stride 2.
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

        The maps come at stride 2; ``Scores.resized`` brings them to the image's size.

        Args:
            image: The images: bytes, or numbers in [0, 1].
            complementary_dropout: Whether the second half of the batch shows the same
                tiles as the first, and each half is to see other channels of the
                encoder.
        """
        x = self._normalized(image)
        stages: tuple[Tensor, ...] = self.encoder(x)
        if complementary_dropout:
            stages = tuple(drop_complementary_channels(stage) for stage in stages)
        whole = self.global_stats(*stages)
        fused = self._maybe_checkpoint("decoder", self.decoder, *stages)
        # Piece by piece: the backward pass then holds one of them at a time.
        detail = self._maybe_checkpoint(
            "fine", self.stem_stride2, x
        )  # (b, 24, h / 2, w / 2)
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
        """Return where the image-level head sees a disease, at stride 4.

        Args:
            image: The images.
            disease: Its number in each of them; a number that is none gives zeros.
            against: Weights of the diseases that it is told from; they sum to one.

        Returns:
            At least 0, and at most 1 in every image: the mean of the maps of c2, c3
            and c4.

        Source:
            Jiang et al. 2021 (LayerCAM), doi:10.1109/TIP.2021.3089943: an activation
            counts by its own positive gradient, so that fine stages are of use. Here it
            is the gradient of a difference, "ill rather than healthy" for one. And the
            head reads every stage itself, so a stage's gradient is that of its own
            statistics, and nothing is differentiated through the encoder: on coffee,
            potato and rice the seeds were as right as with the whole gradient.
        """
        assert self.disease_head is not None, "there are names"  # noqa: S101
        known = (disease < self.disease_head.out_features)[:, None]
        with torch.no_grad():
            stages = self.encoder(self._normalized(image))
        with torch.enable_grad():
            leaves = [stage.detach().requires_grad_() for stage in stages]
            logits = self.disease_head(self.global_stats(*leaves))
            number = disease.long().clamp_max(self.disease_head.out_features - 1)[:, None]
            told = (
                logits.gather(1, number) - (logits * against).sum(1, keepdim=True)
            ) * known
            told = told.sum()
            gradients = torch.autograd.grad(told, leaves[:3])
        maps = []
        for stage, gradient in zip(stages, gradients, strict=False):
            map_ = (gradient.relu() * stage).sum(1, keepdim=True).relu().float()
            map_ = map_ / map_.amax((2, 3), keepdim=True).clamp_min(1e-12)
            maps.append(
                F.interpolate(
                    map_, stages[0].shape[2:], mode="bilinear", align_corners=False
                )
            )
        found: Tensor = torch.cat(maps, 1).mean(1)
        return found

    def _normalized(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            image = image.float().div_(255).contiguous(memory_format=torch.channels_last)
        return (image - self.mean) / self.std

    def _fuse_with_stem(self, fused: Tensor, detail: Tensor) -> Float[Tensor, "b c h w"]:
        """Return the fused map beside the thin path, at stride 2."""
        fused = F.interpolate(
            self.reduce(fused), detail.shape[2:], mode="bilinear", align_corners=False
        )
        joint: Tensor = self.fuse[0](torch.cat([fused, detail], dim=1))
        return joint

    def _maybe_checkpoint(
        self, part: Checkpointable, compute: Callable[..., Tensor], *inputs: Tensor
    ) -> Tensor:
        if part in self._checkpointed and torch.is_grad_enabled():
            again: Tensor = checkpoint(compute, *inputs, use_reentrant=False)
            return again
        return compute(*inputs)


def drop_complementary_channels(
    stage: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """Return the features with half the channels of each tile dropped, the rest doubled.

    Channels that the first view of a tile keeps, its second view loses. Half of the
    tiles stay whole.

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
        UsageError: If there is no such encoder, or its weights cannot be had.
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
