"""How far the predicted memory of a training step is from the measured one, on a CPU.

    python benchmarks/memory_error.py

Each configuration runs two real steps on random tiles in a process of its own. Then
PyTorch's profiler, which knows nothing of the prediction, adds up every allocation of a
third. Beside it stands what the system saw the process grow by, and how long it took.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import results_table
import torch

from plantseg_next.data.dataset import TrainBatch
from plantseg_next.memory.allocator import MIB
from plantseg_next.memory.trace import footprint, trace
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.runtime import Device, find_device
from plantseg_next.settings import Settings
from plantseg_next.structures import Batch, ClassMap, UnlabeledBatch
from plantseg_next.training.engine import Engine

RESULTS = Path(__file__).parent / "results" / "memory_error.csv"
ALL_PARTS = "[stage_1,stage_2,stage_3,stage_4,decoder,fine]"
CONFIGURATIONS = (
    "model.encoder=convnextv2_atto data.tile_px=192 training.batch=8",
    "model.encoder=convnextv2_atto data.tile_px=192 training.batch=8 "
    "semi.method=supervised",
    "model.encoder=convnextv2_atto data.tile_px=128 training.batch=8 semi.strong_views=2",
    "model.encoder=convnextv2_atto data.tile_px=256 training.batch=8 "
    "training.micro_batch=2",
    "model.encoder=convnextv2_atto data.tile_px=192 training.batch=4 "
    "training.precision=float32",
    "model.encoder=convnextv2_femto data.tile_px=192 training.batch=8 "
    "training.micro_batch=1 semi.method=mean_teacher",
    "model.encoder=convnextv2_nano data.tile_px=256 training.batch=4 "
    "training.micro_batch=2",
    "model.encoder=convnextv2_nano data.tile_px=256 training.batch=4 "
    f"memory.activation_checkpointing={ALL_PARTS}",
    "model.encoder=convnextv2_tiny data.tile_px=256 training.batch=2",
    "model.encoder=convnextv2_tiny data.tile_px=256 training.batch=6 "
    f"training.micro_batch=1 memory.activation_checkpointing={ALL_PARTS}",
    "model.encoder=convnextv2_tiny data.tile_px=256 training.batch=2 "
    "memory.optimizer=adafactor memory.ema_offload=true",
    "model.encoder=convnextv2_tiny data.tile_px=256 training.batch=2 "
    "memory.freeze_encoder=true",
    "model.encoder=convnextv2_atto data.tile_px=256 training.batch=4 "
    "memory.loss_chunk_rows=64 classes=116",
    "model.encoder=convnextv2_atto data.tile_px=512 training.batch=2",
    "model.encoder=convnextv2_base data.tile_px=256 training.batch=2 "
    f"training.micro_batch=1 memory.activation_checkpointing={ALL_PARTS}",
)


def understood(text: str) -> tuple[Settings, ClassMap, bool]:
    """Return settings, classes and whether there are unlabeled tiles."""
    pairs = text.split()
    n = next((int(p.split("=")[1]) for p in pairs if p.startswith("classes=")), 4)
    pairs = [p for p in pairs if not p.startswith("classes=")]
    settings = Settings().with_settings(["model.start=random", *pairs])
    names = tuple(f"disease {i}" for i in range(n - 1))
    classes = ClassMap(names, ("healthy", *names), has_leaf=True)
    return settings, classes, settings.semi.method != "supervised"


def tiles(settings: Settings, *, with_unlabeled: bool) -> TrainBatch:
    """Return random tiles of the shapes that the loader gives."""
    b, size = settings.training.batch, settings.data.tile_px

    def some(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2, (*shape, size, size), dtype=torch.uint8)

    keys = ("",) * b
    labeled = Batch(some(b, 3), some(b), some(b), torch.zeros(b).byte(), keys)
    if not with_unlabeled:
        return TrainBatch(labeled)
    strong = some(settings.semi.strong_views, b, 3)
    names = torch.zeros(b).byte()
    return TrainBatch(
        labeled, UnlabeledBatch(some(b, 3), strong, some(b).bool(), names, keys)
    )


def stepping(text: str, device: Device) -> tuple[Engine, TrainBatch, Callable[[], None]]:
    """Return an engine, tiles for it, and what takes a step with them."""
    settings, classes, with_unlabeled = understood(text)
    torch.manual_seed(0)
    engine = Engine(
        build_segmenter(settings.model, classes),
        settings,
        device,
        classes,
        with_unlabeled=with_unlabeled,
    )
    drawn = tiles(settings, with_unlabeled=with_unlabeled)
    size = settings.training.tiles_at_once

    def step() -> None:
        engine.backward(drawn, step=1, steps=3, micro_batch=size, profile=True)
        engine.optimizer_step(step=1, steps=3)

    return engine, drawn, step


def measured(text: str) -> dict[str, float]:
    """Return the bytes of a real step, and its seconds."""
    process = psutil.Process()
    torch.randn(64, 64) @ torch.randn(64, 64)  # libraries are in memory before
    before = process.memory_info().rss
    engine, drawn, step = stepping(text, find_device("cpu"))
    step()
    began = time.perf_counter()
    step()
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    highest = int(status.split("VmHWM:")[1].split()[0]) * 1024
    engine.zero_grad()
    gc.collect()
    peak = allocated(step, engine, drawn)
    return {"peak": peak, "grown": highest - before, "seconds": seconds}


def allocated(step: Callable[[], object], engine: Engine, drawn: TrainBatch) -> int:
    """Return the most that is in use during a step, in bytes.

    The profiler sees what is allocated while it looks; what an engine, gradients that it
    kept and its tiles hold before is added.
    """
    tiles = [vars(one) for one in drawn if one is not None]
    gradients = [weight.grad for weight in engine.network.parameters()]
    held = _bytes_of([engine.state_dict(), gradients, tiles], set())
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    seen = [e["args"] for e in events if e.get("name") == "[memory]"]
    began_at = seen[0]["Total Allocated"] - seen[0]["Bytes"]
    return held + max(e["Total Allocated"] for e in seen) - began_at


def _bytes_of(value: object, known: set[int]) -> int:
    """Return what the tensors in a nest of containers hold, each storage once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in known:
            return 0
        known.add(storage.data_ptr())
        return storage.nbytes()
    if isinstance(value, dict):
        return sum(_bytes_of(one, known) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes_of(one, known) for one in value)
    return 0


