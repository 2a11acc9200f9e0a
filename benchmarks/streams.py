"""What each stream adds to few masks: bare images, names, points, all of them.

    python benchmarks/streams.py coffee potato rice --village plantvillage --wild wild \
        --work FOLDER

The data sets become one, as in ``label_efficiency.py``. A share of the training masks is
kept. To these are added, one stream at a time and all together,

- ``unlabeled``: the other training images, of which nothing is known;
- ``names``: class folders of another crop, as in PlantVillage;
- ``nameless``: the same images without their names;
- ``own names``: the other training images with the name of what ails them;
- ``points``: an eighth of them with a few points each, on lesions and beside them.

Every run takes the same number of optimizer steps. Its last model is evaluated on the test
images of every source and on images of other crops off the web (``wild``). With
``--runs`` the models of ``label_efficiency.py`` stand for the first two streams, which are
the same runs.
"""

import argparse
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
import results_table
from label_efficiency import evaluate_last, one_data_set, settings_of, write_counts
from PIL import Image

from plantseg_next import api
from plantseg_next.data import splits
from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest, Row, common_classes
from plantseg_next.data.quality.scene_splits import drop_leaks
from plantseg_next.structures import IGNORE

RESULTS = Path(__file__).parent / "results" / "streams.csv"
STREAMS = {
    "supervised": (),
    "unlabeled": ("bare",),
    "names": ("village",),
    "nameless": ("nameless",),
    "own names": ("named",),
    "points": ("pointed",),
    "all": ("bare", "village", "pointed"),
}
EARLIER = {"unlabelled": "unlabeled"}
"""Streams that earlier rows have under another name."""
SEED_COLUMNS = {"cam_seed_precision": "right", "cam_seed_recall": "found"}
"""Metrics of the seeds of image-level labels, and their names in the table."""
POINTED_FRACTION = 1 / 8
POINTS = 5
"""Most points an image, on lesions; as many beside them."""


