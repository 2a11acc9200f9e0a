"""The memory of a training step, found without taking one.

A real step of a real learner runs on fake tensors, which have shapes and no content: every
allocation and every release is seen, in order, and nothing is computed. So the figures
cannot drift away from the code, no GPU is needed, and a network of any size fits.

What is not seen is what libraries take for themselves while they compute: on a CPU the
one large case is foreseen by rule, on a GPU none is. Nor is what a GPU's driver takes
before the first tensor.
"""

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from plantseg_next.data.streams import Drawn
from plantseg_next.experiment import Experiment
from plantseg_next.models.segmenter import Segmenter, build_segmenter
from plantseg_next.runtime import Device
from plantseg_next.structures import Batch, ClassMap, Views
from plantseg_next.training.allocator import CachingAllocator
from plantseg_next.training.learner import Learner, build_learner, uses_bfloat16

MIB = 2**20
KINDS = (
    "weights",
    "teacher",
    "optimiser",
    "gradients",
    "pictures",
    "activations",
    "teaching",
    "losses",
    "backward",
    "workspace",
)
"""What memory is for. activations: what the student keeps for the backward pass. teaching:
what the teacher computes and what becomes of it. backward: on the way to the gradients.
workspace: what a library takes while it computes one operation."""
_ELSEWHERE = "elsewhere"  # not on the device
ROUND = 512
IN_FLOAT32 = ("layer_norm", "group_norm", "interpolate")
"""Functions of the network that autocast computes in float32 on a GPU, but not on a CPU."""
TRACED_PARTS = (2, 3)
"""Micro-batches of two traces; a step of more grows by their difference, part by part."""


