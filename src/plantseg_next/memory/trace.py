"""The memory of a training step, found without taking one.

A real step of a real learner runs on fake tensors, which have shapes and no content: every
allocation and every release is seen, in order, and nothing is computed. So the figures
cannot drift away from the code, no GPU is needed, and a network of any size fits.

What is not seen is what libraries take for themselves while they compute: what oneDNN and
cuBLAS take is foreseen by rule, cuDNN's part by an allowance. Nor is what a GPU's driver
takes before the first tensor.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from plantseg_next.data.dataset import Drawn
from plantseg_next.memory.allocation_tracker import ELSEWHERE, Footprint, Ledger
from plantseg_next.models import cpu_backward
from plantseg_next.models.segmenter import Segmenter, build_segmenter
from plantseg_next.runtime import PRODUCTS_BYTES, Device, same_bits
from plantseg_next.settings import Experiment
from plantseg_next.structures import Batch, ClassMap, Views
from plantseg_next.training.engine import Learner, build_learner, uses_bfloat16

IN_FLOAT32 = ("layer_norm", "group_norm", "interpolate")
"""Functions of the network that autocast computes in float32 on a GPU, but not on a CPU."""
TRACED_PARTS = (2, 3)
"""Micro-batches of two traces; a step of more grows by their difference, part by part."""
UNSEEN = 1.03
"""What a GPU reserves, over what a trace sees: cuDNN takes memory while it computes, and
steps of many parts leave more pieces. Measured; see benchmarks/results/gpu_memory.csv."""


def footprint(settings: Experiment, traced: Callable[[Experiment], Footprint]) -> Footprint:
    """Return what a step of these settings takes and costs.

    A step of many micro-batches is traced with two and with three of them: what each
    further one adds is the same again.

    Args:
        settings: The whole tree.
        traced: Returns what a step takes from running all of it; see ``trace``.
    """
    size, batch = settings.training.tiles_at_once, settings.training.batch
    few, more = TRACED_PARTS
    if batch <= more * size:
        found = traced(settings)
    else:
        less, same = (traced(of_batch(settings, n * size)) for n in TRACED_PARTS)
        found = less.grown(same, -(-batch // size) - few)
    return replace(found, reserved=round(UNSEEN * found.reserved))


def trace(
    settings: Experiment,
    classes: ClassMap,
    device: Device,
    *,
    with_lessons: bool,
    with_names: bool = False,
) -> Footprint:
    """Return what a step takes, from running all of it on fake tensors.

    The GPU's memory is that of ``device.kind == "cuda"``, in whose precision it is traced;
    what waits in main memory is then left out.

    Args:
        settings: The whole tree.
        classes: Of the network.
        device: Where it is to run; need not be here.
        with_lessons: Whether there is anything without masks to learn from.
        with_names: Whether some of that has names.
    """
    with torch.device("meta"):
        model = settings.model
        network = build_segmenter(model, classes, fetch=False)
    on_cpu = device.kind == "cpu"
    setattr(network.encoder, "traced_for_gpu", not on_cpu)  # noqa: B010
    ledger = Ledger(on_cpu=on_cpu, multiplying=0 if on_cpu else PRODUCTS_BYTES)
    casts = not on_cpu and uses_bfloat16(settings, device)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(ledger)
        stack.enter_context(_gpu_casts() if casts else nullcontext())
        stack.enter_context(same_bits(settings.deterministic, device))
        _make_fake(network)
        # The fakes lie on the CPU, where gradients can be followed without a GPU.
        here = Device("cpu", device.name, device.has_bfloat16)
        learner = build_learner(
            network,
            settings,
            here,
            classes,
            with_lessons=with_lessons,
            with_names=with_names,
        )
        watch = _Watch(ledger, learner, has_host=not on_cpu)
        watch.take_first_step()
        with ledger.phase("images"):
            drawn = _fake_tiles(settings, with_lessons=with_lessons)
        ledger.begin()
        size = settings.training.tiles_at_once
        with ledger.phase("losses"):
            learner.find_gradients(drawn, step=1, steps=3, micro_batch=size, rehearsal=True)
            learner.apply(step=1, steps=3)
        return ledger.found()


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
            place = ELSEWHERE if teacher.away and has_host else "teacher"
            own = {id(p) for p in network.parameters()}
            for tensor in (*teacher.network.parameters(), *teacher.network.buffers()):
                if id(tensor) not in own:
                    ledger.call(tensor, place)

    def take_first_step(self) -> None:
        """Let the optimizer make its state, as it does in the first step of a run."""
        network = self._learner.network
        with self._ledger.phase("gradients"):
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        with self._ledger.phase("optimizer"):
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
        # A GPU has no use for what makes a CPU faster.
        stack.enter_context(patch.object(cpu_backward, "is_faster", lambda _: False))
        yield


def _make_fake(network: Segmenter) -> None:
    """Put fake weights into a network that has none."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            layout = torch.contiguous_format
            if parameter.ndim == 4:
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

    labeled = Batch(
        image=tiles(b, 3),
        lesion=tiles(b),
        leaf=tiles(b),
        disease=torch.zeros(b, dtype=torch.uint8),
        keys=("",) * b,
    )
    if not with_lessons:
        return Drawn(labeled)
    n = b * settings.unlabeled.ratio
    views = Views(
        weak=tiles(n, 3),
        strong=tiles(settings.unlabeled.strong_views, n, 3),
        inside=tiles(n).bool(),
        disease=torch.zeros(n, dtype=torch.uint8),
        keys=("",) * n,
    )
    return Drawn(labeled, views)


def of_batch(settings: Experiment, batch: int) -> Experiment:
    """Return the settings with another batch."""
    training = settings.training.model_copy(update={"batch": batch})
    return settings.model_copy(update={"training": training})
