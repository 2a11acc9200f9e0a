import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plantseg_next.errors import DataError, OutputError
from plantseg_next.models.tensor_files import write_tensors
from plantseg_next.training import checkpoints, run_record
from plantseg_next.training.checkpoints import Checkpoints, read_state, write_state

STATE = {
    "engine": {0: {"exp_avg": torch.arange(6.0).reshape(2, 3)}, "betas": (0.9, 0.999)},
    "rows": [{"step": 1, "loss": math.inf, "name": "Mehltau é"}],
    "nothing": None,
    "rng": torch.arange(5, dtype=torch.uint8),
}


def same(one, two):
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def saved(folder, *steps, also_keep=-1):
    kept = Checkpoints(folder)
    for step in steps:
        kept.save(STATE | {"step": step}, step=step, also_keep=also_keep)
    return kept


def files(folder):
    return sorted(p.name for p in (folder / run_record.CHECKPOINTS).iterdir())


def round_trip(state):
    with NamedTemporaryFile() as file:
        digest = hashlib.sha256()
        write_state(file, state, digest)
        file.flush()
        path = Path(file.name)
        assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
        return read_state(path)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


def holding(parts):
    keys = st.text() | st.integers()
    return st.lists(parts) | st.lists(parts).map(tuple) | st.dictionaries(keys, parts)


@settings(max_examples=30)  # each writes a file and reads it back
@given(st.dictionaries(st.text(), st.recursive(PLAIN, holding)))
def test_state_round_trip_is_exact(state):
    assert same(round_trip(state), state)


def test_tensors_round_trip_is_bit_identical(tmp_path):
    kept = saved(tmp_path, 4)
    assert same(kept.load(), STATE | {"step": 4})


def test_keys_1_and_string_1_keep_separate_tensors():
    state = {"a": {1: torch.zeros(2), "1": torch.ones(2)}}
    assert same(round_trip(state), state)


def test_unsupported_value_is_refused():
    with pytest.raises(TypeError, match="cannot hold object at /a/1"):
        round_trip({"a": [1, object()]})


def test_pruning_keeps_newest_three_and_best(tmp_path):
    kept = saved(tmp_path, 1, 2, 3, 4, 5, 6, also_keep=2)
    assert kept.steps() == [2, 4, 5, 6]
    assert len(files(tmp_path)) == 8


