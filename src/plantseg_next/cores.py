"""Which of the processor's cores a run takes, beside other programs.

PyTorch's threads wait for each other many times a step. Where another program keeps one
of their cores busy, the thread on it is late each time and the others wait for it: two
threads on two cores are then several times slower than one thread
(``benchmarks/busy_machine.py``). So what is begun here takes the cores that are free.
"""

import os
import time
from collections.abc import Callable, Mapping, MutableMapping

SAMPLE_S = 0.5
SAID = "OMP_NUM_THREADS"
"""Where a user says how many threads; it stands."""


def share_cores(environ: MutableMapping[str, str]) -> None:
    """Let a thread that waits for another give up its core soon.

    By default PyTorch's threads spin while they wait. Where another program wants the same
    cores, the one that is waited for does not run meanwhile: steps took twice as long.

    Args:
        environ: Read when PyTorch is loaded, which must come later. What the user says
            there stands.
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", "10000")


class OtherPrograms:
    """Measure how many cores of this process other programs keep busy."""

    def __init__(self) -> None:
        self._before = _seconds()

    def cores(self) -> float:
        """Return how many, on average since the last call."""
        now, before = _seconds(), self._before
        self._before = now
        elapsed = max(now[0] - before[0], 1e-9)
        not_theirs = (now[1] - before[1]) / elapsed
        return max(0.0, len(usable_cores()) - not_theirs)


def _seconds() -> tuple[float, float]:
    """Return the clock, and how long our cores were idle or worked for us."""
    import psutil

    process = psutil.Process()
    ours = sum(process.cpu_times()[:4])  # children that have ended among them
    for child in process.children(recursive=True):
        try:
            ours += sum(child.cpu_times()[:2])
        except psutil.Error:  # it has just ended
            continue
    cores = psutil.cpu_times(percpu=True)
    idle = sum(cores[i].idle + getattr(cores[i], "iowait", 0.0) for i in usable_cores())
    return time.perf_counter(), idle + ours


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def free_threads(threads: int, busy: float, n_cores: int) -> int:
    """Return how many threads find a core each: at least one, at most ``threads``.

    Args:
        threads: As PyTorch would take.
        busy: Cores that other programs keep busy, on average.
        n_cores: That this process may run on.
    """
    return max(1, min(threads, round(n_cores - busy)))


def take_free_cores(
    say: Callable[[str], None] = lambda _: None, environ: Mapping[str, str] = os.environ
) -> None:
    """Compute from now on with as many threads as other programs leave cores.

    Takes half a second to look, and changes PyTorch's number of threads for the whole
    process. Nothing is looked at where the user says how many threads
    (``OMP_NUM_THREADS``), or where there is one only.

    Args:
        say: Hears of it if some were left to others.
        environ: Where the user may say how many.
    """
    import torch

    threads = torch.get_num_threads()
    if SAID in environ or threads == 1:
        return
    others = OtherPrograms()
    time.sleep(SAMPLE_S)
    busy, n_cores = others.cores(), len(usable_cores())
    taken = free_threads(threads, busy, n_cores)
    if taken < threads:
        torch.set_num_threads(taken)
        say(
            f"Other programs keep {busy:.1f} of {n_cores} cores busy: {taken} of {threads} "
            f"threads taken, for more would wait for each other ({SAID} says otherwise)."
        )


def keep_threads(began: int, environ: Mapping[str, str] = os.environ) -> str:
    """Go on with as many threads as a run began with: another number rounds otherwise.

    Unless the user says how many (``OMP_NUM_THREADS``).

    Returns:
        What is not as it was, in words; "" if nothing is.
    """
    import torch

    if SAID not in environ:
        torch.set_num_threads(began)
    now = torch.get_num_threads()
    return "" if now == began else f"threads: {began} then, {now} now"
