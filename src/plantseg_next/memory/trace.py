"""The memory of a training step, traced without computing it.

The training engine takes a step on fake tensors, which have shapes but no values: every
allocation and release is recorded, in order, and nothing is computed. The result always
matches the code, no GPU is needed, and a network of any size can be traced.

The workspace of libraries is not traced: that of oneDNN and cuBLAS is predicted by rule,
that of cuDNN by a constant factor. The memory of a GPU's driver is not included.
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
from plantseg_next.runtime import CUBLAS_WORKSPACE_BYTES, Device, same_bits
from plantseg_next.settings import Settings
from plantseg_next.structures import Batch, ClassMap, UnlabeledBatch
from plantseg_next.training.engine import Engine, uses_bfloat16

IN_FLOAT32 = ("layer_norm", "group_norm", "interpolate")
"""Functions of the network that autocast computes in float32 on a GPU but not on a CPU."""
TRACED_PARTS = (2, 3)
"""Micro-batches of two traces; their difference is the increase per micro-batch."""
UNTRACED_FACTOR = 1.03
"""Reserved memory of a GPU over the traced one: cuDNN allocates workspace, and steps of
many micro-batches fragment more. Measured; see benchmarks/results/gpu_memory.csv."""


def footprint(settings: Settings, traced: Callable[[Settings], Footprint]) -> Footprint:
    """Return the memory and cost of a step of these settings.

    A step of many micro-batches is traced with two and with three of them, and
    extrapolated linearly.

    Args:
        settings: The whole tree.
        traced: Traces a whole step; see ``trace``.
    """
    size, batch = settings.training.tiles_at_once, settings.training.batch
    few, more = TRACED_PARTS
    if batch <= more * size:
        step = traced(settings)
    else:
        smaller, larger = (
            traced(settings.changed("training", batch=n * size)) for n in TRACED_PARTS
        )
        step = smaller.grown(larger, -(-batch // size) - few)
    return replace(step, reserved=round(UNTRACED_FACTOR * step.reserved))


def trace(
    settings: Settings,
    classes: ClassMap,
    device: Device,
    *,
    with_unlabeled: bool,
    with_image_labels: bool = False,
) -> Footprint:
    """Return the memory of a step, traced by running all of it on fake tensors.

    With ``device.kind == "cuda"`` the GPU's memory is traced, in the GPU's precision;
    tensors offloaded to main memory are then left out.

    Args:
        settings: The whole tree.
        classes: Of the network.
        device: The training device; need not exist on this machine.
        with_unlabeled: Whether unlabeled images are used.
        with_image_labels: Whether some of them have image-level labels.
    """
    with torch.device("meta"):
        network = build_segmenter(settings.model, classes, fetch=False)
    on_cpu = device.kind == "cpu"
    setattr(network.encoder, "traced_for_gpu", not on_cpu)  # noqa: B010
    tracker = AllocationTracker(
        on_cpu=on_cpu, cublas_workspace=0 if on_cpu else CUBLAS_WORKSPACE_BYTES
    )
    casts = not on_cpu and uses_bfloat16(settings, device)
    with (
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        tracker,
        _gpu_casts() if casts else nullcontext(),
        same_bits(settings.deterministic, device),
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        _make_fake(network)
        # Fake tensors on the CPU: autograd works on them without a GPU.
        cpu = Device("cpu", device.name, device.has_bfloat16)
        engine = Engine(
            network,
            settings,
            cpu,
            classes,
            with_unlabeled=with_unlabeled,
            with_image_labels=with_image_labels,
        )
        _label_kinds(tracker, engine, has_host=not on_cpu)
        _take_first_step(tracker, engine)
        with tracker.phase("images"):
            batch = _fake_tiles(settings, with_unlabeled=with_unlabeled)
        tracker.begin()
        size = settings.training.tiles_at_once
        with tracker.phase("losses"):
            engine.backward(batch, step=1, steps=3, micro_batch=size, profile=True)
            engine.optimizer_step(step=1, steps=3)
        return tracker.footprint()


def _label_kinds(tracker: AllocationTracker, engine: Engine, *, has_host: bool) -> None:
    """Assign kinds to what an engine has allocated and will allocate."""
    network, labeler = engine.network, engine.pseudo_labeler

    def in_phase(owner: object, name: str, kind: str) -> None:
        setattr(owner, name, tracker.phase(kind)(getattr(owner, name)))

    def label_gradient(parameter: Tensor) -> None:
        if parameter.grad is not None:
            tracker.relabel(parameter.grad, "gradients")

    in_phase(network, "forward", "activations")
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                label_gradient
            )
    if labeler is None:
        return
    for name in ("weights", "make_targets"):
        in_phase(labeler, name, "teacher predictions")
    kind = ELSEWHERE if labeler.teacher.offload_to_cpu and has_host else "teacher"
    teacher, own = labeler.teacher.network, {id(p) for p in network.parameters()}
    for tensor in (*teacher.parameters(), *teacher.buffers()):
        if id(tensor) not in own:
            tracker.relabel(tensor, kind)


def _take_first_step(tracker: AllocationTracker, engine: Engine) -> None:
    """Make the optimizer allocate its state, as in the first step of a run."""
    with tracker.phase("gradients"):
        for parameter in engine.network.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    with tracker.phase("optimizer"):
        engine.optimizer_step(step=0, steps=3)
    engine.zero_grad()


@contextmanager
def _gpu_casts() -> Iterator[None]:
    """Compute ``IN_FLOAT32`` in float32 on the CPU, as autocast does on a GPU."""

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
        # The replacements of ``cpu_backward`` are not used on a GPU.
        stack.enter_context(patch.object(cpu_backward, "is_faster", lambda _: False))
        yield


def _make_fake(network: Segmenter) -> None:
    """Replace the meta weights of a network by fake ones."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            layout = torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
            fake = torch.empty(parameter.shape, memory_format=layout)
            module._parameters[name] = nn.Parameter(fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    # Fake tensors cannot be moved, and are on the right device.
    setattr(network, "_apply", lambda *_: network)  # noqa: B010


def _fake_tiles(settings: Settings, *, with_unlabeled: bool) -> TrainBatch:
    """Return a step's batch, as the loader returns it."""
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
