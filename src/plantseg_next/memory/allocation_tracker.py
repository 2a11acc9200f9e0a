"""Track the bytes that operations allocate and release, by purpose."""

import itertools
import operator
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from plantseg_next.memory.allocator import CachingAllocator, rounded
from plantseg_next.memory.fake_op_cache import recall

KINDS = (
    "weights",
    "teacher",
    "optimizer",
    "gradients",
    "images",
    "activations",
    "teacher predictions",
    "losses",
    "backward",
    "workspace",
)
"""Purposes of memory. activations: saved by the student for the backward pass. teacher
predictions: the teacher's forward pass and the pseudo-labels. backward: temporary, in the
backward pass. workspace: buffers of libraries."""
ELSEWHERE = "elsewhere"  # not on the device
REPEATED = 2
"""Further steps after which the reserved memory no longer grows. They start with the
fragments of the first step and took up to a sixth more."""
HERE = torch.device("cpu")
CUBLAS_OPS = tuple(getattr(torch.ops.aten, n) for n in ("mm", "addmm", "bmm", "baddbmm"))
"""Operations that a GPU computes with cuBLAS."""


@dataclass(frozen=True)
class Footprint:
    """The memory of a step, in bytes, and its cost.

    Args:
        peak: By kind, at the moment of the largest total.
        resident: By kind, between two steps.
        reserved: Bytes that a GPU's allocator reserves for a few such steps; see
            ``CachingAllocator``.
        timeline: Bytes of each of ``KINDS``, after every allocation of one step.
        flops: Multiplications and additions of a step.
        calls: Operations of a step: each has a fixed cost in time.
    """

    peak: Mapping[str, int]
    resident: Mapping[str, int]
    reserved: int
    timeline: tuple[tuple[int, ...], ...]
    flops: int
    calls: int

    @property
    def peak_bytes(self) -> int:
        """Sum over all kinds."""
        return sum(self.peak.values())

    @property
    def resident_bytes(self) -> int:
        """Sum over all kinds."""
        return sum(self.resident.values())

    def grown(self, other: "Footprint", times: int) -> "Footprint":
        """Extrapolate: this footprint and ``times`` times the increase to ``other``."""

        def more(a: int, b: int) -> int:
            return b + (times - 1) * max(0, b - a)

        def each(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
            return {kind: more(a[kind], b[kind]) for kind in KINDS}

        peak = each(self.peak, other.peak)
        added = [peak[kind] - other.peak[kind] for kind in KINDS]
        return Footprint(
            peak,
            each(self.resident, other.resident),
            # Segments are large: the difference of two is not meaningful.
            other.reserved + sum(added),
            tuple(tuple(map(operator.add, moment, added)) for moment in other.timeline),
            more(self.flops, other.flops),
            more(self.calls, other.calls),
        )


class _Held(NamedTuple):
    """An allocated storage."""

    n_bytes: int
    kind: str
    block: Any
    on_release: Any
    number: int


class _Event(NamedTuple):
    """An allocation of a storage, or its release: then ``n_bytes`` is ``None``."""

    number: int
    n_bytes: int | None


class AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record every storage that is allocated and released in this context.

    Args:
        on_cpu: Whether to count the workspace of the CPU's library for convolutions.
        cublas_workspace: Bytes of workspace that cuBLAS allocates at its first operation
            and keeps, once for forward and once for backward passes.
    """

    def __init__(self, *, on_cpu: bool = False, cublas_workspace: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_cpu = on_cpu
        self._cublas_workspace = dict.fromkeys((False, True), cublas_workspace)
        self._held: dict[int, _Held] = {}
        self._now = dict.fromkeys(KINDS, 0)
        self._total = 0
        self._phase = "weights"
        self._allocator = CachingAllocator()
        self._numbers = itertools.count()
        self.begin()

    def begin(self) -> None:
        """Begin a step: reset peak, timeline and counts."""
        self._peak = self._total
        self._at_peak = dict(self._now)
        self._timeline: list[tuple[int, ...]] = []
        self._events: list[_Event] = []
        self._flops = self._calls = 0

    def footprint(self) -> Footprint:
        """End the step; return what has been recorded since ``begin``."""
        self._repeat()
        return Footprint(
            self._at_peak,
            dict(self._now),
            self._allocator.reserved,
            tuple(self._timeline),
            self._flops,
            self._calls,
        )

    @contextmanager
    def phase(self, kind: str) -> Iterator[None]:
        """Assign this kind to everything that is allocated in the context."""
        before, self._phase = self._phase, kind
        try:
            yield
        finally:
            self._phase = before

    def relabel(self, tensor: Tensor, kind: str) -> None:
        """Change the kind of a tensor's storage."""
        key = tensor.untyped_storage()._cdata
        held = self._held.get(key)
        if held is None:
            return
        self._release(key)
        self._hold(key, held.n_bytes, kind, held.on_release)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - PyTorch's signature
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and record its allocations."""
        if func is torch.ops.prim.device.default:
            return getattr(args[0], "fake_device", HERE)  # the most frequent call
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else 1  # fakes have no values
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))  # a query about a tensor
        out = recall(func, args, kwargs or {})
        self._calls += not func.is_view
        if self._on_cpu and func is torch.ops.aten.convolution_backward.default:
            n_bytes = cpu_workspace(args[1], args[2], groups=args[9])
            self._take("workspace", n_bytes)
            self._give("workspace", n_bytes)
        self._flops += _flops(func, args, out)
        if func._overloadpacket in CUBLAS_OPS:
            self._allocate_cublas_workspace()
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._record(value)
        return out

    def _record(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        kind = "backward" if _in_backward() else self._phase
        on_release = weakref.ref(storage, lambda _: self._release(key))
        self._hold(key, storage.nbytes(), kind, on_release)

    def _allocate_cublas_workspace(self) -> None:
        """Allocate the workspace of cuBLAS, the first time."""
        n_bytes = self._cublas_workspace.pop(_in_backward(), 0)
        if n_bytes:
            self._allocator.allocate(n_bytes)
            self._take("workspace", n_bytes)

    def _hold(self, key: int, n_bytes: int, kind: str, on_release: object) -> None:
        n_bytes = rounded(n_bytes)
        on_device = kind != ELSEWHERE
        block = self._allocator.allocate(n_bytes) if on_device else None
        number = next(self._numbers)
        self._held[key] = _Held(n_bytes, kind, block, on_release, number)
        if on_device:
            self._events.append(_Event(number, n_bytes))
            self._take(kind, n_bytes)

    def _release(self, key: int) -> None:
        held = self._held.pop(key)
        if held.block is None:
            return
        self._events.append(_Event(held.number, None))
        self._allocator.free(held.block)
        self._give(held.kind, held.n_bytes)

    def _repeat(self) -> None:
        """Replay the step in the allocator; storages left from before are freed first."""
        taken = {event.number for event in self._events if event.n_bytes is not None}
        left = [held.block for held in self._held.values() if held.number in taken]
        self._held.clear()
        for _ in range(REPEATED):
            for block in left:
                self._allocator.free(block)
            blocks = {}
            for number, n_bytes in self._events:
                if n_bytes is not None:
                    blocks[number] = self._allocator.allocate(n_bytes)
                elif number in blocks:
                    self._allocator.free(blocks.pop(number))
            left = list(blocks.values())

    def _take(self, kind: str, n_bytes: int) -> None:
        self._now[kind] += n_bytes
        self._total += n_bytes
        if self._total > self._peak:
            self._peak = self._total
            self._at_peak = dict(self._now)
        self._timeline.append(tuple(self._now.values()))

    def _give(self, kind: str, n_bytes: int) -> None:
        self._now[kind] -= n_bytes
        self._total -= n_bytes


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _flops(func: Any, args: tuple[Any, ...], out: Any) -> int:  # noqa: ANN401
    """Return the multiplications and additions of an operation; 0 for cheap ones."""
    aten = torch.ops.aten
    if func is aten.convolution.default:
        return 2 * int(out.numel()) * int(args[1][0].numel())
    if func is aten.convolution_backward.default:
        # PyTorch's own count treats a depthwise convolution as a dense one here.
        grad, _, weight = args[:3]
        return 2 * int(grad.numel()) * int(weight[0].numel()) * sum(args[10][:2])
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else int(count(*args, out_val=out))


def cpu_workspace(image: Tensor, weight: Tensor, *, groups: int) -> int:
    """Return oneDNN's workspace for the gradient of a large depthwise kernel, in bytes.

    It sums the weights' gradient in parts. Smaller kernels and other convolutions need
    little.

    Args:
        image: Input of the layer.
        weight: Of the layer.
        groups: Of the layer.
    """
    size = weight.shape[2]
    if groups == 1 or weight.shape[1] > 1 or size <= 3:
        return 0
    of_large, of_small = cpu_parts()
    n_parts = of_small if min(image.shape[2:]) < size else of_large
    return n_parts * int(weight.numel()) * 4


def cpu_parts() -> tuple[int, int]:
    """Return the number of parts: for maps at least as large as the kernel, and smaller.

    The rule was derived from oneDNN's allocations (PyTorch 2.15, x86-64): exact for all
    sizes tried, in float32, the dtype of these layers' gradients on a CPU.
    """
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return 256, 256
    return 64, 4 * torch.get_num_threads()
