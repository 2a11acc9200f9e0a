"""A simulation of PyTorch's GPU allocator: the memory that it reserves for requests.

It reserves memory in segments and keeps them: the device memory in use is what is
*reserved*, more than what is allocated. The simulation needs no GPU.

Source: c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.x, without ``expandable_segments``
and without other streams.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

MIB = 2**20
ROUND = 512
SMALL = 1 * MIB  # larger requests are served from the pool of large segments
SMALL_SEGMENT = 2 * MIB
MEDIUM = 10 * MIB  # requests below it share large segments
LARGE_SEGMENT = 20 * MIB
ROUND_SEGMENT = 2 * MIB


def rounded(n_bytes: int, unit: int = ROUND) -> int:
    """Return bytes rounded up to whole units."""
    return -(-n_bytes // unit) * unit


@dataclass(eq=False)
class _Block:
    """A part of a segment."""

    address: int
    size: int
    is_small: bool
    before: "_Block | None" = None
    after: "_Block | None" = None
    is_free: bool = True


class CachingAllocator:
    """Simulate requests and count the reserved bytes."""

    def __init__(self) -> None:
        self.reserved = 0
        self._free: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}

    def allocate(self, n_bytes: int) -> _Block:
        """Return the block for a request."""
        size = max(ROUND, rounded(n_bytes))
        is_small = size <= SMALL
        block = self._best_fit(size, is_small=is_small) or self._segment(
            size, is_small=is_small
        )
        rest = block.size - size
        if rest >= ROUND if is_small else rest > SMALL:
            tail = _Block(
                block.address + size, rest, is_small, before=block, after=block.after
            )
            if block.after is not None:
                block.after.before = tail
            block.size, block.after = size, tail
            self._insert_free(tail)
        block.is_free = False
        return block

    def free(self, block: _Block) -> None:
        """Free a block and merge it with its free neighbors."""
        for other in (block.before, block.after):
            if other is None or not other.is_free:
                continue
            self._free[other.is_small].remove((other.size, other.address, other))
            first, second = (other, block) if other is block.before else (block, other)
            first.size += second.size
            first.after = second.after
            if first.after is not None:
                first.after.before = first
            block = first
        self._insert_free(block)

    def _best_fit(self, size: int, *, is_small: bool) -> _Block | None:
        """Return the smallest free block that is large enough, removed from its pool."""
        pool = self._free[is_small]
        at = bisect_left(pool, size, key=lambda entry: entry[0])
        return pool.pop(at)[2] if at < len(pool) else None

    def _segment(self, size: int, *, is_small: bool) -> _Block:
        """Reserve a new segment."""
        if is_small:
            n = SMALL_SEGMENT
        elif size < MEDIUM:
            n = LARGE_SEGMENT
        else:
            n = rounded(size, ROUND_SEGMENT)
        self.reserved += n
        return _Block(self.reserved - n, n, is_small)

    def _insert_free(self, block: _Block) -> None:
        block.is_free = True
        insort(
            self._free[block.is_small],
            (block.size, block.address, block),
            key=lambda entry: entry[:2],  # among equal sizes the lowest address, as PyTorch
        )
