"""The history, the events and the models of a run, in its folder."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plantseg_next.files import explained, write_atomically
from plantseg_next.models.bundle import ModelCard, RunImage, write_bundle
from plantseg_next.settings import LossSettings
from plantseg_next.training.callbacks.callback import Callback, Event, StepInfo, Validation
from plantseg_next.training.callbacks.diagnostics import trends
from plantseg_next.training.run_record import EVENTS, HISTORY
from plantseg_next.training.time_budget import few_steps_limit

_SUPERVISED = {f"loss_{name}" for name in LossSettings.model_fields}


class CsvLogger(Callback):
    """Write metrics, events and models.

    ``history.csv`` has a row for each validation and no times: the same seed gives the
    same file. ``events.jsonl`` has a line for each event; ``best`` and ``last`` are the
    models.

    Args:
        folder: Of the run.
        network: Written at every validation.
        card: The models' card, without metrics.
        images: The images of the run, which the models list.
    """

    key = "csv"

    def __init__(
        self,
        folder: Path,
        network: nn.Module,
        card: ModelCard,
        images: tuple[RunImage, ...] | None = None,
    ) -> None:
        self._folder = folder
        self._network = network
        self._card = card
        self._images = images
        self._sums: dict[str, Tensor] = {}
        self._n_steps = 0
        self._rows: list[dict[str, float | int]] = []
        self._emitted: set[str] = set()

    def on_step(self, info: StepInfo) -> Sequence[Event]:
        """Add the parts of the loss to the sums of the running mean."""
        if info.losses:
            self._n_steps += 1
        for name, part in info.losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(part)) + part
        return ()

    def on_validation(
        self, step: int, validation: Validation, *, best: bool
    ) -> Sequence[Event]:
        """Write a row of history, the last model, and the best one if ``best``."""
        row: dict[str, float | int] = {
            "step": step,
            "best": int(best),
            "score": round(validation.monitored_metric, 5),
            **{
                "n_val_images" if n == "n_images" else f"val_{n}": round(v, 5)
                for n, v in validation.values().items()
            },
            **{n: round(v, 5) for n, v in validation.extra_metrics.items()},
            **{
                f"loss_{name}": round(float(total) / max(self._n_steps, 1), 5)
                for name, total in self._sums.items()
            },
        }
        self._sums, self._n_steps = {}, 0
        self._rows.append(row)
        card = replace(self._card, metrics=dict(validation.metrics))
        with explained(self._folder):
            write_table(self._folder / HISTORY, self._rows)
            for name in ("last", "best") if best else ("last",):
                write_bundle(self._folder / name, self._network, card, self._images)
        has_learned = step >= few_steps_limit(self._card.model.start)
        return self._new_trends() if has_learned else ()

    def _new_trends(self) -> list[Event]:
        """Return the events of ``trends``, each kind once until it no longer holds."""
        rows = [row for row in self._rows if row["step"]]  # step 0: the model at the start
        scores = [row["score"] for row in rows]
        losses = [sum(v for name, v in row.items() if name in _SUPERVISED) for row in rows]
        events = list(trends(scores, losses))
        new = [event for event in events if event.kind not in self._emitted]
        self._emitted = {event.kind for event in events}
        return new

    def on_event(self, step: int, event: Event) -> None:
        """Append a line; earlier lines stay intact if the process is killed."""
        line = {
            "time": round(time.time(), 1),
            "step": step,
            "kind": event.kind,
            "text": event.text,
        }
        with (
            explained(self._folder),
            (self._folder / EVENTS).open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {
            "rows": self._rows,
            "sums": self._sums,
            "n_steps": self._n_steps,
            "emitted": sorted(self._emitted),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state; rows of later steps are removed from the file."""
        device = next(self._network.parameters()).device
        self._rows = list(state["rows"])
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._n_steps = state["n_steps"]
        self._emitted = set(state["emitted"])
        with explained(self._folder):
            if self._rows:
                write_table(self._folder / HISTORY, self._rows)
            else:
                (self._folder / HISTORY).unlink(missing_ok=True)


def write_table(path: Path, rows: Sequence[Mapping[str, float | int]]) -> None:
    """Write rows as CSV, atomically; missing values stay empty."""
    table = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, table.getvalue().encode())
