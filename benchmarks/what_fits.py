"""What fits on which GPU: predicted, for nothing here has a GPU.

    python benchmarks/what_fits.py

The student and its teacher with one strong view, 32 labelled and 32 unlabelled tiles a
step. Bytes are what PyTorch would reserve; the driver's context comes on top. The first
rows are stated cases, with settings as asked for and as planned for a budget; then the
original system's step, 32 pictures of six tiles at once in float32; then the largest
encoder that fits each size of GPU, at 512 and at 256 px.
"""

import argparse
import time
from pathlib import Path

import results_table

from plantseg_next.errors import UsageError
from plantseg_next.experiment import Experiment
from plantseg_next.runtime import Device
from plantseg_next.structures import ClassMap
from plantseg_next.training.memory.planner import plan_memory

RESULTS = Path(__file__).parent / "results" / "what_fits.csv"
GPU = Device("cuda", "a GPU", has_bfloat16=True)
CONTEXT_MB = 700
"""Left for the driver on a GPU of a stated size: on an H200 it took 695."""
CASES = (
    ("convnextv2_tiny", 256, 0.8),
    ("convnextv2_tiny", 512, 1.2),
    ("convnextv2_base", 512, 1.9),
    ("convnextv2_large", 512, 1.9),
    ("convnextv2_large", 384, 1.9),
    ("convnextv2_large", 256, 1.9),
    ("convnextv2_huge", 256, 1.9),
)
ORIGINAL = ("training.batch=192", "training.precision=float32")
GPUS_GB = (2, 4, 6, 8, 12, 24)
SIZES = ("huge", "large", "base", "small", "tiny", "nano", "pico", "femto", "atto")
ENCODERS = tuple(f"convnextv2_{size}" for size in SIZES)
CLASSES = ClassMap(
    tuple(f"disease {i}" for i in range(4)), ("healthy", "ill"), has_leaf=True
)


def size_of(encoder: str) -> str:
    """Return the size by which a case names a ConvNeXt-V2, as rows of the table do."""
    return encoder.removeprefix("convnextv2_")


def try_budget(name: str, encoder: str, tile_px: int, budget_gb: float, *more: str) -> bool:
    """Plan, add a row, and return whether it fits."""
    done = {row["case"] for row in results_table.read(RESULTS)}
    if name in done:
        rows = {row["case"]: row for row in results_table.read(RESULTS)}
        return rows[name]["fits"] == "True"
    settings = Experiment().with_settings(
        [
            f"model.encoder={encoder}",
            f"data.tile_px={tile_px}",
            "training.batch=32",
            *more,
        ]
    )
    began = time.perf_counter()
    row = {"case": name, "encoder": encoder, "tile_px": tile_px, "budget_gb": budget_gb}
    try:
        plan = plan_memory(
            settings, CLASSES, GPU, round(budget_gb * 1e9), with_lessons=True
        )
    except UsageError as error:
        plan, needed = None, error.needed
    fits = plan is not None and plan.settings.data.tile_px == tile_px
    memory = plan.settings.memory if plan else None
    row |= {
        "fits": fits,
        "reserved_mb": round(plan.needs / 1e6) if plan else needed,
        "peak_mb": round(plan.after.peak_bytes / 1e6) if plan else "",
        "as_asked_mb": round(plan.before.reserved / 1e6) if plan else "",
        "micro_batch": plan.settings.training.micro_batch if plan else "",
        "recomputed": len(memory.recomputed) if memory else "",
        "teacher": memory.teacher if memory else "",
        "optimiser": memory.optimiser if memory else "",
        "slower": round(plan.slower, 2) if plan else "",
        "plan_s": round(time.perf_counter() - began),
    }
    results_table.append(RESULTS, row | results_table.stamp())
    print(row, flush=True)
    return fits


def main() -> None:
    """Plan every case."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for encoder, tile_px, budget in CASES:
        try_budget(f"{size_of(encoder)} {tile_px} in {budget}", encoder, tile_px, budget)
    try_budget("the original's step in 1.9", "convnextv2_tiny", 384, 1.9, *ORIGINAL)
    try_budget("the same in bfloat16 in 1.9", "convnextv2_tiny", 384, 1.9, ORIGINAL[0])
    for gpu in GPUS_GB:
        for tile_px in (512, 256):
            for encoder in ENCODERS:
                budget = round(gpu - CONTEXT_MB / 1000, 1)
                name = f"{gpu} GB GPU, {size_of(encoder)} {tile_px}"
                if try_budget(name, encoder, tile_px, budget):
                    break


if __name__ == "__main__":
    main()
