import importlib.util
import math

import pytest
import torch

from plantseg_next.errors import UsageError
from plantseg_next.settings import Settings
from plantseg_next.training.callbacks import loggers
from plantseg_next.training.callbacks.callback import Event, StepInfo, Validation
from plantseg_next.training.callbacks.loggers import logger

pytestmark = pytest.mark.integration

VALIDATION = Validation(0.5, {"lesion_dice": 0.5}, {"right_Mehltau é": math.nan})


def log_run(callback, steps):
    for step in steps:
        parts = {"leaf": torch.tensor(float(step))}
        callback.on_step(StepInfo(step, 40, parts, 1.0, 60.0, 0.0, 8, 4))
    callback.on_validation(steps[-1], VALIDATION, best=True)
    callback.on_event(steps[-1], Event("few-steps", "soon"))
    return callback


def test_missing_program_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(
        UsageError, match="--log mlflow: mlflow, sqlalchemy is not"
    ) as caught:
        logger("mlflow", tmp_path, Settings())
    assert caught.value.fix == "pip install 'plantseg-next[mlflow]'"


def test_unknown_program_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--log is 'wandb'\.") as caught:
        logger("wandb", tmp_path, Settings())
    assert caught.value.needed == "tensorboard or mlflow"
    assert caught.value.fix == "leave it out: every run writes its own history.csv"


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_resumed_run_is_one_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = log_run(logger("tensorboard", tmp_path, Settings()), [10, 20, 30])
    state = first.state_dict()
    first.on_end("stopped", "")
    second = logger("tensorboard", tmp_path, Settings())
    second.load_state_dict(state)
    log_run(second, [20, 30, 40]).on_end("finished", "")
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = [(e.step, e.value) for e in found.Scalars("loss/leaf")]
    assert losses == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]
    assert [e.step for e in found.Scalars("val/lesion_dice")] == [40]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_resumed_run_is_one_run(tmp_path):
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")
    run = tmp_path / "run"
    first = log_run(logger("mlflow", run, Settings()), [10, 20])
    state = first.state_dict()
    first.on_end("failed", "")
    second = logger("mlflow", run, Settings())
    second.load_state_dict(state)
    log_run(second, [30]).on_end("finished", "")
    client = second._client
    (experiment,) = [e for e in client.search_experiments() if e.name == loggers.EXPERIMENT]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["training.batch"] == "8"
    assert found.data.metrics == {"loss_leaf": 30.0, "val_lesion_dice": 0.5}
    assert (tmp_path / "mlflow.db").exists()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_without_its_store_starts_a_new_run(tmp_path):
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")
    callback = logger("mlflow", tmp_path / "run", Settings())
    callback.load_state_dict({"run_id": "0" * 32})
    assert log_run(callback, [10]).state_dict()["run_id"] != "0" * 32
