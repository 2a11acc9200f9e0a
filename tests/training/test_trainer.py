import csv
import shutil
import signal
from itertools import repeat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import toy_encoder
from plantseg_next.data.dataloader import loader
from plantseg_next.data.dataset import MixedDataset, TileDataset
from plantseg_next.data.formats import read_folder
from plantseg_next.errors import (
    DataError,
    OutputError,
    StoppedError,
    TrainingError,
    UsageError,
)
from plantseg_next.models.bundle import ModelCard, read_card
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.runtime import Device, find_device, seed_everything
from plantseg_next.settings import (
    DataSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
)
from plantseg_next.training.callbacks.callback import Callback, Event, Validation
from plantseg_next.training.callbacks.csv_logger import CsvLogger
from plantseg_next.training.callbacks.diagnostics import NO_LESION_EVENT
from plantseg_next.training.checkpoints import Checkpoints
from plantseg_next.training.engine import Engine, parameter_groups, uses_bfloat16
from plantseg_next.training.time_budget import TimeBudget, is_due, validations_left
from plantseg_next.training.trainer import Trainer

pytestmark = pytest.mark.integration

CPU = Device("cpu", "test", has_bfloat16=False)
SETTINGS = Settings(
    data=DataSettings(tile_px=64, workers=0),
    model=ModelSettings(encoder=toy_encoder.NAME, start="random", width=32, layers=1),
    training=TrainingSettings(
        minutes=None, steps=4, batch=2, validations=2, precision="float32"
    ),
)
CONVNEXT = SETTINGS.with_settings(["model.encoder=test_convnext"])


class Recorder(Callback):
    def __init__(self):
        self.steps, self.validations, self.losses, self.events = [], [], [], []
        self.micro_batches = []

    def on_step(self, info):
        self.steps.append((info.step, info.steps))
        self.micro_batches.append(info.micro_batch)
        if info.losses:
            parts = info.losses
            names = [name for name in ("ohem_ce", "leaf") if name in parts]
            self.losses.append(sum(float(parts[name]) for name in names))
        return ()

    def on_validation(self, step, validation, *, best):
        self.validations.append((step, validation.monitored_metric, best))
        return ()

    def on_event(self, step, event):
        self.events.append((step, event.kind, event.text))

    @property
    def kinds(self):
        return [kind for _, kind, _ in self.events]


@pytest.fixture
def manifest(drawn_folder):
    return read_folder(drawn_folder)


class Run:
    """A trainer with stubbed validation."""

    def __init__(
        self, manifest, folder, settings=SETTINGS, *, scores=(0.1, 0.9), batches=None
    ):
        seed_everything(settings.seed)
        self.network = build_segmenter(settings.model, manifest.classes)
        self.engine = Engine(
            self.network, settings, CPU, manifest.classes, with_unlabeled=False
        )
        self.recorder = Recorder()
        self.folder = folder
        data = MixedDataset(
            TileDataset(manifest, settings.data, seed=0, pixels=(9, 1, 1, 1, 1, 1))
        )
        remaining = iter(scores)

        def validate(_):
            score = next(remaining)
            event = Event(NO_LESION_EVENT, "No lesion.")
            return Validation(score, {"lesion_dice": score}, events=(event,) * (score == 0))

        def batches_from(start):
            stop = settings.training.steps
            tiles = settings.training.batch
            return loader(data, batch_size=tiles, start=start, stop=stop, workers=0)

        self.trainer = Trainer(
            self.engine,
            batches or batches_from,
            validate,
            settings,
            Checkpoints(folder),
            n_images=len(manifest),
            callbacks=[self.recorder],
        )

    def __call__(self, **arguments):
        return self.trainer.run(**arguments)

    @property
    def weights(self):
        return {n: t.clone() for n, t in self.network.state_dict().items()}


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one | two)


def test_run_steps_validates_and_calls_callbacks(manifest, tmp_path):
    run = Run(manifest, tmp_path)
    outcome = run()
    assert run.recorder.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert run.recorder.validations == [(2, 0.1, True), (4, 0.9, True)]
    assert outcome.steps == 4
    assert outcome.best.monitored_metric == 0.9
    assert run.recorder.events == []


