"""An image of the memory of one training step: what it is for, moment after moment."""

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
    "teaching": "#cad2c5",
    "losses": "#f2cc8f",
    "backward": "#2a9d8f",
    "workspace": "#999999",
}


def plot_plan(plan: MemoryPlan, path: Path) -> None:
    """Draw a step as asked for beside the step as planned.

    Raises:
        OutputError: If the file cannot be written.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(1, 2)
    for place, name, step in zip(
        places, ("as asked", "planned"), (plan.before, plan.after), strict=True
    ):
        _draw_step(place, step, plan.room)
        place.set_title(f"{name}: {step.peak_bytes / 1e6:,.0f} MB at the peak")
    places[0].set_ylabel("in use, MB")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False)
    with explained(path.parent):
        figure.savefig(path, dpi=110, format="png")


def _draw_step(place: Axes, step: Footprint, room: int) -> None:
    """Draw what each kind takes, one above the other, and what it may have as a line."""
    every = max(1, len(step.timeline) // MOMENTS)
    # The highest moment of each stretch: the peak must not fall between two.
    stretches = [step.timeline[i : i + every] for i in range(0, len(step.timeline), every)]
    moments = [max(some, key=sum) for some in stretches]
    place.stackplot(
        range(len(moments)),
        [[n_bytes / 1e6 for n_bytes in kind] for kind in zip(*moments, strict=True)],
        labels=KINDS,
        colors=[COLORS[kind] for kind in KINDS],
        linewidth=0,
    )
    place.axhline(room / 1e6, color="black", linewidth=0.8, linestyle="--")
    place.set_xlim(0, max(1, len(moments) - 1))
    place.set_xticks([])
    place.set_xlabel("one step, allocation after allocation")
