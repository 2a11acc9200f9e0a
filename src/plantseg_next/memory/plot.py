"""A plot of the memory of one training step over time, by kind."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from plantseg_next.files import explained
from plantseg_next.memory.allocation_tracker import KINDS, Footprint
from plantseg_next.memory.plan import MemoryPlan

MOMENTS = 2000
COLORS = {
    "weights": "#355070",
    "teacher": "#6d597a",
    "optimizer": "#b56576",
    "gradients": "#e56b6f",
    "images": "#eaac8b",
    "activations": "#84a98c",
    "teacher predictions": "#cad2c5",
    "losses": "#f2cc8f",
    "backward": "#2a9d8f",
    "workspace": "#999999",
}


def plot_plan(plan: MemoryPlan, path: Path) -> None:
    """Plot the memory of a step as requested next to that of the step as planned.

    Raises:
        OutputError: If the file cannot be written.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for ax, name, step in zip(
        axes, ("requested", "planned"), (plan.before, plan.after), strict=True
    ):
        _draw_step(ax, step, plan.room)
        ax.set_title(f"{name}: {step.peak_bytes / 1e6:,.0f} MB at the peak")
    axes[0].set_ylabel("in use, MB")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    with explained(path.parent):
        figure.savefig(path, dpi=110, format="png")


def _draw_step(ax: Axes, step: Footprint, room: int) -> None:
    """Plot the bytes of each kind, stacked, and the available bytes as a line."""
    every = max(1, len(step.timeline) // MOMENTS)
    # The maximum of each interval, so that subsampling keeps the peak.
    intervals = [step.timeline[i : i + every] for i in range(0, len(step.timeline), every)]
    moments = [max(interval, key=sum) for interval in intervals]
    ax.stackplot(
        range(len(moments)),
        [[n_bytes / 1e6 for n_bytes in kind] for kind in zip(*moments, strict=True)],
        labels=KINDS,
        colors=[COLORS[kind] for kind in KINDS],
        linewidth=0,
    )
    ax.axhline(room / 1e6, color="black", linewidth=0.8, linestyle="--")
    ax.set_xlim(0, max(1, len(moments) - 1))
    ax.set_xticks([])
    ax.set_xlabel("allocations of one step, in order")
