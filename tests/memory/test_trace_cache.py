import pytest

from plantseg_next.memory import trace_cache
from plantseg_next.memory.allocation_tracker import KINDS, Footprint
from plantseg_next.memory.trace_cache import cached_trace, folder

PEAK = dict.fromkeys(KINDS, 3)
STEP = Footprint(PEAK, PEAK, 100, ((1,) * len(KINDS), (3,) * len(KINDS)), 10**12, 7)


def finder():
    """Return a function that returns a step, and the list of its calls."""
    calls = []

    def find():
        calls.append(1)
        return STEP

    return find, calls


def test_trace_cache_returns_the_stored_step():
    find, calls = finder()
    assert cached_trace({"tile": 64}, find) == STEP
    assert cached_trace({"tile": 64}, find) == STEP
    assert len(calls) == 1
    assert cached_trace({"tile": 96}, find) == STEP
    assert len(calls) == 2


def test_trace_cache_of_other_code_is_not_used(monkeypatch):
    find, calls = finder()
    for code in ("one", "other"):
        monkeypatch.setattr(trace_cache, "_code", lambda code=code: (code,))
        cached_trace({}, find)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"no gzip",
        lambda entry: entry[:-9],
        lambda entry: entry[:20] + bytes(20) + entry[40:],
    ],
)
def test_trace_cache_with_a_damaged_file_is_rebuilt(damage):
    find, calls = finder()
    cached_trace({}, find)
    (entry,) = folder().iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert cached_trace({}, find) == STEP
    assert cached_trace({}, find) == STEP
    assert len(calls) == 2


def test_trace_cache_in_an_unwritable_folder_is_a_temporary_one(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    find, calls = finder()
    assert cached_trace({"folder": str(tmp_path)}, find) == STEP
    assert cached_trace({"folder": str(tmp_path)}, find) == STEP
    assert len(calls) == 1
    assert not folder().is_relative_to(tmp_path)


def test_trace_cache_without_any_writable_folder_computes(monkeypatch):
    def fail():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(trace_cache, "cache_folder", fail)
    find, calls = finder()
    assert [cached_trace({}, find), cached_trace({}, find)] == [STEP, STEP]
    assert len(calls) == 2


def test_trace_cache_removes_the_oldest_entries(monkeypatch):
    monkeypatch.setattr(trace_cache, "MOST_KEPT", 2)
    find, calls = finder()
    for i in range(4):
        cached_trace({"i": i}, find)
    assert len(list(folder().iterdir())) == 2
    cached_trace({"i": 3}, find)
    assert len(calls) == 4
