"""Plan image loading within a budget of main memory when training on a GPU.

On a CPU one budget covers the whole process; see ``planner.py``.
"""

from plantseg_next.data.dataloader import usual_workers
from plantseg_next.errors import UsageError
from plantseg_next.memory.plan import in_mb
from plantseg_next.settings import Settings

LEAST_CACHE_MIB = 32.0
LIBRARIES = 450 * 10**6
"""Bytes of the libraries that workers import; shared by all of them."""
READER = 50 * 10**6
"""Bytes of a loading process, without images."""
WORKER_PEAK_BATCHES, MAIN_PEAK_BATCHES = 10, 2
"""Memory of a worker, or without workers of the main process, while it makes a batch, in
batches. Measured, like the values above; see benchmarks/results/reading_memory.csv."""
CACHE_GROWTH = 1.25
"""Growth of a process for every byte of its cache."""
IN_MAIN = 3
"""Batches in the main process: that of the step, and the next in transfer."""


def plan_host_memory(
    settings: Settings, limit: int, *, resting: int, with_unlabeled: bool
) -> tuple[Settings, int]:
    """Return settings that load images within a budget, and the bytes they need.

    The cache of decoded images is reduced first, then prefetching, then the number of
    workers. Remaining memory goes to the cache.

    Args:
        settings: As requested.
        limit: Bytes of main memory, of all processes together. The memory of CUDA's own
            libraries is not counted.
        resting: Bytes that the main process uses before training.
        with_unlabeled: Whether tiles without masks are loaded too.

    Raises:
        UsageError: If not even a single loading process fits.
    """
    requested = settings.data
    batch = batch_bytes(settings, with_unlabeled=with_unlabeled)
    workers = usual_workers() if requested.workers is None else requested.workers
    least = min(LEAST_CACHE_MIB, requested.cache_mib)
    needs = 0
    for n in range(workers, -1, -1):
        for prefetch in range(requested.prefetch, 0, -1):
            needs = resting + reading_bytes(n, prefetch, batch)
            cache_mib = (limit - needs) / (max(1, n) * CACHE_GROWTH * 2**20)
            if cache_mib >= least:
                cache = min(requested.cache_mib, float(int(cache_mib)))
                needs += round(max(1, n) * CACHE_GROWTH * cache * 2**20)
                planned = settings.changed(
                    "data", workers=n, prefetch=prefetch, cache_mib=cache
                )
                return planned, needs
            if n == 0:
                break  # no prefetching without workers
    enough = -(-round(needs + CACHE_GROWTH * least * 2**20) // 10**6)
    raise UsageError(
        f"Loading images does not fit into {in_mb(limit)} of main memory.",
        needed=f"at least {enough:,} MB",
        fix=f"--ram {enough}MB, or a smaller data.tile_px",
    )


def batch_bytes(settings: Settings, *, with_unlabeled: bool) -> int:
    """Return the bytes of a step's batch: images and masks."""
    tile_bytes = settings.data.tile_px**2
    labeled = 3 + 2
    views = 3 * (1 + settings.semi.strong_views) + 1 if with_unlabeled else 0
    per_tile = labeled + settings.semi.ratio * views
    return settings.training.batch * tile_bytes * per_tile


def reading_bytes(workers: int, prefetch: int, batch: int) -> int:
    """Return the bytes that loading needs, without its caches.

    Args:
        workers: Processes in addition to the main one.
        prefetch: Batches that each of them prefetches.
        batch: Bytes of a batch.
    """
    if workers == 0:
        return READER + (MAIN_PEAK_BATCHES + IN_MAIN) * batch
    each = READER + (WORKER_PEAK_BATCHES + prefetch) * batch
    return LIBRARIES + workers * each + IN_MAIN * batch