def test_best_validation_keeps_its_images_and_interval_on_resume(manifest, tmp_path):
    def validate(_):
        metrics = {"lesion_dice": 0.9}
        return Validation(
            0.9, metrics, n_images=60, lesion_dice_low=0.8, lesion_dice_high=0.95
        )

    first = Run(manifest, tmp_path)
    first.trainer.validate = validate
    with pytest.raises(StoppedError):
        first(stop_after=3)
    best = Run(manifest, tmp_path, scores=(0.1,))().best
    assert str(best) == "lesion Dice 0.900 (0.80 to 0.95, 60 images)"


def test_checkpoint_without_images_and_interval_is_resumed(manifest, tmp_path, monkeypatch):
    """As earlier versions wrote them."""
    real = Trainer._state_dict

    def old(self):
        state = real(self)
        best = state["best"]
        kept = ("monitored_metric", "metrics")
        return state | {"best": best and {name: best[name] for name in kept}}

    monkeypatch.setattr(Trainer, "_state_dict", old)
    with pytest.raises(StoppedError):
        Run(manifest, tmp_path, scores=(0.9,))(stop_after=3)
    monkeypatch.undo()
    best = Run(manifest, tmp_path, scores=(0.1,))().best
    assert best.n_images == 0
    assert str(best) == "lesion Dice 0.900"


def test_validations_without_a_metric_keep_the_newest_model_as_best(manifest, tmp_path):
    run = Run(manifest, tmp_path, SETTINGS.with_settings(["training.on_collapse=rollback"]))
    run.trainer.validate = lambda _: Validation(0.0, {}, n_images=3)
    run()
    assert run.recorder.validations == [(2, 0.0, True), (4, 0.0, True)]


@pytest.mark.parametrize(("enough", "text"), [(4, "It is. Do this."), (5, "It is.")])
def test_advice_is_withheld_until_enough_steps_were_taken(
    manifest, tmp_path, monkeypatch, enough, text
):
    monkeypatch.setattr("plantseg_next.training.time_budget.FEW_STEPS", enough)
    run = Run(manifest, tmp_path)
    event = Event("class-swallowed", "It is.", "Do this.")
    run.trainer.validate = lambda _: Validation(0.5, {"lesion_dice": 0.5}, events=(event,))
    run()
    texts = [text for _, _, text in run.recorder.events]
    assert texts == ["It is.", text]


@pytest.mark.parametrize(("enough", "kinds"), [(8, ["plateau"]), (9, [])])
def test_trends_are_withheld_until_enough_steps_were_taken(
    manifest, tmp_path, monkeypatch, enough, kinds
):
    monkeypatch.setattr("plantseg_next.training.time_budget.FEW_STEPS", enough)
    settings = SETTINGS.with_settings(["training.steps=8", "training.validations=8"])
    run = Run(manifest, tmp_path, settings, scores=repeat(0.5))
    card = ModelCard(manifest.classes, SETTINGS.model, 64, None)
    run.trainer.callbacks = [run.recorder, CsvLogger(tmp_path, run.network, card)]
    run()
    assert run.recorder.kinds == kinds


def test_best_validation_need_not_be_the_last(manifest, tmp_path):
    run = Run(manifest, tmp_path, scores=(0.9, 0.1))
    assert run().best.monitored_metric == 0.9
    assert [best for *_, best in run.recorder.validations] == [True, False]


def test_same_seed_gives_same_weights(manifest, tmp_path):
    one = Run(manifest, tmp_path / "1")
    one()
    two = Run(manifest, tmp_path / "2")
    two()
    assert equal(one.weights, two.weights)


