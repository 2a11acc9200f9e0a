import csv
import dataclasses
import sys
from multiprocessing import get_context

import psutil
import pytest

from plantseg_next.training.callbacks.callback import StepInfo, Validation
from plantseg_next.training.callbacks.resources import MIB, ResourceMonitor, take_sample
from plantseg_next.training.checkpoints import Saved

VALIDATION = Validation(0.5, {"lesion_dice": 0.5}, seconds=2.0)


def step(n, *, seconds=1.0, waited_s=0.0):
    return StepInfo(n, 100, {}, seconds, 60.0, waited_s, 8, 4)


@pytest.fixture
def monitor(tmp_path):
    return ResourceMonitor(tmp_path, cache_mib=0.0)


def rows(folder):
    with (folder / "resources.csv").open() as file:
        return list(csv.DictReader(file))


def test_sample_agrees_with_the_system(tmp_path):
    sample = take_sample(tmp_path)
    process = psutil.Process()
    own = process.memory_info().rss / MIB
    # The fork server of earlier tests may still be running.
    others = sum(c.memory_info().rss for c in process.children(recursive=True)) / MIB
    assert 0.8 * own < sample.ram_mib < 1.2 * own + others
    assert 0 < sample.ram_free_mib < psutil.virtual_memory().total / MIB
    assert sample.disk_free_mib == pytest.approx(
        psutil.disk_usage(str(tmp_path)).free / MIB, rel=0.05
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports shared memory")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_shared_memory_is_counted_once(tmp_path):
    """A forked child shares all memory of its parent."""
    held = bytearray(100 * MIB)
    waits = get_context("fork").Event()
    before = take_sample(tmp_path).ram_mib
    children = [get_context("fork").Process(target=waits.wait) for _ in range(3)]
    for child in children:
        child.start()
    grown = take_sample(tmp_path).ram_mib - before
    waits.set()
    for child in children:
        child.join()
    assert len(held) == 100 * MIB
    apart = psutil.Process().memory_info().rss / MIB * 3
    assert 0 < grown < 0.6 * apart


def test_validation_writes_a_row(monitor, tmp_path):
    for n in range(1, 5):
        monitor.on_step(step(n, waited_s=0.1))
    monitor.on_validation(4, VALIDATION, best=True)
    (row,) = rows(tmp_path)
    assert row["tiles_per_s"] == "8.0"
    assert row["waited_pct"] == "10.0"
    assert row["validate_s"] == "2.0"


def test_starved_is_emitted_once_and_not_while_cache_fills(monitor):
    events = []
    for n in range(1, 5):
        monitor.on_step(step(n, waited_s=0.6))
        events += monitor.on_validation(n, VALIDATION, best=False)
    (event,) = events
    assert event.kind == "starved"
    assert event.text.startswith("60% of the time was spent waiting for images.")


def kinds_with_growth(monitor, mib_a_minute, *, free=4000.0, minutes=30):
    first = monitor.newest
    monitor.samples = [
        dataclasses.replace(
            first,
            time=first.time + 60 * m,
            ram_mib=1000.0 + mib_a_minute * m,
            ram_free_mib=free,
        )
        for m in range(minutes)
    ]
    return [event.kind for event in monitor._leak()]


def test_growing_memory_emits_memory_leak(monitor):
    assert kinds_with_growth(monitor, 20.0) == ["memory-leak"]


def test_constant_memory_emits_nothing(monitor):
    assert kinds_with_growth(monitor, 0.0) == []


def test_slowly_growing_memory_emits_nothing(monitor):
    assert kinds_with_growth(monitor, 10.0, free=1e6) == []


def test_filling_cache_emits_nothing(tmp_path):
    assert kinds_with_growth(ResourceMonitor(tmp_path, cache_mib=1000.0), 20.0) == []


def test_nearly_full_disk_emits_disk_low(monitor, tmp_path):
    monitor.on_checkpoint(1, Saved(tmp_path, 10**15, 1.0))
    (event,) = monitor.on_validation(1, VALIDATION, best=True)
    assert event.kind == "disk-low"
    assert "MiB are free on the disk of the run" in event.text


def test_resume_keeps_earlier_rows(monitor, tmp_path):
    monitor.on_step(step(1))
    monitor.on_validation(1, VALIDATION, best=True)
    again = ResourceMonitor(tmp_path, cache_mib=0.0)
    again.load_state_dict(monitor.state_dict())
    again.on_step(step(2))
    again.on_validation(2, VALIDATION, best=True)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2"]
