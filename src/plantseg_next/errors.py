"""The exceptions of the package: what was found, what is needed, what to do.

Every error that a user can cause derives from ``PlantSegError``; the command line prints
its text and exits with ``exit_code``. Any other uncaught exception is a bug.
"""

import difflib
import re
import signal
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path

from plantseg_next.names import printable


class PlantSegError(Exception):
    """An error with what was found, what is needed and what to do, in one text.

    Names in it are shown ``printable``. A line break is kept if the next line is indented.

    Args:
        came: What was found, with the file or the argument.
        needed: What is valid.
        fix: What the user can do.
    """

    exit_code = 1

    def __init__(self, came: str, *, needed: str, fix: str) -> None:
        came, needed, fix = map(_printable, (came, needed, fix))
        super().__init__(f"{came}\n  needed: {needed}\n  to do:  {fix}")
        self.came = came
        self.needed = needed
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Make the error picklable, so that a data loader's worker can return it."""
        return (_rebuild, (type(self), self.came, self.needed, self.fix))


def _printable(text: str) -> str:
    return "\n".join(map(printable, re.split(r"\n(?= )", text)))


def _rebuild(kind: type[PlantSegError], came: str, needed: str, fix: str) -> PlantSegError:
    return kind(came, needed=needed, fix=fix)


class UsageError(PlantSegError):
    """A wrong argument, setting or folder; exit code 2."""

    exit_code = 2


class DataError(PlantSegError):
    """A file that cannot be used: unreadable, empty, of the wrong size."""


class OutputError(PlantSegError):
    """An output path that cannot be written, or that already holds files."""

    exit_code = 2


class TrainingError(PlantSegError):
    """A run that cannot continue."""


class StoppedError(PlantSegError):
    """A run that was stopped on request and can be resumed.

    Args:
        step: Steps taken.
        steps: Steps of the run.
        by: The signal that stopped it; ``None`` if the caller did.
        what: What is counted.
    """

    def __init__(
        self, step: int, steps: int, by: signal.Signals | None, what: str = "step"
    ) -> None:
        asked = f", asked by {by.name}" if by else ""
        super().__init__(
            f"Stopped at {what} {step} of {steps}{asked}.",
            needed="nothing: the progress is saved",
            fix="the same command resumes from here",
        )
        self.exit_code = 128 + by if by else 0


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, which gives no reason
    "could not create a memory",
    "not enough memory",
    "insufficient memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error",
    "unable to find an engine",
)
"""Messages of PyTorch and other libraries when memory runs out, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out in Python, a library that loads, OpenCV, PyTorch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    if isinstance(error, ImportError):
        return "map segment" in text
    return not isinstance(error, PlantSegError) and any(m in text for m in _OUT_OF_MEMORY)


def count_of(number: int, what: str) -> str:
    """Return a number with its noun: "1 image", "2 images"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def shorten(names: Sequence[object], limit: int = 4) -> str:
    """Return the first few names in one line, each ``printable``.

    Example:
        >>> shorten(["a", "b", "c", "d", "e"], limit=3)
        'a, b, c and 2 more'
    """
    shown = ", ".join(map(printable, names[:limit]))
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def unknown_name(came: str, name: str, known: Sequence[str]) -> UsageError:
    """Return the error for an unknown name.

    Args:
        came: Where it was found.
        name: The name as the user gave it.
        known: The valid names.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return UsageError(
        came,
        needed=f"one of {', '.join(known)}",
        fix=f"the nearest is `{near[0]}`" if near else "leave it out",
    )


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a suggestion for a misspelled name, or ``otherwise`` if none is close."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else otherwise


def refuse_fewer(what: str, number: object, least: int) -> None:
    """Refuse what is no whole number, or too small.

    Args:
        what: What the number is, as the user calls it.
        number: As the user gave it.
        least: The smallest valid number.

    Raises:
        UsageError: If it is not valid.

    Example:
        >>> refuse_fewer("rounds", 1, 1)
    """
    if not isinstance(number, Integral) or number < least:
        raise UsageError(
            f"{what} is {number!r}.",
            needed=f"a whole number of at least {least}",
            fix="leave it out for the default",
        )


def missing_path(path: Path, what: str) -> UsageError:
    """Return the error for a path that does not exist.

    Args:
        path: The path as the user gave it.
        what: What it should be, for example "a folder of images".

    Example:
        >>> print(missing_path(Path("leafs"), "a folder of images"))
        `leafs` does not exist.
          needed: a folder of images
          to do:  check the spelling; paths are relative to the current folder
    """
    return UsageError(
        f"`{path}` does not exist.",
        needed=what,
        fix="check the spelling; paths are relative to the current folder",
    )
