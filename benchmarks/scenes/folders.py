"""Folders of drawn scenes: images, masks, class names and an index."""

from pathlib import Path

import numpy as np

from plantseg_next.synthetic.folders import (
    PALETTE,
    make_folder,
    plan_splits,
    write_index,
    write_pair,
)
from plantseg_next.synthetic.lesions import LESION_KINDS
from scenes.scene import draw_scene

UNSURE = bytes.fromhex("808080")


def write_scenes(
    folder: Path, n: int, *, seed: int = 0, size_hw: tuple[int, int] = (256, 256)
) -> None:
    """Write a data set of drawn scenes of all kinds, each a group of its own.

    The files are those of ``write_drawn_folder``. The masks have one value more, 7,
    "no lesion": foliage out of focus, of which it is unknown whether it counts as leaf.

    Args:
        folder: Created if missing.
        n: Images, at least 1.
        seed: Of the whole folder, at least 0.
        size_hw: Rows and columns of each image, at least 32 each.

    Raises:
        UsageError: If ``n``, ``seed`` or ``size_hw`` is outside the range stated above.
        OutputError: If the folder already holds images or an index.
    """
    meanings = ("background", "leaf", *LESION_KINDS, "no lesion")
    make_folder(folder, meanings, n=n, seed=seed, size_hw=size_hw)
    names, diseases = [], []
    for k in range(n):
        scene = draw_scene(seed * 1_000_003 + k, size_hw=size_hw)
        names.append(f"scene_{k:05}")
        diseases.append(scene.disease)
        write_pair(folder, names[-1], scene, PALETTE + UNSURE)
    splits = plan_splits(np.random.default_rng([seed, n]), diseases)
    write_index(folder, zip(names, splits, diseases, names, strict=True))
