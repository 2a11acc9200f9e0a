"""Runs that are disturbed on purpose, beside one that is not.

    python benchmarks/fault_campaign.py --work FOLDER --each 10
    python benchmarks/fault_campaign.py --work FOLDER --five --kinds sigkill
    python benchmarks/fault_campaign.py --work FOLDER --set deterministic=true  # on a GPU

Every run is the command line's `train` on drawn leaves, with a teacher, in a process of
its own. A fault strikes at a random moment; the command is then given again, as a user
would, until it ends by itself. A row a run goes into the CSV: whether the run completed,
after how many restarts, and whether its models and its history are those of the
undisturbed run, bit for bit. What is in the CSV is not repeated.

The full disk needs the right to mount a small file system; without it that fault is left
out and said to be.

``--five`` trains on five data sets at once: three with masks, each with its own mask
values, one of class folders and one of bare images.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import results_table
import yaml
from PIL import Image

from plantseg_next.models.bundle import read_card
from plantseg_next.settings import Settings
from plantseg_next.synthetic.folders import write_drawn_folder

RESULTS = Path(__file__).parent / "results" / "fault_campaign.csv"
FIVE = RESULTS.with_name("fault_campaign_five.csv")
STEPS = 24
SETTINGS = [
    "data.tile_px=64", "data.labeled_fraction=0.3", "data.cache_mib=0", "data.workers=0",
    "semi.warmup_fraction=0",
    "training.minutes=null", f"training.steps={STEPS}", "training.batch=4",
    "training.validations=4", "training.validation_images=6",
]  # fmt: skip
MOST_RESTARTS = 4
SMALL_DISK_MIB = 500
LIMIT_S = 600


@dataclass
class Case:
    """One disturbed run.

    Args:
        folder: For the run.
        data: Folder of data sets, of the case's own, for the fault may break one.
        chance: Of the case.
        settings: Beside ``SETTINGS``.
        inject: What the process does to itself, see ``injected``.
        log: What happened.
    """

    folder: Path
    data: Path
    chance: random.Random
    settings: list[str] = field(default_factory=list)
    inject: str = ""
    log: list[str] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Give the command."""
        if self.inject:
            command = [sys.executable, __file__, "--inject", self.inject]
        else:
            command = [sys.executable, "-m", "plantseg_next"]
        command += ["train", *map(str, sorted(self.data.iterdir()))]
        command += ["--out", str(self.folder)]
        command += ["--config", str(self.folder.parent / "settings.yaml")]
        command += [word for pair in self.settings for word in ("--set", pair)]
        with (self.folder.parent / "log.txt").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def wait_for_step(self, process: subprocess.Popen[bytes], step: int) -> None:
        """Wait until a checkpoint of this step or a later one is there, or it ended."""
        while process.poll() is None:
            written = self.folder.glob("checkpoints/*.safetensors")
            if any(int(path.stem.rsplit("-", 1)[1]) >= step for path in written):
                return
            time.sleep(0.002)

    def newest(self) -> Path:
        """Return the newest checkpoint."""
        return max((self.folder / "checkpoints").glob("*.safetensors"))


def sigkill(case: Case, process: subprocess.Popen[bytes]) -> None:
    """Kill at any moment, from the start of the process to the last step."""
    if case.chance.random() < 0.3:
        time.sleep(case.chance.uniform(0, 8))
    else:
        case.wait_for_step(process, case.chance.randrange(STEPS))
        time.sleep(case.chance.random())
    process.kill()


def sigterm(case: Case, process: subprocess.Popen[bytes]) -> None:
    """Ask to stop at any moment."""
    case.wait_for_step(process, case.chance.randrange(STEPS))
    time.sleep(case.chance.random())
    process.terminate()


def kill_while_writing(case: Case, process: subprocess.Popen[bytes]) -> None:
    """Kill while a checkpoint lies there half written, or without its digest."""
    case.wait_for_step(process, case.chance.randrange(STEPS - 2))
    folder = case.folder / "checkpoints"
    without_digest = case.chance.random() < 0.5
    while process.poll() is None:
        if without_digest:
            hit = [
                path
                for path in folder.glob("*.safetensors")
                if not path.with_name(f"{path.name}.sha256").exists()
            ]
        else:
            hit = list(folder.glob(".*.safetensors.*.partial"))
        if hit:
            process.kill()
            case.log.append(f"while writing {hit[0].name}")
            return


def flipped_byte(case: Case, process: subprocess.Popen[bytes]) -> None:
    """Kill, and flip a bit of the newest checkpoint."""
    case.wait_for_step(process, case.chance.randrange(1, STEPS))
    process.kill()
    process.wait()
    content = bytearray(case.newest().read_bytes())
    if content:
        content[case.chance.randrange(len(content))] ^= 1 << case.chance.randrange(8)
    case.newest().write_bytes(content)


def truncation(case: Case, process: subprocess.Popen[bytes]) -> None:
    """Kill, and cut the newest checkpoint short."""
    case.wait_for_step(process, case.chance.randrange(1, STEPS))
    process.kill()
    process.wait()
    content = case.newest().read_bytes()
    case.newest().write_bytes(content[: case.chance.randrange(len(content) or 1)])


