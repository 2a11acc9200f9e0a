"""How far the predicted memory of a training step is from the measured one, on a GPU.

    python benchmarks/gpu_memory.py foresee --work FOLDER     # anywhere
    python benchmarks/gpu_memory.py measure --work FOLDER     # on a machine with a GPU

The rows are added to ``FOLDER/gpu_memory.csv``.

The configurations are those of ``memory_error.py``, and larger ones as asked for and as
planned. Each takes real steps on random tiles in a
process of its own, planned ones under their budget, which PyTorch enforces. Measured are
the most that was allocated and reserved, what the driver took beside it (its context), and
the time of a step; with ``--at-once 4`` four cases run at a time, and the last two of
these figures are left out.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import results_table
import torch
from memory_error import ALL_PARTS, CONFIGURATIONS, stepping, understood

from plantseg_next.memory.trace import footprint, trace
from plantseg_next.runtime import Device, find_device, prepare_gpu, same_bits

TABLE = "gpu_memory.csv"
GPU = Device("cuda", "a GPU", has_bfloat16=True)
WARM, TIMED = 2, 3
LIMIT_S = 4
"""From so many seconds of timed steps on, no further one is taken."""


@dataclass(frozen=True)
class Case:
    """Settings whose step is foreseen and measured.

    Args:
        settings: As for ``--set``.
        budget_mb: What PyTorch may reserve; ``None`` for all there is.
    """

    settings: str
    budget_mb: float | None = None


def _stated(asked: str, planned: str, budget_gb: float) -> tuple[Case, Case]:
    lean = f"{asked} memory.activation_checkpointing={ALL_PARTS} {planned}"
    return Case(asked), Case(lean, 1000 * budget_gb)


TINY = "model.encoder=convnextv2_tiny data.tile_px={} training.batch=32"
BASE = "model.encoder=convnextv2_base data.tile_px=512 training.batch=32"
LEAN = "memory.optimizer=adafactor memory.ema_offload=true"
ORIGINAL = "model.encoder=convnextv2_tiny data.tile_px=384 training.batch=192"
CASES = (
    *(Case(text) for text in CONFIGURATIONS),
    *_stated(TINY.format(256), "training.micro_batch=1", 0.8),
    *_stated(TINY.format(512), "training.micro_batch=1", 1.2),
    *_stated(BASE, f"training.micro_batch=2 {LEAN}", 1.9),
    Case(TINY.format(256) + " deterministic=true"),
    *_stated(ORIGINAL, "training.micro_batch=3", 1.9),
    *_stated(f"{ORIGINAL} training.precision=float32", "training.micro_batch=2", 1.9),
    Case(
        "model.encoder=convnextv2_atto data.tile_px=512 training.batch=2 deterministic=true"
    ),
)


def foreseen(case: Case) -> dict[str, int]:
    """Return what the plan says that a step takes, in bytes."""
    settings, classes, with_unlabeled = understood(case.settings)
    traced = partial(trace, classes=classes, device=GPU, with_unlabeled=with_unlabeled)
    found = footprint(settings, traced)
    return {"peak": found.peak_bytes, "reserved": found.reserved}


def measured(case: Case) -> dict[str, Any]:
    """Return what real steps took, in bytes, and their seconds."""
    settings, *_ = understood(case.settings)
    device = find_device("cuda")
    prepare_gpu(case.budget_mb, deterministic=settings.deterministic)
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    engine, _, step = stepping(case.settings, device)

    def timed() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    for _ in range(WARM):
        step()
    torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    while len(seconds) < TIMED and sum(seconds) < LIMIT_S:
        seconds.append(timed())
    free, total = torch.cuda.mem_get_info()
    found = {
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "context": context,
        "beside": total - free - torch.cuda.memory_reserved(),
        "seconds": median(seconds),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    engine.zero_grad()
    held = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001
    return found | {"workspaces": held - torch.cuda.memory_allocated()}


def measure(work: Path, cases: Sequence[int], at_once: int) -> None:
    """Measure these cases, and add their rows."""
    known = json.loads((work / "foreseen.json").read_text())
    alone = at_once == 1

    def run(index: int) -> None:
        case = CASES[index]
        command = [sys.executable, __file__, "one", "--cases", str(index)]
        command += ["--work", str(work)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            (work / f"failed-{index}.txt").write_text(ended.stderr)
            print(f"{case.settings}: {ended.stderr.strip().splitlines()[-1]}", flush=True)
            return
        real = json.loads(ended.stdout.strip().splitlines()[-1])
        expected = known[str(index)]
        row = {
            "configuration": case.settings,
            "budget_mb": case.budget_mb or "",
            **{
                f"{what}_{name}_mb": round(metrics[name] / 1e6, 1)
                for name in ("peak", "reserved")
                for what, metrics in (("predicted", expected), ("measured", real))
            },
            "error_percent": round(100 * (expected["reserved"] / real["reserved"] - 1), 2),
            "workspaces_mb": round(real["workspaces"] / 1e6, 1),
            "context_mb": round(real["context"] / 1e6) if alone else "",
            "beside_mb": round(real["beside"] / 1e6) if alone else "",
            "step_s": round(real["seconds"], 4) if alone else "",
            "gpu": real["gpu"],
            "torch": real["torch"],
        }
        results_table.append(work / TABLE, row | results_table.stamp())
        print(row, flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, cases))


def main() -> None:
    """Foresee, or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("foresee", "measure", "one"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)))
    parser.add_argument("--at-once", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.what == "one":
        case = CASES[arguments.cases[0]]
        with same_bits(understood(case.settings)[0].deterministic, GPU):
            print(json.dumps(measured(case)))
    elif arguments.what == "measure":
        measure(arguments.work, arguments.cases, arguments.at_once)
    else:
        path = arguments.work / "foreseen.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        for i in arguments.cases:
            if str(i) not in known:
                known[str(i)] = foreseen(CASES[i])
                print(CASES[i], known[str(i)], flush=True)
                path.write_text(json.dumps(known))


if __name__ == "__main__":
    main()
