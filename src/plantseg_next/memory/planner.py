"""The memory plan: the settings that fit a budget and cost least time.

What a batch teaches is kept wherever that is possible: micro-batches, recomputed values,
striped losses and a teacher in main memory are exact. Only where they do not suffice is
something given up that changes what is learned, the least harmful thing first, and it is
said.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from plantseg_next.errors import UsageError
from plantseg_next.memory.allocation_tracker import Footprint, cpu_parts
from plantseg_next.memory.host_memory import LEAST_CACHE_MIB
from plantseg_next.memory.plan import MemoryPlan, in_mb
from plantseg_next.memory.trace import footprint, of_batch, trace
from plantseg_next.memory.trace_cache import cached_trace
from plantseg_next.runtime import Device
from plantseg_next.settings import Checkpointable, Settings
from plantseg_next.structures import ClassMap

RECOMPUTED: tuple[tuple[Checkpointable, ...], ...] = (
    (),
    ("fine", "decoder"),
    ("fine", "decoder", "stage_1", "stage_2"),
    ("fine", "decoder", "stage_1", "stage_2", "stage_3", "stage_4"),
)
"""From nothing to everything; the largest maps come first."""
LOSS_ROWS = 64
TILES_PX = (0.75, 0.5)
"""Parts of the tile's side that are tried when nothing else helps."""
LEAST_TILE_PX = 96
GROWTH, GROWTH_IN_STRIPES = 1.25, 1.75
"""What a process grows by on a CPU for every byte that a step has in use: its allocator
keeps pieces, more of them where losses are taken in stripes. Measured; see
benchmarks/results/memory_error.csv."""
LIBRARIES = 80 * 10**6
"""Bytes that libraries take once they compute, on a CPU."""
READING = 200 * 10**6
"""Bytes for decoding an image and for a validation, on a CPU."""
MANY_CLASSES = 16
"""From so many on, losses are worth taking in stripes."""


@dataclass(frozen=True)
class Speed:
    """How fast a device is, roughly: only ratios of times are made of it.

    Args:
        flops: Multiplications and additions a second, of networks like this one.
        call_s: Seconds that any operation takes at least.
        copied: Bytes a second between main memory and the device.
        asked_ahead: Whether operations are asked for while earlier ones are computed.
    """

    flops: float
    call_s: float
    copied: float
    asked_ahead: bool

    def seconds(self, flops: int, calls: int) -> float:
        """Return how long so many operations take."""
        computing, asking = flops / self.flops, calls * self.call_s
        return max(computing, asking) if self.asked_ahead else computing + asking


