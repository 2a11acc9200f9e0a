"""Out-of-memory recovery: retry with a smaller micro-batch."""

import gc
import re
from collections.abc import Callable
from typing import TypeVar

import torch

from plantseg_next.errors import TrainingError, is_out_of_memory
from plantseg_next.training.callbacks.callback import Event

T = TypeVar("T")

SMALLER = (
    "use a smaller data.tile_px, a smaller model.encoder or model.width, fewer "
    "semi.strong_views, a smaller training.batch, or training.precision=bfloat16"
)


def _cause(error: BaseException) -> str:
    """Return an error's first line; of a long CUDA message, the requested size."""
    line = str(error).strip().split("\n")[0] or type(error).__name__
    asked = re.match(r".*?Tried to allocate [\d.]+ \w+", line)
    return asked[0] if asked else line


def free_memory() -> None:
    """Release unused memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def retry_with_smaller_batch(
    attempt: Callable[[int], T],
    size: int,
    *,
    what: str,
    emit: Callable[[Event], None],
    before_retry: Callable[[], None] = free_memory,
) -> tuple[T, int]:
    """Call a function, with half as many tiles at once each time memory runs out.

    Args:
        attempt: From a number of tiles at once to a result; must be repeatable.
        size: Tiles at once in the first attempt.
        what: Name of the attempt, for messages.
        emit: Receives an event at every change.
        before_retry: Undoes the effects of a failed attempt.

    Returns:
        The result, and the tiles at once of the successful attempt.

    Raises:
        TrainingError: If memory is too small for one tile.
    """
    tried_alone = False
    while True:
        try:
            return attempt(size), size
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            cause = _cause(error)
        # Outside the handler: the traceback holds references to the tensors of the attempt.
        before_retry()
        free_memory()
        if tried_alone:
            raise TrainingError(
                f"Memory does not suffice for {what} with one tile at once ({cause}).",
                needed="memory for one tile",
                fix=SMALLER,
            )
        tried_alone = size == 1  # retry one tile once: memory has been freed
        size = max(1, size // 2)
        emit(
            Event(
                "out-of-memory",
                f"Memory ran out in {what} ({cause}). The run continues with {size} at "
                "once.",
            )
        )
