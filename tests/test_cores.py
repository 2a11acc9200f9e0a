import os
import sys
from subprocess import PIPE, Popen
from types import SimpleNamespace

import psutil
import pytest
import torch

from plantseg_next import cores
from plantseg_next.cores import free_threads, keep_threads, share_cores, take_free_cores


def test_threads_give_up_their_core_soon_unless_the_user_says_how():
    for given in ({}, {"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}):
        environ = dict(given)
        share_cores(environ)
        assert environ == (given or {"GOMP_SPINCOUNT": "10000"})


@pytest.mark.parametrize(
    ("threads", "busy", "n_cores", "free"),
    [
        (2, 0.0, 2, 2),
        (2, 0.3, 2, 2),
        (2, 1.0, 2, 1),
        (2, 3.0, 2, 1),
        (8, 1.0, 16, 8),  # a thread a core with two lanes: there is room
        (8, 1.2, 8, 7),
    ],
)
def test_a_thread_a_free_core(threads, busy, n_cores, free):
    assert free_threads(threads, busy, n_cores) == free


class Clock:
    """A machine of two cores where others use ``busy`` of them, and we the rest."""

    def __init__(self, busy):
        self._busy = busy
        self._now = 0.0

    def __call__(self):
        self._now += 10.0
        return self._now, (2 - self._busy) * self._now


@pytest.fixture
def two_threads(monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(cores, "usable_cores", lambda: [0, 1])
    monkeypatch.setattr(cores, "SAMPLE_S", 0.0)
    return taken


def said(environ):
    lines = []
    take_free_cores(lines.append, environ)
    return lines


def test_what_others_use_is_left_to_them(two_threads, monkeypatch):
    monkeypatch.setattr(cores, "_seconds", Clock(1.0))
    assert said({}) == [
        "Other programs keep 1.0 of 2 cores busy: 1 of 2 threads taken, for more would "
        "wait for each other (OMP_NUM_THREADS says otherwise)."
    ]
    assert two_threads == [1]


def test_an_idle_machine_is_taken_whole(two_threads, monkeypatch):
    monkeypatch.setattr(cores, "_seconds", Clock(0.1))
    assert said({}) == []
    assert two_threads == []


def test_what_the_user_says_stands(two_threads, monkeypatch):
    monkeypatch.setattr(cores, "_seconds", Clock(1.0))
    assert said({"OMP_NUM_THREADS": "2"}) == []
    assert keep_threads(1, {"OMP_NUM_THREADS": "2"}) == "threads: 1 then, 2 now"
    assert two_threads == []


def test_a_run_goes_on_with_the_threads_that_it_began_with():
    assert keep_threads(1, {}) == ""
    assert torch.get_num_threads() == 1


WORKER = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"


def test_what_children_work_is_ours_while_they_live_and_after(monkeypatch):
    core = SimpleNamespace(idle=0.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda **_: [core] * psutil.cpu_count())
    began, before = sum(os.times()[:4]), cores._seconds()[1]
    with Popen([sys.executable, "-c", WORKER], stdin=PIPE, stdout=PIPE) as child:
        child.stdout.readline()
        living = cores._seconds()[1] - before
        child.communicate(b"\n")
    ended = cores._seconds()[1] - before
    assert living >= 0.25  # in ticks of 10 ms
    assert ended == pytest.approx(sum(os.times()[:4]) - began, abs=0.1)


def test_the_cores_are_those_that_we_may_run_on():
    assert 1 <= len(cores.usable_cores()) <= os.cpu_count()
