"""Folders of drawn leaves: images, masks, class names and an index."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from plantseg_next.errors import OutputError, UsageError
from plantseg_next.structures import IGNORE
from plantseg_next.synthetic.leaves import DISEASES, DrawnLeaf, draw_leaf, refuse_impossible
from plantseg_next.synthetic.lesions import LESION_KINDS

PALETTE = bytes.fromhex("000000 3ca03c 964b19 5a285a f0f0f0 e68214 d2c85a")
Names = tuple[str, str, str, str]
"""Name, split, disease and group of an image, as in the index."""


def write_drawn_folder(
    folder: Path,
    n: int,
    *,
    seed: int = 0,
    size_hw: tuple[int, int] = (256, 256),
) -> None:
    """Write a data set of drawn leaves: images, masks, names of classes, an index.

    What is written: ``images/*.jpg``; ``masks/*.png`` with a palette, 0 background,
    1 leaf and ``i + 2`` for ``LESION_KINDS[i]``; ``classes.yaml`` from value to name;
    ``index.csv`` with the columns name, split, disease, group. A quarter of the leaves
    are drawn at two ages; the images of a leaf are one group and in the same split.

    Splits are 70 / 15 / 15 % of the leaves of each disease, but any disease with three
    leaves has one in each split: small folders hold more of val and test.

    Args:
        folder: Created if missing.
        n: Images, at least 1.
        seed: Of the whole folder, at least 0.
        size_hw: Rows and columns of each image, at least 32 each.

    Raises:
        UsageError: If ``n``, ``seed`` or ``size_hw`` is outside the range stated above.
        OutputError: If the folder already holds images or an index.
    """
    make_folder(
        folder, ("background", "leaf", *LESION_KINDS), n=n, seed=seed, size_hw=size_hw
    )
    write_index(folder, _write_leaves(folder, n, seed, size_hw))


def make_folder(
    folder: Path, names: Iterable[str], *, n: int, seed: int, size_hw: tuple[int, int]
) -> None:
    """Make the folders of a data set, and its class file, if its images can be drawn.

    Args:
        folder: Created if missing.
        names: Meaning of the mask values from 0 on.
        n: Images that will be drawn, as ``seed`` and ``size_hw`` in ``write_drawn_folder``.
        seed: Likewise.
        size_hw: Likewise.

    Raises:
        UsageError: If ``n``, ``seed`` or ``size_hw`` is out of range.
        OutputError: If the folder already holds images or an index.
    """
    if n < 1:
        raise UsageError(f"`n` is {n}.", needed="1 image or more", fix="ask for more")
    refuse_impossible(seed, size_hw, None, None)
    for path in (folder / "images", folder / "masks", folder / "index.csv"):
        if path.exists():
            raise OutputError(
                f"`{path}` already exists.",
                needed="a folder without images and index",
                fix="name another folder, or remove the old images first",
            )
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    lines = (f"{value}: {name}\n" for value, name in enumerate(names))
    (folder / "classes.yaml").write_text("".join(lines), "utf-8")


def write_index(folder: Path, rows: Iterable[Names]) -> None:
    """Write ``index.csv``."""
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "split", "disease", "group"), *rows])


def _write_leaves(folder: Path, n: int, seed: int, size_hw: tuple[int, int]) -> list[Names]:
    """Write images and masks of single leaves, and return the rows of the index."""
    rng = np.random.default_rng([seed, n])
    looks = _plan_looks(rng, n)
    diseases = [DISEASES[k % len(DISEASES)] for k in range(len(looks))]
    splits = plan_splits(rng, diseases)
    rows: list[Names] = []
    next_seed = seed * 1_000_003
    for k, ages in enumerate(looks):
        drawn, next_seed = _first_shown(next_seed, ages, diseases[k], size_hw)
        for image, letter in zip(drawn, "ab", strict=False):
            name = f"leaf_{k:05}{letter}"
            write_pair(folder, name, image)
            rows.append((name, splits[k], diseases[k], f"leaf_{k:05}"))
    return rows


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


def plan_splits(rng: np.random.Generator, diseases: list[str]) -> list[str]:
    """Return the split of each leaf, in the same fractions for every disease."""
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


def write_pair(folder: Path, name: str, drawn: DrawnLeaf, palette: bytes = PALETTE) -> None:
    """Write an image and its mask, where unknown leaf is the value after the lesions."""
    Image.fromarray(drawn.image).save(folder / "images" / f"{name}.jpg", quality=95)
    values = np.where(drawn.lesion > 0, drawn.lesion + 1, drawn.leaf).astype(np.uint8)
    values[drawn.leaf == IGNORE] = len(LESION_KINDS) + 2
    mask = Image.frombytes("P", values.shape[::-1], values.tobytes())
    mask.putpalette(palette)
    mask.save(folder / "masks" / f"{name}.png")
