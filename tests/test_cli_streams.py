"""The command line where its streams are full, closed or gone, and in any locale."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import plantseg_next

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "plantseg_next"]
QUICK = [
    "--set=training.minutes=null", "--set=training.steps=2", "--set=data.tile_px=64",
    "--set=training.batch=4", "--set=data.workers=0",
]  # fmt: skip


def run(words, *, redirect="", cwd, **environment):
    """Run a command through a shell; return its exit code, stdout and stderr."""
    source = str(Path(plantseg_next.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        ["/bin/bash", "-c", f'"$@" {redirect}', "_", *COMMAND, *map(os.fsencode, words)],
        capture_output=True,
        check=False,
        cwd=cwd,
        env=env,
        timeout=240,
    )
    out, err = (
        part.decode(errors="backslashreplace") for part in (done.stdout, done.stderr)
    )
    assert "Traceback" not in err
    return done.returncode, out, err


@pytest.fixture
def data(drawn_folder, tmp_path):
    """A few images with masks, of names that are not ASCII."""
    folder = tmp_path / "ünïcode"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
        for path in sorted((drawn_folder / kind).iterdir())[:12]:
            shutil.copy(path, folder / kind / f"ü{path.name}")
    shutil.copy(drawn_folder / "classes.yaml", folder)
    return folder


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=["posix", "ascii"],
)
def test_any_locale_prints_what_it_cannot_encode_escaped(data, environment):
    code, out, err = run(["check", data.name], cwd=data.parent, **environment)
    if "LC_ALL" in environment:  # the names themselves are not known there
        assert code == 1
        assert "has a name that is not UTF-8" in err
        assert "PYTHONUTF8" in err
    else:
        assert code in (0, 1)
        assert r"\xfcn\xefcode: 12 images, 12 masks" in out
        code, out, _ = run(["check", data.name, "--json"], cwd=data.parent, **environment)
        assert json.loads(out)["sources"][0]["name"] == "ünïcode"
    words = ["predict", f"{data.name}/images", "--out", "p"]
    code, _, err = run(words, cwd=data.parent, **environment)
    assert (code, err.strip()) == (0, "")
    table = (data.parent / "p/severity.csv").read_text("utf-8")
    assert "\nü" in table
    masks = list((data.parent / "p/masks").iterdir())
    assert len(masks) == 12


def test_full_output_is_reported_after_the_work_is_done(data):
    words = ["predict", f"{data.name}/images", "--out", "p"]
    code, _, err = run(words, redirect=">/dev/full", cwd=data.parent)
    assert code == 2
    assert err.strip().splitlines() == [
        "error: What was printed is lost: No space left on device. "
        "Everything else was done.",
        "  needed: a standard output that takes the text",
        "  to do:  print to a terminal, or to a file on a disk with free space",
    ]
    assert (data.parent / "p/severity.csv").is_file()
    assert run(["--help"], redirect=">/dev/full", cwd=data.parent)[0] == 2


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        ("2>&-", 0),
        ("2>/dev/full", 0),
        (">&- 2>&- <&-", 0),
        ("2> >(true)", 0),
        ("| true; exit ${PIPESTATUS[0]}", 1),
    ],
    ids=["closed", "full", "all-closed", "gone", "reader-gone"],
)
def test_training_goes_on_without_its_terminal(data, redirect, expected):
    """After tqdm/tqdm#1033: a job ended when its terminal did."""
    words = ["train", data.name, "--out", "run", *QUICK]
    code, _, _ = run(words, redirect=redirect, cwd=data.parent)
    assert code == expected
    assert (data.parent / "run/last/model.json").is_file()
    progress = json.loads((data.parent / "run/progress.json").read_text())
    assert progress["state"] == "finished"


def test_error_is_an_exit_code_where_it_cannot_be_printed(tmp_path):
    for redirect in ("2>&-", "2>/dev/full", ">&- 2>&-"):
        code, out, _ = run(["check", "nowhere"], redirect=redirect, cwd=tmp_path)
        assert (code, out) == (2, "")


