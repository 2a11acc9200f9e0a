"""Verbs that judge a model or use it, and the demo that goes the whole way."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Never

import typer

from plantseg_next.bars import Told, TrainingBar, bars, progress_bars
from plantseg_next.cli.app import AsJson, Classes, Model, Out, Pictures, app
from plantseg_next.errors import UsageError

if TYPE_CHECKING:
    from plantseg_next.inference.records import Written


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(help="Pictures with masks; the data set of the run by default."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="train, val, test, or all (for data never learned from).")
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.txt, report.json, pictures.csv.")
    ] = None,
    classes: Classes = None,
    json: AsJson = False,
) -> None:
    """Judge a model on pictures that it has not learned from.

    Those are the test pictures of its run, unless others are named.
    """
    from plantseg_next import api
    from plantseg_next.files import prepare_output

    if out is not None:
        prepare_output(out)
    with progress_bars() as progress:
        report = api.evaluate(
            model, data, split=_one_split(split), classes=classes, progress=progress
        )
    print(report.to_json() if json else report.to_text())
    if out is not None:
        report.write(out)


@app.command()
def predict(
    model: Model,
    pictures: Pictures,
    out: Out = Path("predictions"),
    min_lesion_px: Annotated[
        int, typer.Option(min=1, help="Smaller lesions, in pixels, are not counted.")
    ] = 20,
) -> None:
    """Measure new pictures: severity, lesions, masks, overlays.

    Ends with exit code 1 if a picture could not be read; the others are measured.
    """
    from plantseg_next import api

    with progress_bars() as progress:
        found = api.predict(
            model, pictures, out, min_lesion_px=min_lesion_px, progress=progress
        )
    print(_table(found))
    print(f"{len(found.rows)} pictures measured: {out / 'severity.csv'}")
    _end(found)


@app.command()
def pseudo_label(
    model: Model,
    pictures: Pictures,
    out: Out = Path("pseudo_labels"),
    threshold: Annotated[
        float, typer.Option(help="Least probability believed; the rest is ignored.")
    ] = 0.9,
) -> None:
    """Label pictures with what a model is sure of.

    train --pseudo-labels reads them, and a person can correct them before. Ends with exit
    code 1 if a picture could not be read; the others are labelled.
    """
    from plantseg_next import api

    with progress_bars() as progress:
        found = api.pseudo_label(
            model, pictures, out, threshold=threshold, progress=progress
        )
    print(f"{len(found.rows)} pictures labelled: {out / 'pseudo_labels.csv'}")
    print(f"correct the masks in {out / 'masks'} where they are wrong, then:")
    print(f"next:  plantseg-next train DATA --pseudo-labels {out}")
    _end(found)


@app.command()
def demo(
    out: Out = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 600,
    leaves: Annotated[int, typer.Option(min=40, help="Leaves to draw.")] = 240,
) -> None:
    """Draw leaves, check, train, evaluate and predict them."""
    from plantseg_next import api

    with bars() as bar:
        done = api.demo(
            out,
            steps=steps,
            leaves=leaves,
            watchers=[TrainingBar(bar)],
            say=bar.console.print,
            progress=Told(bar),
        )
    print(done.report.to_text())
    print(_table(done.predicted))
    print(
        f"\nmodel:     {done.trained.folder / 'best'}\n"
        f"report:    {done.folder / 'report'}\n"
        f"severity:  {done.folder / 'predictions' / 'severity.csv'}\n"
        f"overlays:  {done.folder / 'predictions' / 'overlays'}"
    )


def _one_split(name: str) -> Literal["train", "val", "test", "all"]:
    match name:
        case "train" | "val" | "test" | "all":
            return name
        case _:
            raise UsageError(
                f"--split is {name!r}.",
                needed="train, val, test or all",
                fix="leave it out for the test split",
            )


def _end(found: "Written") -> Never:
    """Name the pictures that were skipped; end with exit code 1 if there are any."""
    for name, reason in found.skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    raise typer.Exit(1 if found.skipped else 0)


def _table(found: "Written", most: int = 12) -> str:
    """Return the first rows of the severity table as aligned text."""
    lines = [f"{'picture':<40} {'severity':>10} {'lesions':>8}"]
    for row in found.rows[:most]:
        severity = row["severity_pct"]
        percent = (
            f"{severity:.2f} %"
            if isinstance(severity, float)
            else f"({row['affected_pct_of_image']:.2f} % of image)"
        )
        lines.append(f"{str(row['image'])[-40:]:<40} {percent:>10} {row['n_lesions']:>8}")
    if len(found.rows) > most:
        lines.append(f"... and {len(found.rows) - most} more")
    return "\n".join(lines)
