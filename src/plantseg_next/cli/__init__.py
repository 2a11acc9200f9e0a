"""The command line: the commands of ``api.py``. No other package prints.

Large packages are imported only when a command runs, so that ``--help`` is fast.
"""

import os
import sys

from plantseg_next.cli import data, training, using  # the order of the commands in --help
from plantseg_next.cli.app import app
from plantseg_next.cli.streams import lenient_streams, lost_output
from plantseg_next.errors import PlantSegError, StoppedError, is_out_of_memory

__all__ = ["app", "data", "main", "training", "using"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended."""


def main() -> None:
    """Run the command line; errors of the user are printed without a traceback."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # By default the threads of PyTorch spin while they wait. Beside another program
        # on the same cores, that keeps the thread they wait for from running.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with lenient_streams() as stdout:
        code = _exit_code()
        stdout.flush()
        if stdout.error is not None and code == 0:
            lost = lost_output(stdout)
            code = _report(lost) if lost is not None else 1
    sys.exit(code)


def _exit_code() -> int | str | None:
    """Run the command; return its exit code."""
    try:
        app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("Stopped by Ctrl-C.", file=sys.stderr)
        return ended.code
    except StoppedError as stopped:
        same = " without --restart" if "--restart" in sys.argv else ""
        print(f"{stopped.came} The same command{same} resumes from here.", file=sys.stderr)
        return stopped.exit_code
    except Exception as error:
        explained = error if isinstance(error, PlantSegError) else _explained(error)
        if explained is None:
            raise
        return _report(explained)
    return 0


def _report(error: PlantSegError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _explained(error: Exception) -> PlantSegError | None:
    """Return what the machine refused, as an error of the user; ``None`` for a bug."""
    from plantseg_next.files import refused_by_system

    if is_out_of_memory(error):
        return PlantSegError(
            f"Memory ran out ({error or type(error).__name__}).",
            needed="about 1 GiB for PyTorch alone, and address space for its libraries",
            fix="close other programs, or raise the limit (ulimit -v)",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return refused_by_system(error)
    return None
