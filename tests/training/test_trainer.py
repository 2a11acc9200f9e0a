import csv
import json
from itertools import repeat

import pytest
import torch
from torch import nn

from plantseg_next.data.layouts import read_folder
from plantseg_next.data.streams import MixedDataset, TileDataset, loader
from plantseg_next.errors import TrainingError, UsageError
from plantseg_next.experiment import (
    DataSettings,
    Experiment,
    ModelSettings,
    TrainingSettings,
)
from plantseg_next.models.bundle import Card, read_card
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.runtime import Device, find_device, seed_everything
from plantseg_next.training.history import RunFolder
from plantseg_next.training.trainer import (
    Pace,
    Validation,
    fit,
    is_due,
    parameter_groups,
    uses_bfloat16,
)

CPU = Device("cpu", "test", has_bfloat16=False)
SETTINGS = Experiment(
    data=DataSettings(tile_px=64, workers=0),
    model=ModelSettings(width=32, layers=1),
    training=TrainingSettings(
        minutes=None, steps=4, batch=2, validations=2, precision="float32"
    ),
)


class Heard:
    def __init__(self):
        self.steps, self.validations, self.losses = [], [], []

    def on_step(self, step, steps, parts):
        self.steps.append((step, steps))
        self.losses.append(float(parts["hardest_pixels"] + parts["leaf"]))

    def on_validation(self, step, validation, *, best):
        self.validations.append((step, validation.score, best))


@pytest.fixture
def manifest(drawn_folder):
    return read_folder(drawn_folder)


def run(manifest, settings=SETTINGS, scores=(0.1, 0.9), watchers=(), network=None):
    seed_everything(settings.seed)
    network = network or build_segmenter(settings.model, manifest.classes)
    data = MixedDataset(
        TileDataset(manifest, settings.data, seed=0, pixels=(9, 1, 1, 1, 1, 1))
    )
    micro = settings.training.micro_batch or settings.training.batch
    found = iter(scores)
    outcome = fit(
        network,
        lambda n: loader(data, tiles=micro, start=0, stop=n, workers=0),
        lambda _: Validation(next(found), {"lesion_dice": 0.5}),
        settings,
        CPU,
        watchers,
    )
    return network, outcome


def test_a_run_steps_validates_and_tells(manifest):
    heard = Heard()
    _, outcome = run(manifest, watchers=[heard])
    assert heard.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert heard.validations == [(2, 0.1, True), (4, 0.9, True)]
    assert outcome.steps == 4
    assert outcome.best.score == 0.9


def test_the_best_is_not_always_the_last(manifest):
    heard = Heard()
    _, outcome = run(manifest, scores=(0.9, 0.1), watchers=[heard])
    assert [best for *_, best in heard.validations] == [True, False]
    assert outcome.best.score == 0.9


def test_the_same_seed_gives_the_same_weights(manifest):
    one, two = run(manifest)[0], run(manifest)[0]
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_batch_seen_again_and_again_is_learned(manifest):
    settings = SETTINGS.with_settings(["training.steps=30", "training.validations=1"])
    data = MixedDataset(
        TileDataset(manifest, settings.data, seed=0, pixels=(9, 1, 1, 1, 1, 1))
    )
    (batch,) = loader(data, tiles=4, start=0, stop=1, workers=0)
    heard = Heard()
    seed_everything(0)
    fit(
        build_segmenter(settings.model, manifest.classes),
        lambda n: repeat(batch, n),
        lambda _: Validation(0.5, {}),
        settings,
        CPU,
        [heard],
    )
    assert sum(heard.losses[-3:]) < 0.5 * sum(heard.losses[:3])


def test_an_infinite_loss_stops_before_the_step(manifest):
    network = build_segmenter(SETTINGS.model, manifest.classes)
    nn.init.constant_(network.lesion_head.bias, float("inf"))
    before = network.detail[0].weight.clone()
    with pytest.raises(TrainingError, match="The gradient of step 0 is not finite"):
        run(manifest, network=network)
    assert torch.equal(network.detail[0].weight, before)


