import pytest

from plantseg_next.memory import trace_cache
from plantseg_next.memory.allocation_tracker import KINDS, Footprint
from plantseg_next.memory.trace_cache import cached_trace, folder

PEAK = dict.fromkeys(KINDS, 3)
STEP = Footprint(PEAK, PEAK, 100, ((1,) * len(KINDS), (3,) * len(KINDS)), 10**12, 7)


def finder():
    """Return what finds a step, and the list of times that it was asked."""
    asked = []

    def find():
        asked.append(1)
        return STEP

    return find, asked


def test_a_step_is_found_once_and_kept_whole():
    find, asked = finder()
    assert cached_trace({"tile": 64}, find) == STEP
    assert cached_trace({"tile": 64}, find) == STEP
    assert len(asked) == 1
    assert cached_trace({"tile": 96}, find) == STEP
    assert len(asked) == 2


def test_other_code_finds_anew(monkeypatch):
    find, asked = finder()
    for code in ("one", "other"):
        monkeypatch.setattr(trace_cache, "_code", lambda code=code: (code,))
        cached_trace({}, find)
    assert len(asked) == 2


@pytest.mark.parametrize("content", [b"", b"no gzip", None])
def test_a_damaged_file_costs_time_and_nothing_else(content):
    find, asked = finder()
    cached_trace({}, find)
    (kept,) = folder().iterdir()
    kept.write_bytes(kept.read_bytes()[:-9] if content is None else content)
    assert cached_trace({}, find) == STEP
    assert cached_trace({}, find) == STEP
    assert len(asked) == 2


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    find, asked = finder()
    assert cached_trace({}, find) == STEP
    assert cached_trace({}, find) == STEP
    assert len(asked) == 2


def test_the_oldest_go_first(monkeypatch):
    monkeypatch.setattr(trace_cache, "MOST_KEPT", 2)
    find, asked = finder()
    for i in range(4):
        cached_trace({"i": i}, find)
    assert len(list(folder().iterdir())) == 2
    cached_trace({"i": 3}, find)
    assert len(asked) == 4
