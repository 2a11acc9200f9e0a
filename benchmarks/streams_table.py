"""The table of ``streams.py`` as text: every stream, and what it adds to masks alone.

    python benchmarks/streams_table.py

Intervals as in ``label_efficiency_plot.py``. Home is the mean of the data sets whose masks
are learned from, ``wild`` the pictures of other crops.
"""

import argparse
from pathlib import Path

import results_table
from label_efficiency_plot import Counts, read_counts, scores, text_of
from streams import RESULTS, STREAMS, counts_path

WILD = "wild"


def part(counts: Counts, *, wild: bool) -> Counts:
    """Return the groups at home, or those of the other crops."""
    return {key: n for key, n in counts.items() if (key[0] == WILD) == wild}


def main() -> None:
    """Print a line a stream and share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=RESULTS)
    table = parser.parse_args().table
    rows = results_table.read(table)
    kinds = dict.fromkeys((row["share"], row["variant"], row["steps"]) for row in rows)
    for share, variant, steps in kinds:
        mine = [
            row
            for row in rows
            if (row["share"], row["variant"], row["steps"]) == (share, variant, steps)
        ]
        runs = {(row["stream"], row["seed"]): row for row in mine}
        print(f"{share} of the masks {variant}")
        for stream in STREAMS:
            seeds = [
                s for s in dict.fromkeys(r["seed"] for r in mine) if (stream, s) in runs
            ]
            # The same seeds of both, or the masks that they keep would be compared.
            twins = [s for s in seeds if ("supervised", s) in runs]
            if not seeds:
                continue
            line = f"  {stream:12} {len(seeds)} seeds"
            for place, wild in (("home", False), (WILD, True)):
                found, base = (
                    scores(
                        [
                            part(read_counts(counts_path(table, runs[name, s])), wild=wild)
                            for s in twins or seeds
                        ]
                    )
                    for name in (stream, "supervised" if twins else stream)
                )
                line += f"  {place} {text_of(found)}"
                if stream != "supervised" and twins:
                    line += f", adds {text_of(found - base)}"
            print(line)


if __name__ == "__main__":
    main()
