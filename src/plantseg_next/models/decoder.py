"""The FPN-Transformer decoder: c2..c5 become one map at stride 4.

A feature pyramid (Lin et al. 2017, arXiv:1612.03144) whose two coarse levels first attend
to each other and to themselves (Vaswani et al. 2017, arXiv:1706.03762), so that a pixel's
class can depend on the whole tile, and whose levels are then summed at stride 4 as in
Semantic FPN (Kirillov et al. 2019, arXiv:1901.02446). Our departures: the 3 x 3 smoothing
is depthwise-separable, so that two CPU cores suffice; GroupNorm or LayerNorm throughout,
because micro-batches of one and mixed views make batch statistics unusable.

Axes: b tile, c channel, h row, w column, n token.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from plantseg_next.models.cpu_backward import GroupNorm

COARSE_STRIDES = (16, 32)
GROUPS = 8


class SeparableConv(nn.Sequential):
    """Smooth a level: 3 x 3 depthwise, 1 x 1 pointwise, GroupNorm, GELU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False),
            nn.Conv2d(c_in, c_out, 1, bias=False),
            GroupNorm(GROUPS, c_out),
            nn.GELU(),
        )


class AttentionBlock(nn.Module):
    """A pre-norm transformer layer: self-attention over all tokens, then an MLP.

    Args:
        width: Channels of a token.
        heads: Attention heads; divides ``width``.
        dropout: Fraction of values dropped, also at test time by Monte-Carlo dropout.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attn = nn.LayerNorm(width)
        self.query_key = nn.Linear(width, 2 * width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, token: Float[Tensor, "b n c"], position: Float[Tensor, "n c"]
    ) -> Float[Tensor, "b n c"]:
        """Return the tokens after one layer; positions enter queries and keys only."""
        b, n, c = token.shape
        x = self.norm_attn(token)
        query, key = self.query_key(x + position).chunk(2, dim=-1)
        query, key, value = (
            t.view(b, n, self.heads, c // self.heads).transpose(1, 2)
            for t in (query, key, self.value(x))
        )  # (b, heads, n, c / heads)
        attn = F.scaled_dot_product_attention(query, key, value)
        token = token + self.dropout(self.proj(attn.transpose(1, 2).reshape(b, n, c)))
        return token + self.dropout(self.mlp(self.norm_mlp(token)))


def sine_position(
    h: int, w: int, channels: int, *, stride: int, device: torch.device
) -> Float[Tensor, "n c"]:
    """Return an encoding of the position of each cell of a level, in pixels of the tile.

    The coordinate is that of the cell's center in pixels, not its index, so that cells of
    two levels at the same position have the same code, and any size is covered.

    Args:
        h: Rows of the level.
        w: Columns of the level.
        channels: Length of a code; a multiple of 4.
        stride: Pixels per cell.
        device: Device of the result.

    Returns:
        ``(h * w, channels)``, values in [-1, 1]: sine and cosine of row, then of column.

    Source:
        Carion et al. 2020 (DETR), arXiv:2005.12872, after Vaswani et al. 2017. We do not
        normalize by the image's size; wavelengths run from 16 to 1024 pixels.
    """
    quarter = channels // 4
    wavelength = 16.0 * 64.0 ** torch.linspace(
        0, 1, quarter, dtype=torch.float32, device=device
    )  # pixels
    code = []
    for n in (h, w):
        cells = torch.arange(n, dtype=torch.float32, device=device)
        center = (cells + 0.5) * stride  # (n,), pixels
        angle = 2 * math.pi * center[:, None] / wavelength
        code.append(torch.cat([angle.sin(), angle.cos()], dim=1))  # (n, channels / 2)
    row, column = code
    return torch.cat(
        [row[:, None].expand(h, w, -1), column[None].expand(h, w, -1)], dim=2
    ).reshape(h * w, channels)


class Decoder(nn.Module):
    """Fuse four levels into one map at stride 4.

    Args:
        channels: Channels of c2, c3, c4 and c5.
        width: Channels of every level of the pyramid; a multiple of 8.
        layers: Attention layers over the two coarse levels; 0 gives a plain FPN.
        dropout: Fraction dropped in attention and, by whole channels, in the fused map.
            ConvNeXt-V2 has no dropout, so Monte-Carlo dropout is in the decoder only.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        *,
        width: int = 96,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.level = nn.Parameter(torch.zeros(len(COARSE_STRIDES), width))
        self.attention = nn.ModuleList(
            AttentionBlock(width, heads=max(1, width // 32), dropout=dropout)
            for _ in range(layers)
        )
        self.smooth = nn.ModuleList(SeparableConv(width, width) for _ in channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(
        self, c2: Tensor, c3: Tensor, c4: Tensor, c5: Tensor
    ) -> Float[Tensor, "b c h w"]:
        """Return the fused map at stride 4."""
        p2, p3, p4, p5 = (
            lateral(c) for lateral, c in zip(self.lateral, (c2, c3, c4, c5), strict=True)
        )
        p4, p5 = self._attend(p4, p5)
        p4 = p4 + resize_to(p5, p4)
        p3 = p3 + resize_to(p4, p3)
        p2 = p2 + resize_to(p3, p2)
        levels = [s(p) for s, p in zip(self.smooth, (p2, p3, p4, p5), strict=True)]
        fused = levels[0] + sum(resize_to(p, p2) for p in levels[1:])
        return self.dropout(fused)

    def _attend(self, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor]:
        if not self.attention:
            return p4, p5
        maps = (p4, p5)
        position = torch.cat(
            [
                sine_position(
                    p.shape[2], p.shape[3], p.shape[1], stride=stride, device=p.device
                )
                + level
                for p, stride, level in zip(maps, COARSE_STRIDES, self.level, strict=True)
            ]
        )
        token = torch.cat([p.flatten(2).transpose(1, 2) for p in maps], dim=1)
        for block in self.attention:
            token = block(token, position)
        sizes = [p.shape[2] * p.shape[3] for p in maps]
        p4, p5 = (
            t.transpose(1, 2).reshape(p.shape)
            for t, p in zip(torch.split(token, sizes, dim=1), maps, strict=True)
        )
        return p4, p5


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Return the maps resized to the rows and columns of others, bilinearly."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
