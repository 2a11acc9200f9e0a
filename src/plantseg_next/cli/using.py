"""Verbs that judge a model or use it, and the demo that goes the whole way."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Never

import typer

from plantseg_next.cli.app import AsJson, Classes, Images, Model, Out, app
from plantseg_next.cli.progress import Told, TrainingBar, bars, progress_bars
from plantseg_next.errors import UsageError

if TYPE_CHECKING:
    from plantseg_next.api import DemoResult
    from plantseg_next.inference.records import PredictionTable


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(help="Images with masks; the data set of the run by default."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="train, val, test, or all (for data never learned from).")
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.txt, report.json, images.csv.")
    ] = None,
    classes: Classes = None,
    json: AsJson = False,
) -> None:
    """Judge a model on images that it has not learned from.

    Those are the test images of its run, unless others are named.
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
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODEL] IMAGES",
            help="An image, or a folder of them; before it, a run, one of its models, or "
            "starter-field for plants on soil. Without a model, the starter model that "
            "comes with the package measures.",
        ),
    ],
    out: Out = Path("predictions"),
    min_lesion_px: Annotated[
        int,
        typer.Option(
            min=1,
            help="Smaller lesions are not counted; in pixels at the scale at which the "
            "model sees the image.",
        ),
    ] = 20,
) -> None:
    """Measure images: severity, lesions, masks, overlays.

    Ends with exit code 1 if an image could not be read; the others are measured.
    """
    from plantseg_next import api

    model, images = _model_and_images(paths)
    with progress_bars() as progress:
        found = api.predict(
            model, images, out, min_lesion_px=min_lesion_px, progress=progress
        )
    print(_table(found))
    print(f"{len(found.rows)} images measured: {out / 'severity.csv'}")
    _end(found)


@app.command()
def pseudo_label(
    model: Model,
    images: Images,
    out: Out = Path("pseudo_labels"),
    threshold: Annotated[
        float, typer.Option(help="Least probability believed; the rest is ignored.")
    ] = 0.9,
) -> None:
    """Label images with what a model is sure of.

    train --pseudo-labels reads them, and a person can correct them before. Ends with exit
    code 1 if an image could not be read; the others are labeled.
    """
    from plantseg_next import api

    with progress_bars() as progress:
        found = api.pseudo_label(model, images, out, threshold=threshold, progress=progress)
    print(f"{len(found.rows)} images labeled: {out / 'pseudo_labels.csv'}")
    print(f"correct the masks in {out / 'masks'} where they are wrong, then:")
    print(f"next:  plantseg-next train DATA --pseudo-labels {out}")
    _end(found)


@app.command()
def demo(
    out: Out = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 200,
    leaves: Annotated[int, typer.Option(min=40, help="Leaves to draw.")] = 200,
) -> None:
    """Measure drawn leaves with the starter model, refine it on 20 masks, measure again."""
    from plantseg_next import api

    with bars() as bar:
        done = api.demo(
            out,
            steps=steps,
            leaves=leaves,
            callbacks=[TrainingBar(bar)],
            log=bar.console.print,
            on_measured=lambda table, _: bar.console.print(
                "measured by the starter model, before any training:\n" + _table(table)
            ),
            progress=Told(bar),
        )
    print("measured by the refined model:\n" + _table(done.refined))
    print(_comparison(done))
    print(
        f"\nmodel:     {done.trained.folder / 'best'}\n"
        f"before:    {done.folder / 'before'}\n"
        f"after:     {done.folder / 'after'}\n"
        "Each folder holds severity.csv, masks, overlays and a report. Names of diseases "
        "take more masks\nand minutes than severity does."
    )


def _comparison(done: "DemoResult") -> str:
    """Return how the two models compare with the exact masks, as aligned text."""
    title = "against the exact masks of the test leaves"
    lines = [f"\n{title:<44}{'before':>8}{'after':>8}"]
    pairs = (
        ("lesion Dice", "lesion_dice"),
        ("leaf IoU", "leaf_iou"),
        ("concordance of severity", "rho_c"),
        ("disease of the image right", "disease_accuracy"),
    )
    for what, name in pairs:
        values = (
            (r.severity.rho_c if name == "rho_c" else getattr(r, name)).value
            for r in (done.before, done.after)
        )
        cells = ("-" if math.isnan(value) else f"{value:.3f}" for value in values)
        lines.append(f"{what:<44}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(lines)


def _model_and_images(paths: list[Path]) -> tuple[Path | None, Path]:
    from plantseg_next import api

    if len(paths) > 2:
        raise UsageError(
            f"predict got {len(paths)} paths.",
            needed="one folder or image, or a model and one folder or image",
            fix="put the images into one folder",
        )
    if len(paths) == 1 and api.holds_model(paths[0]):
        raise UsageError(
            f"predict got a model (`{paths[0]}`) and no images.",
            needed="an image or a folder of them after it",
            fix=f"plantseg-next predict {paths[0]} IMAGES",
        )
    return (paths[0] if len(paths) > 1 else None), paths[-1]


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


def _end(found: "PredictionTable") -> Never:
    """Name the images that were skipped; end with exit code 1 if there are any."""
    for name, reason in found.skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    raise typer.Exit(1 if found.skipped else 0)


def _table(found: "PredictionTable", most: int = 12) -> str:
    """Return the first rows of the severity table as aligned text."""
    lines = [f"{'image':<40} {'severity':>10} {'lesions':>8}"]
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
