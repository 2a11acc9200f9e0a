"""The one loader: draws become batches, read by other processes where that pays.

A process that dies or hangs costs time and nothing else.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from plantseg_next.data.dataset import MixedDataset, TrainBatch, collate, collate_views
from plantseg_next.errors import PlantSegError

START = "forkserver"
"""How workers are started: OpenCV's threads do not survive a plain fork."""
LOOK_S = 5
"""Seconds between two looks whether a worker is still there."""
HUNG_S = 600
"""Seconds without an answer after which a worker counts as hung."""


def loader(
    dataset: MixedDataset,
    *,
    batch_size: int,
    start: int,
    stop: int,
    workers: int | None,
    prefetch: int = 4,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[TrainBatch]:
    """Yield batches of ``batch_size`` labeled tiles, from batch ``start`` up to ``stop``.

    A worker that dies or hangs is replaced, and the batches that it owed are drawn again:
    nothing is lost and nothing comes twice. If it happens again, there are half as many
    workers, in the end none.

    Args:
        dataset: Where tiles come from.
        batch_size: Labeled tiles a batch.
        start: First batch.
        stop: Batch after the last.
        workers: Processes beside the main one; 0 reads in the main process. ``None``:
            see ``usual_workers``.
        prefetch: Batches that each of them reads ahead.
        log: Hears of workers that had to be replaced, and why.

    Raises:
        DataError: If one image after the other cannot be read, from whichever process.
    """
    if workers is None:
        workers = usual_workers()
    deaths = 0
    while start < stop:
        batches = _in_order(dataset, batch_size, range(start, stop), workers, prefetch)
        try:
            for batch in batches:
                start += 1
                yield batch
        except LostWorkerError as lost:
            deaths += 1
            workers = workers if deaths == 1 else workers // 2
            log(f"{lost} Going on with {workers or 'no'} workers; no batch is lost.")


def usual_workers() -> int:
    """Return as many as there are cores beyond two, at most 4.

    On two cores a worker takes from the network more than it gives.
    """
    return min(4, max(0, (os.cpu_count() or 1) - 2))


class LostWorkerError(Exception):
    """A process that read images is gone or does not answer."""


def _in_order(
    dataset: MixedDataset, visits: int, numbers: range, workers: int, prefetch: int
) -> Iterator[TrainBatch]:
    """Yield batches of so many visits, by number, from one set of workers.

    Raises:
        LostWorkerError: If one of them dies or hangs.
    """
    if workers:
        # What they import is then held once by all of them.
        get_context(START).set_forkserver_preload([MixedDataset.__module__])
    batches = DataLoader(
        _BatchSequence(dataset),
        batch_size=visits,
        sampler=range(numbers.start * visits, numbers.stop * visits),
        num_workers=workers,
        collate_fn=_collate_or_error,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=prefetch if workers else None,
        # With a longer one, PyTorch would look no sooner whether a worker is dead.
        timeout=LOOK_S if workers else 0,
        multiprocessing_context=START if workers else None,
        # It draws seeds for the workers, which use none; the run's chance is not for it.
        generator=torch.Generator(),
    )
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(batches)
    if handler is not None and threading.current_thread() is threading.main_thread():
        # PyTorch would raise wherever the main process happens to be, in the middle of
        # an optimizer step too. The next batch notices as well that a worker is gone.
        signal.signal(signal.SIGCHLD, handler)
    while (batch := _next_or_lost(iterator, has_workers=workers > 0)) is not None:
        if isinstance(batch, PlantSegError):
            raise batch
        yield batch


def _next_or_lost(
    iterator: Iterator[TrainBatch | PlantSegError], *, has_workers: bool
) -> TrainBatch | PlantSegError | None:
    """Return the next batch, ``None`` after the last.

    Raises:
        LostWorkerError: If a worker is dead, or all are silent for too long.
    """
    silent_since = time.monotonic()
    while True:
        try:
            return next(iterator, None)
        except (RuntimeError, OSError, EOFError) as error:
            # The last two: a batch that a worker had sent died with it.
            if not has_workers:
                raise
            is_slow = "timed out" in str(error) and not _exit_codes(iterator)
            if is_slow and time.monotonic() - silent_since < HUNG_S:
                continue
            raise LostWorkerError(_cause(error, iterator)) from error


def _exit_codes(iterator: object) -> list[int]:
    """Return those of the workers that have ended."""
    workers = getattr(iterator, "_workers", ())
    return [worker.exitcode for worker in workers if worker.exitcode is not None]


def _cause(error: Exception, iterator: object) -> str:
    """Return in words why a worker does not answer."""
    for worker in getattr(iterator, "_workers", ()):
        worker.join(1.0)  # one that has just died has no exit code yet
    ended = _exit_codes(iterator)
    if not ended:
        return f"A process that reads images gave no answer ({error})."
    if -signal.SIGKILL in ended:
        return (
            "A process that reads images was killed (SIGKILL), as the system does when "
            "memory runs out: lower data.workers or data.cache_mib if it happens again."
        )
    if ended[0] < 0:
        name = signal.Signals(-ended[0]).name
        return f"A process that reads images was ended by a signal ({name})."
    return f"A process that reads images ended with exit code {ended[0]}."


class _BatchSequence(Dataset[TrainBatch | PlantSegError]):
    """Hand a user's error over as a value: PyTorch would bury it in a traceback."""

    def __init__(self, tiles: MixedDataset) -> None:
        self._tiles = tiles

    def __getitem__(self, draw: int) -> TrainBatch | PlantSegError:
        try:
            return self._tiles[draw]
        except PlantSegError as error:
            return error


def _collate_or_error(
    drawn: Sequence[TrainBatch | PlantSegError],
) -> TrainBatch | PlantSegError:
    found: list[TrainBatch] = []
    for one in drawn:
        if isinstance(one, PlantSegError):
            return one
        found.append(one)
    views = [one.unlabeled for one in found if one.unlabeled is not None]
    return TrainBatch(
        collate([one.labeled for one in found]), collate_views(views) if views else None
    )


def _quiet_worker(_: int) -> None:
    """Keep a worker to one thread; there is a worker a core."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
