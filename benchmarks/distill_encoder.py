"""Teach an encoder at a random start what one with ImageNet weights sees in leaves.

    python benchmarks/distill_encoder.py coffee potato rice --out atto.safetensors

ConvNeXt-V2's published weights forbid commercial use; EfficientNet-Lite's do not. Here the
first learns from images without masks to give the feature maps of the second, at strides 4
to 32, through a linear map a stride: the mean squared difference after each channel of the
teacher was brought to mean 0 and variance 1 over the batch (feature distillation, Romero et
al. 2015, arXiv:1412.6550; normalized targets as in Heo et al. 2019, arXiv:1904.01866). The
training split only. The file serves as ``model.weights``:

    --set model.encoder=convnextv2_atto --set model.weights=atto.safetensors \
    --set model.start=imagenet
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plantseg_next.data import splits
from plantseg_next.data.image_io import read_image
from plantseg_next.data.layouts import read_folder
from plantseg_next.data.tiling import shrink_to
from plantseg_next.models.encoders import TimmEncoder, build_encoder
from plantseg_next.models.pretrained import timm_name

TILE_PX, BATCH, LONG_SIDE_PX = 192, 8, 1024
SCALE = (0.4, 2.0)


def tile(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return a square part of an image at a random scale, turned or mirrored."""
    factor = np.exp(rng.uniform(*np.log(SCALE)))
    side = int(min(TILE_PX / factor, *image.shape[:2]))
    top = int(rng.integers(image.shape[0] - side + 1))
    left = int(rng.integers(image.shape[1] - side + 1))
    part = image[top : top + side, left : left + side]
    part = cv2.resize(part, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
    part = np.rot90(part, int(rng.integers(4)))
    return part[:, ::-1] if rng.random() < 0.5 else part


def normalized(encoder: TimmEncoder, tiles: Tensor) -> Tensor:
    """Return tiles in [0, 1] as an encoder wants them."""
    mean, std = (torch.tensor(c)[:, None, None] for c in (encoder.mean, encoder.std))
    return (tiles - mean) / std


def distill(
    student: TimmEncoder, images: list[np.ndarray], minutes: float, rate: float
) -> int:
    """Train the student in place; return the number of steps."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
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
        picked = rng.integers(len(images), size=BATCH)
        stack = np.stack([tile(rng, images[i]) for i in picked])
        tiles = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            wanted = [
                F.instance_norm(w.transpose(0, 1).flatten(1)[None])[0]
                for w in teacher(normalized(teacher, tiles))
            ]
        loss = torch.zeros(())
        for one, own, target in zip(
            maps, student(normalized(student, tiles)), wanted, strict=True
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
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", default="convnextv2_atto")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    images = [
        shrink_to(read_image(row.image), LONG_SIDE_PX)
        for folder in arguments.data
        for row in splits.assign(read_folder(folder), seed=0).split("train").rows
    ]
    student = build_encoder(arguments.student)
    steps = distill(student, images, arguments.minutes, arguments.rate)
    state = timm.create_model(arguments.student).state_dict()
    own = {timm_name(name): t for name, t in student.network.state_dict().items()}
    assert set(own) <= set(state)  # noqa: S101
    safetensors.torch.save_file(
        {n: t.contiguous() for n, t in (state | own).items()}, arguments.out
    )
    print(f"{steps} steps on {len(images)} images: {arguments.out}")


if __name__ == "__main__":
    main()
