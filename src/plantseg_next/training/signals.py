"""Stop requests: Ctrl-C, or SIGTERM from the system before it shuts down."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """Context in which SIGINT and SIGTERM request a stop after the current step.

    A second signal gets its original handler. Outside the main thread this does nothing.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._earlier[kind] = signal.signal(kind, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore_handlers()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.by is None:
            self.by = signal.Signals(number)
            return
        self._restore_handlers()
        signal.raise_signal(number)

    def _restore_handlers(self) -> None:
        while self._earlier:
            kind, handler = self._earlier.popitem()
            signal.signal(kind, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM in the context, while the end of a run is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    earlier = [(kind, signal.signal(kind, signal.SIG_IGN)) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in earlier:
            signal.signal(kind, handler)