def points_of(row: Row, manifest: Manifest, path: Path) -> Path:
    """Write a mask of a few points, as a person might set them; return its path."""
    if path.exists():
        return path
    rng = np.random.default_rng(zlib.crc32(row.key.encode()))
    sample = load_sample(row, manifest)
    mask = np.full(sample.lesion.shape, IGNORE, np.uint8)
    coding = manifest.codings[row.source].meaning
    value_of = {meant: int(value) for value, meant in coding.items()}
    n, parts = cv2.connectedComponents((sample.lesion == 1).astype(np.uint8))
    for part in rng.permutation(np.arange(1, n))[:POINTS]:
        _dot(mask, parts == part, value_of["lesion"], rng)
    off = sample.lesion == 0
    for place in (off & (sample.leaf == 1), off & (sample.leaf != 1)):
        value = value_of["leaf" if sample.leaf[place].max(initial=0) == 1 else "background"]
        for _ in range(POINTS // 2 + 1):
            _dot(mask, place, value, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def _dot(mask: np.ndarray, place: np.ndarray, value: int, rng: np.random.Generator) -> None:
    ys, xs = np.nonzero(place)
    if len(ys):
        i = int(rng.integers(len(ys)))
        dot = np.zeros_like(mask)
        cv2.circle(dot, (int(xs[i]), int(ys[i])), 1, 1, -1)
        mask[(dot == 1) & place] = value


def parts_of(few: Manifest, folder: Path, village: Manifest) -> dict[str, list[Row]]:
    """Return the rows of every stream, apart from the masks that are kept."""
    hidden = [row for row in few.rows if row.split == "unlabeled"]
    bare = [replace(row, mask=None, disease=None) for row in hidden]
    named = [replace(row, mask=None, split="train") for row in hidden]
    chosen = hidden[:: round(1 / POINTED_FRACTION)]
    pointed = [
        replace(row, split="train", mask=points_of(row, few, folder / f"{row.key}.png"))
        for row in chosen
    ]
    return {
        "bare": bare,
        "named": named,
        "pointed": pointed,
        "village": [*village.rows],
        "nameless": [replace(row, disease=None, split="unlabeled") for row in village.rows],
    }


def sources_of(
    few: Manifest, parts: dict[str, list[Row]], wanted: tuple[str, ...]
) -> Manifest:
    """Return the masks that are kept and the streams wanted as one table."""
    kept = [row for row in few.rows if row.split != "unlabeled"]
    added = [row for part in wanted for row in parts[part]]
    pointed = {row.key for row in added if row.mask is not None}
    added = [row for row in added if row.mask is not None or row.key not in pointed]
    codings = {
        name: replace(coding, meaning={**coding.meaning, IGNORE: "ignore"})
        for name, coding in few.codings.items()
    }
    rows = (*kept, *added)
    return Manifest(rows, common_classes(rows, codings), codings)


def seeds_in(run: Path) -> Iterator[tuple[str, str]]:
    """Yield how right the seeds of each disease were, and how much they found."""
    last = results_table.read(run / "history.csv")[-1]
    for column, value in last.items():
        metric, _, disease = column.partition("/")
        if metric in SEED_COLUMNS and value:
            yield f"{SEED_COLUMNS[metric]}_{disease}", f"{float(value):.3f}"


def stream_of(row: dict[str, str]) -> str:
    """Return the stream of a row of the table, by its present name."""
    return EARLIER.get(row["stream"], row["stream"])


def counts_path(table: Path, name: dict[str, str]) -> Path:
    """Return where the pixels of every test group of a run are kept."""
    words = [name[key] for key in ("stream", "variant", "share", "steps", "seed")]
    called = "-".join(word for word in words if word)
    return table.with_suffix("") / f"{called.replace('/', 'of').replace(' ', '_')}.csv"


def run_of(
    stream: str,
    share: str,
    seed: int,
    arguments: argparse.Namespace,
    whole: Manifest,
    village: Manifest,
) -> Path:
    """Train, unless that run is there, and return its folder."""
    method = "supervised" if stream in ("supervised", "points") else "weak_to_strong"
    words = (share.replace("/", "of"), arguments.steps, seed)
    if arguments.runs and stream in ("supervised", "unlabeled"):
        return Path(arguments.runs, "-".join(map(str, (method, *words))))
    few = splits.labeled_fraction(whole, float(Fraction(share)), seed=seed)
    parts = parts_of(few, arguments.work / "points", village)
    manifest = sources_of(few, parts, STREAMS[stream])
    named = [word for word in (stream, arguments.variant, *words) if word != ""]
    called = "-".join(str(word).replace(" ", "_") for word in named)
    data = arguments.work / f"{called}.json"
    if not data.exists():
        manifest, left = drop_leaks(manifest)
        print(f"  {len(left)} images left out", flush=True)
        manifest.write(data)
    settings = settings_of(seed=seed, share="1", steps=arguments.steps).with_settings(
        [f"semi.method={method}", "image_labels.fraction=0.5", *arguments.settings]
    )
    place: Path = arguments.work / called
    api.train(data, place, settings, log=lambda line: print(" ", line, flush=True))
    return place


def main() -> None:
    """Run what is missing, a seed after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--village", type=Path, required=True)
    parser.add_argument("--wild", type=Path, required=True)
    parser.add_argument("--runs", type=Path, help="--work of label_efficiency.py")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--shares", nargs="+", default=["1/32", "1/8"])
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", default="", help="name of what --set changes")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    whole = one_data_set(arguments.data, arguments.work / "manifest.json")
    village = read_folder(arguments.village)
    village = village.only(
        replace(row, key=f"village/{row.key}", split="train") for row in village.rows
    )
    wild = read_folder(arguments.wild).labeled
    done = [r | {"stream": stream_of(r)} for r in results_table.read(arguments.out)]
    for seed, share, stream in (
        (seed, share, stream)
        for seed in arguments.seeds
        for share in arguments.shares
        for stream in arguments.streams
    ):
        name = {
            "stream": stream,
            "variant": arguments.variant,
            "share": share,
            "seed": str(seed),
            "steps": str(arguments.steps),
        }
        if results_table.holds(done, name):
            continue
        print(name, flush=True)
        place = run_of(stream, share, seed, arguments, whole, village)
        found = evaluate_run(place, wild, counts_path(arguments.out, name))
        print(" ", found, flush=True)
        results_table.append(arguments.out, name | found | results_table.stamp())


def evaluate_run(place: Path, wild: Manifest, counts: Path) -> dict[str, Any]:
    """Evaluate a run's last model, keep the counts of test groups; return the metrics."""
    manifest = Manifest.read(place / "manifest.json")
    test, stats = evaluate_last(place, manifest.split("test").labeled)
    val, _ = evaluate_last(place, manifest.split("val").labeled)
    target_domain, wild_stats = evaluate_last(place, wild)
    write_counts(counts, stats, wild_stats)
    by_source = {s.name: round(s.lesion_dice.value, 4) for s in test.sources}
    return {
        "n_masks": len(manifest.split("train").labeled),
        **{f"dice_{source}": dice for source, dice in by_source.items()},
        "mean_dice": round(fmean(by_source.values()), 4),
        "val_mean_dice": round(fmean(s.lesion_dice.value for s in val.sources), 4),
        "wild_dice": round(fmean(s.lesion_dice.value for s in target_domain.sources), 4),
        "seeds": " ".join(f"{n.replace(' ', '_')}={v}" for n, v in seeds_in(place)),
    }


if __name__ == "__main__":
    main()
