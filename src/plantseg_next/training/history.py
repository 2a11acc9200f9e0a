"""The run's folder: settings, history and models, each written whole or not at all."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plantseg_next import __version__
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.experiment import Experiment
from plantseg_next.files import explained, write_atomically
from plantseg_next.models.bundle import Card, write_bundle
from plantseg_next.training.guards import Event
from plantseg_next.training.trainer import Validation


class RunFolder:
    """Keep what a run is and how it goes; one of the trainer's watchers.

    ``settings.yaml``, ``manifest.json`` and ``run.json`` say what was run on what;
    ``history.csv`` has a row a validation, ``events.jsonl`` a line for whatever looked
    wrong; ``best`` and ``last`` are the models.

    Args:
        folder: Exists, and holds no other run.
        network: Written at every validation.
        card: What the models' cards say, less the figures.
    """

    def __init__(self, folder: Path, network: nn.Module, card: Card) -> None:
        self._folder = folder
        self._network = network
        self._card = card
        self._started = time.time()
        self._sums: dict[str, Tensor] = {}
        self._n_steps = 0
        self._rows: list[dict[str, float | int]] = []

    def begin(
        self, settings: Experiment, manifest: Manifest, facts: Mapping[str, Any]
    ) -> None:
        """Write what is known before the first step.

        Args:
            settings: The whole tree.
            manifest: Every picture with its split.
            facts: Device and other things worth keeping, JSON values.
        """
        facts = {"plantseg_next": __version__, "started": self._started, **facts}
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        with explained(self._folder):
            settings.write(self._folder / "settings.yaml")
            manifest.write(self._folder / MANIFEST_FILE)
            write_atomically(self._folder / "run.json", text.encode())

    def on_step(self, step: int, steps: int, parts: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        """Add the parts of the loss to the running mean."""
        self._n_steps += 1
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0) + part

    def on_validation(self, step: int, validation: Validation, *, best: bool) -> None:
        """Write a row of history, the last model, and the best one if this is it."""
        row: dict[str, float | int] = {
            "step": step,
            "minutes": round((time.time() - self._started) / 60, 3),
            "best": int(best),
            **{f"val_{n}": round(v, 5) for n, v in validation.figures.items()},
            **{n: round(v, 5) for n, v in validation.details.items()},
            **{
                f"loss_{name}": round(float(total) / max(self._n_steps, 1), 5)
                for name, total in self._sums.items()
            },
        }
        self._sums, self._n_steps = {}, 0
        self._rows.append(row)
        table = io.StringIO()
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        card = replace(self._card, figures=dict(validation.figures))
        with explained(self._folder):
            write_atomically(self._folder / "history.csv", table.getvalue().encode())
            self._append_events(step, validation.events)
            for name in ("last", "best") if best else ("last",):
                write_bundle(self._folder / name, self._network, card)

    def _append_events(self, step: int, events: Sequence[Event]) -> None:
        """Add a line an event; whole lines survive whatever happens to the next one."""
        with (self._folder / "events.jsonl").open("a", encoding="utf-8") as file:
            for event in events:
                line = {"time": round(time.time(), 1), "step": step, **asdict(event)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
