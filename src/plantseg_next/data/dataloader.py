"""Data loader: samples become batches, read by worker processes if there are enough cores.

A worker that dies or hangs is replaced, without losing or repeating a batch. Workers end
with the main process, also if that is killed.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context, parent_process

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from plantseg_next.data.dataset import MixedDataset, TrainBatch, collate, collate_views
from plantseg_next.errors import PlantSegError

START = "forkserver"
"""Start method of workers: OpenCV's threads do not survive a fork."""
LOOK_S = 5
"""Seconds between two checks whether the workers are alive."""
HUNG_S = 600
"""Seconds without a batch after which a worker counts as hung."""


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

    A worker that dies or hangs is replaced and its batches are sampled again: none is lost
    or repeated. At each further failure the number of workers is halved, down to none.

    Args:
        dataset: Source of the tiles.
        batch_size: Labeled tiles per batch.
        start: First batch.
        stop: Batch after the last.
        workers: Worker processes; 0 reads in the main process. ``None``: see
            ``usual_workers``.
        prefetch: Batches that each worker reads ahead.
        log: Called with a message when a worker is replaced.

    Raises:
        DataError: If too many images in a row cannot be read, in any process.
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
            log(f"{lost} Continuing with {workers or 'no'} workers; no batch is lost.")


def usual_workers() -> int:
    """Return the default number of workers: the cores beyond two, at most 4.

    On two cores a worker slows training down.
    """
    return min(4, max(0, (os.cpu_count() or 1) - 2))


class LostWorkerError(Exception):
    """A worker process died or does not respond."""


def _in_order(
    dataset: MixedDataset, batch_size: int, numbers: range, workers: int, prefetch: int
) -> Iterator[TrainBatch]:
    """Yield the batches with these numbers, from one set of workers.

    Raises:
        LostWorkerError: If one of them dies or hangs.
    """
    if workers:
        # All workers then share the memory of the imported modules.
        get_context(START).set_forkserver_preload([MixedDataset.__module__])
        _refuse_full_shared_memory()
    batches = DataLoader(
        _BatchSequence(dataset),
        batch_size=batch_size,
        sampler=range(numbers.start * batch_size, numbers.stop * batch_size),
        num_workers=workers,
        collate_fn=_collate_or_error,
        worker_init_fn=_init_worker if workers else None,
        prefetch_factor=prefetch if workers else None,
        # PyTorch detects a dead worker only after this timeout.
        timeout=LOOK_S if workers else 0,
        multiprocessing_context=START if workers else None,
        # It seeds the workers, which need no seeds; keep the global random state unchanged.
        generator=torch.Generator(),
    )
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(batches)
    except (OSError, EOFError) as error:
        if not workers:
            raise
        raise LostWorkerError(
            f"Data loader workers cannot be started: {_why(error)}. data.workers=0 needs "
            "none."
        ) from error
    if handler is not None and threading.current_thread() is threading.main_thread():
        # PyTorch's handler would raise anywhere in the main process, even within an
        # optimizer step. The next batch also detects a dead worker.
        signal.signal(signal.SIGCHLD, handler)
    while (batch := _next_or_lost(iterator, has_workers=workers > 0)) is not None:
        if isinstance(batch, PlantSegError):
            raise batch
        yield batch


def _refuse_full_shared_memory() -> None:
    """Make a lock as workers need it: PyTorch would print a traceback beside its error.

    Raises:
        LostWorkerError: If there is no room for it.
    """
    try:
        get_context(START).Lock()
    except OSError as error:
        raise LostWorkerError(
            f"Data loader workers cannot be started: {error.strerror} (in /dev/shm, or "
            "another limit of the system). data.workers=0 needs none."
        ) from error


def _next_or_lost(
    iterator: Iterator[TrainBatch | PlantSegError], *, has_workers: bool
) -> TrainBatch | PlantSegError | None:
    """Return the next batch, ``None`` after the last.

    Raises:
        LostWorkerError: If a worker is dead, or no batch arrives for too long.
    """
    waiting_since = time.monotonic()
    while True:
        try:
            return next(iterator, None)
        except (RuntimeError, OSError, EOFError) as error:
            # The last two: a worker died while its batch was transferred.
            if not has_workers:
                raise
            is_slow = "timed out" in str(error) and not _exit_codes(iterator)
            if is_slow and time.monotonic() - waiting_since < HUNG_S:
                continue
            raise LostWorkerError(_cause(error, iterator)) from error


def _why(error: OSError | EOFError) -> str:
    if isinstance(error, EOFError | ConnectionError):
        return "their parent was ended, as the system does when memory runs out"
    return f"{error.strerror} (in /dev/shm, or another limit of the system)"


def _exit_codes(iterator: object) -> list[int]:
    """Return the exit codes of the workers that have ended."""
    workers = getattr(iterator, "_workers", ())
    return [worker.exitcode for worker in workers if worker.exitcode is not None]


def _cause(error: Exception, iterator: object) -> str:
    """Return a description of why a worker does not respond."""
    for worker in getattr(iterator, "_workers", ()):
        worker.join(1.0)  # one that has just died has no exit code yet
    ended = _exit_codes(iterator)
    if not ended:
        return f"A data loader worker does not respond ({error})."
    if -signal.SIGKILL in ended:
        return (
            "A data loader worker was killed (SIGKILL), as the system does when "
            "memory runs out: lower data.workers or data.cache_mib if it happens again."
        )
    if ended[0] < 0:
        name = signal.Signals(-ended[0]).name
        return f"A data loader worker was ended by a signal ({name})."
    return f"A data loader worker ended with exit code {ended[0]}."


class _BatchSequence(Dataset[TrainBatch | PlantSegError]):
    """Return a user's error as a value: PyTorch would wrap it in a traceback."""

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
    samples: list[TrainBatch] = []
    for item in drawn:
        if isinstance(item, PlantSegError):
            return item
        samples.append(item)
    views = [s.unlabeled for s in samples if s.unlabeled is not None]
    return TrainBatch(
        collate([s.labeled for s in samples]), collate_views(views) if views else None
    )


def _init_worker(_: int) -> None:
    """Limit a worker to one thread (there is one per core), and watch its main process."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_exit_after_main_process, daemon=True).start()


def _exit_after_main_process() -> None:
    """End this worker once the main process has ended, in whatever way.

    PyTorch watches the fork server, which in turn lives as long as any worker.
    """
    if (main_process := parent_process()) is not None:
        main_process.join()
        os._exit(1)