def test_repeated_batch_lowers_the_loss(manifest, tmp_path):
    settings = CONVNEXT.with_settings(["training.steps=30", "training.validations=1"])
    data = MixedDataset(
        TileDataset(manifest, settings.data, seed=0, pixels=(9, 1, 1, 1, 1, 1))
    )
    (batch,) = loader(data, batch_size=4, start=0, stop=1, workers=0)
    run = Run(manifest, tmp_path, settings, batches=lambda _: repeat(batch))
    run()
    assert sum(run.recorder.losses[-3:]) < 0.5 * sum(run.recorder.losses[:3])


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_after_stop_is_bit_identical(manifest, tmp_path, stop):
    whole = Run(manifest, tmp_path / "whole")
    whole()
    first = Run(manifest, tmp_path / "parts")
    with pytest.raises(StoppedError, match=f"Stopped at step {stop} of 4"):
        first(stop_after=stop)
    second = Run(manifest, tmp_path / "parts", scores=(0.1, 0.9)[stop >= 2 :])
    outcome = second()
    assert equal(second.weights, whole.weights)
    assert outcome.best.monitored_metric == 0.9
    assert second.recorder.kinds == ["resumed"]
    assert second.recorder.losses == whole.recorder.losses[stop:]


def test_resume_of_finished_run_takes_no_steps(manifest, tmp_path):
    Run(manifest, tmp_path)()
    again = Run(manifest, tmp_path)
    assert again().best.monitored_metric == 0.9
    assert again.recorder.steps == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_after_the_step_and_saves(manifest, tmp_path, number):
    run = Run(manifest, tmp_path)
    run.recorder.on_step = lambda _: signal.raise_signal(number) or ()
    before = signal.getsignal(number)
    with pytest.raises(
        StoppedError, match=f"step 1 of 4, asked by {number.name}"
    ) as stopped:
        run()
    assert stopped.value.exit_code == 128 + number
    assert Checkpoints(tmp_path).steps() == [0, 1]
    assert signal.getsignal(number) is before


def test_second_signal_reaches_the_original_handler(manifest, tmp_path):
    run = Run(manifest, tmp_path)

    def twice(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    run.recorder.on_step = twice
    # Where tests run in the background, SIGINT is ignored from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGINT, before)


def out_of_memory_above(tiles):
    """Return a ``backward`` that raises as if memory sufficed for so many tiles."""
    real = Engine.backward

    def backward(self, batch, *, micro_batch, **rest):
        result = real(self, batch, micro_batch=micro_batch, **rest)
        if micro_batch > tiles:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total "
                "capacity of 7.80 GiB of which 1.00 GiB is free. See documentation"
            )
        return result

    return backward


def test_oom_halves_micro_batch_and_keeps_the_mean_losses(manifest, tmp_path, monkeypatch):
    # Losses that are means over the step; overlaps are of a micro-batch.
    means = ["loss.ohem_ce=0", "loss.focal_tversky=0", "loss.leaf=0"]
    settings = SETTINGS.with_settings(["training.batch=4", "model.dropout=0", *means])
    whole = Run(manifest, tmp_path / "whole", settings)
    whole()
    small = Run(manifest, tmp_path / "small", settings)
    monkeypatch.setattr(Engine, "backward", out_of_memory_above(1))
    small()
    assert small.recorder.micro_batches == [1, 1, 1, 1]
    assert small.recorder.kinds == ["out-of-memory", "out-of-memory"]
    assert small.recorder.events[0][2].startswith(
        "Memory ran out in a training step (CUDA out of memory. Tried to allocate 96.00 "
        "MiB). The run continues with 2 at once"
    )
    # Adam divides by the root of tiny second moments, so a few weights differ by rounding.
    for name, weight in whole.weights.items():
        assert (weight - small.weights[name]).norm() <= 0.02 * weight.norm() + 1e-3


def test_oom_with_one_tile_raises_with_advice(manifest, tmp_path, monkeypatch):
    run = Run(manifest, tmp_path)
    monkeypatch.setattr(Engine, "backward", out_of_memory_above(0))
    with pytest.raises(
        TrainingError, match="does not suffice for a training step"
    ) as caught:
        run()
    assert "data.tile_px" in caught.value.fix
    assert Checkpoints(tmp_path).load()["progress"]["step"] == 0


def test_oom_in_optimizer_step_rolls_back(manifest, tmp_path, monkeypatch):
    real, failures = Engine.optimizer_step, iter([False, True])

    def tearing(self, **arguments):
        real(self, **arguments)
        if next(failures, False):
            raise MemoryError

    monkeypatch.setattr(Engine, "optimizer_step", tearing)
    run = Run(manifest, tmp_path)
    run()
    assert run.recorder.kinds == ["rollback"]
    assert [step for step, _ in run.recorder.steps] == [1, 1, 2, 3, 4]
    assert run.trainer.progress.lr_scale == 1
    assert run.trainer.progress.micro_batch == 1


