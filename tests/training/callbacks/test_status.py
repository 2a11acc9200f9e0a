"""Status of a run's folder, while it runs and after it ended."""

import json
import os
import time

import pytest
from filelock import FileLock
from PIL import Image

from conftest import FEW, train_until
from plantseg_next import api
from plantseg_next.errors import DataError, OutputError, StoppedError, UsageError
from plantseg_next.training.callbacks.curves import draw_curves
from plantseg_next.training.callbacks.reproducibility import first_difference
from plantseg_next.training.callbacks.status import read_status
from plantseg_next.training.run_record import run_lock
from plantseg_next.training.time_budget import few_steps
from plantseg_next.training.trainer import Trainer

pytestmark = pytest.mark.integration


@pytest.fixture
def run(finished_semi_run, tmp_path):
    """A copy of a run's files, without its folders."""
    for path in finished_semi_run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change_progress(run, **changes):
    path = run / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_status_of_finished_run_advises_evaluate(finished_semi_run):
    status = read_status(finished_semi_run)
    assert status.state == "finished"
    text = str(status)
    assert f"{finished_semi_run}: finished. 12 steps were taken." in text
    assert "step       12 of 12" in text
    assert "data.labeled_fraction=0.3" in text
    assert f"plantseg-next evaluate {finished_semi_run}" in text
    assert (finished_semi_run / "summary.txt").read_text() == f"{text}\n"


def test_summary_states_the_images_and_interval_of_the_best_validation(run):
    best = {"step": 400, "lesion_dice": 0.812, "n_images": 60}
    interval = {"lesion_dice_low": 0.771, "lesion_dice_high": 0.849}
    change_progress(run, best=best | interval)
    text = str(read_status(run))
    assert "best       lesion Dice 0.812 (0.77 to 0.85, 60 images), at step 400\n" in text
    change_progress(run, best={"step": 400, "lesion_dice": 0.812})  # of an older version
    assert "best       lesion Dice 0.812, at step 400\n" in str(read_status(run))


def test_progress_of_a_run_counts_its_validation_images(finished_semi_run):
    progress = json.loads((finished_semi_run / "progress.json").read_text())
    assert progress["best"]["n_images"] == progress["last"]["n_images"] == 3
    lines = (finished_semi_run / "history.csv").read_text().splitlines()
    assert "n_val_images" in lines[0].split(",")


def test_resumed_run_keeps_its_best_line(drawn_folder, stopped_run):
    """A run that is called again after its end keeps it too."""
    train_until(9, drawn_folder, stopped_run)
    before = json.loads((stopped_run / "progress.json").read_text())["best"]
    train_until(10, drawn_folder, stopped_run)  # no validation is due
    assert json.loads((stopped_run / "progress.json").read_text())["best"] == before
    api.train(drawn_folder, stopped_run, FEW)
    whole = (stopped_run / "summary.txt").read_text()
    api.train(drawn_folder, stopped_run, FEW)
    (line,) = [line for line in whole.splitlines() if line.startswith("  best ")]
    assert line in (stopped_run / "summary.txt").read_text()
    assert "3 images" in line


def test_run_of_few_steps_says_so_before_and_after(drawn_folder, tmp_path):
    lines = []
    settings = FEW.with_settings(["training.steps=2", "training.validations=1"])
    api.train(drawn_folder, tmp_path / "run", settings, log=lines.append)
    sentence = (
        "2 steps are few: a model improves much up to about 300 (coffee leaves: validation "
        "Dice 0.853 after 188 steps, 0.891 after 375). For more, raise training.steps or "
        "training.minutes."
    )
    assert few_steps(2, "random") == sentence
    assert few_steps(300, "imagenet") is few_steps(100, "starter") is None
    assert few_steps(99, "starter") == (
        "99 steps are few, also from a trained model: the demo takes 200. For more, raise "
        "training.steps or training.minutes."
    )
    assert sentence in lines
    assert f"  few steps  {sentence}" in (tmp_path / "run" / "summary.txt").read_text()


def test_status_of_enough_steps_states_no_few_steps(run):
    change_progress(run, steps=300)
    assert "few steps" not in str(read_status(run))


def test_status_of_running_run_shows_time_left(run):
    change_progress(run, state="running", step=6, left_s=100.0)
    with run_lock(run):
        text = str(read_status(run))
    assert f"{run}: running\n  step       6 of 12" in text
    assert "left       about 1 min 40 s\n" in text
    assert f"to follow it: plantseg-next watch {run}" in text


