"""Progress of the tasks of a command."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of a task, the number done, and the total."""


def progress_for(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    """Return a callback for one task; it does nothing if ``progress`` is ``None``."""
    return lambda done, total: progress(what, done, total) if progress else None
