"""The memory plan: the fastest settings that fit a budget.

Measures that do not change what is learned are preferred: activation checkpointing, chunked
losses and an EMA teacher in main memory are exact; smaller micro-batches lost no Dice where
it was measured (docs/results/memory.md). Only if they do not suffice, settings that change
the training are changed, the least harmful first, and reported.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from plantseg_next.errors import UsageError
from plantseg_next.memory.allocation_tracker import Footprint, cpu_parts
from plantseg_next.memory.host_memory import LEAST_CACHE_MIB
from plantseg_next.memory.plan import MemoryPlan, in_mb
from plantseg_next.memory.trace import footprint, trace
from plantseg_next.memory.trace_cache import cached_trace
from plantseg_next.runtime import Device
from plantseg_next.settings import Checkpointable, Settings
from plantseg_next.structures import ClassMap

CHECKPOINTED_PARTS: tuple[tuple[Checkpointable, ...], ...] = (
    (),
    ("fine", "decoder"),
    ("fine", "decoder", "stage_1", "stage_2"),
    ("fine", "decoder", "stage_1", "stage_2", "stage_3", "stage_4"),
)
"""From nothing to everything; the parts with the largest maps come first."""
LOSS_ROWS = 64
TILES_PX = (0.75, 0.5)
"""Fractions of the tile's side that are tried last."""
LEAST_TILE_PX = 96
FRAGMENTATION, FRAGMENTATION_CHUNKED = 1.25, 1.75
"""Growth of a process on a CPU for every byte in use at the peak of a step: its allocator
fragments, more so with chunked losses. Measured; see
benchmarks/results/memory_error.csv."""
LIBRARIES = 80 * 10**6
"""Bytes that libraries allocate when they first compute, on a CPU."""
READING = 200 * 10**6
"""Bytes for decoding an image and for a validation, on a CPU."""
MANY_CLASSES = 16
"""Lesion logits from which on chunked losses save memory."""


@dataclass(frozen=True)
class Speed:
    """Approximate speed of a device; used for ratios of times only.

    Args:
        flops: Multiplications and additions per second, of networks like this one.
        call_s: Least time of an operation, in seconds.
        async_launch: Whether operations are launched while earlier ones are computed.
    """

    flops: float
    call_s: float
    async_launch: bool

    def seconds(self, flops: int, calls: int) -> float:
        """Return the estimated time of these operations."""
        computing, launching = flops / self.flops, calls * self.call_s
        return max(computing, launching) if self.async_launch else computing + launching


SPEEDS = {
    "cpu": Speed(6e10, 15e-6, async_launch=False),
    "cuda": Speed(3e13, 40e-6, async_launch=True),
}
"""The GPU is an H200, see benchmarks/results/gpu_memory.csv. Its 40 microseconds are the
time to launch an operation from Python: 39 to 43 in steps of small micro-batches."""
COPIED = 1e10
"""Bytes per second between main memory and a GPU, approximately."""


