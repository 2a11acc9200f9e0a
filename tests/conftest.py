"""Fixtures that the tests of several packages share, and the tier of every test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import toy_encoder
from plantseg_next import api
from plantseg_next.errors import StoppedError
from plantseg_next.settings import (
    DataSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
)
from plantseg_next.synthetic.folders import write_drawn_folder
from plantseg_next.training.trainer import Trainer

# One thread: tests are small, and threads that wait for each other on a busy machine
# make them a hundred times slower.
torch.set_num_threads(1)

# A busy machine must not fail a property, and every run tries the same examples.
settings.register_profile(
    "any-machine",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any-machine")

TINY = Settings(
    device="cpu",
    data=DataSettings(tile_px=64, workers=0),
    model=ModelSettings(encoder=toy_encoder.NAME, start="random", width=32, layers=1),
    training=TrainingSettings(
        minutes=None, steps=6, batch=2, validations=2, validation_images=3
    ),
)
"""A run of a second, which learns nothing to speak of. On a CPU, where a seed gives the
same bits every time; see test_gpu.py for the rest."""

FEW = TINY.with_settings(
    [
        "data.labeled_fraction=0.3",
        "semi.warmup_fraction=0",
        "training.steps=12",
        "training.validations=3",
        "training.checkpoint_minutes=0",
    ]
)
"""A semi-supervised run with a checkpoint after every step."""

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``unit`` whatever is in no other tier."""
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in ("integration", "slow")):
            item.add_marker(pytest.mark.unit)


def train_until(step: int, data: Path, out: Path, settings: Settings = FEW) -> None:
    """Train, and stop after a step as if the user had asked for it."""
    run = Trainer.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", lambda self: run(self, stop_after=step))
        with pytest.raises(StoppedError):
            api.train(data, out, settings)


@pytest.fixture(scope="session", autouse=True)
def cache_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what commands remember in the fixtures of a session apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Keep what commands remember apart from other tests; return the folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curves of a run unless a test asks: they take longer than its steps."""
    if request.node.get_closest_marker("curves") is None:
        name = "plantseg_next.training.callbacks.status_file.draw_curves"
        monkeypatch.setattr(name, lambda folder: (folder / "curves.png").touch())


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn leaves with masks, classes and an index."""
    folder = tmp_path_factory.mktemp("drawn") / "leaves"
    write_drawn_folder(folder, 40, seed=1, size_hw=(96, 96))
    return folder


@pytest.fixture(scope="session")
def finished_run(drawn_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised run of ``TINY``: to be read, not changed."""
    folder = tmp_path_factory.mktemp("finished") / "a run with spaces"
    api.train(drawn_folder, folder, TINY)
    return folder


@pytest.fixture(scope="session")
def finished_semi_run(drawn_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A semi-supervised run of ``FEW``: to be read, not changed."""
    folder = tmp_path_factory.mktemp("finished") / "semi"
    api.train(drawn_folder, folder, FEW)
    return folder


@pytest.fixture(scope="session")
def run_after_two_steps(
    drawn_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of ``FEW`` that was stopped: to be read, not changed."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train_until(2, drawn_folder, folder)
    return folder


@pytest.fixture
def stopped_run(run_after_two_steps: Path, tmp_path: Path) -> Path:
    """A copy of ``run_after_two_steps``, to go on with."""
    shutil.copytree(run_after_two_steps, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def real_data() -> Path:
    """The folder of real photographs; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real photographs are not beside this checkout")
    return REAL_DATA