def test_other_runtime_error_is_not_oom(manifest, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Engine, "backward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Run(manifest, tmp_path)()


def not_finite_at(steps):
    real = Engine.backward

    def backward(self, batch, *, step, **rest):
        losses, is_finite = real(self, batch, step=step, **rest)
        return losses, is_finite and step not in steps()

    return backward


def test_one_nonfinite_gradient_skips_one_step(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "backward", not_finite_at(lambda: {1}))
    run = Run(manifest, tmp_path)
    run()
    assert run.recorder.kinds == ["not-finite"]
    assert [step for step, _ in run.recorder.steps] == [1, 2, 3, 4]
    assert len(run.recorder.losses) == 3


def test_nonfinite_network_raises_with_unchanged_weights(manifest, tmp_path):
    run = Run(manifest, tmp_path, scores=repeat(0.5))
    nn.init.constant_(run.network.lesion_head.bias, float("inf"))
    before = run.weights
    with pytest.raises(TrainingError, match="3 gradients in a row were not finite, after"):
        run()
    assert equal(run.weights, before)


def test_three_nonfinite_gradients_roll_back_with_lower_lr(manifest, tmp_path, monkeypatch):
    run = Run(manifest, tmp_path, SETTINGS.with_settings(["training.steps=8"]))
    bad = {5, 6, 7}
    monkeypatch.setattr(
        Engine,
        "backward",
        not_finite_at(lambda: bad if run.trainer.progress.rollbacks == 0 else set()),
    )
    run()
    assert run.recorder.kinds == [*["not-finite"] * 3, "rollback"]
    assert (
        "resumes from step 4, with 0.5 of the learning rate" in run.recorder.events[-1][2]
    )
    assert run.trainer.progress.lr_scale == 0.5
    assert run.trainer.progress.step == 8


def test_repeated_failure_rolls_back_to_an_earlier_checkpoint(
    manifest, tmp_path, monkeypatch
):
    settings = SETTINGS.with_settings(["training.steps=8", "training.validations=4"])
    run = Run(manifest, tmp_path, settings, scores=repeat(0.5))
    bad = {5, 6, 7}
    monkeypatch.setattr(
        Engine,
        "backward",
        not_finite_at(lambda: bad if run.trainer.progress.rollbacks < 2 else set()),
    )
    run()
    texts = [text for _, kind, text in run.recorder.events if kind == "rollback"]
    assert "resumes from step 4" in texts[0]
    assert "resumes from step 2" in texts[1]
    assert run.trainer.progress.lr_scale == 0.25


def test_number_of_rollbacks_is_saved(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "backward", not_finite_at(lambda: {0, 1, 2, 3}))
    with pytest.raises(TrainingError):
        Run(manifest, tmp_path, scores=repeat(0.5))()
    assert Checkpoints(tmp_path).load()["progress"]["rollbacks"] == 3


def test_collapse_rolls_back_with_on_collapse_rollback(manifest, tmp_path):
    settings = SETTINGS.with_settings(["training.on_collapse=rollback"])
    run = Run(manifest, tmp_path, settings, scores=(0.4, 0.0, 0.6))
    assert run().best.monitored_metric == 0.6
    assert run.recorder.kinds == [NO_LESION_EVENT, "rollback"]
    assert [step for step, _ in run.recorder.steps] == [1, 2, 3, 4, 3, 4]


def test_collapse_emits_an_event_by_default(manifest, tmp_path):
    run = Run(manifest, tmp_path, scores=(0.4, 0.0))
    run()
    assert run.recorder.kinds == [NO_LESION_EVENT]


@pytest.fixture
def rotting(drawn_folder, tmp_path):
    """A copy of the data set whose images may be damaged."""
    shutil.copytree(drawn_folder, tmp_path / "leaves")
    return read_folder(tmp_path / "leaves")


def test_unreadable_image_is_replaced_and_reported_once(rotting, tmp_path):
    settings = SETTINGS.with_settings(["training.steps=40", "training.validations=1"])
    run = Run(rotting, tmp_path / "run", settings, scores=(0.5,))
    rotting.rows[7].image.write_bytes(b"rot")
    run()
    assert run.recorder.kinds == ["unreadable-image"]
    assert "Another image replaces it" in run.recorder.events[0][2]
    assert list(run.trainer.progress.skipped) == [rotting.rows[7].key]


def test_too_many_unreadable_images_stop_the_run_with_advice(rotting, tmp_path):
    settings = SETTINGS.with_settings(["training.steps=40", "training.validations=1"])
    for row in rotting.rows[:10]:
        row.image.write_bytes(b"rot")
    with pytest.raises(DataError, match="3 of 40 images cannot be read") as caught:
        Run(rotting, tmp_path / "run", settings)()
    assert "run the same command again to resume" in caught.value.fix


def test_full_disk_stops_and_names_the_resume_step(manifest, tmp_path, monkeypatch):
    run = Run(manifest, tmp_path)
    real, left = Checkpoints.save, iter([True, True, False])

    def filling(self, state, **arguments):
        if next(left):
            return real(self, state, **arguments)
        raise OutputError(
            "`x` cannot be written: disk full.", needed="space", fix="free some"
        )

    monkeypatch.setattr(Checkpoints, "save", filling)
    with pytest.raises(
        OutputError, match=r"disk full\. The run stopped at step 4"
    ) as caught:
        run()
    assert "the same command then resumes from step 2" in caught.value.fix


def test_resume_uses_new_micro_batch(manifest, tmp_path):
    with pytest.raises(StoppedError):
        Run(manifest, tmp_path)(stop_after=2)
    run = Run(manifest, tmp_path, SETTINGS.with_settings(["training.micro_batch=1"]))
    run()
    assert run.recorder.micro_batches == [1, 1]


def test_minutes_become_a_fixed_number_of_steps(monkeypatch):
    now = 0.0
    monkeypatch.setattr("plantseg_next.training.time_budget.time.perf_counter", lambda: now)
    budget = TimeBudget(TrainingSettings(minutes=10, validations=4), few_steps=300)
    ends = []
    for step in range(1, 41):
        now += 30.0 if step == 17 else 2.0  # one step waits for an uncached file
        if budget.ends_profile(step):
            ends.append(step)
            now += 3.0
            budget.set_steps(step, validation_s=3.0)
    assert ends == [30]
    assert budget.steps == 30 + (600 - (29 * 2 + 30 + 3) - 4 * 3) // 2


def test_validation_before_any_timed_step_fixes_no_steps():
    budget = TimeBudget(TrainingSettings(minutes=10, steps=3, validations=1), few_steps=300)
    for step in range(1, 4):
        assert not budget.ends_profile(step)
    assert budget.set_steps(3, validation_s=1.0) is None
    assert budget.steps == 3


def test_too_few_minutes_warn_with_numbers(monkeypatch):
    now = 0.0
    monkeypatch.setattr("plantseg_next.training.time_budget.time.perf_counter", lambda: now)

    def warning(
        step_s: float, few_steps: int = 300, **settings: int
    ) -> tuple[TimeBudget, str | None]:
        nonlocal now
        training = TrainingSettings(minutes=12, validations=1, **settings)
        budget = TimeBudget(training, few_steps=few_steps)
        for step in range(1, 31):
            now += step_s
            if budget.ends_profile(step):
                return budget, budget.set_steps(step, validation_s=0.0)
        raise AssertionError("a run in minutes is timed")

    budget, few = warning(6.0)
    assert budget.steps == 120
    assert few is not None
    assert "Only 120 steps of 6.0 s fit into 12 minutes" in few
    assert "`training.minutes=30`" in few  # 300 steps of 6 s
    assert warning(2.0)[1] is None
    assert warning(6.0, few_steps=100)[1] is None  # from a trained model
    assert warning(6.0, steps=100)[1] is None  # as many as the settings ask for
    budget, few = warning(60.0)  # the time is over after the timed steps
    assert budget.steps == 31
    assert "`training.minutes=300`" in (few or "")


def test_too_few_minutes_warn_after_five_steps(monkeypatch):
    now = 0.0
    monkeypatch.setattr("plantseg_next.training.time_budget.time.perf_counter", lambda: now)

    def warning(*seconds: float) -> list[str | None]:
        nonlocal now
        training = TrainingSettings(minutes=12, validations=1)
        budget, texts = TimeBudget(training, few_steps=300), []
        for step, step_s in enumerate(seconds, start=1):
            now += step_s
            texts.append(budget.warn_if_few_steps(step))
            if budget.ends_profile(step):
                texts.append(budget.set_steps(step, validation_s=0.0))
        return texts

    *quiet, few = warning(60.0, 6.0, 6.0, 6.0, 6.0)
    assert quiet == [None] * 4
    assert "Only about 111 steps of 6.0 s fit into 12 minutes" in (few or "")
    assert "start again with --restart" in (few or "")
    assert "`training.minutes=31`" in (few or "")
    (once,) = (n for n in warning(*[6.0] * 30) if n)
    assert "Only about 120 steps of 6.0 s fit into 12 minutes" in once
    assert not any(warning(60.0, 60.0, 2.0, 2.0, 2.0))  # a slow start alone does not warn


def test_resume_keeps_the_time_budget(monkeypatch):
    now = 0.0
    monkeypatch.setattr("plantseg_next.training.time_budget.time.perf_counter", lambda: now)
    first = TimeBudget(TrainingSettings(minutes=10, validations=4), few_steps=300)
    for step in range(1, 31):
        now += 2.0
        if first.ends_profile(step):
            first.set_steps(step, validation_s=3.0)
    kept, now = first.state_dict(), 5000.0
    second = TimeBudget(TrainingSettings(minutes=10, validations=4), few_steps=300)
    second.load_state_dict(kept)
    now += 1.0
    assert second.steps == first.steps
    assert not second.ends_profile(31)
    assert second.seconds == kept["seconds"] + 1


def test_resume_during_profiling_profiles_again(monkeypatch):
    now = 0.0
    monkeypatch.setattr("plantseg_next.training.time_budget.time.perf_counter", lambda: now)
    budget = TimeBudget(TrainingSettings(minutes=10, validations=4), few_steps=300)
    ends = []
    for step in range(29, 60):
        now += 2.0
        if budget.ends_profile(step):
            ends.append(step)
            budget.set_steps(step, validation_s=3.0)
    assert ends == [39]


@pytest.mark.parametrize(("steps", "n"), [(100, 7), (3, 8), (1, 1), (50, 50)])
def test_validations_are_evenly_spaced_and_end_the_run(steps, n):
    due = [s for s in range(1, steps + 1) if is_due(s, steps, n)]
    assert len(due) == min(n, steps)
    assert due[-1] == steps


@given(st.integers(1, 300), st.integers(1, 320), st.data())
def test_validations_left_counts_due_steps(steps, n, data):
    step = data.draw(st.integers(0, steps))
    due = sum(is_due(s, steps, n) for s in range(step + 1, steps + 1))
    assert validations_left(step, steps, n) == due


def test_layer_decay_lowers_lr_of_pretrained_layers():
    network = build_segmenter(CONVNEXT.model, _classes())
    fine = CONVNEXT.with_settings(["training.layer_decay=0.5", "training.lr=1"])
    groups = parameter_groups(network, fine)
    assert sorted({g["base_lr"] for g in groups}) == [2.0**-n for n in (5, 4, 3, 2, 1, 0)]
    flat = {g["base_lr"] for g in parameter_groups(network, CONVNEXT)}
    assert flat == {SETTINGS.training.lr}
    n_in_groups = sum(p.numel() for g in groups for p in g["params"])
    assert n_in_groups == sum(p.numel() for p in network.parameters())
    for group in groups:
        if group["weight_decay"] == 0:
            assert all(p.ndim == 1 for p in group["params"])


@pytest.mark.parametrize(
    ("start", "decay"), [("imagenet", 0.75), ("/a/run", 0.75), ("random", 1.0)]
)
def test_layer_decay_default_applies_to_pretrained_weights_only(start, decay):
    settings = SETTINGS.with_settings(
        ["model.encoder=test_efficientnet", f"model.start={start}", "training.lr=1"]
    )
    network = build_segmenter(settings.model, _classes(), fetch=False)
    groups = parameter_groups(network, settings)
    peaks = sorted({group["base_lr"] for group in groups})
    assert peaks == sorted({decay**depth for depth in range(7)})
    n_in_groups = sum(p.numel() for g in groups for p in g["params"])
    assert n_in_groups == sum(p.numel() for p in network.parameters())


def test_layer_decay_gives_the_stem_the_lowest_lr():
    network = build_segmenter(CONVNEXT.model, _classes())
    fine = CONVNEXT.with_settings(["training.layer_decay=0.5", "training.lr=1"])
    peaks = {
        id(p): group["base_lr"]
        for group in parameter_groups(network, fine)
        for p in group["params"]
    }
    layers = [network.encoder.network.stem_0]
    layers += [network.encoder.network[f"stages_{i}"] for i in range(4)]
    layers += [network.decoder]
    lrs = [{peaks[id(p)] for p in layer.parameters()} for layer in layers]
    assert lrs == [{2.0**-n} for n in (5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize("name", ["convnextv2_atto", "tf_efficientnet_lite1"])
def test_bfloat16_auto_on_cpu_follows_hardware_support(name):
    auto = Settings(model=ModelSettings(encoder=name))
    assert uses_bfloat16(auto, Device("cpu", "new", has_bfloat16=True))
    assert not uses_bfloat16(auto, CPU)


@pytest.mark.parametrize("name", ["convnextv2_atto", "tf_efficientnet_lite1"])
def test_bfloat16_auto_on_gpu_follows_hardware_support(name):
    auto = Settings(model=ModelSettings(encoder=name))
    assert uses_bfloat16(auto, Device("cuda", "new", has_bfloat16=True))
    assert not uses_bfloat16(auto, Device("cuda", "old", has_bfloat16=False))


def test_bfloat16_setting_overrides_hardware_support():
    forced = Settings(training=TrainingSettings(precision="bfloat16"))
    assert uses_bfloat16(forced, CPU)
    forbidden = Settings(training=TrainingSettings(precision="float32"))
    assert not uses_bfloat16(forbidden, Device("cuda", "new", has_bfloat16=True))


def test_missing_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="PyTorch sees no GPU"):
        find_device("cuda")


def test_csv_logger_writes_metrics_and_models(manifest, tmp_path):
    run = Run(manifest, tmp_path, scores=(0.9, 0.1))
    card = ModelCard(manifest.classes, SETTINGS.model, 64, None)
    run.trainer.callbacks = [CsvLogger(tmp_path, run.network, card)]
    run()
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["best"]) for row in rows] == [("2", "1"), ("4", "0")]
    assert float(rows[0]["loss_focal_tversky"]) > 0
    assert list(rows[0])[:5] == ["step", "best", "score", "val_lesion_dice", "n_val_images"]
    assert read_card(tmp_path / "best").metrics == {"lesion_dice": 0.9}
    assert read_card(tmp_path / "last").sha256 != read_card(tmp_path / "best").sha256