def main() -> None:
    """Measure, predict, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="measure this configuration and print it as JSON")
    one = parser.parse_args().one
    if one is not None:
        print(json.dumps(measured(one)))
        return
    done = {row["configuration"] for row in results_table.read(RESULTS)}
    for text in CONFIGURATIONS:
        if text in done:
            continue
        found = subprocess.run(
            [sys.executable, __file__, "--one", text],
            capture_output=True,
            text=True,
            check=True,
        )
        real = json.loads(found.stdout.strip().splitlines()[-1])
        settings, classes, with_unlabeled = understood(text)
        began = time.perf_counter()
        traced = partial(
            trace, classes=classes, device=find_device("cpu"), with_unlabeled=with_unlabeled
        )
        foreseen = footprint(settings, traced)
        error = foreseen.peak_bytes / real["peak"] - 1
        row = {
            "configuration": text,
            "predicted_mib": round(foreseen.peak_bytes / MIB, 1),
            "measured_mib": round(real["peak"] / MIB, 1),
            "error_percent": round(100 * error, 2),
            "process_grew_mib": round(real["grown"] / MIB, 1),
            "step_s": round(real["seconds"], 2),
            "prediction_s": round(time.perf_counter() - began, 1),
        }
        results_table.append(RESULTS, row | results_table.stamp())
        print(row, flush=True)


if __name__ == "__main__":
    main()
