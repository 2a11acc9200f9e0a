import hashlib
import math
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plantseg_next.errors import DataError, OutputError
from plantseg_next.training import checkpoints
from plantseg_next.training.checkpoints import Checkpoints, read_state, write_state

STATE = {
    "learner": {0: {"exp_avg": torch.arange(6.0).reshape(2, 3)}, "betas": (0.9, 0.999)},
    "rows": [{"step": 1, "loss": math.inf, "name": "Mehltau é"}],
    "nothing": None,
    "chance": torch.arange(5, dtype=torch.uint8),
}


def same(one, two):
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def saved(folder, *steps, keep=3, also_keep=-1):
    kept = Checkpoints(folder, keep=keep)
    for step in steps:
        kept.save(STATE | {"step": step}, step=step, also_keep=also_keep)
    return kept


def files(folder):
    return sorted(p.name for p in (folder / checkpoints.FOLDER).iterdir())


def there_and_back(state):
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
def test_whatever_goes_in_comes_out(state):
    assert same(there_and_back(state), state)


def test_tensors_come_back_bit_for_bit(tmp_path):
    kept = saved(tmp_path, 4)
    assert same(kept.load(), STATE | {"step": 4})


def test_keys_that_look_alike_keep_their_own_tensors():
    state = {"a": {1: torch.zeros(2), "1": torch.ones(2)}}
    assert same(there_and_back(state), state)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(TypeError, match="cannot hold object at /a/1"):
        there_and_back({"a": [1, object()]})


def test_the_newest_three_and_the_best_are_kept(tmp_path):
    kept = saved(tmp_path, 1, 2, 3, 4, 5, 6, also_keep=2)
    assert kept.steps() == [2, 4, 5, 6]
    assert len(files(tmp_path)) == 8


def test_the_digest_is_one_that_sha256sum_reads(tmp_path):
    saved(tmp_path, 1)
    folder = tmp_path / checkpoints.FOLDER
    (sidecar,) = folder.glob("*.sha256")
    (path,) = folder.glob("*.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar.read_text() == f"{digest}  {path.name}\n"


def newest(tmp_path):
    return sorted((tmp_path / checkpoints.FOLDER).glob("*.safetensors"))[-1]


@pytest.mark.parametrize("where", [0.01, 0.5, 0.999])
def test_a_flipped_byte_is_passed_over_and_told(tmp_path, where):
    kept = saved(tmp_path, 1, 2)
    content = bytearray(newest(tmp_path).read_bytes())
    content[int(where * len(content))] ^= 1
    newest(tmp_path).write_bytes(content)
    said = []
    assert kept.load(say=said.append)["step"] == 1
    (line,) = said
    assert "000002-step-2.safetensors` is damaged and passed over" in line


@pytest.mark.parametrize("length", [0, 7, 300])
def test_a_truncated_one_is_passed_over(tmp_path, length):
    kept = saved(tmp_path, 1, 2)
    newest(tmp_path).write_bytes(newest(tmp_path).read_bytes()[:length])
    assert kept.load()["step"] == 1


def test_a_flipped_digest_is_passed_over(tmp_path):
    kept = saved(tmp_path, 1, 2)
    sidecar = newest(tmp_path).with_name(newest(tmp_path).name + ".sha256")
    sidecar.write_bytes(b"\xff" + sidecar.read_bytes()[1:])
    assert kept.load()["step"] == 1


def test_when_all_are_damaged_it_says_so(tmp_path):
    kept = saved(tmp_path, 1)
    newest(tmp_path).write_bytes(b"")
    with pytest.raises(DataError, match=r"All 1 checkpoints in .* are damaged"):
        kept.load()


@pytest.mark.parametrize("n_writes", [0, 1])
def test_whatever_moment_writing_dies_at_the_one_before_is_taken(
    tmp_path, monkeypatch, n_writes
):
    """Before the file, or between the file and its digest."""
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


def test_a_disk_that_lies_is_found_out_before_anything_is_removed(tmp_path, monkeypatch):
    kept = saved(tmp_path, 1, keep=1)
    monkeypatch.setattr(checkpoints, "sha256_of", lambda _: hashlib.sha256(b"").hexdigest())
    with pytest.raises(OutputError, match="reads back otherwise than it was written"):
        kept.save(STATE | {"step": 2}, step=2)
    monkeypatch.undo()
    assert kept.load()["step"] == 1


def test_a_full_disk_leaves_the_older_ones(tmp_path, monkeypatch):
    kept = saved(tmp_path, 1, keep=1)

    def full(path, content):
        del content
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with pytest.raises(OutputError, match="No space left on device"):
        kept.save(STATE | {"step": 2}, step=2)
    assert kept.load()["step"] == 1


def test_a_run_that_went_back_goes_on_from_the_lower_step(tmp_path):
    kept = saved(tmp_path, 10, 20, 10)
    assert kept.steps() == [10, 20, 10]
    assert kept.load()["step"] == 10
    assert kept.load(before=10) is None
    assert kept.load(step=20)["step"] == 20


def test_a_newer_format_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 99)
    kept = saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"written by a newer version \(format 99\)"):
        kept.load()


def test_a_file_of_another_program_is_said_to_be(tmp_path):
    kept = saved(tmp_path, 1)
    newest(tmp_path).write_bytes(b"12345678{}")
    digest = hashlib.sha256(b"12345678{}").hexdigest()
    newest(tmp_path).with_name(newest(tmp_path).name + ".sha256").write_text(digest)
    with pytest.raises(DataError, match="is no checkpoint of ours"):
        kept.load()


def test_without_a_checkpoint_there_is_nothing(tmp_path):
    assert Checkpoints(tmp_path).load() is None
    assert Checkpoints(tmp_path).steps() == []
