import json
import shlex

import pytest

from plantseg_next.errors import UsageError
from plantseg_next.files import parse_bytes
from plantseg_next.memory import planner
from plantseg_next.memory.allocation_tracker import KINDS, Footprint
from plantseg_next.memory.plan import read_plan
from plantseg_next.memory.planner import plan_memory
from plantseg_next.runtime import Device
from plantseg_next.settings import Settings
from plantseg_next.structures import ClassMap

CLASSES = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
GPU = Device("cuda", "elsewhere", has_bfloat16=True)
CPU = Device("cpu", "here", has_bfloat16=False)
MB = 10**6


def toy_trace(settings, _classes, _device, *, with_unlabeled, with_image_labels):
    """Return a step whose bytes and operations are simple sums."""
    assert not with_image_labels
    size, memory = settings.training.tiles_at_once, settings.memory
    parts = -(-settings.training.batch // size)
    tile = (settings.data.tile_px / 64) ** 2
    peak = dict.fromkeys(KINDS, 0)
    peak["weights"] = peak["gradients"] = 10 * MB
    peak["optimizer"] = 1 * MB if memory.optimizer == "adafactor" else 20 * MB
    peak["teacher"] = 10 * MB if with_unlabeled and not memory.ema_offload else 0
    kept = 8 - len(memory.activation_checkpointing)
    peak["activations"] = round(size * kept * tile * MB)
    peak["images"] = round(settings.training.batch * 0.1 * tile * MB)
    passes = 3 + len(memory.activation_checkpointing) / 6
    return Footprint(
        peak,
        peak | {"activations": 0},
        sum(peak.values()),
        (tuple(peak.values()),),
        round(settings.training.batch * passes * 10**9),
        100 * parts,
    )


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(planner, "trace", toy_trace)


SETTINGS = Settings().with_settings(["data.tile_px=192", "training.batch=16"])


def planned(limit_mb, settings=SETTINGS, device=GPU, **options):
    options = {"with_unlabeled": True} | options
    return plan_memory(settings, CLASSES, device, round(limit_mb * MB), **options)


def test_speed_overlaps_launches_on_a_gpu_only():
    on_cpu, on_gpu = planner.SPEEDS["cpu"], planner.SPEEDS["cuda"]
    assert on_cpu.seconds(6 * 10**10, 10**6) == pytest.approx(1 + 15)
    assert on_gpu.seconds(3 * 10**13, 10**6) == pytest.approx(40)
    assert on_gpu.seconds(3 * 10**15, 10**6) == pytest.approx(100)


@pytest.mark.usefixtures("toy")
def test_plan_that_fits_changes_nothing():
    plan = planned(2000)
    assert plan.changes == {"memory.budget_mb": 2000.0}
    assert plan.concessions == ()
    assert plan.slower == 1


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("limit_mb", [900, 500, 200, 100, 75, 60, 45])
def test_plan_fits_its_budget_and_keeps_the_batch(limit_mb):
    plan = planned(limit_mb)
    assert plan.needs <= limit_mb * MB
    assert plan.settings.training.batch == SETTINGS.training.batch
    concessions = " ".join(plan.concessions)
    assert ("Adafactor" in concessions) == (plan.settings.memory.optimizer == "adafactor")
    assert ("main memory" in concessions) == (plan.settings.memory.ema_offload)
    assert ("Tiles of" in concessions) == (plan.settings.data.tile_px < 192)
    assert f"needs {plan.needs / MB:,.0f} MB of {limit_mb} MB" in plan.to_text()


@pytest.mark.usefixtures("toy")
def test_plan_prefers_slower_exact_steps_to_other_training():
    plans = [planned(mb) for mb in (2000, 900, 500, 200, 100, 75, 60)]
    slower = [plan.slower for plan in plans]
    assert slower == sorted(slower)
    exact = [plan.settings.memory.optimizer == "adamw" for plan in plans]
    assert exact == sorted(exact, reverse=True)
    assert exact[0]
    assert not exact[-1]


@pytest.mark.usefixtures("toy")
def test_plan_too_small_is_refused_with_a_sufficient_budget():
    with pytest.raises(UsageError, match=r"does not fit into 20 MB") as refused:
        planned(20)
    least = parse_bytes(refused.value.fix.split()[1].rstrip(","))
    assert planned(least / MB).needs <= least
    with pytest.raises(UsageError):
        planned(least / MB - 1)


@pytest.mark.usefixtures("toy")
def test_plan_on_a_cpu_fits_the_process_and_gives_the_rest_to_the_cache():
    plan = planned(9000, device=CPU, resting=500 * MB)
    assert plan.needs <= 9000 * MB
    assert plan.settings.data.cache_mib == SETTINGS.data.cache_mib
    tight = planned(1200, device=CPU, resting=500 * MB)
    assert tight.needs <= 1200 * MB
    assert tight.settings.data.cache_mib < SETTINGS.data.cache_mib
    assert not tight.settings.memory.ema_offload  # it is in main memory already
    with pytest.raises(UsageError, match=r"at least"):
        planned(600, device=CPU, resting=500 * MB)


@pytest.mark.usefixtures("toy")
def test_plan_file_is_read_after_editing(tmp_path):
    path = tmp_path / "plan.json"
    plan = planned(200)
    plan.write(path)
    assert read_plan(path, SETTINGS) == plan.settings
    tree = json.loads(path.read_text())
    tree["settings"]["training.micro_batch"] = 1
    path.write_text(json.dumps(tree))
    assert read_plan(path, SETTINGS).training.micro_batch == 1
    tree["settings"]["training.micro_bach"] = 1
    path.write_text(json.dumps(tree))
    with pytest.raises(UsageError, match=r"nearest is `training.micro_batch`"):
        read_plan(path, SETTINGS)
    path.write_text("[]")
    with pytest.raises(UsageError, match=r"is not a plan"):
        read_plan(path, SETTINGS)


def test_plan_of_an_earlier_version_is_read_and_names_new_settings(tmp_path):
    """Earlier plans had no `format`."""
    path = tmp_path / "plan.json"
    path.write_text('{"settings": {"training.micro_batch": 1}, "given": []}')
    assert read_plan(path, SETTINGS).training.micro_batch == 1
    path.write_text('{"settings": {"memory.recomputed": []}}')
    with pytest.raises(
        UsageError, match=r"plan\.json: `memory.recomputed` is an old"
    ) as old:
        read_plan(path, SETTINGS)
    assert old.value.needed == "its new name, `memory.activation_checkpointing`"
    path.write_text('{"format": 2, "settings": {}}')
    with pytest.raises(UsageError, match=r"written by a newer version \(format 2\)"):
        read_plan(path, SETTINGS)


@pytest.mark.usefixtures("toy")
def test_plan_of_an_encoder_without_stages_fits_or_states_a_budget():
    settings = SETTINGS.with_settings(["model.encoder=test_resnet", "model.start=random"])
    plan = planned(150, settings)
    assert plan.settings.memory.activation_checkpointing in {(), ("fine", "decoder")}
    with pytest.raises(UsageError, match="does not fit") as caught:
        planned(1, settings)
    assert "at least" in caught.value.needed


@pytest.mark.usefixtures("toy")
def test_settings_of_a_plan_can_be_pasted_after_train():
    plan = planned(60)
    lines = [line for line in plan.to_text().splitlines() if line.startswith("--set ")]
    pairs = [shlex.split(line)[1] for line in lines]
    assert any("[" in pair for pair in pairs)
    assert SETTINGS.with_settings(pairs) == plan.settings