def test_markup_and_escape_codes_in_names_are_shown_as_they_are(data):
    """After Textualize/rich#3203 and docarray/docarray#733."""
    unlabeled = data.parent / "unl[/red]"
    unlabeled.mkdir(parents=True)
    shutil.copy(next((data / "images").iterdir()), unlabeled / "a:leaf:.png")
    (unlabeled / "[red]bad\n\x1b[31m.jpg").write_bytes(b"no image")
    shutil.copy(unlabeled / "a:leaf:.png", os.fsencode(unlabeled) + b"/\xff.png")
    words = ["train", data.name, "--unlabeled", "unl[/red]", "--out", "run[/b]", *QUICK]
    code, out, err = run(words, cwd=data.parent, COLUMNS="400")
    assert code == 0, err
    assert r"the first is unl[/red]/[red]bad\n\x1b[31m.jpg" in err
    assert "/a:leaf:.png" in err
    assert r"`unl[/red]/\xff.png`: Left out: the name is not UTF-8" in err
    assert "model: run[/b]/best" in out
    assert "\x1b" not in out + err
    code, _, err = run([*words, "--restart"], cwd=data.parent, COLUMNS="400")
    assert code == 0
    assert "what was in run[/b] is now in run[/b].1" in err


def test_class_names_are_escaped_and_cut(data):
    folder = data.parent / "coco"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "images/a.jpg")
    names = ["\x1b[31mrust\x1b[0m", "\u202emold", "x" * 2_000_000, "=cmd"]
    box = [[5, 5, 40, 5, 40, 40, 5, 40]]
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "segmentation": box, "iscrowd": 0}
            for i in range(1, 5)
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(tree))
    code, out, err = run(["check", "coco"], cwd=data.parent)
    assert code == 1
    assert "\x1b" not in out + err
    assert len(out) < 5000
    _, out, _ = run(["check", "coco", "--json"], cwd=data.parent)
    (source,) = json.loads(out)["sources"]
    shown = set(source["lesion_fraction"])
    assert all(len(name) <= 240 for name in shown)
    assert all(name.isprintable() for name in shown)
    tree["categories"][1]["name"] = "\ud800mold"
    (folder / "annotations.json").write_text(json.dumps(tree))
    code, _, err = run(["check", "coco"], cwd=data.parent)
    assert code == 1
    assert "line 1: half of a surrogate pair" in err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("kind", "expected"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)]
)
def test_prediction_that_was_stopped_is_resumed(drawn_folder, tmp_path, kind, expected):
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((drawn_folder / "images").iterdir())[:12]:
        shutil.copy(path, images)
    (images / "broken.png").write_bytes(b"no image")
    source = str(Path(plantseg_next.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    words = ["predict", "images", "--out", "images/out"]
    table = images / "out/severity.partial.csv"
    with subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, env=env, stderr=subprocess.PIPE
    ) as process:
        until = time.monotonic() + 120
        while not (table.is_file() and table.read_text().count("\n") > 3):
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(process.pid, signal.Signals[kind])
        err = process.stderr.read().decode()
    assert process.returncode == expected
    if expected > 0:
        assert err.strip().startswith("Stopped at image ")
        assert err.endswith(
            f" of 13, asked by {kind}. The same command resumes from here.\n"
        )
    with (images / "out/records.partial.jsonl").open("a") as lines:
        lines.write('{"image": "cut')
    measured = table.read_text().splitlines()[:-1]

    other = [*words, "--min-lesion-px", "7"]
    code, _, err = run(other, cwd=tmp_path)
    assert code == 2
    assert "error: `images/out` holds a prediction that did not end" in err
    assert "  needed: the same command, which resumes it, or a new folder" in err

    code, out, _ = run(words, cwd=tmp_path)
    assert code == 1  # one image is broken
    assert "12 images measured" in out
    rows = (images / "out/severity.csv").read_text().splitlines()
    assert rows[: len(measured)] == measured
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    shutil.move(images / "out", resumed)
    assert not (resumed / ".predict.json").exists()
    run(["predict", "images", "--out", "whole"], cwd=tmp_path)
    for file in ("severity.csv", "lesions.csv", "records.json"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()