def unreadable_image(case: Case, process: subprocess.Popen[bytes]) -> None:
    """Break an image during the run."""
    case.wait_for_step(process, case.chance.randrange(1, STEPS - 4))
    images = sorted((case.data / "set_0" / "images").iterdir())
    victim = case.chance.choice(images)
    victim.write_bytes(b"rot")
    case.log.append(victim.name)


def killed_worker(case: Case, process: subprocess.Popen[bytes]) -> None:
    """Kill a process that reads images, as the system does when memory runs out."""
    case.wait_for_step(process, case.chance.randrange(1, STEPS - 4))
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if not child.children()]
    workers = [w for w in workers if "forkserver" in " ".join(w.cmdline())]
    if workers:
        case.chance.choice(workers).kill()
        case.log.append("a worker was killed")


def full_disk(case: Case, process: subprocess.Popen[bytes]) -> None:
    """Fill the disk during the run; make room when it has stopped."""
    case.wait_for_step(process, case.chance.randrange(1, STEPS - 4))
    filler = case.folder.parent / "filler"
    try:
        with filler.open("wb") as file:
            while True:
                file.write(bytes(2**18))
                file.flush()
    except OSError:
        pass
    process.wait(LIMIT_S)
    case.log.append(f"exit code {process.returncode}")
    filler.unlink()


def nothing(_: Case, __: subprocess.Popen[bytes]) -> None:
    """Leave it to what is injected."""


def too_little_memory(chance: random.Random) -> str:
    """From a random step on, only so many tiles fit."""
    return f"memory:{chance.randrange(STEPS)}:{chance.choice((1, 2))}"


def too_little_memory_to_validate(chance: random.Random) -> str:
    """From a random validation on, only so many tiles fit."""
    return f"validation:{chance.randrange(4)}:{chance.choice((1, 2))}"


def not_a_number(chance: random.Random) -> str:
    """For a few steps the gradient counts as not finite."""
    first = chance.randrange(STEPS - 5)
    return f"nan:{first}:{chance.choice((1, 2, 3, 4))}"


Fault = Callable[[Case, subprocess.Popen[bytes]], None]
NOTHING, WEIGHTS, ALL = 0, 2, 3
"""How much of ``bits_of`` is promised. With fewer tiles at once a matrix product may be
rounded otherwise: metrics of a validation differ in the last digits, weights do not."""
FAULTS: dict[str, tuple[Fault, Callable[[random.Random], str] | None, int]] = {
    "sigkill": (sigkill, None, ALL),
    "sigterm": (sigterm, None, ALL),
    "kill_while_writing": (kill_while_writing, None, ALL),
    "flipped_byte": (flipped_byte, None, ALL),
    "truncation": (truncation, None, ALL),
    "killed_worker": (killed_worker, None, ALL),
    "full_disk": (full_disk, None, ALL),
    "too_little_memory": (nothing, too_little_memory, NOTHING),
    "too_little_memory_to_validate": (nothing, too_little_memory_to_validate, WEIGHTS),
    "not_a_number": (nothing, not_a_number, NOTHING),
    "unreadable_image": (unreadable_image, None, NOTHING),
}
"""The fault, what the process does to itself, and what of the bits is promised."""


def injected(what: str) -> None:
    """Change this process so that it fails as asked, then be the command line."""
    import torch

    from plantseg_next import cli
    from plantseg_next.inference.backends import TorchBackend
    from plantseg_next.training.engine import Engine

    kind, *numbers = what.split(":")
    start, size = map(int, numbers)
    find, score = Engine.backward, TorchBackend.__call__
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    def backward(self: Engine, batch: Any, **how: Any) -> Any:  # noqa: ANN401
        found = find(self, batch, **how)
        if kind == "nan" and start <= how["step"] < start + size:
            return found[0], False
        if kind == "memory" and how["step"] >= start and how["micro_batch"] > size:
            raise error
        return found

    calls = 0

    def scores(self: TorchBackend, tiles: Any) -> Any:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if kind == "validation" and calls > 6 * start and len(tiles) > size:
            raise error
        return score(self, tiles)

    Engine.backward = backward  # type: ignore[method-assign]
    TorchBackend.__call__ = scores  # type: ignore[method-assign]
    cli.main()


@contextmanager
def place(work: Path, *, small_disk: bool) -> Iterator[Path]:
    """Yield an empty folder, on a small file system of its own where that is asked."""
    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not small_disk:
        yield folder
        return
    size = f"size={SMALL_DISK_MIB}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)  # noqa: S607
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)  # noqa: S607


def bits_of(run: Path) -> tuple[str, ...]:
    """Return what must be equal: the best model, the last one, and the history."""
    models = (read_card(run / name).sha256 for name in ("best", "last"))
    return (*models, (run / "history.csv").read_text())