def _classes():
    from plantseg_next.structures import ClassMap

    return ClassMap(("lesion",), ("healthy",), has_leaf=True)


class Counter(Callback):
    def __init__(self, key):
        self.key = key
        self.steps = 0

    def on_step(self, info):
        del info
        self.steps += 1
        return ()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_callbacks_of_one_class_keep_their_own_state(manifest, tmp_path):
    run = Run(manifest, tmp_path)
    first, second = Counter("first"), Counter("second")
    second.steps = 100
    run.trainer.callbacks = [first, second]
    with pytest.raises(StoppedError):
        run(stop_after=2)
    again = Run(manifest, tmp_path, scores=(0.9,))
    restored = [Counter("first"), Counter("second")]
    again.trainer.callbacks = restored
    again()
    assert [callback.steps for callback in restored] == [4, 104]


def test_two_callbacks_with_one_key_are_refused(manifest, tmp_path):
    run = Run(manifest, tmp_path)
    trainer = run.trainer
    with pytest.raises(UsageError, match="Two callbacks have the key mine") as caught:
        Trainer(
            trainer.engine,
            trainer.batches,
            trainer.validate,
            SETTINGS,
            trainer.checkpoints,
            n_images=1,
            callbacks=[Counter("mine"), Counter("mine")],
        )
    assert "set another `key`" in caught.value.fix
