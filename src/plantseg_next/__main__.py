"""``python -m plantseg_next``: the command line."""

from plantseg_next.cli import main

main()
