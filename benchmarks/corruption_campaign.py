"""Good data sets, models and runs, each spoiled at random in one or several files.

    python benchmarks/corruption_campaign.py --work FOLDER --cases 1000

A case copies a good folder, spoils up to three of its files (deleted, cut, emptied,
swapped, renamed, doubled, flipped bytes, edited numbers, a link or a pipe in their place),
and gives one command. A case is good if the command ends by itself, without a traceback,
within the limit, writes nothing outside its output folder, and does not lose images or
masks in silence: fewer of them than in the good folder, exit code 0, and no issue more.

A row a case goes into the CSV; what is in it is not repeated. Commands run in processes
forked from one that has loaded everything, because 1,000 imports would take an hour.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import results_table
import torch
from PIL import Image

from plantseg_next import api, cli
from plantseg_next.synthetic.folders import write_drawn_folder

RESULTS = Path(__file__).parent / "results" / "corruption_campaign.csv"
LIMIT_S = 90
N_IMAGES = 12
SIDE = 64
RUN_SETTINGS = [
    "data.tile_px=64", "data.cache_mib=0", "data.workers=0", "training.minutes=null",
    "training.steps=4", "training.batch=2", "training.validations=2",
    "training.validation_images=2",
]  # fmt: skip
Spoil = Callable[[Path, random.Random], str]


def main() -> None:
    """Run the cases that are not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(args.work / "cache")
    good = args.work / "good"
    if not good.exists():
        make_good_folders(good)
    known = results_table.read(args.csv)
    expected = {path.name: counts(path) for path in data_sets(good)}
    for number in range(args.first, args.first + args.cases):
        if not results_table.holds(known, {"case": str(number)}):
            row = run_case(number, good, args.work, expected)
            results_table.append(args.csv, row | results_table.stamp())
    summary = Counter(row["outcome"] for row in results_table.read(args.csv))
    print(dict(summary))


def data_sets(good: Path) -> list[Path]:
    """Return the good data sets."""
    return sorted(p for p in good.iterdir() if p.name not in {"model", "run"})


def run_case(
    number: int, good: Path, work: Path, expected: dict[str, dict[str, int]]
) -> dict[str, object]:
    """Spoil a copy, give a command, and return the row."""
    chance = random.Random(number)  # noqa: S311
    case = work / "case"
    shutil.rmtree(case, ignore_errors=True)
    names = [path.name for path in data_sets(good)]
    target = chance.choice([*names, *names, "model", "run", "run"])
    shutil.copytree(good / target, case / target, symlinks=True)
    os.utime(case / target)
    done = [spoil_one(case / target, chance) for _ in range(chance.randint(1, 3))]
    command = command_for(target, good, case, chance)
    before = snapshot(case, good)
    start = time.perf_counter()
    code, text = forked(command, case / "output.txt")
    seconds = time.perf_counter() - start
    changed = {
        path
        for path, state in (snapshot(case, good).items() ^ before.items())
        if not is_output(Path(path), case, target)
    }
    outcome = "good"
    if code is None:
        outcome = "hang"
    elif "Traceback" in text or code < 0:
        outcome = "traceback"
    elif changed:
        outcome = "wrote outside"
    elif (
        code == 0
        and command[0] == "check"
        and lost_in_silence(case / target, expected[target])
    ):
        outcome = "silent loss"
    return {
        "case": number,
        "folder": target,
        "spoiled": "; ".join(done),
        "command": " ".join(command).replace(str(work), "WORK"),
        "exit": code,
        "seconds": round(seconds, 1),
        "outcome": outcome,
        "last_line": next((x for x in reversed(text.splitlines()) if x.strip()), "")[:200],
    }


def command_for(target: str, good: Path, case: Path, chance: random.Random) -> list[str]:
    """Return a command that reads the spoiled folder."""
    folder, out = str(case / target), str(case / "out")
    images = str(good / "masks" / "images")
    if target == "model":
        return ["predict", folder, images, "--out", out]
    if target == "run":
        data = str(good / "masks")
        settings = [word for pair in RUN_SETTINGS for word in ("--set", pair)]
        return chance.choice(
            [
                ["status", folder],
                ["train", data, "--out", folder, *settings],
                ["predict", folder, images, "--out", out],
                ["evaluate", folder, data, "--out", out],
            ]
        )
    if chance.random() < 0.8:
        return ["check", folder]
    return chance.choice(
        [
            ["predict", str(good / "model"), folder, "--out", out],
            ["evaluate", str(good / "model"), folder, "--out", out],
            ["pseudo-label", str(good / "model"), folder, "--out", out],
        ]
    )


def is_output(path: Path, case: Path, target: str) -> bool:
    """Return whether a command may write a file."""
    allowed = [
        case / "out",
        case / "output.txt",
        *([case / target] if target == "run" else []),
    ]
    return any(path == place or place in path.parents for place in allowed)