def test_digest_file_has_sha256sum_format(tmp_path):
    saved(tmp_path, 1)
    folder = tmp_path / run_record.CHECKPOINTS
    (sidecar,) = folder.glob("*.sha256")
    (path,) = folder.glob("*.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar.read_text() == f"{digest}  {path.name}\n"


def newest(tmp_path):
    return sorted((tmp_path / run_record.CHECKPOINTS).glob("*.safetensors"))[-1]


@pytest.mark.parametrize("where", [0.01, 0.5, 0.999])
def test_checkpoint_with_flipped_byte_is_skipped_and_reported(tmp_path, where):
    kept = saved(tmp_path, 1, 2)
    content = bytearray(newest(tmp_path).read_bytes())
    content[int(where * len(content))] ^= 1
    newest(tmp_path).write_bytes(content)
    messages = []
    assert kept.load(log=messages.append)["step"] == 1
    (line,) = messages
    assert "000002-step-2.safetensors` is skipped: its SHA-256 does not match" in line


@pytest.mark.parametrize("length", [0, 7, 300])
def test_truncated_checkpoint_is_skipped(tmp_path, length):
    kept = saved(tmp_path, 1, 2)
    newest(tmp_path).write_bytes(newest(tmp_path).read_bytes()[:length])
    assert kept.load()["step"] == 1


def test_checkpoint_with_wrong_digest_is_skipped(tmp_path):
    kept = saved(tmp_path, 1, 2)
    sidecar = newest(tmp_path).with_name(newest(tmp_path).name + ".sha256")
    sidecar.write_bytes(b"\xff" + sidecar.read_bytes()[1:])
    assert kept.load()["step"] == 1


def test_all_checkpoints_damaged_raises(tmp_path):
    kept = saved(tmp_path, 1)
    newest(tmp_path).write_bytes(b"")
    wrong = r"can be used:\n    000001-step-1.safetensors: its SHA-256 does not match"
    with pytest.raises(DataError, match=wrong) as caught:
        kept.load()
    assert "start again with --restart; the models" in caught.value.fix


def without_digests(folder):
    for path in (folder / run_record.CHECKPOINTS).glob("*.sha256"):
        path.unlink()


def test_checkpoint_without_digest_is_skipped_and_reported(tmp_path):
    kept = saved(tmp_path, 1)
    without_digests(tmp_path)
    kept.save(STATE | {"step": 2}, step=2)
    kept.save(STATE | {"step": 3}, step=3)
    newest(tmp_path).with_name(newest(tmp_path).name + ".sha256").unlink()
    messages = []
    assert kept.load(log=messages.append)["step"] == 2
    (line,) = messages
    assert "000003-step-3.safetensors` is skipped: it has no digest file" in line


def test_no_checkpoint_with_digest_raises(tmp_path):
    kept = saved(tmp_path, 0, 1, 2)
    without_digests(tmp_path)
    with pytest.raises(DataError, match=r"No checkpoint in .* can be used") as caught:
        kept.load()
    assert "000003-step-2.safetensors: it has no digest file" in caught.value.came
    assert "000002-step-1.safetensors: it has no digest file" in caught.value.came
    assert "digest file (.sha256)" in caught.value.needed


def test_kill_while_writing_the_first_checkpoint_loads_none(tmp_path):
    kept = saved(tmp_path, 0)
    without_digests(tmp_path)
    messages = []
    assert kept.load(log=messages.append) is None
    assert len(messages) == 1


@pytest.mark.parametrize("result", [run_record.BEST, run_record.FIRST_STEPS])
def test_trained_run_without_checkpoints_raises(tmp_path, result):
    (tmp_path / result).mkdir()
    with pytest.raises(DataError, match=r"was trained, but .* holds no checkpoint"):
        Checkpoints(tmp_path).load()


def test_unreadable_folder_raises(tmp_path):
    (tmp_path / run_record.CHECKPOINTS).touch()
    with pytest.raises(DataError, match="cannot be read: Not a directory") as caught:
        Checkpoints(tmp_path).load()
    assert caught.value.fix == "make it readable, or start again with --restart"


def test_unreadable_checkpoint_is_skipped(tmp_path):
    kept = saved(tmp_path, 1, 2)
    path = newest(tmp_path)
    path.unlink()
    path.mkdir()
    messages = []
    assert kept.load(log=messages.append)["step"] == 1
    assert "is skipped: it cannot be read (Is a directory)" in messages[0]


@pytest.mark.parametrize("n_writes", [0, 1])
def test_kill_while_writing_leaves_previous_checkpoint(tmp_path, monkeypatch, n_writes):
    """The kill comes before the file, or between the file and its digest."""
    kept = saved(tmp_path, 1)
    real, left = checkpoints.write_atomically, iter([True] * n_writes + [False])

    def dying(path, content):
        if not next(left):
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(checkpoints, "write_atomically", dying)
    with pytest.raises(KeyboardInterrupt):
        kept.save(STATE | {"step": 2}, step=2)
    monkeypatch.undo()
    assert kept.load()["step"] == 1
    kept.save(STATE | {"step": 3}, step=3)
    assert kept.load()["step"] == 3


def test_unreliable_disk_raises_before_pruning(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "KEPT", 1)
    kept = saved(tmp_path, 1)
    monkeypatch.setattr(checkpoints, "sha256_of", lambda _: hashlib.sha256(b"").hexdigest())
    with pytest.raises(OutputError, match="reads back with other content than was written"):
        kept.save(STATE | {"step": 2}, step=2)
    monkeypatch.undo()
    assert kept.load()["step"] == 1


def test_full_disk_keeps_older_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "KEPT", 1)
    kept = saved(tmp_path, 1)

    def full(path, content):
        del content
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with pytest.raises(OutputError, match="No space left on device"):
        kept.save(STATE | {"step": 2}, step=2)
    assert kept.load()["step"] == 1


def test_load_after_rollback_returns_the_lower_step(tmp_path):
    kept = saved(tmp_path, 10, 20, 10)
    assert kept.steps() == [10, 20, 10]
    assert kept.load()["step"] == 10
    assert kept.load(before=10) is None
    assert kept.load(step=20)["step"] == 20


def test_newer_format_is_refused(tmp_path, monkeypatch):
    newer = replace(checkpoints._FORMAT, version=99)
    monkeypatch.setattr(checkpoints, "_FORMAT", newer)
    kept = saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"written by a newer version \(format 99\)"):
        kept.load()


def test_file_of_format_1_is_read(tmp_path):
    """Its head was written by the standard library."""
    head = (
        '{"format": 1, "state": {"dict": [[0, {"tuple": [0.1, -Infinity]}], '
        '["best", {"tensor": "/best"}], '
        '["seed", 170141183460469231731687303715884105728]]}}'
    )
    with (tmp_path / "old.safetensors").open("wb") as file:
        write_tensors(file.write, {"/best": torch.ones(2)}, {"plantseg_next": head})
    expected = {0: (0.1, -math.inf), "best": torch.ones(2), "seed": 2**127}
    assert same(read_state(tmp_path / "old.safetensors"), expected)


