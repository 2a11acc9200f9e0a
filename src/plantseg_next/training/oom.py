"""Recovery: what a run does about too little memory, and when it cannot go on from here."""

import gc
import re
from collections.abc import Callable
from typing import TypeVar

import torch

from plantseg_next.errors import TrainingError
from plantseg_next.training.callbacks.callback import Event

T = TypeVar("T")

_SAYS_SO = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, which does not say why
    "could not create a memory",
    "not enough memory",
    "insufficient memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error",
    "unable to find an engine",
)
"""What PyTorch and the libraries under it say, in small letters, when memory runs out."""

SMALLER = (
    "use a smaller data.tile_px, a smaller model.encoder or model.width, fewer "
    "semi.strong_views, a smaller training.batch, or training.precision=bfloat16"
)


class RollbackError(Exception):
    """The run cannot go on from here, but from an earlier checkpoint.

    Args:
        cause: In words.
        lower_rate: Whether to go on with a lower rate.
        step: Of the checkpoint; by default the newest.
    """

    def __init__(
        self, cause: str, *, lower_rate: bool = True, step: int | None = None
    ) -> None:
        super().__init__(cause)
        self.lower_rate = lower_rate
        self.step = step


def is_oom(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(
        words in text for words in _SAYS_SO
    )


def _cause(error: BaseException) -> str:
    """Return an error's first line; of a GPU's long account, what it was asked for."""
    line = str(error).strip().split("\n")[0] or type(error).__name__
    asked = re.match(r".*?Tried to allocate [\d.]+ \w+", line)
    return asked[0] if asked else line


def free_memory() -> None:
    """Give back what nobody holds any longer."""
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
    """Return what an attempt gives, made with fewer tiles at once where memory runs out.

    Args:
        attempt: From a number of tiles at once to a result; must be fit to be repeated.
        size: Tiles at once, at first.
        what: What is attempted, for people.
        emit: Hears of every change.
        before_retry: Undoes what the failed attempt left behind.

    Returns:
        The result, and the tiles at once that it was possible with.

    Raises:
        TrainingError: If memory is too small for one tile.
    """
    tried_alone = False
    while True:
        try:
            return attempt(size), size
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_oom(error):
                raise
            cause = _cause(error)
        # Outside of the handler: the traceback held all that the attempt had computed.
        before_retry()
        free_memory()
        if tried_alone:
            raise TrainingError(
                f"Memory does not suffice for {what} with one tile at once ({cause}).",
                needed="memory for one tile",
                fix=SMALLER,
            )
        tried_alone = size == 1  # once more: what was held until now is free
        size = max(1, size // 2)
        emit(
            Event(
                "out-of-memory",
                f"Memory ran out in {what} ({cause}). Going on with {size} at once: "
                "what is learned stays the same.",
            )
        )
