"""The command line: the verbs of ``api.py``; it and its bars alone print.

Nothing heavy is imported before a verb is chosen, so that ``--help`` answers at once.
"""

import os
import sys

from plantseg_next.cli import data, training, using  # their verbs, in this order
from plantseg_next.cli.app import app
from plantseg_next.cores import share_cores
from plantseg_next.errors import PlantSegError, StoppedError

__all__ = ["app", "data", "main", "training", "using"]


def main() -> None:
    """Run the command line; a user's error is printed without a traceback."""
    share_cores(os.environ)
    try:
        app()
    except StoppedError as stopped:
        fix = stopped.fix.capitalize()
        if "--restart" in sys.argv:
            fix = fix.replace("command", "command without --restart")
        print(f"{stopped.came} {fix}.", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except PlantSegError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if not _lacks_memory(error):
            raise
        too_small = PlantSegError(
            f"Memory ran out ({error or type(error).__name__}).",
            needed="about 1 GiB for PyTorch alone, and address space for its libraries",
            fix="close other programs, or raise the limit (ulimit -v)",
        )
        print(f"error: {too_small}", file=sys.stderr)
        sys.exit(1)


def _lacks_memory(error: Exception) -> bool:
    """Return whether memory ran out: in Python, a library as it is loaded, or OpenCV."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, ImportError) and "map segment" in str(error))
        or "Insufficient memory" in str(error)
    )
