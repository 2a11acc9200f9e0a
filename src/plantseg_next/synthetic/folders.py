"""Folders of drawn leaves or scenes: images, masks, class names and an index."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from plantseg_next.errors import OutputError, UsageError
from plantseg_next.structures import IGNORE
from plantseg_next.synthetic.leaves import DISEASES, DrawnLeaf, draw_leaf, refuse_impossible
from plantseg_next.synthetic.lesions import LESION_KINDS
from plantseg_next.synthetic.scenes import draw_scene

PALETTE = bytes.fromhex("000000 3ca03c 964b19 5a285a f0f0f0 e68214 d2c85a")
UNSURE = bytes.fromhex("808080")


def write_drawn_folder(
    folder: Path,
    n: int,
    *,
    seed: int = 0,
    size_hw: tuple[int, int] = (256, 256),
    scenes: bool = False,
) -> None:
    """Write a data set of drawn leaves: images, masks, names of classes, an index.

    What is written: ``images/*.jpg``; ``masks/*.png`` with a palette, 0 background,
    1 leaf and ``i + 2`` for ``LESION_KINDS[i]``; ``classes.yaml`` from value to name;
    ``index.csv`` with the columns name, split, disease, group. A quarter of the leaves
    are drawn at two ages; the images of a leaf are one group and in the same split.

    Splits are 70 / 15 / 15 % of the leaves of each disease, but any disease with three
    leaves has one in each split: small folders hold more of val and test.

    With ``scenes``, what ``scenes.draw_scene`` draws is written instead, each a group of
    its own. Its masks have one value more, 7, "no lesion": foliage out of focus, of which
    it is unknown whether it counts as leaf.

    Args:
        folder: Created if missing.
        n: Images, at least 1.
        seed: Of the whole folder, at least 0.
        size_hw: Rows and columns of each image, at least 32 each.
        scenes: Whether to draw scenes of all kinds instead of single leaves.

    Raises:
        UsageError: If ``n``, ``seed`` or ``size_hw`` is outside the range stated above.
        OutputError: If the folder already holds images or an index.
    """
    if n < 1:
        raise UsageError(f"`n` is {n}.", needed="1 image or more", fix="ask for more")
    refuse_impossible(seed, size_hw, None, None)
    index = folder / "index.csv"
    for path in (folder / "images", folder / "masks", index):
        if path.exists():
            raise OutputError(
                f"`{path}` already exists.",
                needed="a folder without images and index",
                fix="name another folder, or remove the old images first",
            )
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    names = ("background", "leaf", *LESION_KINDS, *(("no lesion",) if scenes else ()))
    lines = (f"{value}: {name}\n" for value, name in enumerate(names))
    (folder / "classes.yaml").write_text("".join(lines), "utf-8")

    rows = (_write_scenes if scenes else _write_leaves)(folder, n, seed, size_hw)
    with index.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "split", "disease", "group"), *rows])


_Row = tuple[str, str, str, str]


def _write_leaves(folder: Path, n: int, seed: int, size_hw: tuple[int, int]) -> list[_Row]:
    """Write images and masks of single leaves, and return the rows of the index."""
    rng = np.random.default_rng([seed, n])
    looks = _plan_looks(rng, n)
    diseases = [DISEASES[k % len(DISEASES)] for k in range(len(looks))]
    splits = _plan_splits(rng, diseases)
    rows: list[_Row] = []
    next_seed = seed * 1_000_003
    for k, ages in enumerate(looks):
        drawn, next_seed = _first_shown(next_seed, ages, diseases[k], size_hw)
        for image, letter in zip(drawn, "ab", strict=False):
            name = f"leaf_{k:05}{letter}"
            _write_pair(folder, name, image, PALETTE)
            rows.append((name, splits[k], diseases[k], f"leaf_{k:05}"))
    return rows


def _write_scenes(folder: Path, n: int, seed: int, size_hw: tuple[int, int]) -> list[_Row]:
    """Write images and masks of scenes, and return the rows of the index."""
    names, diseases = [], []
    for k in range(n):
        scene = draw_scene(seed * 1_000_003 + k, size_hw=size_hw)
        names.append(f"scene_{k:05}")
        diseases.append(scene.disease)
        _write_pair(folder, names[-1], scene, PALETTE + UNSURE)
    splits = _plan_splits(np.random.default_rng([seed, n]), diseases)
    return list(zip(names, splits, diseases, names, strict=True))


def _plan_looks(rng: np.random.Generator, n: int) -> list[tuple[float, ...]]:
    """Return the ages at which each leaf is seen, ``n`` images in all."""
    looks: list[tuple[float, ...]] = []
    left = n
    while left:
        twice = left > 1 and rng.random() < 0.25
        young, old = rng.uniform(5, 10), rng.uniform(14, 25)
        looks.append((young, old) if twice else (rng.uniform(8, 25),))
        left -= len(looks[-1])
    return looks


def _plan_splits(rng: np.random.Generator, diseases: list[str]) -> list[str]:
    """Return the split of each leaf, the same fractions for every disease."""
    splits = [""] * len(diseases)
    for disease in DISEASES:
        leaves = [k for k, name in enumerate(diseases) if name == disease]
        held = max(1, round(0.15 * len(leaves)))
        order = ["train"] * max(1, len(leaves) - 2 * held) + (["test", "val"] * held)
        mixed = rng.permutation(np.array(order[: len(leaves)]))
        for k, split in zip(leaves, mixed.tolist(), strict=True):
            splits[k] = split
    return splits


def _first_shown(
    seed: int, ages: tuple[float, ...], disease: str, size_hw: tuple[int, int]
) -> tuple[list[DrawnLeaf], int]:
    """Return the first leaf from ``seed`` on whose lesions show, and the next seed."""
    while True:
        drawn = [
            draw_leaf(seed, size_hw=size_hw, disease=disease, age_days=age) for age in ages
        ]
        seed += 1
        if disease == "healthy" or all(leaf.lesion.any() for leaf in drawn):
            return drawn, seed


def _write_pair(folder: Path, name: str, drawn: DrawnLeaf, palette: bytes) -> None:
    Image.fromarray(drawn.image).save(folder / "images" / f"{name}.jpg", quality=95)
    values = np.where(drawn.lesion > 0, drawn.lesion + 1, drawn.leaf).astype(np.uint8)
    values[drawn.leaf == IGNORE] = len(LESION_KINDS) + 2
    mask = Image.frombytes("P", values.shape[::-1], values.tobytes())
    mask.putpalette(palette)
    mask.save(folder / "masks" / f"{name}.png")