def strike(
    kind: str, seed: int, work: Path, undisturbed: tuple[str, ...]
) -> dict[str, Any]:
    """Return the row of one disturbed run."""
    fault, inject, promised = FAULTS[kind]
    chance = random.Random(f"{kind} {seed}")  # noqa: S311 - moments, not secrets
    began = time.perf_counter()
    with place(work, small_disk=kind == "full_disk") as folder:
        shutil.copytree(work / "leaves", folder / "leaves")
        Settings().with_settings(SETTINGS).write(folder / "settings.yaml")
        case = Case(folder / "run", folder / "leaves", chance)
        case.settings = [f"training.checkpoint_minutes={chance.choice((0, 0, 1))}"]
        case.settings += ["data.workers=1"] if kind == "killed_worker" else []
        case.inject = inject(chance) if inject else ""
        process = case.start()
        fault(case, process)
        code = process.wait(LIMIT_S)
        restarts = 0
        while code != 0 and restarts < MOST_RESTARTS:
            case.inject = ""
            restarts += 1
            code = case.start().wait(LIMIT_S)
        events = folder / "run" / "events.jsonl"
        completed = code == 0
        n = promised or ALL
        identical = completed and bits_of(folder / "run")[:n] == undisturbed[:n]
        n_events = len(events.read_text().splitlines()) if events.exists() else 0
        if not completed:
            shutil.copy(folder / "log.txt", work / f"failed-{kind}-{seed}.txt")
    return {
        "kind": kind,
        "seed": seed,
        "restarts": restarts,
        "completed": int(completed),
        "identical": int(identical),
        "promised": int(promised != NOTHING),
        "n_events": n_events,
        "note": "; ".join([case.settings[0].split("=")[1], *case.log]),
        "seconds": round(time.perf_counter() - began, 1),
    }


def draw_data_sets(folder: Path, *, five: bool) -> None:
    """Draw one data set, or five of different kinds."""
    if folder.exists():
        return
    write_drawn_folder(folder / "set_0", 60, seed=1, size_hw=(96, 96))
    if not five:
        return
    for i in (1, 2):
        write_drawn_folder(folder / f"set_{i}", 30, seed=1 + i, size_hw=(96, 96))
        for mask in (folder / f"set_{i}" / "masks").rglob("*.png"):
            with Image.open(mask) as values:
                Image.fromarray(255 - np.array(values)).save(mask)
        names = folder / f"set_{i}" / "classes.yaml"
        meant = yaml.safe_load(names.read_text())
        names.write_text(yaml.safe_dump({255 - v: name for v, name in meant.items()}))
    for i in (3, 4):
        write_drawn_folder(folder / "drawn", 24, seed=1 + i, size_hw=(96, 96))
        for j, image in enumerate(sorted((folder / "drawn" / "images").rglob("*.*"))):
            disease = ("Crop___rust", "Crop___healthy")[j % 2] if i == 3 else ""
            place = folder / f"set_{i}" / disease / image.name
            place.parent.mkdir(parents=True, exist_ok=True)
            image.rename(place)
        shutil.rmtree(folder / "drawn")


def run_undisturbed(work: Path) -> tuple[str, ...]:
    """Return the bits of the run that nothing happens to."""
    with place(work, small_disk=False) as folder:
        # At the place where the others are: a run knows its images by their paths.
        shutil.copytree(work / "leaves", folder / "leaves")
        Settings().with_settings(SETTINGS).write(folder / "settings.yaml")
        case = Case(folder / "run", folder / "leaves", random.Random(0))  # noqa: S311
        if case.start().wait(LIMIT_S):
            raise SystemExit((folder / "log.txt").read_text())
        return bits_of(folder / "run")


def can_mount(work: Path) -> bool:
    """Return whether a small file system can be had."""
    try:
        with place(work, small_disk=True):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def main() -> None:
    """Run what is missing, a fault of every kind in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--five", action="store_true", help="five data sets at once")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    SETTINGS.extend(arguments.settings)
    out = arguments.out or (FIVE if arguments.five else RESULTS)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    draw_data_sets(work / "leaves", five=arguments.five)
    kinds = list(arguments.kinds)
    if "full_disk" in kinds and not can_mount(work):
        print("full_disk is left out: no file system can be mounted here")
        kinds.remove("full_disk")
    undisturbed = run_undisturbed(work)
    done = {(r["kind"], r["seed"]) for r in results_table.read(out)}
    for seed in range(arguments.each):
        for kind in kinds:
            if (kind, str(seed)) in done:
                continue
            row = strike(kind, seed, work, undisturbed)
            print(row, flush=True)
            results_table.append(out, row | results_table.stamp())
    print_table(out)


def print_table(path: Path) -> None:
    """Print a line a kind of fault."""
    rows = results_table.read(path)
    print(f"{'fault':<30} {'runs':>5} {'completed':>10} {'identical':>10} {'restarts':>9}")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        completed, identical, restarts = (
            sum(int(row[name]) for row in mine)
            for name in ("completed", "identical", "restarts")
        )
        shown = f"{identical}" if mine[0]["promised"] == "1" else f"({identical})"
        print(f"{kind:<30} {len(mine):>5} {completed:>10} {shown:>10} {restarts:>9}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inject"]:
        asked = sys.argv[2]
        sys.argv[1:3] = []
        injected(asked)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        main()