def snapshot(*roots: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file."""
    state = {}
    for root in roots:
        for folder, _, files in os.walk(root):
            for name in files:
                path = Path(folder, name)
                info = path.lstat()
                state[str(path)] = (info.st_size, info.st_mtime_ns)
    return state


def forked(command: list[str], output: Path) -> tuple[int | None, str]:
    """Give a command in a forked process; ``None`` if it did not end within the limit."""
    process = os.fork()
    if process == 0:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["plantseg-next", *command]
        code = 70
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            text = output.read_text("utf-8", "replace") if output.exists() else ""
            return os.waitstatus_to_exitcode(status), text
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None, output.read_text("utf-8", "replace")


def counts(folder: Path) -> dict[str, int]:
    """Return the images and masks of a data set, and the issues that are found."""
    report = api.check(folder)
    return {
        "images": sum(source.images for source in report.sources),
        "masks": sum(source.masks for source in report.sources),
        "issues": sum(issue.severity != "note" for issue in report.issues),
        "all": len(report.issues),
    }


def lost_in_silence(folder: Path, expected: dict[str, int]) -> bool:
    """Return whether images or masks are fewer, and no issue more."""
    try:
        now = counts(folder)
    except Exception:
        return False
    fewer = any(now[name] < expected[name] for name in ("images", "masks"))
    return fewer and now["all"] <= expected["all"]


# ways to spoil


def spoil_one(folder: Path, chance: random.Random) -> str:
    """Spoil one file of a folder, and return what was done."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        return "nothing left"
    # Every kind of file as often: there are more images than tables.
    endings = sorted({path.suffix for path in files})
    ending = chance.choice(endings)
    path = chance.choice([p for p in files if p.suffix == ending])
    spoil = chance.choice(SPOILS)
    return f"{path.relative_to(folder)} {spoil(path, chance)}"


def _deleted(path: Path, _: random.Random) -> str:
    path.unlink()
    return "deleted"


def _cut(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content) + 1)])
    return "cut"


def _emptied(path: Path, _: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def _swapped(path: Path, chance: random.Random) -> str:
    others = sorted(
        p for p in path.parent.iterdir() if p.suffix == path.suffix and p != path
    )
    if not others:
        return _deleted(path, chance)
    other = chance.choice(others)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"swapped with {other.name}"


def _renamed(path: Path, chance: random.Random) -> str:
    name = chance.choice(
        [
            path.name.upper(),
            f"x{path.name}",
            f"{path.name}.bak",
            f"{path.stem} (1){path.suffix}",
        ]
    )
    path.rename(path.with_name(name))
    return f"renamed to {name}"


def _doubled(path: Path, chance: random.Random) -> str:
    name = chance.choice([f"{path.stem} (copy){path.suffix}", f"{path.stem}.bmp"])
    shutil.copy(path, path.with_name(name))
    return f"copied to {name}"


def _flipped(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 20)):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return "bytes flipped"


def _edited_number(path: Path, chance: random.Random) -> str:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        return _flipped(path, chance)
    numbers = list(re.finditer(r"-?\d+(\.\d+)?", text))
    if not numbers:
        return _flipped(path, chance)
    hit = chance.choice(numbers)
    new = chance.choice(
        [
            "-1",
            "0",
            "1e308",
            "1e999",
            "NaN",
            "Infinity",
            "99999999999",
            "0.5",
            '"a"',
            "null",
        ]
    )
    path.write_text(text[: hit.start()] + new + text[hit.end() :], "utf-8")
    return f"number {hit[0][:12]} edited to {new}"


def _doubled_line(path: Path, chance: random.Random) -> str:
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) > 1:
        i = chance.randrange(len(lines))
        lines.insert(chance.randrange(len(lines)), lines[i])
        path.write_bytes(b"".join(lines))
        return "a line doubled"
    return _flipped(path, chance)


def _lost_line(path: Path, chance: random.Random) -> str:
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) > 1:
        del lines[chance.randrange(len(lines))]
        path.write_bytes(b"".join(lines))
        return "a line deleted"
    return _cut(path, chance)


