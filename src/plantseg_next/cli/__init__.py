"""The command line: the verbs of ``api.py``; it and its bars alone print.

Nothing heavy is imported before a verb is chosen, so that ``--help`` answers at once.
"""

import os
import sys

from plantseg_next.cli import data, training, using  # their verbs, in this order
from plantseg_next.cli.app import app
from plantseg_next.errors import PlantSegError, StoppedError

__all__ = ["app", "data", "main", "training", "using"]


def main() -> None:
    """Run the command line; a user's error is printed without a traceback."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # By default PyTorch's threads spin while they wait. Where another program wants
        # the same cores, the one that is waited for does not run meanwhile.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
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
