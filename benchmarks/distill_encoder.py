"""Teach an encoder at a random start what one with ImageNet weights sees in leaves.

    python benchmarks/distill_encoder.py coffee potato rice --work FOLDER

ConvNeXt-V2's published weights forbid commercial use; EfficientNet-Lite's do not. Here the
first learns from images without masks to give the feature maps of the second, at strides 4
to 32, through a linear map a stride: the mean squared difference after each channel of the
teacher was brought to mean 0 and variance 1 over the batch (feature distillation, Romero et
al. 2015, arXiv:1412.6550; normalized targets as in Heo et al. 2019, arXiv:1904.01866). Of
the training split only; with the folder of ``label_efficiency.py`` it is the same split.
What is written serves as ``model.weights``:

    --set model.weights=FOLDER/convnextv2_atto.safetensors
    --set model.encoder=convnextv2_atto --set model.start=imagenet
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from label_efficiency import one_data_set
from torch import Tensor, nn
from torch.nn import functional as F

from plantseg_next.data.streams import TileDataset, collate
from plantseg_next.experiment import Experiment
from plantseg_next.models.encoders import TimmEncoder, build_encoder
from plantseg_next.models.pretrained import timm_name

BATCH = 8


def normalized(encoder: TimmEncoder, images: Tensor) -> Tensor:
    """Return images in [0, 1] as an encoder wants them."""
    mean, std = (torch.tensor(c)[:, None, None] for c in (encoder.mean, encoder.std))
    return (images - mean) / std


def distill(student: TimmEncoder, tiles: TileDataset, minutes: float, rate: float) -> int:
    """Train the student in place; return the number of steps."""
    torch.manual_seed(0)
    teacher = build_encoder("tf_efficientnet_lite1", weights="packaged").eval()
    maps = nn.ModuleList(
        nn.Conv2d(a, b, 1) for a, b in zip(student.channels, teacher.channels, strict=True)
    )
    weights = [*student.parameters(), *maps.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.05)
    began, step, losses = time.perf_counter(), 0, []
    student.train()
    while (done := (time.perf_counter() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 + np.cos(np.pi * done)) / 2
        draws = range(step * BATCH, (step + 1) * BATCH)
        images = collate([tiles[draw] for draw in draws]).image.float() / 255
        with torch.no_grad():
            wanted = [
                F.instance_norm(w.transpose(0, 1).flatten(1)[None])[0]
                for w in teacher(normalized(teacher, images))
            ]
        loss = torch.zeros(())
        for one, own, target in zip(
            maps, student(normalized(student, images)), wanted, strict=True
        ):
            found = one(own).transpose(0, 1).flatten(1)
            loss = loss + F.mse_loss(found, target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()) / len(wanted))
        step += 1
        if step % 50 == 0:
            print(f"step {step}: {np.mean(losses[-50:]):.3f}", flush=True)
    return step


def main() -> None:
    """Distill, and write what ``model.weights`` reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--student", default="convnextv2_atto")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = one_data_set(arguments.data, arguments.work / "manifest.json").split("train")
    bare = rows.only(replace(row, mask=None, disease=None) for row in rows.rows)
    tiles = TileDataset(bare, Experiment().data, seed=0, pixels=(1, 1))
    student = build_encoder(arguments.student)
    steps = distill(student, tiles, arguments.minutes, arguments.rate)
    state = timm.create_model(arguments.student).state_dict()
    own = {timm_name(name): t for name, t in student.network.state_dict().items()}
    assert set(own) <= set(state)  # noqa: S101
    out = arguments.work / f"{arguments.student}.safetensors"
    safetensors.torch.save_file({n: t.contiguous() for n, t in (state | own).items()}, out)
    print(f"{steps} steps on {len(bare)} images: {out}")


if __name__ == "__main__":
    main()
