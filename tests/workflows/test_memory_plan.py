"""A stated budget, from the command line to the run's report."""

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


def test_a_budget_is_planned_for_and_drawn(drawn_folder, tmp_path):
    TINY.write(tmp_path / "tiny.yaml")
    names = {"config": "tiny.yaml", "out": "plan.json", "explain": "plan.png"}
    files = [f"--{option}={tmp_path / name}" for option, name in names.items()]
    found = CliRunner().invoke(
        app,
        ["plan", str(drawn_folder), "--memory=4GB", "--gpu", *files],
        catch_exceptions=False,
    )
    assert found.exit_code == 0
    assert "of 4,000 MB" in found.output
    assert "activations" in found.output
    assert json.loads((tmp_path / "plan.json").read_text())["budget_mb"] == 4000
    assert (tmp_path / "plan.png").stat().st_size > 10_000


@pytest.fixture
def quick(monkeypatch):
    """Every step takes 100 MB."""
    peak = dict.fromkeys(KINDS, 10 * 10**6)
    step = Footprint(peak, peak, 10**8, (tuple(peak.values()),), 10**9, 100)
    monkeypatch.setattr(planner, "footprint", lambda *_, **__: step)


@pytest.mark.usefixtures("quick")
def test_a_run_obeys_its_plan_and_reports_on_it(drawn_folder, tmp_path):
    run, memory = tmp_path / "run", 3 * GB
    api.train(drawn_folder, run, TINY, memory=memory)
    plan = json.loads((run / "plan.json").read_text())
    status = read_status(run)
    assert status.record.settings.memory.budget_mb == 3000
    assert status.record.settings.data.cache_mib >= LEAST_CACHE_MIB
    assert f"budget     3,000 MB, planned {plan['needs_mb']:,.0f}, at most" in str(status)
    history = (run / "history.csv").read_bytes()
    assert api.train(drawn_folder, run, TINY, memory=memory).summary.steps == 6
    assert (run / "history.csv").read_bytes() == history
    with pytest.raises(UsageError, match=r"began with 3,000 MB, and is now to have 2,500"):
        api.train(drawn_folder, run, TINY, memory=2500 * 10**6)


@pytest.mark.usefixtures("quick")
def test_a_budget_that_is_too_small_leaves_nothing_behind(drawn_folder, tmp_path):
    with pytest.raises(UsageError, match=r"does not fit into 50 MB"):
        api.train(drawn_folder, tmp_path / "run", TINY, memory=50 * 10**6)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick")
def test_a_run_over_its_budget_says_so(drawn_folder, tmp_path):
    settings = TINY.with_settings(["memory.budget_mb=10"])
    api.train(drawn_folder, tmp_path / "run", settings)
    events = (tmp_path / "run" / "events.jsonl").read_text("utf-8").splitlines()
    told = [json.loads(line) for line in events]
    assert [e["kind"] for e in told].count("over-budget") == 1
    text = next(e["text"] for e in told if e["kind"] == "over-budget")
    assert "was to use 10" in text


@pytest.mark.usefixtures("quick")
def test_main_memory_has_a_budget_of_its_own_beside_a_gpu(drawn_folder):
    settings = TINY.with_settings(["data.workers=4"])
    plan = api.plan(drawn_folder, GB, settings, ram=4 * GB, device=GPU)
    assert plan.reading[0] <= 4 * GB
    assert "of 4,000 MB of main memory" in plan.to_text()
    assert {"data.cache_mib", "data.workers"} & plan.changes.keys()
    with pytest.raises(UsageError, match="--ram was given for a run on a CPU"):
        api.plan(drawn_folder, GB, TINY, ram=4 * GB)


def test_main_memory_alone_is_no_budget(drawn_folder, tmp_path):
    found = CliRunner().invoke(
        app, ["train", str(drawn_folder), f"--out={tmp_path / 'run'}", "--ram=4GB"]
    )
    assert isinstance(found.exception, UsageError)
    assert "needed: the GPU's budget too" in str(found.exception)
