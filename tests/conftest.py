"""Fixtures that several rooms' tests share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plantseg_next.data.synthetic import write_drawn_folder

# One thread: tests are small, and threads that wait for each other on a busy machine
# make them a hundred times slower.
torch.set_num_threads(1)

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


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


def save_picture(path: Path, pixels: np.ndarray) -> Path:
    """Write an array as a picture, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
