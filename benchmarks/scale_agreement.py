"""Whether the same leaf measures the same at any size of the photograph.

    python benchmarks/scale_agreement.py COFFEE --images 20

Test images with lesions are resized so that their long side is 512 to 4096 px, and measured
each time. Printed, and kept as a row a size: the median and the 90th percentile of the
relative difference from the measure at 1024 px, of severity and of the lesion count, and
the difference of their means.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import results_table

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.inference.pipeline import load_pipeline
from plantseg_next.inference.predictor import Predictor
from plantseg_next.inference.severity import MIN_LESION_PX, assess
from plantseg_next.models.start import STARTER_FOLDER

SIZES = (512, 768, 1024, 2048, 4096)
REFERENCE = 1024


def resized(image: np.ndarray, long_side: int) -> np.ndarray:
    """Return the image with another long side."""
    factor = long_side / max(image.shape[:2])
    size = tuple(round(n * factor) for n in image.shape[1::-1])
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=kind)


def measure(predictor: Predictor, image: np.ndarray) -> tuple[float, int]:
    """Return severity in percent, and the number of lesions."""
    least_px = round(MIN_LESION_PX / predictor.scale(image.shape[:2]) ** 2)
    found = assess(predictor(image), min_lesion_px=least_px)
    return found.measure.severity_pct or 0.0, len(found.counted)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--model", type=Path, default=STARTER_FOLDER)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/scale_agreement.csv")
    )
    arguments = parser.parse_args()
    model = load_pipeline(arguments.model)
    predictor, card = model.predictor, model.card
    rows = read_folder(arguments.data)
    rows = rows.only(r for r in rows.rows if r.split == "test" and r.disease != "healthy")
    rows = rows.only(rows.rows[: arguments.images])
    images = [load_sample(row, rows).image for row in rows.rows]
    found = {
        size: np.array([measure(predictor, resized(image, size)) for image in images])
        for size in SIZES
    }
    base = found[REFERENCE]
    for size, values in found.items():
        relative = np.abs(values - base) / np.maximum(base, 1e-9)
        row = {
            "model": card.sha256[:12],
            "data": arguments.data.name,
            "images": len(images),
            "long_side_px": size,
            "mean_severity_pct": round(float(values[:, 0].mean()), 3),
            "mean_lesions": round(float(values[:, 1].mean()), 2),
            "severity_median_difference_pct": round(
                100 * float(np.median(relative[:, 0])), 1
            ),
            "severity_p90_difference_pct": round(
                100 * float(np.percentile(relative[:, 0], 90)), 1
            ),
            "count_median_difference_pct": round(100 * float(np.median(relative[:, 1])), 1),
            "count_p90_difference_pct": round(
                100 * float(np.percentile(relative[:, 1], 90)), 1
            ),
        }
        print(row, flush=True)
        results_table.append(arguments.out, row | results_table.stamp())


if __name__ == "__main__":
    main()