def test_status_of_killed_run_advises_resume(run):
    change_progress(run, state="running", time=time.time() - 600)
    status = read_status(run)
    assert status.state == "died"
    text = str(status)
    assert "died without a message 10 min" in text
    assert "Memory was nearly full" not in text
    assert "resume from step 12 with: " in text


def test_status_of_killed_run_reports_full_memory(run):
    change_progress(run, state="running", ram_mib=7900, ram_free_mib=100)
    text = str(read_status(run))
    assert "Memory was nearly full (7900 MiB in use, 100 free)" in text


def test_status_shows_the_resume_command(run):
    tree = json.loads((run / "run.json").read_text())
    command = ["plantseg-next", "train", "my leaves", "--out", "run"]
    changed = tree | {"command": command, "directory": "/home/ana"}
    (run / "run.json").write_text(json.dumps(changed))
    change_progress(run, state="stopped")
    text = str(read_status(run))
    assert "plantseg-next train 'my leaves' --out run   (in /home/ana)" in text


def test_status_of_failed_run_shows_the_error(drawn_folder, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(RuntimeError):
        api.train(drawn_folder, tmp_path / "run", FEW)
    text = str(read_status(tmp_path / "run"))
    assert "failed. RuntimeError('shapes do not match')" in text


def test_status_of_stopped_run_shows_the_step(drawn_folder, tmp_path, monkeypatch):
    real = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: real(self, stop_after=1))
    with pytest.raises(StoppedError):
        api.train(drawn_folder, tmp_path / "run", FEW)
    status = read_status(tmp_path / "run")
    assert status.state == "stopped"
    assert "stopped on request. Stopped at step 1 of 12." in str(status)


def test_status_with_damaged_files_shows_the_rest(run):
    """A crash of the machine may leave an empty file or a truncated line."""
    (run / "progress.json").write_bytes(b"")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"step": 1, "kind": "plateau", "text": "so"}\n{"step": 4, "ki')
    status = read_status(run)
    assert status.state == "died"
    assert status.events[-1]["text"] == "so"
    assert "died before its first step" in str(status)


def test_status_shows_repeated_events_once(run):
    lines = [{"step": n, "kind": "not-finite", "text": f"step {n}"} for n in (3, 4, 5)]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = str(read_status(run))
    assert "step 5, not-finite (3 times, last): step 5" in text
    assert "step 3" not in text


def test_status_with_a_lock_that_cannot_be_written_reads_it(run, monkeypatch):
    """A run of another user, or on a read-only file system."""

    def forbidden(*_):
        raise PermissionError(13, "Permission denied", str(run / ".lock"))

    (run / ".lock").touch()
    (run / "progress.json").write_text(json.dumps({"state": "running"}))
    with FileLock(run / ".lock"), monkeypatch.context() as patch:
        patch.setattr("filelock.FileLock.acquire", forbidden)
        assert read_status(run).state == "running"
    monkeypatch.setattr("filelock.FileLock.acquire", forbidden)
    assert read_status(run).state == "died"


def test_status_with_a_lock_that_cannot_be_read_says_so(run, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", str(run / ".lock"))

    (run / ".lock").touch()
    monkeypatch.setattr("filelock.FileLock.acquire", forbidden)
    monkeypatch.setattr("fcntl.flock", forbidden)
    monkeypatch.setattr("os.access", lambda *_: False)
    (known, resumed) = read_status(run).notes
    assert known.startswith("whether it is still running is not known: `")
    assert known.endswith(".lock` cannot be written: Permission denied.")
    assert resumed == "you may not write into this folder, so you cannot resume the run"


def test_status_without_readable_events_or_progress_is_shown(run):
    for name in ("events.jsonl", "progress.json"):
        (run / name).unlink()
        (run / name).mkdir()
    assert "died before its first step" in str(read_status(run))


def test_status_of_folder_without_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        read_status(tmp_path)


def test_curves_are_a_png(run):
    (run / "curves.png").unlink()
    draw_curves(run)
    with Image.open(run / "curves.png") as image:
        assert image.format == "PNG"
        assert image.size[0] > 400


def test_curves_of_validations_without_a_metric_are_drawn(run):
    (run / "curves.png").unlink()
    columns = "step,best,score,n_val_images"
    (run / "history.csv").write_text(f"{columns}\n0,0,0.0,3\n")
    draw_curves(run)
    assert not (run / "curves.png").exists()  # there is nothing to draw
    (run / "history.csv").write_text(f"{columns},loss_leaf\n4,1,0.0,3,0.5\n")
    draw_curves(run)
    assert (run / "curves.png").exists()


def test_curves_show_the_interval_as_a_band(run):
    (run / "curves.png").unlink()
    columns = "step,best,score,val_lesion_dice,n_val_images,val_lesion_dice_low"
    rows = "4,0,0.5,0.5,3,0.3,0.7\n8,1,0.6,0.6,3,,\n"
    (run / "history.csv").write_text(f"{columns},val_lesion_dice_high\n{rows}")
    draw_curves(run)
    assert (run / "curves.png").exists()


def test_curves_without_validation_are_not_drawn(tmp_path):
    draw_curves(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_verify_of_unchanged_run_finds_no_difference(finished_semi_run):
    found = api.verify(finished_semi_run)
    assert found.difference is None
    assert found.conditions == ()


def test_verify_reports_first_different_loss_and_conditions(run):
    tree = json.loads((run / "first_steps.json").read_text())
    first = tree["losses"][4].split(", ")[0]
    name, value = first.split()
    other = float.fromhex(value) + 1e-7
    changed = json.dumps(tree).replace(value, other.hex())
    (run / "first_steps.json").write_text(changed)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"code": "older"}))
    found = api.verify(run)
    assert found.difference.startswith(f"step 5: {name} was ")
    assert any(line.startswith("code: older then") for line in found.conditions)


