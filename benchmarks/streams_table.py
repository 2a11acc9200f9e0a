"""The tables of ``streams.py`` and ``new_crops.py``, as in ``docs/few-labels.md``.

    python benchmarks/streams_table.py

Intervals as in ``label_efficiency_plot.py``: test groups and seeds drawn again. Home is the
mean of the data sets whose masks are learned from, ``wild`` the images of other crops;
a difference is that to the same masks alone, over the same seeds.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import new_crops
import results_table
from label_efficiency_plot import Counts, Run, read_counts, scores, text_of
from streams import RESULTS, STREAMS, counts_path, stream_of

WILD = "wild"
MASKS_ALONE = "supervised"


def called(row: Run) -> str:
    """Return the stream of a row, and its variant."""
    return ", ".join(word for word in (stream_of(row), row["variant"]) if word)


def part(counts: list[Counts], sources: set[str]) -> list[Counts]:
    """Return the groups of some data sets, run by run."""
    return [{key: n for key, n in run.items() if key[0] in sources} for run in counts]


def paired(
    rows: list[Run], table: Path
) -> Iterator[tuple[str, list[Counts], list[Counts]]]:
    """Yield each stream with its runs, and those of the same masks alone.

    The same share and seed of both, or the masks that they keep would be compared.
    """
    counts_of = {
        (called(row), row["share"], row["steps"], row["seed"]): read_counts(
            counts_path(table, row)
        )
        for row in rows
    }
    order = list(STREAMS)
    streams = dict.fromkeys(stream for stream, *_ in counts_of)
    for stream in sorted(streams, key=lambda name: order.index(name.split(", ")[0])):
        twins = {run: (MASKS_ALONE, *run[1:]) for run in counts_of if run[0] == stream}
        twins = {run: twin for run, twin in twins.items() if twin in counts_of}
        if twins:
            yield (
                stream,
                [counts_of[run] for run in twins],
                [counts_of[twin] for twin in twins.values()],
            )


def sources_of(counts: list[Counts]) -> list[str]:
    """Return the data sets at home."""
    return sorted({source for source, _ in counts[0]} - {WILD})


def print_streams(rows: list[Run], table: Path) -> None:
    """Print a line a stream, beside the masks alone."""
    for stream, mine, twins in paired(rows, table):
        sources = sources_of(mine)
        line = f"| {stream} | {len(mine)} |"
        for source in sources:
            line += f" {scores(part(mine, {source}))[0]:.3f} |"
        for place in (set(sources), {WILD}):
            found, base = (scores(part(runs, place)) for runs in (mine, twins))
            line += f" {text_of(found)} |"
            line += " |" if stream == MASKS_ALONE else f" {text_of(found - base)} |"
        if stream == MASKS_ALONE:
            print(f"| stream | seeds | {' | '.join(sources)} | home | adds | wild | adds |")
        print(line)


def print_all_shares(rows: list[Run], table: Path) -> None:
    """Print what each stream adds over all runs, whatever their share of the masks."""
    for stream, mine, twins in paired([r for r in rows if not r["variant"]], table):
        if stream == MASKS_ALONE:
            continue
        sources = sources_of(mine)
        places = [*({source} for source in sources), set(sources), {WILD}]
        added = (scores(part(mine, place)) - scores(part(twins, place)) for place in places)
        print(f"| {stream} | {len(mine)} | {' | '.join(map(text_of, added))} |")


def print_seeds(rows: list[Run]) -> None:
    """Print how right the seeds of every disease were, and how much they found."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        for word in row["seeds"].split():
            name, value = word.split("=")
            what, disease = name.split("_", 1)
            if not math.isnan(float(value)):
                found[called(row), disease][what].append(float(value))
    for (stream, disease), metrics in sorted(found.items()):
        right, all_found = (
            f"{fmean(values):.2f} ({' '.join(f'{v:.2f}' for v in values)})"
            if values
            else ""
            for values in (metrics["right"], metrics["found"])
        )
        print(f"| {stream} | {disease} | {right} | {all_found} |")


def print_new_crops(rows: list[Run]) -> None:
    """Print every pair of crops before and after, seed by seed."""
    for row in sorted(rows, key=lambda r: (r["pair"], r["variant"], r["seed"], r["way"])):
        print(
            f"| {row['pair']} | {row['way']} {row['variant']} | {row['seed']} "
            f"| {float(row['source']):.3f} | {float(row['target']):.3f} | "
            f"{float(row['ratio']):.3f} ({float(row['ratio_low']):.3f} to "
            f"{float(row['ratio_high']):.3f}) |"
        )


def main() -> None:
    """Print what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=Path, default=RESULTS)
    parser.add_argument("--crops", type=Path, default=new_crops.RESULTS)
    arguments = parser.parse_args()
    rows = results_table.read(arguments.streams)
    for share, steps in dict.fromkeys((row["share"], row["steps"]) for row in rows):
        print(f"\n{share} of the masks, {steps} steps\n")
        mine = [row for row in rows if (row["share"], row["steps"]) == (share, steps)]
        print_streams(mine, arguments.streams)
        print("\n| stream | disease | right | found |")
        print_seeds(mine)
    print("\n| adds over all shares | runs | each, home, wild |")
    print_all_shares(rows, arguments.streams)
    print("\n| pair | way | seed | at home | target | ratio |")
    print_new_crops(results_table.read(arguments.crops))


if __name__ == "__main__":
    main()
