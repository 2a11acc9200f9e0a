"""How images are read within a budget of main memory, where the network is on a GPU.

On a CPU the process's budget holds for all; see ``planner.py``.
"""

from plantseg_next.data.dataloader import usual_workers
from plantseg_next.errors import UsageError
from plantseg_next.memory.plan import in_mb
from plantseg_next.settings import Settings

LEAST_CACHE_MIB = 32.0
LIBRARIES = 450 * 10**6
"""Bytes of what workers import, held once by all of them."""
READER = 50 * 10**6
"""Bytes of a process that reads, without images."""
AT_WORK, AT_WORK_IN_MAIN = 10, 2
"""What a worker, or else the main process, takes while it makes a batch, in batches. Like
the figures above from measurements; see benchmarks/results/reading_memory.csv."""
CACHE_GROWTH = 1.25
"""What a process grows by for every byte of its cache."""
IN_MAIN = 3
"""Batches in the main process: the step's, and the next on its way."""


def plan_host_memory(
    settings: Settings, limit: int, *, resting: int, with_unlabeled: bool
) -> tuple[Settings, int]:
    """Return settings that read images within a budget, and the bytes they need of it.

    First the cache of decoded images gives way, then what is read ahead, then workers
    one by one. What is left over goes to the cache.

    Args:
        settings: As asked for.
        limit: Bytes of main memory, of all processes together. What CUDA's own libraries
            take there is not seen.
        resting: Bytes that the main process has before anything is learned.
        with_unlabeled: Whether tiles without masks are read too.

    Raises:
        UsageError: If not even one process that reads an image at a time fits.
    """
    asked = settings.data
    batch = batch_bytes(settings, with_unlabeled=with_unlabeled)
    workers = usual_workers() if asked.workers is None else asked.workers
    least = min(LEAST_CACHE_MIB, asked.cache_mib)
    needs = 0
    for n in range(workers, -1, -1):
        for prefetch in range(asked.prefetch, 0, -1):
            needs = resting + reading_bytes(n, prefetch, batch)
            room = (limit - needs) / (max(1, n) * CACHE_GROWTH * 2**20)
            if room >= least:
                cache = min(asked.cache_mib, float(int(room)))
                needs += round(max(1, n) * CACHE_GROWTH * cache * 2**20)
                data = asked.model_copy(
                    update={"workers": n, "prefetch": prefetch, "cache_mib": cache}
                )
                return settings.model_copy(update={"data": data}), needs
            if n == 0:
                break  # nothing is read ahead
    enough = -(-round(needs + CACHE_GROWTH * least * 2**20) // 10**6)
    raise UsageError(
        f"Reading images does not fit into {in_mb(limit)} of main memory.",
        needed=f"at least {enough:,} MB",
        fix=f"--ram {enough}MB, or a smaller data.tile_px",
    )


def batch_bytes(settings: Settings, *, with_unlabeled: bool) -> int:
    """Return the bytes of what a step learns from: images and masks."""
    a_tile = settings.data.tile_px**2
    labeled = 3 + 2
    views = 3 * (1 + settings.semi.strong_views) + 1 if with_unlabeled else 0
    per_tile = labeled + settings.semi.ratio * views
    return settings.training.batch * a_tile * per_tile


def reading_bytes(workers: int, prefetch: int, batch: int) -> int:
    """Return what reading needs beside its caches.

    Args:
        workers: Processes beside the main one.
        prefetch: Batches that each of them reads ahead.
        batch: Bytes of one.
    """
    if workers == 0:
        return READER + (AT_WORK_IN_MAIN + IN_MAIN) * batch
    each = READER + (AT_WORK + prefetch) * batch
    return LIBRARIES + workers * each + IN_MAIN * batch