def test_foreign_file_is_refused(tmp_path):
    kept = saved(tmp_path, 1)
    newest(tmp_path).write_bytes(b"12345678{}")
    digest = hashlib.sha256(b"12345678{}").hexdigest()
    newest(tmp_path).with_name(newest(tmp_path).name + ".sha256").write_text(digest)
    with pytest.raises(DataError, match="is not a checkpoint of plantseg-next"):
        kept.load()


def test_empty_folder_loads_none(tmp_path):
    assert Checkpoints(tmp_path).load() is None
    assert Checkpoints(tmp_path).steps() == []


def rewritten(path, change):
    """Change the state in the head of a checkpoint, and write its digest again."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    head = change(json.loads(header["__metadata__"]["plantseg_next"]))
    header["__metadata__"]["plantseg_next"] = (
        head if isinstance(head, str) else json.dumps(head)
    )
    text = json.dumps(header).encode()
    write_with_digest(path, len(text).to_bytes(8, "little") + text + content[8 + n :])


def write_with_digest(path, content):
    path.write_bytes(content)
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    path.with_name(f"{path.name}.sha256").write_text(line)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: '{"format": 1, "state": ' + "[" * 10**5 + "]" * 10**5 + "}",
        lambda head: head | {"state": {"list": [], "dict": []}},
        lambda head: head | {"state": {"tensor": "nope"}},
        lambda head: head | {"state": {"dict": [["a", {"tensor": "nope"}]]}},
        lambda head: head | {"state": {"dict": 5}},
        lambda _: {"format": 1},
    ],
)
def test_checkpoint_made_by_hand_is_skipped_like_a_damaged_one(tmp_path, change):
    kept, messages = saved(tmp_path, 1, 2), []
    rewritten(newest(tmp_path), change)
    assert kept.load(log=messages.append)["step"] == 1
    (line,) = messages
    text = "000002-step-2.safetensors` is skipped: its content is not that of this run ("
    assert text in line


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, b"\xff" * 100, (2**62).to_bytes(8, "little") + b"{}"]
)
def test_file_of_something_else_with_a_right_digest_is_skipped(tmp_path, content):
    kept = saved(tmp_path, 1, 2)
    write_with_digest(newest(tmp_path), content)
    assert kept.load()["step"] == 1
    for path in (tmp_path / run_record.CHECKPOINTS).glob("*.safetensors"):
        write_with_digest(path, content)
    with pytest.raises(DataError, match="its content is not that of this run") as caught:
        kept.load()
    assert "can be used:" in caught.value.came


def test_state_that_cannot_be_used_makes_the_one_before_be_tried(tmp_path):
    def use(state):
        if state["step"] == 2:
            raise KeyError("engine")

    assert saved(tmp_path, 1, 2).load(use=use)["step"] == 1


def test_memory_that_runs_out_is_not_blamed_on_the_checkpoint(tmp_path):
    def use(_):
        raise RuntimeError("[enforce fail] can't allocate memory: 8 bytes")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        saved(tmp_path, 1, 2).load(use=use)


def test_foreign_files_among_checkpoints_are_ignored(tmp_path):
    """After bghira/SimpleTuner#127 and caiyuanhao1998/MST#32: copies, and .DS_Store."""
    kept = saved(tmp_path, 1, 2)
    folder = tmp_path / run_record.CHECKPOINTS
    content = newest(tmp_path).read_bytes()
    for name in (
        "000002-step-2 (copy).safetensors",
        "1x",
        "backup-000002-step-2",
        ".DS_Store",
    ):
        (folder / name).write_bytes(content)
    (folder / "1x-step-3.safetensors").write_bytes(content)
    (folder / "a folder").mkdir()
    (folder / "latest").symlink_to(newest(tmp_path).name)
    messages = []
    assert kept.load(log=messages.append)["step"] == 2
    assert messages == []
    kept.save(STATE | {"step": 3}, step=3)
    assert kept.steps() == [1, 2, 3]


def test_what_only_has_the_name_of_a_checkpoint_is_skipped_and_kept(tmp_path):
    kept = saved(tmp_path, 1, 2)
    folder = tmp_path / run_record.CHECKPOINTS
    (folder / "000010-step-5.safetensors").mkdir()
    (folder / "000011-step-5.safetensors").symlink_to("nowhere")
    os.mkfifo(folder / "000012-step-5.safetensors")
    (folder / "000013-step-5.safetensors").write_text("x")
    os.mkfifo(folder / "000013-step-5.safetensors.sha256")
    messages = []
    assert kept.load(log=messages.append)["step"] == 2
    assert len(messages) == 4
    for step in (6, 7, 8, 9):
        kept.save(STATE | {"step": step}, step=step)
    assert (folder / "000010-step-5.safetensors").is_dir()
    assert kept.load()["step"] == 9
