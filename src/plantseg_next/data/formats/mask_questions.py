"""Questions about masks: errors that draft the class file that answers them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from plantseg_next.data.formats.mask_statistics import ColorStats, ValueStats
from plantseg_next.data.manifest import Channel
from plantseg_next.errors import UsageError, shorten

Lines = Mapping[int | str, str]

_COMPRESSED_COLORS = 64


def ask(folder: Path, came: str, lines: Lines, more: str = "") -> UsageError:
    """Return the question what values mean.

    Args:
        folder: The data set.
        came: What was found.
        lines: Lines of a class file to propose; "?" where the user must choose.
        more: Further lines, or an alternative.
    """
    shown = "\n".join(f"    {value}: {name}" for value, name in lines.items())
    replaced = ", with each ? replaced" if "?" in lines.values() else ""
    return UsageError(
        came,
        needed="the meaning of each value: background, leaf, ignore or a lesion class",
        fix=f"save these lines as `{folder / 'classes.yaml'}`{replaced}:\n{shown}{more}",
    )


def ask_whether_plant(
    folder: Path, why: str, group: Sequence[int], lines: Lines, *, inverted: bool
) -> UsageError:
    """Return the question whether values mark the plant, or else the ground.

    Args:
        folder: The data set.
        why: Why it is asked.
        group: The values.
        lines: Other lines of the class file to propose; the ground is first.
        inverted: Whether the masks may be inverted.
    """
    ground = next(iter(lines))
    edges = "\n    edges: smoothed" if "edges" in lines else ""
    values = {value: name for value, name in lines.items() if value != "edges"}
    more = edges + ("" if "?" in lines.values() else "\n    lesion: not annotated")
    if inverted:
        more += (
            f"\n  if the masks are inverted, these:\n    {group[0]}: background\n"
            f"    {ground}: lesion{edges}\n  and if it is the lesion all the same:\n"
            f"    {ground}: background\n    {group[0]}: lesion{edges}"
        )
    came = f"Masks in `{folder}`: {why}"
    return ask(folder, came, {**values, **dict.fromkeys(group, "leaf")}, more)


def faint(folder: Path, stats: ValueStats) -> UsageError:
    """Return the error for small values in masks that were compressed with loss."""
    return UsageError(
        f"The masks in `{folder}` were compressed with loss, and hold the values "
        f"{shorten(stats.values.tolist(), 6)}.",
        needed="a lossless format: such compression changes small values to one another",
        fix="export the masks again as PNG",
    )


def colored(folder: Path, colors: ColorStats, channel: Channel) -> UsageError:
    """Return the question what colors mean, or the error for too many of them."""
    many = len(colors.counts) > _COMPRESSED_COLORS
    if many or channel == "gray":
        return UsageError(
            f"The masks in `{folder}` hold {len(colors.counts)} colors; for example "
            f"`{colors.example.name}`.",
            needed="masks of few colors: smoothing and lossy compression (JPEG, WebP, "
            "AVIF) add others, and photographs are no masks",
            fix="export the masks again as PNG, without smoothing; if these are "
            "photographs, move them out of the folder of masks",
        )
    order = sorted(colors.counts, key=lambda color: -colors.counts[color])
    total = sum(colors.counts.values())
    lines = [
        f'    "#{color:06x}": {"background" if color == order[0] else "?"}'
        f"    # {100 * colors.counts[color] / total:.1f} % of the pixels"
        for color in order[:8]
    ]
    more = f" and {len(order) - 8} more" if len(order) > 8 else ""
    return UsageError(
        f"The masks in `{folder}` are colored; they have {len(order)} colors, for example "
        f"`{colors.example.name}`.",
        needed="the meaning of each color: background, leaf, ignore or a lesion class",
        fix=f"save these lines{more} as `{folder / 'classes.yaml'}`, with each ? "
        "replaced:\n" + "\n".join(lines),
    )
