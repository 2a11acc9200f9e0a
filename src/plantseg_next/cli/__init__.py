"""The command line: the commands of ``api.py``. No other package prints.

Large packages are imported only when a command runs, so that ``--help`` is fast.
"""

import os
import sys

from plantseg_next.cli import data, training, using  # the order of the commands in --help
from plantseg_next.cli.app import app
from plantseg_next.errors import (
    PlantSegError,
    StoppedError,
    UsageError,
    is_out_of_memory,
)

__all__ = ["app", "data", "main", "training", "using"]


def main() -> None:
    """Run the command line; errors of the user are printed without a traceback."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # By default the threads of PyTorch spin while they wait. Beside another program
        # on the same cores, that keeps the thread they wait for from running.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except StoppedError as stopped:
        same = " without --restart" if "--restart" in sys.argv else ""
        print(f"{stopped.came} The same command{same} resumes from here.", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except Exception as error:
        explained = error if isinstance(error, PlantSegError) else _explained(error)
        if explained is None:
            raise
        print(f"error: {explained}", file=sys.stderr)
        sys.exit(explained.exit_code)


def _explained(error: Exception) -> PlantSegError | None:
    """Return what the machine refused, as an error of the user; ``None`` for a bug."""
    if is_out_of_memory(error):
        return PlantSegError(
            f"Memory ran out ({error or type(error).__name__}).",
            needed="about 1 GiB for PyTorch alone, and address space for its libraries",
            fix="close other programs, or raise the limit (ulimit -v)",
        )
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename2 or error.filename  # of a renamed file, the new name
        return UsageError(
            f"`{path}` cannot be read or written: {error.strerror}."
            if path is not None
            else f"The operating system reports: {error.strerror}.",
            needed="files and folders that exist, that you may use, and space for new ones",
            fix="check the path, its permissions and the free space of its disk",
        )
    return None
