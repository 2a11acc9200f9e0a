"""A run resumes where it was interrupted, in whatever way."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import FEW, TINY, train_until
from plantseg_next import api
from plantseg_next.errors import DataError, OutputError, UsageError
from plantseg_next.files import write_atomically
from plantseg_next.models.bundle import read_card
from plantseg_next.settings import Settings
from plantseg_next.training import run_record
from plantseg_next.training.callbacks.callback import Callback
from plantseg_next.training.callbacks.status import read_status
from plantseg_next.training.checkpoints import Checkpoints
from plantseg_next.training.run_record import run_lock
from plantseg_next.training.trainer import Trainer
from plantseg_next.workflows.training_data import DataSources

pytestmark = pytest.mark.integration
COMMAND = "import toy_encoder, plantseg_next.cli; plantseg_next.cli.main()"
"""The command line, with the toy encoder registered in timm."""


def assert_same(one: Path, two: Path) -> None:
    for model in ("best", "last"):
        assert read_card(one / model).sha256 == read_card(two / model).sha256
    assert (one / "history.csv").read_bytes() == (two / "history.csv").read_bytes()


def test_run_without_its_manifest_is_refused(drawn_folder, stopped_run):
    (stopped_run / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"was trained, but has no `manifest\.json`"):
        api.train(drawn_folder, stopped_run, FEW)


def test_run_without_digests_of_its_checkpoints_is_refused(drawn_folder, stopped_run):
    for path in (stopped_run / "checkpoints").glob("*.sha256"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"step-2\.safetensors: it has no digest file"):
            api.train(drawn_folder, stopped_run, FEW)
    assert "failed. No checkpoint in" in str(read_status(stopped_run))
    api.train(drawn_folder, stopped_run, FEW, restart=True)


def test_finished_run_without_its_checkpoints_is_refused(
    finished_semi_run, drawn_folder, tmp_path
):
    out = tmp_path / "run"
    shutil.copytree(finished_semi_run, out)
    shutil.rmtree(out / "checkpoints")
    for _ in range(2):
        with pytest.raises(DataError, match=r"was trained, but .* holds no checkpoint"):
            api.train(drawn_folder, out, FEW)
    assert read_card(out / "best").sha256 == read_card(finished_semi_run / "best").sha256
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"was trained, but has no `manifest\.json`"):
        api.train(drawn_folder, out, FEW)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"threads": None}, r"run\.json` is not the record of a run: `threads`"),
        ({"threads": 0}, r"run\.json` is not the record of a run: `threads`"),
        ({"pixels": None}, r"run\.json` is not the record of a run: `pixels`"),
        ({"pixels": [-1] * 6}, r"run\.json` is not the record of a run: `pixels\.0`"),
        ({"pixels": [9, 9]}, "counts the pixels of 2 classes, and its manifest has 6"),
    ],
)
def test_run_with_a_wrong_record_is_refused(drawn_folder, stopped_run, changed, message):
    tree = json.loads((stopped_run / "run.json").read_text()) | changed
    kept = {name: value for name, value in tree.items() if value is not None}
    (stopped_run / "run.json").write_text(json.dumps(kept))
    with pytest.raises(DataError, match=message) as caught:
        api.train(drawn_folder, stopped_run, FEW)
    assert "start again with --restart" in caught.value.fix


def test_foreign_file_among_checkpoints_and_a_folder_as_lock_are_no_error(stopped_run):
    (stopped_run / "checkpoints" / "my-step-x.safetensors").touch()
    (stopped_run / "checkpoints" / "1-step-x.safetensors").touch()
    (stopped_run / ".lock").unlink(missing_ok=True)
    (stopped_run / ".lock").mkdir()
    assert "resume from step 2" in str(read_status(stopped_run))
    assert Checkpoints(stopped_run).steps()[-1] == 2


def kinds(folder: Path) -> list[str]:
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["kind"] for line in lines]


def test_same_seed_gives_identical_weights(finished_semi_run, drawn_folder, tmp_path):
    api.train(drawn_folder, tmp_path / "run", FEW)
    assert_same(finished_semi_run, tmp_path / "run")


def test_deterministic_setting_is_applied_during_the_run(
    finished_semi_run, drawn_folder, tmp_path
):
    settings = FEW.with_settings(["deterministic=true"])
    seen, summaries = set(), []

    class Spy(Callback):
        def on_step(self, _stepped):
            seen.add(torch.are_deterministic_algorithms_enabled())
            return ()

        def on_validation(self, step, validation, *, best):  # noqa: ARG002
            summaries.append((tmp_path / "run" / "summary.txt").read_text())
            return ()

    api.train(drawn_folder, tmp_path / "run", settings, callbacks=[Spy()])
    assert seen == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same(finished_semi_run, tmp_path / "run")  # on a CPU nothing changes
    assert all("  as of      20" in text for text in summaries)
    assert "  as of" not in (tmp_path / "run" / "summary.txt").read_text()


def test_resume_after_three_interruptions_is_bit_identical(
    finished_semi_run, drawn_folder, tmp_path
):
    for step in (1, 6, 11):
        train_until(step, drawn_folder, tmp_path / "run")
    api.train(drawn_folder, tmp_path / "run", FEW)
    assert_same(finished_semi_run, tmp_path / "run")
    assert kinds(tmp_path / "run").count("resumed") == 3


def interrupted(
    settings: Settings, data: Path, out: Path, number: int
) -> tuple[int, bytes]:
    """Train in another process, and send it a signal once it has written step 3.

    Returns:
        Its exit code and its standard error, when no process has either open any more.
    """
    config = out.with_name("few.yaml")
    settings.write(config)
    command = [sys.executable, "-c", COMMAND, "train", str(data)]
    command += ["--out", str(out), "--config", str(config)]
    # The threads of this process: another number of threads rounds differently.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        while not list(out.glob("checkpoints/*-step-3.*")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("processes outlived the main process by a minute")
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_resume_after_sigkill_or_sigterm_is_bit_identical(
    finished_semi_run, drawn_folder, tmp_path, number
):
    out = tmp_path / "run"
    code, err = interrupted(FEW, drawn_folder, out, number)
    if number == signal.SIGTERM:
        assert code == 128 + signal.SIGTERM
        assert b"of 12, asked by SIGTERM. The same command resumes from here." in err
    else:
        assert code == -signal.SIGKILL
    api.train(drawn_folder, out, FEW)
    assert_same(finished_semi_run, out)


def test_workers_and_their_server_end_after_sigkill_of_the_main_process(
    drawn_folder, tmp_path
):
    settings = FEW.with_settings(["data.workers=2", "training.steps=1000"])
    code, _ = interrupted(settings, drawn_folder, tmp_path / "run", signal.SIGKILL)
    assert code == -signal.SIGKILL


def test_damaged_checkpoint_is_reported_and_the_one_before_used(
    finished_semi_run, drawn_folder, tmp_path
):
    train_until(5, drawn_folder, tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    api.train(drawn_folder, tmp_path / "run", FEW)
    assert_same(finished_semi_run, tmp_path / "run")
    expected = {"damaged-checkpoint", "resumed"}
    emitted = [kind for kind in kinds(tmp_path / "run") if kind in expected]
    assert emitted == ["damaged-checkpoint", "resumed"]


def test_partial_files_of_a_killed_process_are_removed(drawn_folder, stopped_run):
    out = stopped_run
    for name in ("checkpoints/.000009-step-9.safetensors.1.partial", ".run.json.1.partial"):
        (out / name).write_bytes(b"half")
    (out / "mine.partial").touch()
    api.train(drawn_folder, out, FEW)
    assert [path.name for path in out.rglob("*.partial")] == ["mine.partial"]


def test_resume_with_other_settings_is_refused_with_the_difference(
    drawn_folder, stopped_run, tmp_path
):
    out = stopped_run
    other = FEW.with_settings(["training.lr=0.1", "seed=7"])
    with pytest.raises(UsageError, match="holds a run of another configuration") as caught:
        api.train(DataSources(drawn_folder, unlabeled=[tmp_path]), out, other)
    assert "seed: 0 in the run, 7 now" in str(caught.value)
    rate = FEW.training.lr
    assert f"training.lr: {rate} in the run, 0.1 now" in str(caught.value)
    assert f"--unlabeled: nothing in the run, ['{tmp_path}'] now" in str(caught.value)
    assert "--restart to archive it" in caught.value.fix


def test_setting_without_effect_on_the_weights_may_change(drawn_folder, stopped_run):
    out = stopped_run
    api.train(drawn_folder, out, FEW.with_settings(["data.cache_mib=1"]))
    assert kinds(out)[0] == "changed"


def test_restart_archives_the_earlier_run(drawn_folder, stopped_run, tmp_path):
    out = stopped_run
    lines = []
    other = FEW.with_settings(["training.steps=2", "training.validations=1"])
    api.train(drawn_folder, out, other, restart=True, log=lines.append)
    assert lines[0] == f"what was in {out} is now in {tmp_path / 'run.1'}"
    assert Settings.read(tmp_path / "run.1" / "settings.yaml") == FEW
    assert Settings.read(out / "settings.yaml") == other


@pytest.fixture
def files_before(stopped_run):
    """The files of a run, which an unsuccessful call must not change."""
    return {path: path.read_bytes() for path in stopped_run.rglob("*") if path.is_file()}


def assert_unchanged(run: Path, before: dict[Path, bytes]) -> None:
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert list(run.parent.glob("run.*")) == []


def test_restart_that_is_refused_leaves_the_run_as_it_was(
    drawn_folder, stopped_run, files_before, tmp_path
):
    out, lines = stopped_run, []
    other = FEW.with_settings(["data.weights={leafs: 2}"])
    with pytest.raises(UsageError, match="there is no such data set"):
        api.train(drawn_folder, out, other, restart=True, log=lines.append)
    with pytest.raises(UsageError, match="nowhere"):
        api.train(tmp_path / "nowhere", out, FEW, restart=True)
    with pytest.raises(UsageError, match="does not fit into 1 MB"):
        api.train(drawn_folder, out, FEW, restart=True, memory=10**6)
    assert_unchanged(out, files_before)
    assert not any("is now in" in line for line in lines)


@pytest.mark.parametrize("place", ["build_trainer", "RunRecord.write", "Trainer._begin"])
def test_restart_that_fails_before_a_step_is_undone(
    drawn_folder, stopped_run, files_before, monkeypatch, place
):
    module = "training.trainer" if place.startswith("Trainer") else "workflows.train"
    monkeypatch.setattr(f"plantseg_next.{module}.{place}", _fail)
    lines: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        api.train(drawn_folder, stopped_run, FEW, restart=True, log=lines.append)
    assert_unchanged(stopped_run, files_before)
    assert lines[-1] == f"the run could not start: {stopped_run} is as it was before"


def test_restart_in_a_folder_that_another_process_takes_deletes_nothing(
    drawn_folder, stopped_run, tmp_path, monkeypatch
):
    """Another process starts a run while the earlier one is being archived."""
    archive = run_record.archive_run

    def archive_and_lose(folder):
        archived = archive(folder)
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        return archived

    monkeypatch.setattr("plantseg_next.workflows.train.archive_run", archive_and_lose)
    monkeypatch.setattr("plantseg_next.workflows.train.run_lock", _fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        api.train(drawn_folder, stopped_run, FEW, restart=True)
    assert (stopped_run / "run.json").read_text() == "{}"
    assert (tmp_path / "run.1" / "run.json").is_file()


def test_restart_with_images_in_the_folder_is_refused(drawn_folder, tmp_path):
    run = tmp_path / "run"
    data = shutil.copytree(drawn_folder, run / "leaves")
    with pytest.raises(UsageError, match="which --restart would rename"):
        api.train(data, run, TINY, restart=True)
    assert data.is_dir()


def test_restart_in_the_current_folder_works(drawn_folder, stopped_run, monkeypatch):
    monkeypatch.chdir(stopped_run)
    api.train(drawn_folder, ".", TINY, restart=True)
    assert (stopped_run / "best" / "model.json").is_file()
    assert (stopped_run.parent / "run.1" / "run.json").is_file()


@pytest.mark.parametrize("place", ["_validate_and_save", "_step", "_begin"])
def test_run_without_a_step_does_not_refuse_other_settings(
    drawn_folder, tmp_path, monkeypatch, place
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, place, _fail)
        if place == "_validate_and_save":
            patch.setattr(Trainer, "_save", _fail)  # the disk is full from the start
        with pytest.raises(RuntimeError, match="out of memory"):
            api.train(drawn_folder, out, TINY)
    smaller = TINY.with_settings(["training.batch=1"])
    assert api.train(drawn_folder, out, smaller).summary.steps == 6
    assert (tmp_path / "run.1" / "run.json").is_file()


def test_run_killed_while_it_copies_masks_starts_again(tmp_path, monkeypatch):
    folder = write_outlines(tmp_path / "data", 12)
    with monkeypatch.context() as patch:
        patch.setattr(run_record.RunRecord, "write", _fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            api.train(folder, tmp_path / "run", TINY)
    assert any((tmp_path / "run" / "masks").rglob("*.png"))
    assert api.train(folder, tmp_path / "run", TINY).summary.steps == 6


def write_outlines(folder: Path, n: int) -> Path:
    """Write images with a LabelMe outline each, of which masks are drawn."""
    folder.mkdir()
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        outline = {
            "label": "rust",
            "points": [[8, 8], [40, 8], [40, 40]],
            "shape_type": "polygon",
        }
        tree = {"shapes": [outline], "imagePath": f"{i}.png"}
        tree |= {"imageHeight": 64, "imageWidth": 64}
        (folder / f"{i}.json").write_text(json.dumps(tree), "utf-8")
    return folder


def _fail(*_, **__):
    raise RuntimeError("out of memory")


def test_changed_images_are_reported_on_resume(drawn_folder, tmp_path):
    data = tmp_path / "leaves"
    shutil.copytree(drawn_folder, data)
    train_until(2, data, tmp_path / "run")
    first = sorted((data / "masks").iterdir())[0]
    first.write_bytes(first.read_bytes() + b" ")
    api.train(data, tmp_path / "run", FEW)
    lines = (tmp_path / "run" / "events.jsonl").read_text("utf-8").splitlines()
    assert f"images or masks changed: {first.stem}" in json.loads(lines[0])["text"]


def test_second_process_in_one_folder_is_refused(drawn_folder, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        run_lock(tmp_path / "run"),
        pytest.raises(UsageError, match="Another process is training in"),
    ):
        api.train(drawn_folder, tmp_path / "run", FEW)


@pytest.mark.parametrize("n_writes", [0, 1, 2])
def test_run_killed_while_writing_its_record_starts_again(
    drawn_folder, tmp_path, monkeypatch, n_writes
):
    left = iter([True] * n_writes + [False])

    def dying(path, content):
        if not next(left):
            raise KeyboardInterrupt
        write_atomically(path, content)

    for module in ("json_files", "settings"):
        monkeypatch.setattr(f"plantseg_next.{module}.write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        api.train(drawn_folder, tmp_path / "run", FEW)
    monkeypatch.undo()
    train_until(2, drawn_folder, tmp_path / "run")
    assert run_record.RunRecord.read(tmp_path / "run").settings == FEW


OLDER = "its models can be used; to train, choose another --out"


@pytest.mark.parametrize(
    ("written_as", "words", "fix"),
    [
        (1, "an older", OLDER),
        (2, "an older", OLDER),
        (99, "a newer", "update plantseg-next"),
    ],
)
def test_run_of_another_version_is_refused(
    drawn_folder, stopped_run, written_as, words, fix
):
    out = stopped_run
    tree = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(tree | {"format": written_as}))
    wrong = rf"run\.json` was written by {words} version \(format {written_as}\)"
    with pytest.raises(DataError, match=wrong) as caught:
        api.train(drawn_folder, out, FEW)
    assert caught.value.needed == "the record of a run of format 3"
    assert caught.value.fix == fix
    (out / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json` is not the record of a run"):
        api.train(drawn_folder, out, FEW)


def test_run_record_states_device_versions_and_sources(finished_semi_run):
    tree = json.loads((finished_semi_run / "run.json").read_text())
    assert tree["device"].startswith("CPU")
    assert tree["versions"].keys() == {"torch", "timm", "numpy"}
    assert tree["sources"]["classes"] is None
    assert len(tree["pixels"]) == 6


def test_run_goes_on_when_an_unreadable_image_is_back(drawn_folder, tmp_path):
    data, out = tmp_path / "leaves", tmp_path / "run"
    shutil.copytree(drawn_folder, data)
    train_until(2, data, out, TINY)
    (data / "images").rename(tmp_path / "away")
    (data / "images").mkdir()
    with pytest.raises((DataError, UsageError), match=r"does not exist|in a row"):
        api.train(data, out, TINY)
    (data / "images").rmdir()
    (tmp_path / "away").rename(data / "images")
    assert api.train(data, out, TINY).summary.steps == 6


def test_image_that_is_back_is_not_counted_as_unreadable(drawn_folder, tmp_path):
    """A checkpoint holds more unreadable images than a run allows."""
    out = tmp_path / "run"
    train_until(2, drawn_folder, out, TINY)
    state = Checkpoints(out).load()
    state["progress"]["skipped"] = {f"leaf {i}": "is gone" for i in range(20)}
    Checkpoints(out).save(state, step=2)
    assert api.train(drawn_folder, out, TINY).summary.steps == 6


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("engine"),
        lambda state: state.pop("rng"),
        lambda state: state["progress"].pop("step"),
        lambda state: state["progress"].update(step="x"),
        lambda state: state["progress"].update(step=10**9),
        lambda state: state["progress"].update(micro_batch=0),
        lambda state: state["time_budget"].update(seconds=math.nan),
        lambda state: state["engine"]["network"].popitem(),
        lambda state: state["engine"]["network"]["lesion_head.weight"].fill_(math.nan),
        lambda state: state["engine"]["optimizer"]["state"][0].update(
            exp_avg=torch.zeros(7, 7)
        ),
        lambda state: state["callbacks"].update(status=5),
    ],
)
def test_checkpoint_of_wrong_content_falls_back(drawn_folder, stopped_run, spoil):
    """The optimizer after roytseng-tw/Detectron.pytorch#37: moments of other sizes."""
    state = Checkpoints(stopped_run).load()
    assert state["progress"]["step"] == 2
    spoil(state)
    Checkpoints(stopped_run).save(state, step=2)
    assert api.train(drawn_folder, stopped_run, FEW).summary.steps == 12
    lines = (stopped_run / "events.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    (skipped,) = [e["text"] for e in events if e["kind"] == "damaged-checkpoint"]
    assert "is skipped: its content is not that of this run (" in skipped
    assert any(e["text"] == "The run resumes from step 2." for e in events)


def test_checkpoints_of_another_network_alone_are_refused(drawn_folder, tmp_path):
    wider = TINY.with_settings(["model.width=64"])
    train_until(2, drawn_folder, tmp_path / "one", TINY)
    train_until(2, drawn_folder, tmp_path / "two", wider)
    shutil.rmtree(tmp_path / "one" / "checkpoints")
    shutil.copytree(tmp_path / "two" / "checkpoints", tmp_path / "one" / "checkpoints")
    with pytest.raises(DataError, match=r"No checkpoint in .* can be used") as caught:
        api.train(drawn_folder, tmp_path / "one", TINY)
    assert "its content is not that of this run (RuntimeError" in caught.value.came


@pytest.mark.parametrize("name", [".lock", "events.jsonl", "history.csv", "plan.json"])
def test_file_of_a_run_that_is_a_folder_is_refused(drawn_folder, stopped_run, name):
    (stopped_run / name).unlink(missing_ok=True)
    (stopped_run / name).mkdir()
    with pytest.raises(OutputError, match=f"{name}` is not a file") as caught:
        api.train(drawn_folder, stopped_run, FEW)
    assert caught.value.fix == (
        "move it out of the folder, then give the same command again"
    )


def test_lock_that_is_a_link_is_refused(drawn_folder, stopped_run):
    (stopped_run / ".lock").unlink(missing_ok=True)
    (stopped_run / ".lock").symlink_to(stopped_run / "run.json")
    with pytest.raises(OutputError, match=r"\.lock` is a link"):
        api.train(drawn_folder, stopped_run, FEW)


def test_record_that_counts_no_lesion_is_refused(drawn_folder, stopped_run):
    tree = json.loads((stopped_run / "run.json").read_text())
    tree["pixels"] = [0] * len(tree["pixels"])
    (stopped_run / "run.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="counts no pixel of a lesion") as caught:
        api.train(drawn_folder, stopped_run, FEW)
    assert caught.value.needed == "`run.json` as the run wrote it"


def test_second_ctrl_c_is_a_stop_that_is_told(drawn_folder, stopped_run):
    """After lipixun/tftrainer#7: Ctrl-C several times, to stop at once."""

    class Twice(Callback):
        def on_step(self, _):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return ()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(
            KeyboardInterrupt, match="Interrupted in step 4; the checkpoint"
        ):
            api.train(drawn_folder, stopped_run, FEW, callbacks=[Twice()])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    text = "stopped on request. Interrupted in step 4; the checkpoint of step 2 is kept."
    assert text in str(read_status(stopped_run))
