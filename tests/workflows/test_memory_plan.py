"""A memory budget, from the command line to the summary of the run."""

import json

import pytest
from typer.testing import CliRunner

from conftest import TINY
from plantseg_next import api
from plantseg_next.cli import app
from plantseg_next.errors import UsageError
from plantseg_next.memory import planner
from plantseg_next.memory.allocation_tracker import KINDS, Footprint
from plantseg_next.memory.host_memory import LEAST_CACHE_MIB
from plantseg_next.runtime import Device
from plantseg_next.training.callbacks.status import read_status

pytestmark = pytest.mark.integration

GPU = Device("cuda", "elsewhere", has_bfloat16=True)
GB = 10**9


def test_plan_command_writes_plan_and_plot(drawn_folder, tmp_path):
    TINY.write(tmp_path / "tiny.yaml")
    names = {"config": "tiny.yaml", "out": "plan.json", "explain": "plan.png"}
    files = [f"--{option}={tmp_path / name}" for option, name in names.items()]
    result = CliRunner().invoke(
        app,
        ["plan", str(drawn_folder), "--memory=4GB", "--gpu", *files],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert "of 4,000 MB" in result.output
    assert "activations" in result.output
    assert json.loads((tmp_path / "plan.json").read_text())["budget_mb"] == 4000
    assert (tmp_path / "plan.png").stat().st_size > 10_000


@pytest.fixture
def quick(monkeypatch):
    """Every step takes 100 MB."""
    peak = dict.fromkeys(KINDS, 10 * 10**6)
    step = Footprint(peak, peak, 10**8, (tuple(peak.values()),), 10**9, 100)
    monkeypatch.setattr(planner, "footprint", lambda *_, **__: step)


@pytest.mark.usefixtures("quick")
def test_run_uses_its_plan_and_reports_its_memory(drawn_folder, tmp_path):
    run, memory = tmp_path / "run", 3 * GB
    api.train(drawn_folder, run, TINY, memory=memory)
    plan = json.loads((run / "plan.json").read_text())
    status = read_status(run)
    assert status.record.settings.memory.budget_mb == 3000
    assert status.record.settings.data.cache_mib >= LEAST_CACHE_MIB
    assert f"budget     3,000 MB, planned {plan['needs_mb']:,.0f}, peak" in str(status)
    history = (run / "history.csv").read_bytes()
    assert api.train(drawn_folder, run, TINY, memory=memory).summary.steps == 6
    assert (run / "history.csv").read_bytes() == history
    with pytest.raises(UsageError, match=r"started with 3,000 MB; --memory is now 2,500"):
        api.train(drawn_folder, run, TINY, memory=2500 * 10**6)


@pytest.mark.usefixtures("quick")
def test_budget_too_small_leaves_no_folder(drawn_folder, tmp_path):
    with pytest.raises(UsageError, match=r"does not fit into 50 MB"):
        api.train(drawn_folder, tmp_path / "run", TINY, memory=50 * 10**6)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick")
def test_run_over_its_budget_emits_one_event(drawn_folder, tmp_path):
    settings = TINY.with_settings(["memory.budget_mb=10"])
    api.train(drawn_folder, tmp_path / "run", settings)
    events = (tmp_path / "run" / "events.jsonl").read_text("utf-8").splitlines()
    emitted = [json.loads(line) for line in events]
    assert [e["kind"] for e in emitted].count("over-budget") == 1
    text = next(e["text"] for e in emitted if e["kind"] == "over-budget")
    assert "more than its budget of 10." in text


@pytest.mark.usefixtures("quick")
def test_ram_budget_beside_a_gpu_is_planned_separately(drawn_folder):
    settings = TINY.with_settings(["data.workers=4"])
    plan = api.plan(drawn_folder, GB, settings, ram=4 * GB, device=GPU)
    assert plan.reading[0] <= 4 * GB
    assert "of 4,000 MB of main memory" in plan.to_text()
    assert {"data.cache_mib", "data.workers"} & plan.changes.keys()
    with pytest.raises(UsageError, match="--ram was given for a run on a CPU"):
        api.plan(drawn_folder, GB, TINY, ram=4 * GB)


def test_ram_without_memory_is_refused(drawn_folder, tmp_path):
    result = CliRunner().invoke(
        app, ["train", str(drawn_folder), f"--out={tmp_path / 'run'}", "--ram=4GB"]
    )
    assert isinstance(result.exception, UsageError)
    assert "needed: a budget for the GPU too" in str(result.exception)
