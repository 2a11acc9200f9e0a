"""A cache of the results of operations on fake tensors.

The result of an operation on fake tensors depends on shapes, strides and dtypes only, and
a step repeats the same operations thousands of times: block after block, micro-batch after
micro-batch. A call to PyTorch takes ten times as long as a lookup.
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
    """Metadata of a tensor, without its storage."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int | torch.SymInt


_KNOWN: dict[Hashable, Any] = {}
"""Never cleared: entries cannot become invalid within a process."""


def recall(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the result of an operation: a view of its input, or a storage of its own.

    Fake tensors sometimes return a copy instead of a view; this does not. Operations that
    modify their arguments are not cached.
    """
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
    are_fake = all(isinstance(x, FakeTensor | nn.Parameter) for x in tensors)
    if func._schema.is_mutable or not tensors or not are_fake:
        return func(*args, **kwargs)
    key = (func, _key(args), _key(tuple(kwargs.items())))
    if key not in _KNOWN:
        _KNOWN[key] = tree_map(_like, func(*args, **kwargs))
    is_view = func.is_view or func is torch.ops.aten._unsafe_view.default
    base = tensors[0].untyped_storage() if is_view else None
    mode = next(x.fake_mode for x in tensors if isinstance(x, FakeTensor))
    fake = partial(_fake, mode, base)
    return tree_map(fake, _KNOWN[key], is_leaf=lambda x: isinstance(x, _Like))


def _key(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return _like(value)
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value  # 1 and 1.0 are equal, but give different dtypes


def _like(value: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, Tensor):
        return value
    return _Like(
        value.shape, value.stride(), value.dtype, value.device, value.storage_offset()
    )


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
