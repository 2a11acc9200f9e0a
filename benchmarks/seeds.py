"""How right seeds are, by how they are found: on validation tiles, whose masks are known.

    python benchmarks/seeds.py RUN

Of a finished run's last model: where the image-level head looks (LayerCAM, told from
healthy or from nothing, through its own statistics or through the whole encoder, smoothed
by colour or not), where the model finds a lesion likeliest, the product of both, and
pixels of the leaf by chance. The inside of the leaf is the model's.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import results_table
import torch
from torch import Tensor
from torch.nn import functional as F

from plantseg_next.data.manifest import Manifest
from plantseg_next.data.streams import TileDataset, collate
from plantseg_next.data.views import UNCHANGED
from plantseg_next.experiment import DataSettings, NamesSettings
from plantseg_next.models.bundle import read_bundle
from plantseg_next.models.segmenter import Segmenter
from plantseg_next.structures import NO_LESION, Batch
from plantseg_next.training.lessons.weak_labels import WeakLabels, smoothed_by_colour

RESULTS = Path(__file__).parent / "results" / "seeds.csv"
N_TILES = 160


def through_encoder(
    network: Segmenter, image: Tensor, disease: Tensor, against: Tensor
) -> Tensor:
    """Return ``Segmenter.locate`` with the gradient of the whole encoder."""
    maps = []
    for tiles, names in zip(image.split(16), disease.long().split(16), strict=True):
        network.requires_grad_(True)
        stages = network.encoder(network._normalised(tiles))  # noqa: SLF001
        logits = network.disease_head(network.summary(*stages))  # type: ignore[misc]
        known = names < logits.shape[1]
        number = names.clamp_max(logits.shape[1] - 1)[:, None]
        told = logits.gather(1, number)[:, 0] - (logits * against).sum(1)
        gradients = torch.autograd.grad((told * known).sum(), stages[:3])
        network.requires_grad_(False)
        found = []
        for stage, gradient in zip(stages, gradients, strict=False):
            map_ = (gradient.relu() * stage).sum(1, keepdim=True).relu().detach()
            map_ = map_ / map_.amax((2, 3), keepdim=True).clamp_min(1e-12)
            found.append(F.interpolate(map_, stages[0].shape[2:], mode="bilinear"))
        maps.append(torch.cat(found, 1).mean(1))
    return torch.cat(maps)


def ways(
    network: Segmenter, weak: WeakLabels, tiles: Batch, likely: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Yield every way to find seeds, as a map of the tile's size."""
    size = likely.shape[1:]
    healthy = weak.against(torch.device("cpu"))
    small = F.interpolate(tiles.image.float(), (size[0] // 4, size[1] // 4), mode="area")

    def whole(map_: Tensor) -> Tensor:
        return F.interpolate(map_[:, None], size, mode="bilinear")[:, 0]

    nothing = torch.zeros_like(healthy)
    own = network.locate(tiles.image, tiles.disease, healthy)
    yield "name", whole(own)
    yield "name, of itself", whole(network.locate(tiles.image, tiles.disease, nothing))
    through = through_encoder(network, tiles.image, tiles.disease, healthy)
    yield "name, through the encoder", whole(through)
    for rounds in (2, 5, 10):
        smooth = smoothed_by_colour(own, small, rounds=rounds)
        yield f"name, {rounds} rounds of smoothing", whole(smooth)
    yield "teacher", likely
    yield "both", whole(own) * likely
    yield "chance", torch.rand_like(likely)


def main() -> None:
    """Measure, and append to the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    torch.manual_seed(0)
    network, card = read_bundle(run / "last")
    network.eval().requires_grad_(False)
    manifest = Manifest.read(run / "manifest.json").split("val").labelled
    settings = DataSettings(
        tile_px=card.tile_px, long_side_px=card.long_side_px, balance=1.0
    )
    pixels = (1,) * card.classes.n_lesion_logits
    dataset = TileDataset(manifest, settings, seed=0, pixels=pixels, photometry=UNCHANGED)
    tiles = collate([dataset[i] for i in range(N_TILES)])
    size = (tiles.image.shape[2], tiles.image.shape[3])
    scores = network(tiles.image).resized(size)
    likely = 1 - scores.lesion.softmax(1)[:, NO_LESION]
    leaf = scores.leaf.argmax(1) == 1
    for high in (0.9, 0.95, 0.98):
        names = NamesSettings(high=high)
        weak = WeakLabels(names, card.classes)
        for way, map_ in ways(network, weak, tiles, likely):
            weak = WeakLabels(names, card.classes)
            seeds = weak.seeds(map_, leaf, torch.ones_like(leaf), tiles.disease)
            by_disease = weak.judge(seeds, tiles.lesion, tiles.disease)
            counts = weak.state_dict()["counts"].sum(0)
            row = {
                "run": run.name,
                "way": way,
                "high": high,
                "right": round(float(counts[1] / counts[0]), 3),
                "found": round(float(counts[1] / counts[2]), 3),
                "by_disease": " ".join(
                    f"{name.removeprefix('seeds_right_').replace(' ', '_')}={value:.2f}"
                    for name, value in by_disease.items()
                    if name.startswith("seeds_right_")
                ),
            }
            results_table.append(RESULTS, row | results_table.stamp())
            print(row, flush=True)


if __name__ == "__main__":
    main()
