"""Standard output and error that may be closed, full, gone, or of any encoding."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from plantseg_next.errors import OutputError


class LenientStream:
    """A stream that keeps its first error and is silent from then on.

    A run continues if its terminal is gone; ``main`` looks at the error at the end.

    Args:
        stream: Receives the text.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write text if that is possible; return its length."""
        if self.error is None:
            try:
                return self._stream.write(text)
            except (OSError, ValueError) as error:  # the latter of a closed file
                self.error = error
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self.error = error

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


@contextmanager
def lenient_streams() -> Iterator[LenientStream]:
    """Replace standard output and error; yield the former.

    Characters that a stream cannot encode are escaped. A stream that is closed is opened
    on the null device, so that no other file gets its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number, which is this one
    before = sys.stdout, sys.stderr
    out, err = (_lenient(stream, number) for number, stream in enumerate(before, start=1))
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        # Python would flush a stream again that failed, and end with another exit code.
        if out.error is None:
            sys.stdout = before[0]
        if err.error is None:
            sys.stderr = before[1]


def _lenient(stream: TextIO | None, number: int) -> LenientStream:
    if stream is None:
        stream = os.fdopen(os.dup(number), "w", encoding="utf-8")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return LenientStream(stream)


def lost_output(stream: LenientStream) -> OutputError | None:
    """Return the error for text that was not printed; ``None`` if its reader has left."""
    if stream.error is None or isinstance(stream.error, BrokenPipeError):
        return None
    why = getattr(stream.error, "strerror", None) or stream.error
    return OutputError(
        f"What was printed is lost: {why}. Everything else was done.",
        needed="a standard output that takes the text",
        fix="print to a terminal, or to a file on a disk with free space",
    )
