"""Status of a run's folder, while it runs and after it ended."""

import json
import time

import pytest
from PIL import Image

from conftest import FEW
from plantseg_next import api
from plantseg_next.errors import StoppedError, UsageError
from plantseg_next.training.callbacks.curves import draw_curves
from plantseg_next.training.callbacks.reproducibility import first_difference
from plantseg_next.training.callbacks.status import read_status
from plantseg_next.training.run_record import run_lock
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


def test_status_of_folder_without_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        read_status(tmp_path)


def test_curves_are_a_png(run):
    (run / "curves.png").unlink()
    draw_curves(run)
    with Image.open(run / "curves.png") as image:
        assert image.format == "PNG"
        assert image.size[0] > 400


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
