"""Exact losses and weights of a run's first steps, which ``verify`` compares."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from plantseg_next.files import explained, read_bytes, write_atomically
from plantseg_next.json_files import load_json
from plantseg_next.models.tensor_files import tensors_digest
from plantseg_next.training.callbacks.callback import Callback, Event, StepInfo
from plantseg_next.training.run_record import FIRST_STEPS

N_STEPS = 10


class ReproducibilityProbe(Callback):
    """Save the losses of the first steps, and the digest of the weights after them.

    Args:
        folder: Of the run.
        network: In training.
    """

    key = "reproducibility"

    def __init__(self, folder: Path, network: nn.Module) -> None:
        self._path = folder / FIRST_STEPS
        self._network = network
        self._lines: list[str] = []

    def on_step(self, info: StepInfo) -> Sequence[Event]:
        """Add a line for each step, and write the file after the last one."""
        if info.step != len(self._lines) + 1 or info.step > N_STEPS:
            return ()
        parts = (f"{name} {float(part).hex()}" for name, part in info.losses.items())
        self._lines.append(", ".join(parts))
        if info.step == N_STEPS:
            tree = {
                "losses": self._lines,
                "weights": tensors_digest(self._network.state_dict()),
            }
            with explained(self._path.parent):
                write_atomically(self._path, json.dumps(tree, indent=1).encode())
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"lines": self._lines}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._lines = list(state["lines"])


def first_difference(one: Path, two: Path) -> str | None:
    """Return the first difference of two runs' first steps as text, ``None`` if equal.

    Raises:
        DataError: If one of them has no ``first_steps.json``.
    """
    a, b = (load_json(read_bytes(folder / FIRST_STEPS)) for folder in (one, two))
    for step, (x, y) in enumerate(zip(a["losses"], b["losses"], strict=True), 1):
        for part, other in zip(x.split(", "), y.split(", "), strict=True):
            if part != other:
                name, was = part.split()
                now = other.split()[-1]
                return (
                    f"step {step}: {name} was {float.fromhex(was):.9g} and is "
                    f"{float.fromhex(now):.9g}"
                )
    if a["weights"] != b["weights"]:
        return f"the weights after step {N_STEPS}, with equal losses before it"
    return None