SPEEDS = {
    "cpu": Speed(6e10, 15e-6, 1e10, asked_ahead=False),
    "cuda": Speed(3e13, 40e-6, 1e10, asked_ahead=True),
}
"""A GPU's: of an H200, see benchmarks/results/gpu_memory.csv. Its 40 microseconds are
Python's, which asks for each operation: measured were 39 to 43 in steps of small parts."""


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
        settings: As asked for.
        classes: Of the network.
        device: Where to train; need not be here. On a GPU the budget is what PyTorch
            reserves there, the driver's context beside it; on a CPU it is the process.
        limit: The budget, in bytes.
        with_unlabeled: Whether there is anything without masks to learn from.
        with_image_labels: Whether some of that has names.
        resting: Bytes that the process has before anything is learned; for a CPU.

    Raises:
        UsageError: If nothing fits; it names the least budget that does.
    """
    there = {
        "with_unlabeled": with_unlabeled,
        "with_image_labels": with_image_labels,
    }
    search = _Search(classes, device, limit, there, resting=resting)
    before = search.step(settings)
    if search.fits(settings):
        return search.plan(settings, settings, before, ())
    least = search.needs(settings)
    for given, tried in search.concessions(settings):
        smallest = search.smallest(tried)
        least = min(least, search.needs(smallest))
        if search.fits(smallest):
            return search.plan(settings, search.fastest(tried), before, given)
    enough = -(-least // 10**6)  # rounded up: what is named must fit
    raise UsageError(
        f"A run with these settings does not fit into {in_mb(limit)}.",
        needed=f"at least {enough:,} MB",
        fix=f"--memory {enough}MB, or a smaller model.encoder or data.tile_px",
    )


@cache
def _has_stages(encoder: str) -> bool:
    """Return whether stages of an encoder can be computed again."""
    import torch

    from plantseg_next.models.encoders import build_encoder

    with torch.device("meta"):
        return build_encoder(encoder, fetch=False).can_checkpoint


class _Search:
    """Try settings on tensors without content."""

    def __init__(
        self,
        classes: ClassMap,
        device: Device,
        limit: int,
        there: Mapping[str, bool],
        *,
        resting: int,
    ) -> None:
        self._device = device
        self._limit = limit
        self._resting = resting
        self._speed = SPEEDS[device.kind]
        self._rows = LOSS_ROWS if classes.n_lesion_logits >= MANY_CLASSES else None
        self._with_unlabeled = there["with_unlabeled"]
        of_all = {
            "classes": [classes.n_lesion_logits, len(classes.diseases), classes.has_leaf],
            "device": [device.kind, device.has_bfloat16],
            "parts": cpu_parts(),
            **there,
        }

        def traced(settings: Settings) -> Footprint:
            return cached_trace(
                of_all | {"settings": settings.model_dump(mode="json")},
                lambda: trace(settings, classes, device, **there),
            )

        self._trace = cache(traced)

    def step(self, settings: Settings) -> Footprint:
        """Return what a step takes; equal ones are traced once."""
        return footprint(_essential(settings), self._trace)

    def needs(self, settings: Settings) -> int:
        """Return what the run needs of the budget, in bytes."""
        return self._needed(self.step(settings), settings)

    def _needed(self, step: Footprint, settings: Settings) -> int:
        if self._device.kind == "cuda":
            return step.reserved
        return round(self._fixed + _growth(settings) * step.peak_bytes)

    @property
    def _fixed(self) -> float:
        """What a process on a CPU needs beside a step."""
        return self._resting + LIBRARIES + READING + 2 * LEAST_CACHE_MIB * 2**20

    def _room(self, settings: Settings) -> int:
        """Return what a step may have at its peak."""
        if self._device.kind == "cuda":
            return self._limit
        return round((self._limit - self._fixed) / _growth(settings))

    def fits(self, settings: Settings) -> bool:
        """Return whether the run stays within the budget."""
        return self.needs(settings) <= self._limit

    def seconds(self, settings: Settings) -> float:
        """Return roughly what a step costs."""
        return self._cost(self.step(settings), settings)

    def _cost(self, step: Footprint, settings: Settings) -> float:
        seconds = self._speed.seconds(step.flops, step.calls)
        if settings.memory.ema_offload and self._with_unlabeled:
            # To the device in half precision, and the student's weights back.
            seconds += 1.5 * step.peak["weights"] / self._speed.copied
        return seconds

    def concessions(self, settings: Settings) -> Iterator[tuple[tuple[str, ...], Settings]]:
        """Yield settings that take less and less, with what each gives up."""
        yield (), settings
        given: tuple[str, ...] = ()
        if self._device.kind == "cuda" and self._with_unlabeled:
            settings = _with(settings, ema_offload=True)
            given += ("The teacher waits in main memory: exact, a little slower.",)
            yield given, settings
        if settings.memory.optimizer == "adamw":
            lean = _with(settings, optimizer="adafactor")
            states = [
                self._trace(_essential(of_batch(s, 1))).resident["optimizer"]
                for s in (lean, settings)
            ]
            if states[0] < 0.9 * states[1]:
                settings = lean
                given += (
                    "Adafactor instead of AdamW: its state is small, and it learns "
                    "otherwise.",
                )
                yield given, settings
        whole = settings.data.tile_px
        for part in TILES_PX:
            px = int(whole * part) // 32 * 32
            if px >= LEAST_TILE_PX:
                said = f"Tiles of {px} px instead of {whole}: less context a tile."
                data = settings.data.model_copy(update={"tile_px": px})
                yield (*given, said), settings.model_copy(update={"data": data})

    def smallest(self, tried: Settings) -> Settings:
        """Return the settings that take least without changing what is learned."""
        recomputed = self._recomputed(tried)[-1]
        return _with(tried, micro_batch=1, recomputed=recomputed, rows=self._rows)

    def _recomputed(self, tried: Settings) -> tuple[tuple[Checkpointable, ...], ...]:
        """Return what can be computed again; not all encoders have such stages."""
        if _has_stages(tried.model.encoder):
            return RECOMPUTED
        return tuple(p for p in RECOMPUTED if not any(n.startswith("stage_") for n in p))

    def fastest(self, tried: Settings) -> Settings:
        """Return the fastest settings that fit, of all micro-batches and recomputations.

        They are ranked by short traces, of two micro-batches each; what is chosen is
        traced whole.
        """
        options: list[tuple[float, int, Settings]] = []
        for recomputed in self._recomputed(tried):
            for n in reversed(_sizes(tried.training.batch)):
                found = _with(tried, micro_batch=n, recomputed=recomputed, rows=self._rows)
                likely = self._guess(found)
                if self._needed(likely, found) > self._limit:
                    break
                options.append((self._cost(likely, found), len(options), found))
        for _, _, found in sorted(options):
            if self.fits(found):
                return found
        return self.smallest(tried)

    def _guess(self, settings: Settings) -> Footprint:
        """Return about what a step takes, from steps of one and two tiles at once.

        By the tile at once, the peak grows in a straight line; by the tile that waits,
        by what one more part of the smallest step adds.
        """
        n, batch = settings.training.tiles_at_once, settings.training.batch

        def parts_of(m: int) -> Footprint:
            return self._trace(_essential(of_batch(_with(settings, micro_batch=m), 2 * m)))

        one = parts_of(1)
        two = parts_of(2) if n > 1 else one
        small = self.smallest(settings)
        few, more = (self._trace(_essential(of_batch(small, m))) for m in (2, 3))
        parts = -(-batch // n)
        share = (0.75 if parts == 1 else 1.0) * batch / 2  # one alone is run only once
        grown = one.grown(two, n - 1)
        held = (more.peak_bytes - few.peak_bytes) * max(0, batch - 2 * n)
        return replace(
            grown,
            peak={**grown.peak, "images": grown.peak["images"] + held},
            reserved=grown.reserved + held,
            flops=round(one.flops * share),
            calls=round(one.calls * share / n),
        )

    def plan(
        self,
        asked: Settings,
        chosen: Settings,
        before: Footprint,
        given: tuple[str, ...],
    ) -> MemoryPlan:
        """Return the plan; on a CPU what is left goes to the cache of images."""
        after, needs, room = self.step(chosen), self.needs(chosen), self._room(chosen)
        slower = self.seconds(chosen) / self.seconds(asked)
        if self._device.kind == "cpu":
            left = (self._limit - needs) / 2**20 / 2 + LEAST_CACHE_MIB
            cache_mib = min(asked.data.cache_mib, float(int(left)))
            data = chosen.data.model_copy(update={"cache_mib": cache_mib, "workers": 0})
            chosen = chosen.model_copy(update={"data": data})
            needs += round(2 * (cache_mib - LEAST_CACHE_MIB) * 2**20)
        memory = chosen.memory.model_copy(update={"budget_mb": self._limit / 1e6})
        chosen = chosen.model_copy(update={"memory": memory})
        said = (*_exact(asked, chosen), *given)
        return MemoryPlan(
            asked, chosen, self._limit, before, after, needs, room, slower, said
        )


def _growth(settings: Settings) -> float:
    return GROWTH if settings.memory.loss_chunk_rows is None else GROWTH_IN_STRIPES


def _sizes(batch: int) -> list[int]:
    """Return the micro-batches worth trying: the whole, and halves of it down to one."""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _with(
    settings: Settings,
    *,
    micro_batch: int | None = None,
    recomputed: tuple[Checkpointable, ...] | None = None,
    rows: int | None = None,
    **memory: bool | str,
) -> Settings:
    """Return the settings with some of what memory is traded for changed."""
    changed: dict[str, Any] = dict(memory)
    if recomputed is not None:
        changed["activation_checkpointing"] = recomputed
    if rows is not None:
        changed["loss_chunk_rows"] = rows
    training = settings.training
    if micro_batch is not None:
        size = None if micro_batch == training.batch else micro_batch
        training = training.model_copy(update={"micro_batch": size})
    return settings.model_copy(
        update={
            "memory": settings.memory.model_copy(update=changed),
            "training": training,
        }
    )


def _essential(settings: Settings) -> Settings:
    """Return the settings without what a step does not depend on, as a key."""
    plain = Settings()
    return plain.model_copy(
        update={
            "deterministic": settings.deterministic,
            "data": plain.data.model_copy(update={"tile_px": settings.data.tile_px}),
            "model": settings.model,
            "loss": settings.loss,
            "semi": settings.semi,
            "image_labels": settings.image_labels,
            "memory": settings.memory.model_copy(update={"budget_mb": None}),
            "training": plain.training.model_copy(
                update={
                    name: getattr(settings.training, name)
                    for name in ("batch", "micro_batch", "precision")
                }
            ),
        }
    )


def _exact(asked: Settings, chosen: Settings) -> list[str]:
    """Return in words what was changed without changing what is learned."""
    said = []
    size, batch = chosen.training.micro_batch, chosen.training.batch
    if size != asked.training.micro_batch and size is not None:
        said.append(
            f"{size} of {batch} tiles at once: the same gradient, with one more forward "
            "pass."
        )
    if chosen.memory.activation_checkpointing != asked.memory.activation_checkpointing:
        parts = ", ".join(chosen.memory.activation_checkpointing).replace("_", " ")
        said.append(f"Computed again instead of kept: {parts}. The same gradient.")
    if chosen.memory.loss_chunk_rows != asked.memory.loss_chunk_rows:
        said.append(
            f"Losses of {chosen.memory.loss_chunk_rows} rows at a time: the same loss."
        )
    return said