@dataclass(frozen=True)
class Footprint:
    """What a step takes, in bytes, and costs.

    Args:
        peak: By kind, at the moment when most is in use.
        resident: By kind, between two steps.
        reserved: What a GPU's allocator takes from the device for that; see
            ``CachingAllocator``.
        course: Bytes by kind, moment after moment, of the one step.
        flops: Multiplications and additions of a step.
        calls: Operations of a step: each costs time however small it is.
    """

    peak: Mapping[str, int]
    resident: Mapping[str, int]
    reserved: int
    course: tuple[Mapping[str, int], ...]
    flops: int
    calls: int

    @property
    def peak_bytes(self) -> int:
        """Of all kinds."""
        return sum(self.peak.values())

    @property
    def resident_bytes(self) -> int:
        """Of all kinds."""
        return sum(self.resident.values())

    def grown(self, other: "Footprint", times: int) -> "Footprint":
        """Return this one and so many times what ``other`` adds to it."""

        def more(a: int, b: int) -> int:
            return a + times * max(0, b - a)

        def each(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
            return {kind: more(a[kind], b[kind]) for kind in KINDS}

        return Footprint(
            each(self.peak, other.peak),
            each(self.resident, other.resident),
            # Segments are large: the difference of two says little.
            more(self.reserved, self.reserved + other.peak_bytes - self.peak_bytes),
            other.course,
            more(self.flops, other.flops),
            more(self.calls, other.calls),
        )


def micro_batch(settings: Experiment) -> int:
    """Return how many labelled tiles are computed at once, at the start of a run."""
    training = settings.training
    return min(training.micro_batch or training.batch, training.batch)


def footprint(
    settings: Experiment, classes: ClassMap, device: Device, *, with_lessons: bool
) -> Footprint:
    """Return what a step of these settings takes and costs.

    A step of many micro-batches is traced with two and with three of them: what each
    further one adds is the same again.

    Args:
        settings: The whole tree.
        classes: Of the network.
        device: Where it is to run; need not be here.
        with_lessons: Whether there is anything without labels to learn from.
    """
    size, batch = micro_batch(settings), settings.training.batch
    few, more = TRACED_PARTS
    if batch <= more * size:
        return trace(settings, classes, device, with_lessons=with_lessons)
    less, same = (
        trace(of_batch(settings, n * size), classes, device, with_lessons=with_lessons)
        for n in TRACED_PARTS
    )
    return less.grown(same, -(-batch // size) - few)


def trace(
    settings: Experiment, classes: ClassMap, device: Device, *, with_lessons: bool
) -> Footprint:
    """Return what a step takes, from running all of it on fake tensors.

    The GPU's memory is that of ``device.kind == "cuda"``, in whose precision it is traced;
    what waits in main memory is then left out.
    """
    with torch.device("meta"):
        model = settings.model
        network = build_segmenter(model, classes, fetch=False)
    ledger = Ledger(on_cpu=device.kind == "cpu")
    casts = device.kind == "cuda" and uses_bfloat16(settings.training, device)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(ledger)
        stack.enter_context(_gpu_casts() if casts else nullcontext())
        _make_fake(network, channels_last=settings.memory.channels_last)
        # The fakes lie on the CPU, where gradients can be followed without a GPU.
        here = Device("cpu", device.name, device.has_bfloat16)
        learner = build_learner(network, settings, here, classes, with_lessons=with_lessons)
        watch = _Watch(ledger, learner, has_host=device.kind == "cuda")
        watch.take_first_step()
        with ledger.phase("pictures"):
            drawn = _fake_tiles(settings, with_lessons=with_lessons)
        ledger.begin()
        size = micro_batch(settings)
        with ledger.phase("losses"):
            learner.find_gradients(drawn, step=1, steps=3, micro_batch=size, rehearsal=True)
            learner.apply(step=1, steps=3)
        return ledger.found()


class _Held(NamedTuple):
    """A storage in use."""

    n_bytes: int
    kind: str
    block: Any
    watch: Any


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Write down every storage that is allocated and released while this is entered.

    Args:
        on_cpu: Whether to count what the CPU's library takes for its convolutions.
    """

    def __init__(self, *, on_cpu: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_cpu = on_cpu
        self._held: dict[int, _Held] = {}
        self._now: dict[str, int] = defaultdict(int)
        self._total = 0
        self._phase = "weights"
        self._allocator = CachingAllocator()
        self.begin()

    def begin(self) -> None:
        """Forget the peak: the step begins here."""
        self._peak = self._total
        self._at_peak = dict(self._now)
        self._course: list[dict[str, int]] = []
        self._flops = self._calls = 0

    def found(self) -> Footprint:
        """Return what has been written down since ``begin``."""

        def known(figures: Mapping[str, int]) -> dict[str, int]:
            return {kind: figures.get(kind, 0) for kind in KINDS}

        return Footprint(
            known(self._at_peak),
            known(self._now),
            self._allocator.reserved,
            tuple(known(moment) for moment in self._course),
            self._flops,
            self._calls,
        )

    @contextmanager
    def phase(self, kind: str) -> Iterator[None]:
        """Call what is allocated for a while by this kind."""
        before, self._phase = self._phase, kind
        try:
            yield
        finally:
            self._phase = before

    def call(self, tensor: Tensor, kind: str) -> None:
        """Give what a tensor holds another kind."""
        key = tensor.untyped_storage()._cdata
        held = self._held.get(key)
        if held is None:
            return
        self._release(key)
        self._hold(key, held.n_bytes, kind, held.watch)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - as PyTorch calls it
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation, and write down what it allocates."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype is torch.bool else 1  # fakes have no content
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out  # a question about a tensor
        self._calls += not func.is_view
        if self._on_cpu and func is torch.ops.aten.convolution_backward.default:
            n_bytes = cpu_workspace(*args[:3], groups=args[9])
            self._take("workspace", n_bytes)
            self._give("workspace", n_bytes)
        self._flops += _flops(func, args, out)
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._notice(value)
        return out

    def _notice(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        in_backward = torch._C._current_graph_task_id() != -1
        kind = "backward" if in_backward else self._phase
        watch = weakref.ref(storage, lambda _: self._release(key))
        self._hold(key, storage.nbytes(), kind, watch)

    def _hold(self, key: int, n_bytes: int, kind: str, watch: object) -> None:
        n_bytes = -(-n_bytes // ROUND) * ROUND
        is_here = kind != _ELSEWHERE
        block = self._allocator.allocate(n_bytes) if is_here else None
        self._held[key] = _Held(n_bytes, kind, block, watch)
        if not is_here:
            return
        self._take(kind, n_bytes)

    def _release(self, key: int) -> None:
        held = self._held.pop(key)
        if held.block is None:
            return
        self._allocator.free(held.block)
        self._give(held.kind, held.n_bytes)

    def _take(self, kind: str, n_bytes: int) -> None:
        self._now[kind] += n_bytes
        self._total += n_bytes
        if self._total > self._peak:
            self._peak = self._total
            self._at_peak = dict(self._now)
        self._course.append(dict(self._now))

    def _give(self, kind: str, n_bytes: int) -> None:
        self._now[kind] -= n_bytes
        self._total -= n_bytes


def _flops(func: Any, args: tuple[Any, ...], out: Any) -> int:  # noqa: ANN401
    """Return the multiplications and additions of an operation, if it has many."""
    aten = torch.ops.aten
    if func is aten.convolution.default:
        return 2 * int(out.numel()) * int(args[1][0].numel())
    if func is aten.convolution_backward.default:
        # PyTorch's own count takes a depthwise convolution for a dense one here.
        slope, _, weight = args[:3]
        return 2 * int(slope.numel()) * int(weight[0].numel()) * sum(args[10][:2])
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else int(count(*args, out_val=out))


def cpu_workspace(slope: Tensor, x: Tensor, weight: Tensor, *, groups: int) -> int:
    """Return what oneDNN takes to differentiate a large depthwise kernel, in bytes.

    It sums the weights' gradient in 256 parts; in bfloat16 it keeps them twice, and
    unfolds the map besides. The rule was read off its allocations (PyTorch 2.15, x86-64):
    exact for all sizes tried. Smaller kernels and other convolutions take little.
    """
    if groups == 1 or weight.shape[1] > 1 or weight.shape[2] <= 3:
        return 0
    taken = 256 * weight.numel() * 4
    if x.dtype == torch.bfloat16:
        taken += 256 * weight.numel() * 2
        taken += 64 * groups * (slope.shape[2] + 1) * (slope.shape[3] + 1)
    return taken


class _Watch:
    """Tell the ledger what a learner's memory is for."""

    def __init__(self, ledger: Ledger, learner: Learner, *, has_host: bool) -> None:
        self._ledger = ledger
        self._learner = learner
        network = learner.network
        self._bracket(network, "activations")
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    self._call_gradient
                )
        if learner.lessons is not None:
            lessons, teacher = learner.lessons, learner.lessons.teacher
            for name in ("begin_step", "teach"):
                setattr(lessons, name, self._as_teaching(getattr(lessons, name)))
            place = _ELSEWHERE if teacher.away and has_host else "teacher"
            own = {id(p) for p in network.parameters()}
            for tensor in (*teacher.network.parameters(), *teacher.network.buffers()):
                if id(tensor) not in own:
                    ledger.call(tensor, place)

    def take_first_step(self) -> None:
        """Let the optimiser make its state, as it does in the first step of a run."""
        network = self._learner.network
        with self._ledger.phase("gradients"):
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        with self._ledger.phase("optimiser"):
            self._learner.apply(step=0, steps=3)
        self._learner.forget_gradients()

    def _as_teaching(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def taught(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as it is called
            with self._ledger.phase("teaching"):
                return method(*args, **kwargs)

        return taught

    def _bracket(self, network: nn.Module, kind: str) -> None:
        """Call what a network allocates in its forward pass by this kind."""
        opened: list[Any] = []

        def before(_module: nn.Module, _inputs: object) -> None:
            bracket = self._ledger.phase(kind)
            bracket.__enter__()
            opened.append(bracket)

        def after(_module: nn.Module, _inputs: object, _scores: object) -> None:
            opened.pop().__exit__(None, None, None)

        network.register_forward_pre_hook(before)
        network.register_forward_hook(after)

    def _call_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._ledger.call(parameter.grad, "gradients")


@contextmanager
def _gpu_casts() -> Iterator[None]:
    """Compute in float32 what autocast computes in float32 on a GPU and not on a CPU."""

    def cast(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def in_float32(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
            if x.dtype != torch.bfloat16:
                return norm(x, *args, **kwargs)
            with torch.autocast("cpu", enabled=False):
                return norm(x.float(), *args, **kwargs)

        return in_float32

    with ExitStack() as stack:
        for name in IN_FLOAT32:
            stack.enter_context(patch.object(F, name, cast(getattr(F, name))))
        yield


def _make_fake(network: Segmenter, *, channels_last: bool) -> None:
    """Put fake weights into a network that has none."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            layout = torch.contiguous_format
            if channels_last and parameter.ndim == 4:
                layout = torch.channels_last
            fake = torch.empty(parameter.shape, memory_format=layout)
            module._parameters[name] = nn.Parameter(fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    # They lie where they should, and fakes cannot be moved.
    setattr(network, "_apply", lambda *_: network)  # noqa: B010


def _fake_tiles(settings: Experiment, *, with_lessons: bool) -> Drawn:
    """Return what a step learns from, as the loader gives it."""
    b, size = settings.training.batch, settings.data.tile_px

    def tiles(*shape: int) -> Tensor:
        return torch.zeros(*shape, size, size, dtype=torch.uint8)

    labelled = Batch(
        image=tiles(b, 3),
        lesion=tiles(b),
        leaf=tiles(b),
        disease=torch.zeros(b, dtype=torch.uint8),
        keys=("",) * b,
        distance=tiles(b).float() if settings.loss.boundary > 0 else None,
    )
    if not with_lessons:
        return Drawn(labelled)
    n = b * settings.unlabelled.ratio
    views = Views(
        weak=tiles(n, 3),
        strong=tiles(settings.unlabelled.strong_views, n, 3),
        inside=tiles(n).bool(),
        keys=("",) * n,
    )
    return Drawn(labelled, views)


def of_batch(settings: Experiment, batch: int) -> Experiment:
    """Return the settings with another batch."""
    training = settings.training.model_copy(update={"batch": batch})
    return settings.model_copy(update={"training": training})
