"""Ours beside segmentation_models_pytorch's U-Net, both from a random start.

    python benchmarks/against_unet.py DATA --minutes 8 --seeds 0 1 2

Both networks get the same tiles, losses, optimizer, schedule, precision, minutes and
stitched prediction; only the network and its peak rate differ. The U-Net (ResNet-18, with
its own image-level head) is what a careful person would take off the shelf. The best
model by validation is evaluated on the test split, which chooses nothing. A row a run is
added to the CSV; runs that are in it already are not repeated.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import results_table
import torch
from torch import Tensor, nn

from plantseg_next.data import splits
from plantseg_next.data.dataloader import loader
from plantseg_next.data.dataset import MixedDataset, TileDataset, count_pixels
from plantseg_next.data.formats import read_folder
from plantseg_next.data.manifest import Manifest
from plantseg_next.evaluation.report import evaluate
from plantseg_next.inference.backends import TorchBackend
from plantseg_next.inference.predictor import Predictor
from plantseg_next.models.segmenter import Scores, Segmenter, build_segmenter
from plantseg_next.runtime import find_device, seed_everything
from plantseg_next.settings import Settings
from plantseg_next.structures import ClassMap
from plantseg_next.training.callbacks.callback import Callback, Event, Validation
from plantseg_next.training.checkpoints import Checkpoints
from plantseg_next.training.engine import Engine
from plantseg_next.training.trainer import Trainer
from plantseg_next.workflows.evaluate import eval_items, severity_pct
from plantseg_next.workflows.validate import some_rows, validate

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATE = {"ours": 2e-3, "unet": 1e-3}


class OneRate(nn.Module):
    """What the engine asks of an encoder, where all layers have one learning rate."""

    def layer_depths(self) -> dict[str, int]:
        """Return no depths."""
        return {}


class UNet(nn.Module):
    """segmentation_models_pytorch's U-Net with the outputs that our losses expect."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: ClassMap) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        self.lesion_logits = classes.n_lesion_logits
        self.network = smp.Unet(
            "resnet18",
            encoder_weights=None,
            classes=self.lesion_logits + 2,
            aux_params={"classes": len(classes.diseases)},
        )
        self.encoder = OneRate()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def set_checkpointing(self, parts: Collection[str]) -> None:
        """Keep all activations."""

    def forward(self, image: Tensor, **_: object) -> Scores:
        """Return the three heads' logits for bytes, or numbers in [0, 1]."""
        if image.dtype == torch.uint8:
            image = image.float() / 255
        maps, disease = self.network((image - self.mean) / self.std)
        return Scores(maps[:, : self.lesion_logits], maps[:, -2:], disease)


class BestWeights(Callback):
    """Keep the best model, in memory."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.state = network.state_dict()

    def on_validation(
        self,
        step: int,  # noqa: ARG002
        validation: Validation,  # noqa: ARG002
        *,
        best: bool,
    ) -> Sequence[Event]:
        """Copy the weights if they are the best."""
        if best:
            self.state = {n: t.clone() for n, t in self._network.state_dict().items()}
        return ()


def run(
    manifest: Manifest,
    pixels: tuple[int, ...],
    network: str,
    settings: Settings,
) -> dict[str, Any]:
    """Train one network and return its row."""
    seed_everything(settings.seed)
    device = find_device(settings.device)
    classes = manifest.classes
    net = (
        cast("Segmenter", UNet(classes))
        if network == "unet"
        else build_segmenter(settings.model, classes)
    )
    data = MixedDataset(
        TileDataset(
            manifest.split("train").labeled,
            settings.data,
            seed=settings.seed,
            pixels=pixels,
        )
    )
    predictor = Predictor(
        TorchBackend(net, device.kind),
        classes,
        settings.data.tile_px,
        settings.data.long_side_px,
    )
    validation = some_rows(
        manifest.split("val").labeled, settings.training.validation_images, settings.seed
    )
    best = BestWeights(net)
    with tempfile.TemporaryDirectory() as folder:
        outcome = Trainer(
            Engine(net, settings, device, classes, with_unlabeled=False),
            lambda start: loader(
                data,
                batch_size=settings.training.batch,
                start=start,
                stop=settings.training.steps,
                workers=settings.data.workers,
            ),
            lambda _: validate(predictor, validation),
            settings,
            Checkpoints(Path(folder)),
            n_images=len(manifest.split("train").labeled),
            callbacks=[best],
        ).run()
    net.load_state_dict(best.state)
    started = time.perf_counter()
    test = manifest.split("test").labeled
    items = eval_items(predictor, classes, test, classes)
    report = evaluate(items, classes, severity=severity_pct)
    return {
        "network": network,
        "seed": settings.seed,
        "minutes": round(outcome.minutes, 2),
        "steps": outcome.steps,
        "parameters": sum(p.numel() for p in net.parameters()),
        "disease_miou": round(report.disease_miou.value, 4),
        "lesion_dice": round(report.lesion_dice.value, 4),
        "lesion_precision": round(report.lesion_precision.value, 4),
        "lesion_recall": round(report.lesion_recall.value, 4),
        "boundary_f1": round(report.lesion_boundary_f1.value, 4),
        "disease_accuracy": round(report.disease_accuracy.value, 4),
        **{
            f"dice_{row.name.replace(' ', '_')}": round(row.lesion_dice.value, 4)
            for row in report.diseases
        },
        "predict_s_a_image": round((time.perf_counter() - started) / len(test), 3),
        "rate": settings.training.lr,
        "precision": settings.training.precision,
        "torch_threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        **results_table.stamp(),
    }


def main() -> None:
    """Run every seed of both networks in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=["ours", "unet"])
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/against_unet.csv")
    )
    arguments = parser.parse_args()
    manifest = splits.assign(read_folder(arguments.data), seed=0)
    pixels = count_pixels(manifest.split("train").labeled).pixels
    done = results_table.read(arguments.out)
    for seed in arguments.seeds:
        for network in arguments.networks:
            if any(r["network"] == network and r["seed"] == str(seed) for r in done):
                continue
            print(f"{network}, seed {seed}", flush=True)
            settings = Settings().with_settings(
                [
                    f"seed={seed}",
                    "model.start=random",
                    f"training.minutes={arguments.minutes}",
                    f"training.lr={RATE[network]}",
                    "training.validations=4",
                    *arguments.settings,
                ]
            )
            row = run(manifest, pixels, network, settings)
            results_table.append(arguments.out, row)
    for row in results_table.read(arguments.out):
        print({name: row[name] for name in list(row)[:11]})


if __name__ == "__main__":
    main()