def _folder_instead(path: Path, _: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def _pipe_instead(path: Path, _: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a pipe in its place"


def _link_instead(path: Path, chance: random.Random) -> str:
    path.unlink()
    path.symlink_to(chance.choice(["/nowhere", path.name, "/dev/zero", "/etc/hostname"]))
    return f"a link to {path.readlink()} in its place"


def _nested(path: Path, chance: random.Random) -> str:
    if path.suffix not in {".json", ".yaml"}:
        return _emptied(path, chance)
    path.write_text("[" * 100_000 + "]" * 100_000)
    return "100,000 lists in its place"


SPOILS: tuple[Spoil, ...] = (
    _deleted, _cut, _emptied, _swapped, _renamed, _doubled, _flipped, _flipped,
    _edited_number, _edited_number, _doubled_line, _lost_line, _folder_instead,
    _pipe_instead, _link_instead, _nested,
)  # fmt: skip


# good folders


def make_good_folders(good: Path) -> None:
    """Draw the good data sets, train a run on one of them, and take its model."""
    write_drawn_folder(good / "masks", N_IMAGES, size_hw=(SIDE, SIDE))
    for write in (_labelme, _coco, _cvat, _yolo, _voc, _plantseg, _classes):
        folder = good / write.__name__.lstrip("_")
        write(folder, sorted((good / "masks" / "images").glob("*.jpg")))
    settings = [word for pair in RUN_SETTINGS for word in ("--set", pair)]
    command = ["train", str(good / "masks"), "--out", str(good / "run"), *settings]
    code, text = forked(command, good.parent / "train.txt")
    if code:
        raise SystemExit(text)
    shutil.copytree(good / "run" / "best", good / "model")


def _box(i: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the drawn lesion of an image."""
    return 8 + i, 10, 30 + i, 40


def _ring(i: int) -> list[list[int]]:
    left, top, right, bottom = _box(i)
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _copy_images(folder: Path, images: list[Path]) -> list[Path]:
    folder.mkdir(parents=True)
    return [Path(shutil.copy(path, folder)) for path in images]


def _labelme(folder: Path, images: list[Path]) -> None:
    for i, path in enumerate(_copy_images(folder, images)):
        shape = {"label": "rust", "points": _ring(i), "shape_type": "polygon"}
        tree = {"imagePath": path.name, "imageHeight": SIDE, "imageWidth": SIDE}
        path.with_suffix(".json").write_text(
            json.dumps({**tree, "shapes": [shape]}, indent=1)
        )


def _coco(folder: Path, images: list[Path]) -> None:
    paths = _copy_images(folder / "images", images)
    tree = {
        "images": [
            {"id": i, "file_name": path.name, "height": SIDE, "width": SIDE}
            for i, path in enumerate(paths)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "segmentation": [[n for point in _ring(i) for n in point]],
            }
            for i in range(len(paths))
        ],
        "categories": [{"id": 1, "name": "rust"}],
    }
    (folder / "instances.json").write_text(json.dumps(tree, indent=1))


def _cvat(folder: Path, images: list[Path]) -> None:
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>"]
    for i, path in enumerate(_copy_images(folder / "images", images)):
        points = ";".join(f"{x},{y}" for x, y in _ring(i))
        lines += [
            f'<image id="{i}" name="{path.name}" width="{SIDE}" height="{SIDE}">',
            f'<polygon label="rust" z_order="0" points="{points}"/>',
            "</image>",
        ]
    (folder / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))


def _yolo(folder: Path, images: list[Path]) -> None:
    (folder / "labels").mkdir(parents=True)
    for i, path in enumerate(_copy_images(folder / "images", images)):
        numbers = " ".join(f"{n / SIDE:.4f}" for point in _ring(i) for n in point)
        (folder / "labels" / f"{path.stem}.txt").write_text(f"0 {numbers}\n")
    (folder / "data.yaml").write_text("names:\n  0: rust\n")


def _voc(folder: Path, images: list[Path]) -> None:
    (folder / "SegmentationClass").mkdir(parents=True)
    for i, path in enumerate(_copy_images(folder / "JPEGImages", images)):
        mask = np.zeros((SIDE, SIDE, 3), np.uint8)
        left, top, right, bottom = _box(i)
        mask[top:bottom, left:right] = (128, 0, 0)
        Image.fromarray(mask).save(folder / "SegmentationClass" / f"{path.stem}.png")
    (folder / "labelmap.txt").write_text("background:0,0,0::\nrust:128,0,0::\n")
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(path.stem for path in images[:8]))
    (lists / "val.txt").write_text("\n".join(path.stem for path in images[8:]))


def _plantseg(folder: Path, images: list[Path]) -> None:
    lines = ["Name,Index,Plant,Disease"]
    for i, path in enumerate(images):
        split = ("train", "val", "test")[i % 3]
        mask = np.zeros((SIDE, SIDE), np.uint8)
        left, top, right, bottom = _box(i)
        mask[top:bottom, left:right] = 1
        for name in ("images", "annotations"):
            (folder / name / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "images" / split)
        Image.fromarray(mask).save(folder / "annotations" / split / f"{path.stem}.png")
        lines.append(f"{path.name},0,apple,rust")
    (folder / "Metadata.csv").write_text("\n".join(lines))


def _classes(folder: Path, images: list[Path]) -> None:
    for name, half in (("Apple___rust", images[::2]), ("Apple___healthy", images[1::2])):
        _copy_images(folder / name, half)


if __name__ == "__main__":
    main()
