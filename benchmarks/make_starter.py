"""Make the starter model that comes with the package.

    python benchmarks/make_starter.py draw  --work FOLDER --scenes 4000 --processes 2
    python benchmarks/make_starter.py train --work FOLDER --coffee FOLDER \
        [--plants FOLDER ...]
    python benchmarks/make_starter.py keep  --work FOLDER --out FOLDER

``draw`` writes drawn scenes in folders of 100. ``train`` learns leaf and lesion-or-not from
them and from the training split of the coffee leaves (esgario/lara2018, MIT), from the
packaged encoder; ``--plants`` adds photographs whose masks mark plants and no lesions, of
which half (by group) are kept to evaluate on. ``keep`` writes the last model in half
precision. Each resumes when it is called again.

The models in the package were made in two parts. First, from the ImageNet weights: 2,800
scenes as commit 930152e drew them, 2,370 steps of 16 tiles of 256 px, 3.8 minutes on a GPU.
Then, from what that gave (``--set model.start=RUN --set training.lr=5e-4``): 1,800 scenes
as commit 2ee95d6 drew them, 1,351 steps of 8 tiles of 256 px, 40 minutes on a core of a
CPU. ``starter-field`` differs in its second part: ``--plants``, 1,388 steps.
"""

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from scenes.folders import write_scenes

from plantseg_next import api
from plantseg_next.data import splits
from plantseg_next.data.formats import read_folder
from plantseg_next.data.manifest import Manifest, common_classes, merge
from plantseg_next.models.bundle import read_bundle, write_bundle
from plantseg_next.models.pretrained import PACKAGED
from plantseg_next.settings import Settings

CHUNK = 100
SIDE = 384
COFFEE_FRACTION = 0.3
PLANTS_FRACTION = 0.15
"""Of the samples that show coffee leaves, and plants without annotated lesions."""


def draw(work: Path, scenes: int, processes: int) -> None:
    """Draw what is missing, a folder after the other."""
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(_draw_chunk, [(work, k) for k in range(-(-scenes // CHUNK))]))


def _draw_chunk(task: tuple[Path, int]) -> None:
    work, number = task
    done = work / "scenes" / f"scenes_{number:03d}"
    if done.exists():
        return
    partial = work / f"partial_{number:03d}"
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was interrupted
    write_scenes(partial, CHUNK, seed=number, size_hw=(SIDE, SIDE))
    done.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(done)


def table(work: Path, coffee: Path, plants: list[Path]) -> Manifest:
    """Return all that is learned from, under one class of lesion.

    Of each part some images, by group, are only validated on.
    """
    parts = []
    parts += [read_folder(folder) for folder in sorted((work / "scenes").iterdir())]
    real = read_folder(coffee)
    parts.append(real.only(row for row in real.rows if row.split == "train"))
    for folder in plants:
        part = read_folder(folder)
        parts.append(part.only(row for row in part.rows if in_first_half(row.group)))
    bare = [part.only(replace(row, split=None) for row in part.rows) for part in parts]
    return one_class(splits.assign(merge(bare), seed=0, fractions=(0.9, 0.1, 0.0)))


def in_first_half(group: str) -> bool:
    """Return whether a group of plants is learned from; the others are evaluated on."""
    return sum(group.encode()) % 2 == 0


def one_class(manifest: Manifest) -> Manifest:
    """Return the table with every lesion class called ``lesion``, and without diseases."""
    codings = {
        source: replace(
            coding,
            meaning={
                value: "lesion" if meaning in coding.lesions else meaning
                for value, meaning in coding.meaning.items()
            },
        )
        for source, coding in manifest.codings.items()
    }
    rows = tuple(replace(row, disease=None) for row in manifest.rows)
    classes = common_classes(rows, codings)
    return replace(manifest, rows=rows, codings=codings, classes=classes)


def weights(manifest: Manifest, plants: list[Path]) -> str:
    """Return ``data.weights`` that give each kind its fraction of the samples."""
    wanted = {"coffee": COFFEE_FRACTION} | {
        folder.name: PLANTS_FRACTION / len(plants) for folder in plants
    }
    train = [row.source for row in manifest.split("train").rows]
    drawn = sum(source not in wanted for source in train)
    rest = 1 - sum(wanted.values())
    # With data.balance=0 a source is sampled in proportion to its images.
    pairs = [
        f"{source}: {fraction / rest * drawn / train.count(source):.4f}"
        for source, fraction in wanted.items()
    ]
    return "data.weights={" + ", ".join(pairs) + "}"


def train(
    work: Path, coffee: Path, plants: list[Path], settings: list[str], name: str
) -> None:
    """Train, or resume training."""
    path = work / f"{name}.json"
    if not path.exists():
        table(work, coffee, plants).write(path)
    chosen = Settings().with_settings(
        [
            "model.start=imagenet",
            "semi.method=supervised",
            "data.balance=0",
            "data.long_side_px=1024",
            weights(Manifest.read(path), plants),
            *settings,
        ]
    )
    api.train(path, work / name, chosen, log=lambda line: print(line, flush=True))


def keep(run: Path, out: Path, data_license: str) -> None:
    """Write the last model of a run in half precision; its card names the license."""
    network, card = read_bundle(run / "last")
    encoder = card.model.encoder
    card = replace(
        card,
        model=card.model.model_copy(update={"start": "imagenet"}),
        # Also of a model that was refined from an earlier starter.
        weights_origin=f"{encoder} (ImageNet)",
        weights_license=PACKAGED[encoder].license,
        weights_sha256=PACKAGED[encoder].sha256,
    )
    if data_license:
        card = replace(card, weights_license=f"{card.weights_license}; {data_license}")
    written = write_bundle(out, network.half(), card)
    size = (out / written.weights).stat().st_size
    print(f"{out / written.weights}: {size / 1e6:.1f} MB")


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("draw", "train", "keep"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--coffee", type=Path)
    parser.add_argument("--plants", type=Path, nargs="*", default=[])
    parser.add_argument("--name", default="starter")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--license", default="", help="of photographs learned from")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    match arguments.what:
        case "draw":
            draw(arguments.work, arguments.scenes, arguments.processes)
        case "train":
            train(
                arguments.work,
                arguments.coffee,
                arguments.plants,
                arguments.settings,
                arguments.name,
            )
        case "keep":
            keep(arguments.work / arguments.name, arguments.out, arguments.license)


if __name__ == "__main__":
    main()
