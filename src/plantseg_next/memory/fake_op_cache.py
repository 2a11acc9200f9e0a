"""Results of operations on fake tensors, remembered.

What an operation gives back on tensors without content depends on shapes, strides and
kinds of numbers alone, and a step asks the same thousands of times: a block after a block,
a micro-batch after another. Asking PyTorch costs ten times as much as remembering.
"""

from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_iter, tree_map


class _Like(NamedTuple):
    """A tensor, without its place in memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int | torch.SymInt = 0


_KNOWN: dict[Hashable, Any] = {}
"""Kept as long as the process: nothing that is in it can become wrong."""


def recall(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return what an operation gives back: a view of its input, or storage of its own.

    Fake tensors themselves forget, now and then, that a view is one. Operations that
    change what they are given are run each time.
    """
    given = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
    are_fake = all(isinstance(x, FakeTensor | nn.Parameter) for x in given)
    if func._schema.is_mutable or not given or not are_fake:
        return func(*args, **kwargs)
    key = (func, _key(args), _key(tuple(kwargs.items())))
    if key not in _KNOWN:
        _KNOWN[key] = tree_map(_like, func(*args, **kwargs))
    is_view = func.is_view or func is torch.ops.aten._unsafe_view.default
    base = given[0].untyped_storage() if is_view else None
    mode = next(x.fake_mode for x in given if isinstance(x, FakeTensor))
    return tree_map(partial(_fake, mode, base), _KNOWN[key], is_leaf=_is_like)


def _key(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return _like(value)
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value  # 1 and 1.0 are equal, and lead to different kinds


def _like(value: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, Tensor):
        return value
    return _Like(
        value.shape, value.stride(), value.dtype, value.device, value.storage_offset()
    )


def _is_like(value: object) -> bool:
    return isinstance(value, _Like)


def _fake(mode: FakeTensorMode, base: UntypedStorage | None, like: Any) -> Any:  # noqa: ANN401
    if not isinstance(like, _Like):
        return like
    shape, stride, dtype, device, offset = like
    with no_dispatch():
        if base is None:
            empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        else:
            empty = torch.empty(0, dtype=dtype, device="meta")
            empty.set_(base, offset, shape, stride)
    return FakeTensor(mode, empty, device)