def test_a_batch_must_be_whole_micro_batches(manifest):
    training = SETTINGS.training.model_copy(update={"batch": 5, "micro_batch": 2})
    with pytest.raises(UsageError) as caught:
        run(manifest, SETTINGS.model_copy(update={"training": training}))
    assert "training.batch is 5 and training.micro_batch is 2" in str(caught.value)
    assert "--set training.batch=6" in str(caught.value)


def test_micro_batches_train_like_the_large_batch(manifest):
    """Through Fabric, clipping and the optimiser, to the weights."""
    plain = SETTINGS.with_settings(["model.dropout=0", "training.batch=4"])
    whole, _ = run(manifest, plain)
    parts, _ = run(manifest, plain.with_settings(["training.micro_batch=2"]))
    # Adam divides by the root of tiny second moments, so rounding shows in a few weights.
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert (a - b).norm() <= 0.02 * a.norm() + 1e-3


def test_minutes_become_steps_once(monkeypatch):
    now = 0.0
    monkeypatch.setattr("plantseg_next.training.trainer.time.perf_counter", lambda: now)
    pace = Pace(TrainingSettings(minutes=10, validations=4))
    ends = []
    for step in range(1, 41):
        now += 30.0 if step == 17 else 2.0  # one step waits for a cold file
        if pace.measures_at(step):
            ends.append(step)
            now += 3.0
            pace.learn(step, validation_s=3.0)
    assert ends == [30]
    assert pace.steps == 30 + (600 - (29 * 2 + 30 + 3) - 4 * 3) // 2


@pytest.mark.parametrize(("steps", "n"), [(100, 7), (3, 8), (1, 1), (50, 50)])
def test_validations_are_evenly_spaced_and_end_the_run(steps, n):
    due = [s for s in range(1, steps + 1) if is_due(s, steps, n)]
    assert len(due) == min(n, steps)
    assert due[-1] == steps


def test_deep_layers_learn_slowly_from_published_weights():
    network = build_segmenter(SETTINGS.model, _classes())
    fine = SETTINGS.with_settings(["training.layer_decay=0.5", "training.rate=1"])
    groups = parameter_groups(network, fine)
    assert sorted({g["peak"] for g in groups}) == [2.0**-n for n in (5, 4, 3, 2, 1, 0)]
    flat = {g["peak"] for g in parameter_groups(network, SETTINGS)}
    assert flat == {SETTINGS.training.rate}
    n_in_groups = sum(p.numel() for g in groups for p in g["params"])
    assert n_in_groups == sum(p.numel() for p in network.parameters())
    for group in groups:
        if group["weight_decay"] == 0:
            assert all(p.ndim == 1 for p in group["params"])


def test_bfloat16_is_used_where_the_device_has_it():
    auto = TrainingSettings()
    assert uses_bfloat16(auto, Device("cpu", "new", has_bfloat16=True))
    assert not uses_bfloat16(auto, CPU)
    forced = TrainingSettings(precision="bfloat16")
    assert uses_bfloat16(forced, CPU)


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="PyTorch sees no GPU"):
        find_device("cuda")


def test_the_run_folder_keeps_history_and_models(manifest, tmp_path):
    network = build_segmenter(SETTINGS.model, manifest.classes)
    card = Card(manifest.classes, SETTINGS.model, 64, None)
    folder = RunFolder(tmp_path, network, card)
    folder.begin(SETTINGS, manifest, {"device": "test"})
    run(manifest, scores=(0.9, 0.1), watchers=[folder], network=network)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["best"]) for row in rows] == [("2", "1"), ("4", "0")]
    assert float(rows[0]["loss_focal_tversky"]) > 0
    assert read_card(tmp_path / "best").figures == {"lesion_dice": 0.5}
    assert read_card(tmp_path / "last").sha256 != read_card(tmp_path / "best").sha256
    assert json.loads((tmp_path / "run.json").read_text())["device"] == "test"
    assert Experiment.read(tmp_path / "settings.yaml") == SETTINGS


def _classes():
    from plantseg_next.structures import ClassMap

    return ClassMap(("lesion",), ("healthy",), has_leaf=True)
