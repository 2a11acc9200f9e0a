"""Being asked to stop: by Ctrl-C, or by the system before it shuts down."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """Within it, SIGINT and SIGTERM ask a run to stop after the step it is at.

    Asked a second time, it lets the signal through, as if nobody had listened. Outside
    the main thread signals are none of ours.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._earlier[kind] = signal.signal(kind, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go()

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.by is None:
            self.by = signal.Signals(number)
            return
        self._let_go()
        signal.raise_signal(number)

    def _let_go(self) -> None:
        while self._earlier:
            kind, handler = self._earlier.popitem()
            signal.signal(kind, handler)
