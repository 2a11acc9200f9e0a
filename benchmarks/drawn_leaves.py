"""Speed of the drawn leaves, and a sheet to compare them with real ones by eye.

usage: python benchmarks/drawn_leaves.py [--real ../shared/data] --out FILE.png

The sheet has a row for each kind of lesion: one leaf at five ages, then three other
leaves; a row of healthy leaves; a row of natural grounds; and, where the folder of real
leaves is there, rows of real ones. Lesions are outlined in magenta, leaves in cyan.
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from plantseg_next.synthetic.leaves import LESION_KINDS, DrawnLeaf, draw_leaf

COLUMNS = 8
TILE_PX = 256
AGES_DAYS = (3.0, 6.0, 9.0, 14.0, 24.0)


def main() -> None:
    """Measure, draw the sheet and print the speed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=100, help="pictures to time")
    options = parser.parse_args()

    cv2.setNumThreads(1)
    draw_leaf(0)
    started = time.perf_counter()
    for seed in range(options.n):
        draw_leaf(seed)
    speed = options.n / (time.perf_counter() - started)
    print(f"{speed:.1f} pictures/s of {TILE_PX}x{TILE_PX} on one core")

    rows = [*drawn_rows(), *real_rows(options.real)]
    sheet = np.vstack([np.hstack(row) for row in rows])
    if not cv2.imwrite(str(options.out), sheet[..., ::-1]):
        raise SystemExit(f"`{options.out}` could not be written")
    print(f"{len(rows)} rows -> {options.out}")


def drawn_rows() -> list[list[np.ndarray]]:
    """Return rows of drawn tiles with outlines."""
    rows = []
    for k, kind in enumerate(LESION_KINDS):
        first = 100 * (k + 1)
        aged = [draw_leaf(first, disease=kind, age_days=age) for age in AGES_DAYS]
        others = [draw_leaf(first + i, disease=kind) for i in range(1, 4)]
        rows.append([outlined(leaf, leaf.disease) for leaf in aged + others])
    for first, natural in ((700, None), (800, True)):
        leaves = [
            draw_leaf(
                first + i,
                disease=None if natural else "healthy",
                natural_ground=natural,
            )
            for i in range(COLUMNS)
        ]
        rows.append([outlined(leaf, leaf.disease) for leaf in leaves])
    return rows


def outlined(drawn: DrawnLeaf, label: str) -> np.ndarray:
    """Return the picture with the borders of its masks and a label."""
    picture = drawn.image.copy()
    for mask, colour in ((drawn.leaf, (0, 255, 255)), (drawn.lesion, (255, 0, 255))):
        lines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, lines, -1, colour, 1)
    text = f"{label}, day {drawn.age_days:.0f}"
    cv2.putText(picture, text, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255))
    return picture


def real_rows(folder: Path) -> list[list[np.ndarray]]:
    """Return a row of real tiles for each collection under ``folder``, if it is there."""
    rows = []
    for name in ("coffee", "potato", "rice", "plantvillage", "cardamom"):
        paths = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() == ".jpg" and "mask" not in path.parent.name
        )
        if len(paths) < COLUMNS:
            continue
        chosen = paths[:: len(paths) // COLUMNS][:COLUMNS]
        rows.append([real_tile(path) for path in chosen])
    if not rows:
        print(f"no real leaves under {folder}: the sheet holds drawn ones only")
    return rows


def real_tile(path: Path) -> np.ndarray:
    """Return the middle square of a photograph."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
    h, w = picture.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    square = np.ascontiguousarray(picture[top : top + side, left : left + side])
    return cv2.resize(square, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