def plan_memory(
    settings: Settings,
    classes: ClassMap,
    device: Device,
    limit: int,
    *,
    with_unlabeled: bool,
    with_image_labels: bool = False,
    resting: int = 0,
) -> MemoryPlan:
    """Return the fastest settings whose step fits a budget.

    Args:
        settings: As requested.
        classes: Of the network.
        device: The training device; need not exist on this machine. On a GPU the budget
            is what PyTorch reserves, without the driver's context; on a CPU it is the
            memory of the process.
        limit: The budget, in bytes.
        with_unlabeled: Whether unlabeled images are used.
        with_image_labels: Whether some of them have image-level labels.
        resting: Bytes that the process uses before training; for a CPU.

    Raises:
        UsageError: If nothing fits; it states the least budget that suffices.
    """
    search = _Search(classes, device, limit, with_unlabeled, with_image_labels, resting)
    before = search.step(settings)
    if search.fits(settings):
        return search.plan(settings, settings, before, ())
    least = search.needs(settings)
    for concessions, tried in search.concessions(settings):
        smallest = search.smallest(tried)
        least = min(least, search.needs(smallest))
        if search.fits(smallest):
            return search.plan(settings, search.fastest(tried), before, concessions)
    enough = -(-least // 10**6)  # rounded up, so that the stated budget suffices
    raise UsageError(
        f"A run with these settings does not fit into {in_mb(limit)}.",
        needed=f"at least {enough:,} MB",
        fix=f"--memory {enough}MB, or a smaller model.encoder or data.tile_px",
    )


@cache
def _has_stages(encoder: str) -> bool:
    """Return whether stages of an encoder can be recomputed."""
    import torch

    from plantseg_next.models.encoders import build_encoder

    with torch.device("meta"):
        return build_encoder(encoder, fetch=False).can_checkpoint


@dataclass(eq=False)
class _Search:
    """Search for settings by tracing steps on fake tensors; see ``plan_memory``."""

    classes: ClassMap
    device: Device
    limit: int
    with_unlabeled: bool
    with_image_labels: bool
    resting: int

    def __post_init__(self) -> None:
        self._trace = cache(self._traced)

    def _traced(self, settings: Settings) -> Footprint:
        classes, device = self.classes, self.device
        data_kinds = {
            "with_unlabeled": self.with_unlabeled,
            "with_image_labels": self.with_image_labels,
        }
        about = {
            "classes": [classes.n_lesion_logits, len(classes.diseases), classes.has_leaf],
            "device": [device.kind, device.has_bfloat16],
            "parts": cpu_parts(),
            "settings": settings.model_dump(mode="json"),
        }
        return cached_trace(
            about | data_kinds, lambda: trace(settings, classes, device, **data_kinds)
        )

    def step(self, settings: Settings) -> Footprint:
        """Return the memory of a step; equal steps are traced once."""
        return footprint(_essential(settings), self._trace)

    def _of_batch(self, settings: Settings, batch: int) -> Footprint:
        """Return the memory of a step with another batch size, traced whole."""
        return self._trace(_essential(settings.changed("training", batch=batch)))

    def needs(self, settings: Settings) -> int:
        """Return the bytes of the budget that the run needs."""
        return self._needed(self.step(settings), settings)

    def _needed(self, step: Footprint, settings: Settings) -> int:
        if self.device.kind == "cuda":
            return step.reserved
        return round(self._fixed + _growth(settings) * step.peak_bytes)

    @property
    def _fixed(self) -> float:
        """Bytes of a process on a CPU without a step."""
        return self.resting + LIBRARIES + READING + 2 * LEAST_CACHE_MIB * 2**20

    def _room(self, settings: Settings) -> int:
        """Return the bytes available to a step at its peak."""
        if self.device.kind == "cuda":
            return self.limit
        return round((self.limit - self._fixed) / _growth(settings))

    def fits(self, settings: Settings) -> bool:
        """Return whether the run stays within the budget."""
        return self.needs(settings) <= self.limit

    def _seconds(self, step: Footprint, settings: Settings) -> float:
        """Return the estimated time of a step."""
        seconds = SPEEDS[self.device.kind].seconds(step.flops, step.calls)
        if settings.memory.ema_offload and self.with_unlabeled:
            # The teacher to the device in half precision, the student's weights back.
            seconds += 1.5 * step.peak["weights"] / COPIED
        return seconds

    def concessions(self, settings: Settings) -> Iterator[tuple[tuple[str, ...], Settings]]:
        """Yield settings of decreasing memory, each with the concessions made."""
        yield (), settings
        made: tuple[str, ...] = ()
        if self.device.kind == "cuda" and self.with_unlabeled:
            settings = settings.changed("memory", ema_offload=True)
            made += ("The EMA teacher is kept in main memory: exact, slightly slower.",)
            yield made, settings
        if settings.memory.optimizer == "adamw":
            lean = settings.changed("memory", optimizer="adafactor")
            states = [self._of_batch(s, 1).resident["optimizer"] for s in (lean, settings)]
            if states[0] < 0.9 * states[1]:
                settings = lean
                made += (
                    "Adafactor instead of AdamW: a smaller optimizer state, but other "
                    "updates.",
                )
                yield made, settings
        whole = settings.data.tile_px
        for fraction in TILES_PX:
            px = int(whole * fraction) // 32 * 32
            if px >= LEAST_TILE_PX:
                tiles = f"Tiles of {px} px instead of {whole}: less context per tile."
                yield (*made, tiles), settings.changed("data", tile_px=px)

    def smallest(self, tried: Settings) -> Settings:
        """Return the settings of least memory with the same gradient."""
        return self._option(tried, 1, self._recomputed(tried)[-1])

    def _option(
        self, tried: Settings, micro_batch: int, recomputed: tuple[Checkpointable, ...]
    ) -> Settings:
        """Return the settings in micro-batches, with losses in chunks for many classes."""
        return _in_micro_batches(tried, micro_batch).changed(
            "memory",
            activation_checkpointing=recomputed,
            loss_chunk_rows=LOSS_ROWS
            if self.classes.n_lesion_logits >= MANY_CLASSES
            else tried.memory.loss_chunk_rows,
        )

    def _recomputed(self, tried: Settings) -> tuple[tuple[Checkpointable, ...], ...]:
        """Return the parts that can be recomputed; not all encoders have such stages."""
        if _has_stages(tried.model.encoder):
            return CHECKPOINTED_PARTS
        return tuple(
            p for p in CHECKPOINTED_PARTS if not any(n.startswith("stage_") for n in p)
        )

    def fastest(self, tried: Settings) -> Settings:
        """Return the fastest settings that fit, over micro-batches and checkpointed parts.

        They are ranked by short traces of two micro-batches; the chosen one is traced
        whole.
        """
        options: list[tuple[float, int, Settings]] = []
        for recomputed in self._recomputed(tried):
            for n in reversed(_sizes(tried.training.batch)):
                option = self._option(tried, n, recomputed)
                step = self._extrapolate(option)
                if self._needed(step, option) > self.limit:
                    break
                options.append((self._seconds(step, option), len(options), option))
        for _, _, option in sorted(options):
            if self.fits(option):
                return option
        return self.smallest(tried)

    def _extrapolate(self, settings: Settings) -> Footprint:
        """Return the approximate memory of a step, from micro-batches of one and two tiles.

        The peak grows linearly with the tiles of a micro-batch. For every other tile of
        the batch it grows by the increase per micro-batch of the smallest step.
        """
        n, batch = settings.training.tiles_at_once, settings.training.batch

        def two_micro_batches(m: int) -> Footprint:
            return self._of_batch(_in_micro_batches(settings, m), 2 * m)

        one = two_micro_batches(1)
        two = two_micro_batches(2) if n > 1 else one
        small = self.smallest(settings)
        few, more = (self._of_batch(small, m) for m in (2, 3))
        factor = batch / 2  # both traces are of two micro-batches
        grown = one.grown(two, n - 1)
        waiting = (more.peak_bytes - few.peak_bytes) * max(0, batch - 2 * n)
        return replace(
            grown,
            peak={**grown.peak, "images": grown.peak["images"] + waiting},
            reserved=grown.reserved + waiting,
            flops=round(one.flops * factor),
            calls=round(one.calls * factor / n),
        )

    def plan(
        self,
        requested: Settings,
        chosen: Settings,
        before: Footprint,
        concessions: tuple[str, ...],
    ) -> MemoryPlan:
        """Return the plan; on a CPU remaining memory goes to the cache of images."""
        after, needs, room = self.step(chosen), self.needs(chosen), self._room(chosen)
        slower = self._seconds(after, chosen) / self._seconds(before, requested)
        if self.device.kind == "cpu":
            left = (self.limit - needs) / 2**20 / 2 + LEAST_CACHE_MIB
            cache_mib = min(requested.data.cache_mib, float(int(left)))
            chosen = chosen.changed("data", cache_mib=cache_mib, workers=0)
            needs += round(2 * (cache_mib - LEAST_CACHE_MIB) * 2**20)
        chosen = chosen.changed("memory", budget_mb=self.limit / 1e6)
        changes = (*_harmless(requested, chosen), *concessions)
        return MemoryPlan(
            requested, chosen, self.limit, before, after, needs, room, slower, changes
        )


def _growth(settings: Settings) -> float:
    chunked = settings.memory.loss_chunk_rows is not None
    return FRAGMENTATION_CHUNKED if chunked else FRAGMENTATION


def _sizes(batch: int) -> list[int]:
    """Return the micro-batch sizes to try: the batch, halved repeatedly down to one."""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _in_micro_batches(settings: Settings, size: int) -> Settings:
    """Return the settings with micro-batches of this size."""
    whole = size == settings.training.batch
    return settings.changed("training", micro_batch=None if whole else size)


def _essential(settings: Settings) -> Settings:
    """Return the settings with all that a step does not depend on at its default."""
    kept = ("deterministic", "model", "loss", "semi", "image_labels", "memory")
    training = {
        n: getattr(settings.training, n) for n in ("batch", "micro_batch", "precision")
    }
    return (
        Settings()
        .model_copy(update={name: getattr(settings, name) for name in kept})
        .changed("memory", budget_mb=None)
        .changed("data", tile_px=settings.data.tile_px)
        .changed("training", **training)
    )


def _harmless(requested: Settings, chosen: Settings) -> list[str]:
    """Describe the changes that do not change what is learned, as far as was measured."""
    changes = []
    size, batch = chosen.training.micro_batch, chosen.training.batch
    if size != requested.training.micro_batch and size is not None:
        changes.append(
            f"Micro-batches of {size} of {batch} tiles: overlap losses and hard pixels are "
            "those of a micro-batch."
        )
    if chosen.memory.activation_checkpointing != requested.memory.activation_checkpointing:
        parts = ", ".join(chosen.memory.activation_checkpointing).replace("_", " ")
        changes.append(f"Activations recomputed: {parts}. The same gradient.")
    if chosen.memory.loss_chunk_rows != requested.memory.loss_chunk_rows:
        changes.append(
            f"Losses computed {chosen.memory.loss_chunk_rows} rows at once: the same loss."
        )
    return changes
