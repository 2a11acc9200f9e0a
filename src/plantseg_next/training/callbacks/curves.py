"""The curves of a run, from its history. This module does not import torch."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from plantseg_next.files import write_atomically
from plantseg_next.training.run_record import HISTORY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"


def draw_curves(folder: Path) -> None:
    """Draw ``curves.png``: scores at the top, losses below, the teacher at the bottom.

    Nothing is drawn before the first validation.

    Raises:
        OSError: If the image cannot be written.
    """
    columns = _columns(folder / HISTORY)
    if not columns:
        return
    # Not pyplot: it keeps figures in memory, and may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high = (columns.pop(f"val_lesion_dice_{bound}", None) for bound in ("low", "high"))
    metrics = {n[4:]: v for n, v in columns.items() if n.startswith("val_")}
    losses = {n[5:]: v for n, v in columns.items() if n.startswith("loss_")}
    teacher = {
        n: v for n, v in columns.items() if n in {"student_teacher_dice", "pl_mask_ratio"}
    }
    panels = [
        (title, lines)
        for title, lines in (
            ("validation score", metrics),  # without a lesion or leaf there are none
            ("training loss", losses),  # there are none before the first step
            ("fraction of pixels", teacher),
        )
        if lines
    ]
    if not panels:
        return
    figure = Figure(figsize=(7, 2.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (title, lines) in zip(axes, panels, strict=True):
        _draw(panel, title, columns["step"], lines)
    if low and high:
        axes[0].fill_between(columns["step"], low, high, alpha=0.15)
    best = [s for s, b in zip(columns["step"], columns["best"], strict=True) if b]
    if best:
        axes[0].axvline(best[-1], color="0.6", linestyle=":", label="best model")
    axes[0].legend(fontsize="small", loc="lower right")
    axes[-1].set_xlabel("optimizer step")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_atomically(folder / CURVES, image.getvalue())


def _draw(
    panel: "Axes", title: str, steps: list[float], lines: dict[str, list[float]]
) -> None:
    for name, values in lines.items():
        panel.plot(steps, values, marker=".", label=name.replace("_", " "))
    panel.set_ylabel(title)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")


def _columns(path: Path) -> dict[str, list[float]]:
    """Return the columns of a history; missing values are NaN."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() if rows else ()
    return {n: [float(row[n]) if row[n] else math.nan for row in rows] for n in names}
