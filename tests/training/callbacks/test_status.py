"""What a run's folder says, while it goes on and after whatever happened."""

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
    """A copy of the files that tell of a run."""
    for path in finished_semi_run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def saying(run, **changes):
    path = run / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_run_says_what_comes_next(finished_semi_run):
    status = read_status(finished_semi_run)
    assert status.state == "finished"
    text = str(status)
    assert f"{finished_semi_run}: finished. 12 steps were taken." in text
    assert "step       12 of 12" in text
    assert "data.labeled_fraction=0.3" in text
    assert f"plantseg-next evaluate {finished_semi_run}" in text
    assert (finished_semi_run / "summary.txt").read_text() == f"{text}\n"


def test_a_run_that_goes_on_says_how_long(run):
    saying(run, state="running", step=6, left_s=100.0)
    with run_lock(run):
        text = str(read_status(run))
    assert f"{run}: running\n  step       6 of 12" in text
    assert "left       about 1 min 40 s\n" in text
    assert f"plantseg-next watch {run} follows it" in text


def test_a_run_that_was_killed_says_so_and_how_to_go_on(run):
    saying(run, state="running", time=time.time() - 600)
    status = read_status(run)
    assert status.state == "died"
    text = str(status)
    assert "died without a word, 10 min" in text
    assert "Memory was nearly full" not in text
    assert "go on from step 12 with: " in text


def test_a_run_that_was_killed_for_memory_is_suspected_of_it(run):
    saying(run, state="running", ram_mib=7900, ram_free_mib=100)
    text = str(read_status(run))
    assert "Memory was nearly full (7900 MiB in use, 100 free)" in text


def test_the_command_that_goes_on_is_shown(run):
    tree = json.loads((run / "run.json").read_text())
    command = ["plantseg-next", "train", "my leaves", "--out", "run"]
    changed = tree | {"command": command, "directory": "/home/ana"}
    (run / "run.json").write_text(json.dumps(changed))
    saying(run, state="stopped")
    text = str(read_status(run))
    assert "plantseg-next train 'my leaves' --out run   (in /home/ana)" in text


def test_a_run_that_broke_down_says_why(drawn_folder, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(RuntimeError):
        api.train(drawn_folder, tmp_path / "run", FEW)
    text = str(read_status(tmp_path / "run"))
    assert "failed. RuntimeError('shapes do not match')" in text


def test_a_run_that_was_asked_to_stop_says_so(drawn_folder, tmp_path, monkeypatch):
    real = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: real(self, stop_after=1))
    with pytest.raises(StoppedError):
        api.train(drawn_folder, tmp_path / "run", FEW)
    status = read_status(tmp_path / "run")
    assert status.state == "stopped"
    assert "stopped, as it was asked to. Stopped at step 1 of 12." in str(status)


def test_broken_files_do_not_hide_the_rest(run):
    """A machine that went down may leave an empty file or half a line."""
    (run / "progress.json").write_bytes(b"")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"step": 1, "kind": "forecast", "text": "so"}\n{"step": 4, "ki')
    status = read_status(run)
    assert status.state == "died"
    assert status.events[-1]["text"] == "so"
    assert "died before its first step" in str(status)


def test_repeated_events_are_told_once(run):
    lines = [{"step": n, "kind": "not-finite", "text": f"step {n}"} for n in (3, 4, 5)]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = str(read_status(run))
    assert "step 5, not-finite (3 times, last): step 5" in text
    assert "step 3" not in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        read_status(tmp_path)


def test_the_curves_are_a_image(run):
    (run / "curves.png").unlink()
    draw_curves(run)
    with Image.open(run / "curves.png") as image:
        assert image.format == "PNG"
        assert image.size[0] > 400


def test_before_the_first_validation_there_are_no_curves(tmp_path):
    draw_curves(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_can_be_verified(finished_semi_run):
    found = api.verify(finished_semi_run)
    assert found.difference is None
    assert found.conditions == ()


def test_a_run_that_cannot_be_repeated_is_found_out(run):
    tree = json.loads((run / "first_steps.json").read_text())
    first = tree["losses"][4].split(", ")[0]
    name, value = first.split()
    other = float.fromhex(value) + 1e-7
    changed = json.dumps(tree).replace(value, other.hex())
    (run / "first_steps.json").write_text(changed)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"code": "older"}))
    found = api.verify(run)
    assert found.difference.startswith(f"step 5: {name} was ")
    assert any(line.startswith("code: older then") for line in found.conditions)


def test_other_weights_after_equal_losses_are_found_out(run, finished_semi_run):
    tree = json.loads((run / "first_steps.json").read_text())
    (run / "first_steps.json").write_text(json.dumps(tree | {"weights": "0"}))
    assert first_difference(run, finished_semi_run).startswith("the weights after step 10")


def test_a_short_run_cannot_be_verified(run):
    (run / "first_steps.json").unlink()
    with pytest.raises(UsageError, match="holds no run of 10 steps"):
        api.verify(run)
