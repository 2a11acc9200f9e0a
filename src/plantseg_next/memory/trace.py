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

from plantseg_next.data.dataset import TrainBatch
from plantseg_next.memory.allocation_tracker import ELSEWHERE, AllocationTracker, Footprint
from plantseg_next.models import cpu_backward
from plantseg_next.models.segmenter import Segmenter, build_segmenter
from plantseg_next.runtime import PRODUCTS_BYTES, Device, same_bits
from plantseg_next.settings import Settings
from plantseg_next.structures import Batch, ClassMap, UnlabeledBatch
from plantseg_next.training.engine import Engine, build_engine, uses_bfloat16

IN_FLOAT32 = ("layer_norm", "group_norm", "interpolate")
"""Functions of the network that autocast computes in float32 on a GPU, but not on a CPU."""
TRACED_PARTS = (2, 3)
"""Micro-batches of two traces; a step of more grows by their difference, part by part."""
UNSEEN = 1.03
"""What a GPU reserves, over what a trace sees: cuDNN takes memory while it computes, and
steps of many parts leave more pieces. Measured; see benchmarks/results/gpu_memory.csv."""


def footprint(settings: Settings, traced: Callable[[Settings], Footprint]) -> Footprint:
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
    settings: Settings,
    classes: ClassMap,
    device: Device,
    *,
    with_unlabeled: bool,
    with_image_labels: bool = False,
) -> Footprint:
    """Return what a step takes, from running all of it on fake tensors.

    The GPU's memory is that of ``device.kind == "cuda"``, in whose precision it is traced;
    what waits in main memory is then left out.

    Args:
        settings: The whole tree.
        classes: Of the network.
        device: Where it is to run; need not be here.
        with_unlabeled: Whether there is anything without masks to learn from.
        with_image_labels: Whether some of that has names.
    """
    with torch.device("meta"):
        model = settings.model
        network = build_segmenter(model, classes, fetch=False)
    on_cpu = device.kind == "cpu"
    setattr(network.encoder, "traced_for_gpu", not on_cpu)  # noqa: B010
    tracker = AllocationTracker(on_cpu=on_cpu, multiplying=0 if on_cpu else PRODUCTS_BYTES)
    casts = not on_cpu and uses_bfloat16(settings, device)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(tracker)
        stack.enter_context(_gpu_casts() if casts else nullcontext())
        stack.enter_context(same_bits(settings.deterministic, device))
        _make_fake(network)
        # The fakes lie on the CPU, where gradients can be followed without a GPU.
        here = Device("cpu", device.name, device.has_bfloat16)
        engine = build_engine(
            network,
            settings,
            here,
            classes,
            with_unlabeled=with_unlabeled,
            with_image_labels=with_image_labels,
        )
        watch = _Watch(tracker, engine, has_host=not on_cpu)
        watch.take_first_step()
        with tracker.phase("images"):
            drawn = _fake_tiles(settings, with_unlabeled=with_unlabeled)
        tracker.begin()
        size = settings.training.tiles_at_once
        with tracker.phase("losses"):
            engine.backward(drawn, step=1, steps=3, micro_batch=size, profile=True)
            engine.optimizer_step(step=1, steps=3)
        return tracker.found()


class _Watch:
    """Tell the ledger what a learner's memory is for."""

    def __init__(
        self, tracker: AllocationTracker, engine: Engine, *, has_host: bool
    ) -> None:
        self._tracker = tracker
        self._engine = engine
        network = engine.network
        self._bracket(network, "activations")
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    self._call_gradient
                )
        if engine.pseudo_labeler is not None:
            pseudo_labeler, teacher = engine.pseudo_labeler, engine.pseudo_labeler.teacher
            for name in ("begin_step", "make_targets"):
                setattr(
                    pseudo_labeler, name, self._as_teaching(getattr(pseudo_labeler, name))
                )
            place = ELSEWHERE if teacher.offload_to_cpu and has_host else "teacher"
            own = {id(p) for p in network.parameters()}
            for tensor in (*teacher.network.parameters(), *teacher.network.buffers()):
                if id(tensor) not in own:
                    tracker.call(tensor, place)

    def take_first_step(self) -> None:
        """Let the optimizer make its state, as it does in the first step of a run."""
        network = self._engine.network
        with self._tracker.phase("gradients"):
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        with self._tracker.phase("optimizer"):
            self._engine.optimizer_step(step=0, steps=3)
        self._engine.zero_grad()

    def _as_teaching(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def pseudo_labeled(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as it is called
            with self._tracker.phase("teaching"):
                return method(*args, **kwargs)

        return pseudo_labeled

    def _bracket(self, network: nn.Module, kind: str) -> None:
        """Call what a network allocates in its forward pass by this kind."""
        opened: list[Any] = []

        def before(_module: nn.Module, _inputs: object) -> None:
            bracket = self._tracker.phase(kind)
            bracket.__enter__()
            opened.append(bracket)

        def after(_module: nn.Module, _inputs: object, _scores: object) -> None:
            opened.pop().__exit__(None, None, None)

        network.register_forward_pre_hook(before)
        network.register_forward_hook(after)

    def _call_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._tracker.call(parameter.grad, "gradients")


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


def _fake_tiles(settings: Settings, *, with_unlabeled: bool) -> TrainBatch:
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
    if not with_unlabeled:
        return TrainBatch(labeled)
    n = b * settings.semi.ratio
    views = UnlabeledBatch(
        weak=tiles(n, 3),
        strong=tiles(settings.semi.strong_views, n, 3),
        valid=tiles(n).bool(),
        disease=torch.zeros(n, dtype=torch.uint8),
        keys=("",) * n,
    )
    return TrainBatch(labeled, views)


def of_batch(settings: Settings, batch: int) -> Settings:
    """Return the settings with another batch."""
    training = settings.training.model_copy(update={"batch": batch})
    return settings.model_copy(update={"training": training})
