"""What only a GPU can show; without one, all of it is left out."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from conftest import TINY
from plantseg_next import api
from plantseg_next.inference.backends import TorchBackend
from plantseg_next.inference.predictor import softmax, tile_probabilities
from plantseg_next.models.bundle import read_card
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.structures import ClassMap

pytestmark = pytest.mark.integration

if not torch.cuda.is_available():
    pytest.skip("no GPU here", allow_module_level=True)

FEW = TINY.with_settings(
    [
        "device=cuda",
        "deterministic=true",
        "data.labeled_fraction=0.3",
        "semi.warmup_fraction=0",
        "training.steps=12",
        "training.validations=3",
        "training.checkpoint_minutes=0",
    ]
)


def begin(data, out, settings, *more):
    """Train in a process of its own: what a GPU may be used for is said once a process."""
    settings.write(out.with_suffix(".yaml"))
    command = [sys.executable, "-m", "plantseg_next", "train", str(data), *more]
    command += ["--out", str(out), "--config", str(out.with_suffix(".yaml"))]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def ended(process):
    """Return what it said."""
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def test_a_killed_run_ends_with_the_bits_of_the_undisturbed_one(drawn_folder, tmp_path):
    said = ended(begin(drawn_folder, tmp_path / "whole", FEW))
    # PyTorch would warn of kernels, and of too small a workspace.
    assert "deterministic" not in said, said
    assert "Warning" not in said, said
    process = begin(drawn_folder, tmp_path / "killed", FEW)
    while not list((tmp_path / "killed").glob("checkpoints/*-step-3.*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended(begin(drawn_folder, tmp_path / "killed", FEW))
    for model in ("best", "last"):
        one, two = (read_card(tmp_path / run / model) for run in ("whole", "killed"))
        assert one.sha256 == two.sha256
    assert api.verify(tmp_path / "killed").difference is None


def test_a_run_stays_within_its_budget(drawn_folder, tmp_path):
    settings = FEW.with_settings(["deterministic=false", "data.tile_px=128"])
    settings = settings.with_settings(["training.batch=16"])
    planned = api.plan(drawn_folder, 160 * 10**6, settings)
    assert planned.changes["training.micro_batch"] < 16
    ended(begin(drawn_folder, tmp_path / "run", settings, "--memory", "160MB"))
    summary = (tmp_path / "run" / "summary.txt").read_text()
    said = next(line for line in summary.splitlines() if line.startswith("  budget"))
    assert int(said.split("at most ")[1].split(" ")[0]) <= 160, said


def probabilities(logits):
    maps = map(tile_probabilities, logits.lesion, logits.leaf)
    disease = logits.disease.T
    return [np.stack(list(maps)), softmax(disease, np.empty_like(disease))]


def test_probabilities_are_those_of_a_cpu():
    torch.manual_seed(0)
    classes = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
    network = build_segmenter(TINY.model, classes)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    on_cpu = probabilities(TorchBackend(network)(tiles))
    on_gpu = probabilities(TorchBackend(network.to("cuda"), "cuda")(tiles))
    for one, two in zip(on_cpu, on_gpu, strict=True):
        assert np.abs(one - two).max() < 0.005  # cuDNN rounds factors to 10 bits
