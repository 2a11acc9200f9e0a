"""Device, GPU memory limit, threads, determinism and random state of a run."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from plantseg_next.errors import UsageError

CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_BYTES = ":4096:2:16:8", (2 * 4096 + 8 * 16) * 1024
"""cuBLAS workspace, allocated once for each of two threads. It is the default of GPUs
before Hopper; Hopper's default is 32 MiB, much of a small budget."""
SAME_BITS_WORKSPACE, SAME_BITS_KIB = ":16:8", 16 * 8
"""The smaller of the two workspaces with which cuBLAS is deterministic."""


@dataclass(frozen=True)
class Device:
    """The device of a run.

    Args:
        kind: "cpu" or "cuda".
        name: Name to display.
        has_bfloat16: Whether it computes in bfloat16, not merely stores it.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    has_bfloat16: bool


def find_device(wanted: Literal["auto", "cpu", "cuda"] = "auto") -> Device:
    """Return the device to use; "auto" takes a GPU where there is one.

    Raises:
        UsageError: If a GPU is wanted and there is none.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise UsageError(
            "device=cuda, but PyTorch sees no GPU.",
            needed="an NVIDIA GPU with its driver",
            fix="--set device=cpu, or device=auto",
        )
    if has_gpu and wanted != "cpu":
        return Device(
            "cuda",
            torch.cuda.get_device_name(),
            torch.cuda.is_bf16_supported(including_emulation=False),
        )
    threads = torch.get_num_threads()
    name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return Device("cpu", name, _cpu_has_bfloat16())


def _cpu_has_bfloat16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def prepare_gpu(budget_mb: float | None, *, deterministic: bool) -> None:
    """Limit the GPU memory of this process; call it before the first CUDA operation.

    Args:
        budget_mb: Limit of PyTorch's allocator. ``None``: all of the GPU.
        deterministic: Whether ``same_bits`` will be used.
    """
    import torch

    workspace = SAME_BITS_WORKSPACE if deterministic else CUBLAS_WORKSPACE
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", workspace)
    if deterministic:  # cuBLASLt would otherwise request more, and warn
        os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", str(SAME_BITS_KIB))
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    fraction = 1.0 if budget_mb is None else min(1.0, 1e6 * budget_mb / total)
    torch.cuda.set_per_process_memory_fraction(fraction)


@contextmanager
def use_threads(wanted: int) -> Iterator[None]:
    """Use this many CPU threads in the context: results depend on the number.

    ``OMP_NUM_THREADS`` takes precedence if the user has set it.
    """
    import torch

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy's old global generator and PyTorch."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that still use it
    torch.manual_seed(seed)


@contextmanager
def same_bits(wanted: bool, device: Device) -> Iterator[None]:
    """Use only deterministic kernels in the context, if ``wanted``.

    PyTorch warns where it has none. On a GPU, call ``prepare_gpu`` with
    ``deterministic`` before.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not wanted:
        yield
        return
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Fused attention on a GPU sums gradients in any order; PyTorch would only warn.
    on_gpu = device.kind == "cuda"
    try:
        with sdpa_kernel(SDPBackend.MATH) if on_gpu else nullcontext():
            yield
    finally:
        torch.set_deterministic_debug_mode(before)


def random_state() -> dict[str, Any]:
    """Return the state of all global random number generators, for a checkpoint."""
    import torch

    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    has_gpu = torch.cuda.is_available()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if has_gpu else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore ``random_state()``; GPU states only if the number of GPUs is the same."""
    import torch

    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.device_count() == len(state["cuda"]) > 0:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore all global random number generators at the end of the context."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)
