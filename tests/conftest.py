"""Fixtures that several rooms' tests share."""

from pathlib import Path

import pytest
import torch

from plantseg_next.experiment import (
    DataSettings,
    Experiment,
    ModelSettings,
    TrainingSettings,
)
from plantseg_next.synthetic.leaves import write_drawn_folder

# One thread: tests are small, and threads that wait for each other on a busy machine
# make them a hundred times slower.
torch.set_num_threads(1)

TINY = Experiment(
    device="cpu",
    data=DataSettings(tile_px=64, workers=0),
    model=ModelSettings(encoder="test_convnext", start="random", width=32, layers=1),
    training=TrainingSettings(
        minutes=None, steps=6, batch=2, validations=2, validation_pictures=3
    ),
)
"""A run of a second, which learns nothing to speak of. On a CPU, where a seed gives the
same bits every time; see test_gpu.py for the rest."""

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what commands remember apart: from other tests and from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn leaves with masks, classes and an index."""
    folder = tmp_path_factory.mktemp("drawn") / "leaves"
    write_drawn_folder(folder, 40, seed=1, size_hw=(96, 96))
    return folder


@pytest.fixture
def real_data() -> Path:
    """The folder of real photographs; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real photographs are not beside this checkout")
    return REAL_DATA
