"""Replacements for layers whose backward pass on a CPU is slow or wrong.

oneDNN's gradient of a depthwise convolution takes three times as long in bfloat16 as in
float32, and so does PyTorch's gradient of a group normalization in channels-last; their
forward passes do not. Saved tensors stay in bfloat16: float32 copies exist only while a
layer's gradient is computed.

The gradient of a strided 1 x 1 convolution of few channels in channels-last writes outside
its memory (PyTorch 2.15 on AVX-512, for example 3 or 13 channels, stride 2).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def is_faster(x: Tensor) -> bool:
    """Return whether float32 is faster for the gradient of a layer with input ``x``."""
    return torch.is_grad_enabled() and x.is_cpu and x.dtype == torch.bfloat16


class DepthwiseConv(nn.Module):
    """A depthwise convolution that keeps the size of the map.

    Args:
        like: The layer whose weights to use.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        assert like.groups == like.in_channels == like.out_channels  # noqa: S101
        assert like.stride == like.dilation == (1, 1)  # noqa: S101
        self.weight, self.bias = like.weight, like.bias
        self.padding = like.padding

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved map."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if not is_faster(x):
            return F.conv2d(
                x, self.weight, self.bias, padding=self.padding, groups=len(self.weight)
            )
        output: Tensor = _Depthwise.apply(x, self.weight, self.bias, self.padding)
        return output


class StridedPointwiseConv(nn.Module):
    """A strided 1 x 1 convolution, computed by slicing the input and a stride of 1.

    Args:
        like: The layer whose weights to use.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        assert like.kernel_size == (1, 1) and like.groups == 1  # noqa: S101, PT018
        self.weight, self.bias, self.stride = like.weight, like.bias, like.stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the strided map."""
        down, across = self.stride
        return F.conv2d(x[..., ::down, ::across], self.weight, self.bias)


class GroupNorm(nn.GroupNorm):
    """Group normalization with a float32 backward pass where that is faster."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        """Return the normalized map."""
        if not is_faster(input):
            return super().forward(input)
        output: Tensor = _GroupNorm.apply(
            input, self.weight, self.bias, self.num_groups, self.eps
        )
        return output


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.has_bias = padding, bias is not None
        return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad.float(),
            x.float(),
            weight.float(),
            [len(weight)],
            [1, 1],
            list(ctx.padding),
            [1, 1],
            False,
            [0, 0],
            len(weight),
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias],
        )
        grad_x = None if grad_x is None else grad_x.to(x.dtype)
        return grad_x, grad_weight, grad_bias, None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
    ) -> Tensor:
        b, c, h, w = x.shape
        y, mean, inv_std = torch.native_group_norm(
            x, weight, bias, b, c, h * w, groups, eps
        )
        ctx.save_for_backward(x, weight, mean, inv_std)
        ctx.groups = groups
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, mean, inv_std = ctx.saved_tensors
        b, c, h, w = x.shape
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
            grad.float(),
            x.float(),
            mean.float(),
            inv_std.float(),
            weight.float(),
            b,
            c,
            h * w,
            ctx.groups,
            list(ctx.needs_input_grad[:3]),
        )
        grad_x = None if grad_x is None else grad_x.to(x.dtype)
        return grad_x, grad_weight, grad_bias, None, None