def test_first_difference_reports_different_weights(run, finished_semi_run):
    tree = json.loads((run / "first_steps.json").read_text())
    (run / "first_steps.json").write_text(json.dumps(tree | {"weights": "0"}))
    assert first_difference(run, finished_semi_run).startswith("the weights after step 10")


def test_verify_of_short_run_is_refused(run):
    (run / "first_steps.json").unlink()
    with pytest.raises(UsageError, match="holds no run of 10 steps"):
        api.verify(run)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5,
        "[[1, 2]]",
        "NaN",
        '{"state": "running", "step": 3}',
        '{"state": [1], "text": {}, "step": "x"}',
        '{"state": "no such state"}',
    ],
)
def test_status_with_progress_of_something_else_says_so(run, text):
    (run / "progress.json").write_text(text)
    status = str(read_status(run))
    assert "not running; how far it came is not known" in status
    assert "damaged    progress.json is not as it was written, and is not shown" in status


@pytest.mark.parametrize(
    "change",
    [
        {"best": 5},
        {"best": {"step": 1, "lesion_dice": "x"}},
        {"lesion_fractions": [1]},
        {"checkpoint": 5},
        {"ram_mib": None},
        {"left_s": "x"},
        {"time": 1e300},
        {"step": -1},
    ],
)
def test_status_with_a_changed_number_does_not_show_it(run, change):
    change_progress(run, **change)
    assert "damaged    progress.json is not as it was written" in str(read_status(run))


def test_status_skips_events_of_the_wrong_type(run):
    lines = [
        '{"step": [1], "kind": "a", "text": "t"}',
        '{"step": 1, "kind": {}, "text": "t"}',
        "[" * 10**5,
        "5",
        '{"step": 1, "kind": "plateau", "text": "so"}',
    ]
    (run / "events.jsonl").write_text("\n".join(lines))
    assert [event["text"] for event in read_status(run).events] == ["so"]


def test_status_does_not_open_pipes(run):
    for name in ("events.jsonl", "progress.json", "plan.json"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    assert "died before its first step" in str(read_status(run))


def test_status_with_a_plan_of_something_else_is_shown(run):
    (run / "plan.json").write_text('{"needs_mb": "x"}')
    settings = (run / "settings.yaml").read_text()
    (run / "settings.yaml").write_text(
        settings.replace("budget_mb: null", "budget_mb: 9.0")
    )
    assert "budget" not in str(read_status(run)).replace("memory.budget_mb", "")


@pytest.mark.parametrize("name", ["run.json", "manifest.json", "settings.yaml"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_record_that_is_no_file_is_refused_by_name(run, name, kind):
    path = run / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    what = "a link" if kind == "link" else "not a file"
    with pytest.raises(OutputError, match=f"{name}` is {what}") as caught:
        read_status(run)
    assert caught.value.needed == "the file of that name that the run writes"
    assert caught.value.fix == (
        "move it out of the folder, then give the same command again"
    )


@pytest.mark.parametrize("value", [10**12, 0, "x", None])
def test_record_with_an_impossible_number_of_threads_is_refused(run, value):
    tree = json.loads((run / "run.json").read_text()) | {"threads": value}
    (run / "run.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="is not the record of a run: `threads`"):
        read_status(run)
