import pytest
import torch
from torch import nn

from plantseg_next.models import cpu_backward
from plantseg_next.models.cpu_backward import DepthwiseConv, GroupNorm


def depthwise():
    return DepthwiseConv(nn.Conv2d(16, 16, 7, padding=3, groups=16))


def group_norm():
    norm = GroupNorm(8, 16)
    nn.init.normal_(norm.weight)
    return norm


def gradients(layer, x, weight):
    """Return a layer's output, and the gradients of its input and weights."""
    x = x.clone(memory_format=torch.channels_last).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    (y.float() * weight).sum().backward()
    return y, [x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("make", [depthwise, group_norm])
def test_bfloat16_gradients_are_as_exact_as_float32(make, monkeypatch):
    torch.manual_seed(0)
    layer = make()
    # Values that bfloat16 represents exactly, so that the inputs are not rounded.
    x, weight = (torch.randn(2, 16, 12, 20).bfloat16().float() for _ in range(2))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    y, grads = gradients(layer, x, weight)
    monkeypatch.setattr(cpu_backward, "is_faster", lambda _: False)
    plain_y, plain = gradients(layer, x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, plain_y)  # the forward pass is the same

    exact = x.clone().requires_grad_()
    layer.zero_grad()
    (layer(exact) * weight).sum().backward()
    truth = [exact.grad, *(p.grad for p in layer.parameters())]
    for mine, usual, true in zip(grads, plain, truth, strict=True):
        scale = true.abs().max()
        assert (mine - true).abs().max() < 0.01 * scale
        assert (mine - true).norm() <= 1.05 * (usual - true).norm()


def test_replacement_is_unused_without_bfloat16_or_gradients():
    x = torch.randn(1, 16, 8, 8)
    assert not cpu_backward.is_faster(x)
    with torch.no_grad():
        assert not cpu_backward.is_faster(x.bfloat16())
