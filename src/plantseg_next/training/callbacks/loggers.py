"""Loggers for TensorBoard and MLflow, where they are installed."""

import logging
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plantseg_next.errors import UsageError
from plantseg_next.settings import Settings, flat_settings
from plantseg_next.training.callbacks.callback import (
    Callback,
    EndReason,
    Event,
    StepInfo,
    Validation,
)

PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy")}
"""What each program needs."""
EXPERIMENT = "plantseg-next"
EVERY = 10
"""Steps between two logged losses: reading a loss synchronizes the GPU."""


def logger(kind: str, run: Path, settings: Settings) -> Callback:
    """Return a callback that logs to another program.

    Args:
        kind: The program: "tensorboard" or "mlflow".
        run: Folder of the run. TensorBoard's files go into ``run/tensorboard``, MLflow's
            store is ``mlflow.db`` beside the run, shared with runs in the same folder.
        settings: Logged to MLflow.

    Raises:
        UsageError: If it is another program, or not installed.
    """
    if kind not in PACKAGES:
        raise UsageError(
            f"--log is {kind!r}.",
            needed="tensorboard or mlflow",
            fix="leave it out: every run writes its own history.csv",
        )
    if missing := [name for name in PACKAGES[kind] if find_spec(name) is None]:
        raise UsageError(
            f"--log {kind}: {', '.join(missing)} is not installed.",
            needed=f"the optional extra `{kind}`",
            fix=f"pip install 'plantseg-next[{kind}]'",
        )
    if kind == "tensorboard":
        return TensorBoard(run / "tensorboard")
    return MLflow(run.resolve().parent / "mlflow.db", run.name, settings)


class _MetricLogger(Callback, ABC):
    """Log the parts of the loss every ``EVERY`` steps, and the metrics."""

    def on_step(self, info: StepInfo) -> Sequence[Event]:
        """Log the parts of the loss, every ``EVERY`` steps."""
        if info.step % EVERY == 0:
            self._log(info.step, "loss", {n: float(p) for n, p in info.losses.items()})
        return ()

    def on_validation(
        self,
        step: int,
        validation: Validation,
        *,
        best: bool,  # noqa: ARG002
    ) -> Sequence[Event]:
        """Log the metrics."""
        self._log(step, "val", validation.metrics)
        self._log(step, "teacher", validation.extra_metrics)
        return ()

    @abstractmethod
    def _log(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Log values by name, in a group of names."""


class TensorBoard(_MetricLogger):
    """Write TensorBoard's event files.

    Args:
        folder: Where to write them.
    """

    key = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def on_event(self, step: int, event: Event) -> None:
        """Write the event as text."""
        self._at(step).add_text(event.kind, event.text, step)

    def on_end(self, reason: EndReason, text: str) -> None:  # noqa: ARG002
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Start a new file at the step from which the run resumes."""
        self.on_end("stopped", "")
        self._writer = None

    def _log(self, step: int, group: str, values: Mapping[str, float]) -> None:
        writer = self._at(step)
        for name, value in values.items():
            writer.add_scalar(f"{group}/{name}", value, step)
        writer.flush()

    def _at(self, step: int) -> Any:  # noqa: ANN401 - an optional package has no type here
        """Return the writer; a new one hides earlier values from this step on."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        return self._writer


class MLflow(_MetricLogger):
    """Write into an MLflow store; a resumed run stays one run there.

    Args:
        store: SQLite file.
        name: Of the run.
        settings: Logged as parameters.
    """

    key = "mlflow"

    def __init__(self, store: Path, name: str, settings: Settings) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # By default MLflow sends usage data to its developers.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=f"sqlite:///{store}")
        self._name = name
        self._settings = settings
        self._run_id: str | None = None

    def on_end(self, reason: EndReason, text: str) -> None:  # noqa: ARG002
        """Set the final state of the run."""
        state = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[reason]
        self._client.set_terminated(self._id, state)

    def state_dict(self) -> dict[str, Any]:
        """Return the MLflow id of the run."""
        return {"run_id": self._id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the MLflow run, if the store still has it."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(state["run_id"])
        except MlflowException:
            return
        self._run_id = state["run_id"]
        self._client.update_run(state["run_id"], "RUNNING")

    @property
    def _id(self) -> str:
        """The run's id; the run is created at first use."""
        if self._run_id is None:
            existing = self._client.get_experiment_by_name(EXPERIMENT)
            experiment = existing or self._client.get_experiment(
                self._client.create_experiment(EXPERIMENT)
            )
            run = self._client.create_run(experiment.experiment_id, run_name=self._name)
            self._run_id = run.info.run_id
            for name, value in flat_settings(self._settings).items():
                self._client.log_param(run.info.run_id, name, value)
        return self._run_id

    def _log(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Log metrics; characters that MLflow does not allow in names are replaced."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(_plain(f"{group}_{name}"), value, now, step)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._client.log_batch(self._id, metrics=metrics)


def _plain(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
