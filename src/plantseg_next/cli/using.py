"""Commands that evaluate or use a model, and the demo."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Never

import typer

from plantseg_next.cli.app import (
    AsJson,
    Classes,
    Exif,
    Images,
    Model,
    Out,
    app,
    show,
    show_json,
)
from plantseg_next.cli.progress import (
    TrainingBar,
    bars,
    log_to,
    progress_bars,
    task_bars,
)
from plantseg_next.errors import UsageError
from plantseg_next.names import printable

if TYPE_CHECKING:
    from plantseg_next.api import DemoResult
    from plantseg_next.inference.records import PredictionTable


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(help="Images with masks; by default the data set of the run."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="train, val, test, or all (for data that had no part in training)."
        ),
    ] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.txt, report.json, images.csv.")
    ] = None,
    classes: Classes = None,
    exif: Exif = None,
    json: AsJson = False,
) -> None:
    """Evaluate a model on images that it has not learned from.

    By default these are the test images of its run. Exit code 1 if an image could not be
    read; the others are evaluated.
    """
    from plantseg_next import api
    from plantseg_next.files import prepare_output

    if out is not None:
        prepare_output(out)
    with progress_bars() as progress:
        report = api.evaluate(
            model,
            data,
            split=_one_split(split),
            classes=classes,
            exif=exif or (),
            progress=progress,
        )
    show_json(report.to_json()) if json else show(report.to_text())
    if out is not None:
        report.write(out)
    _end(report.skipped)


@app.command()
def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODEL] IMAGES",
            help="An image, or a folder of images; before it, a run, one of its models, or "
            "starter-field for plants on soil. Without a model, the starter model of the "
            "package is used.",
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

    Exit code 1 if an image could not be read; the others are measured.
    """
    from plantseg_next import api

    model, images = _model_and_images(paths)
    with progress_bars() as progress:
        table = api.predict(
            model, images, out, min_lesion_px=min_lesion_px, progress=progress
        )
    show(_table(table))
    show(f"{len(table.rows)} images measured: {out / 'severity.csv'}")
    _end(table.skipped)


@app.command()
def pseudo_label(
    model: Model,
    images: Images,
    out: Out = Path("pseudo_labels"),
    threshold: Annotated[
        float, typer.Option(help="Smallest probability accepted; the rest is ignored.")
    ] = 0.9,
) -> None:
    """Label images where a model is confident.

    train --pseudo-labels reads the labels, and a person can correct them before. Exit
    code 1 if an image could not be read; the others are labeled.
    """
    from plantseg_next import api

    with progress_bars() as progress:
        table = api.pseudo_label(model, images, out, threshold=threshold, progress=progress)
    show(f"{len(table.rows)} images labeled: {out / 'pseudo_labels.csv'}")
    show(f"correct the masks in {out / 'masks'} where they are wrong")
    show(f"next:  plantseg-next train DATA --pseudo-labels {out}")
    _end(table.skipped)


@app.command()
def demo(
    out: Out = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 200,
    leaves: Annotated[int, typer.Option(min=40, help="Leaves to draw.")] = 200,
) -> None:
    """Measure synthetic leaves before and after training.

    The starter model measures them, is refined on 20 masks, and measures them again.
    """
    from plantseg_next import api

    def show_starter(table: "PredictionTable", _: object) -> None:
        log = log_to(bar)
        log("measured by the starter model, before any training:")
        for line in _table(table).splitlines():
            log(line)

    with bars() as bar:
        done = api.demo(
            out,
            steps=steps,
            leaves=leaves,
            callbacks=[TrainingBar(bar)],
            log=log_to(bar),
            on_measured=show_starter,
            progress=task_bars(bar),
        )
    show("measured by the refined model:\n" + _table(done.refined))
    show(_comparison(done))
    show(
        f"\nmodel:     {done.trained.folder / 'best'}\n"
        f"before:    {done.folder / 'before'}\n"
        f"after:     {done.folder / 'after'}\n"
        "Each folder holds severity.csv, masks, overlays and a report. To learn the names "
        "of diseases takes\nmore masks and minutes than to learn severity."
    )


def _comparison(done: "DemoResult") -> str:
    """Return the metrics of both models against the exact masks, as aligned text."""
    title = "against the exact masks of the test leaves"
    lines = [f"\n{title:<44}{'before':>8}{'after':>8}"]
    pairs = (
        ("lesion Dice", "lesion_dice"),
        ("leaf IoU", "leaf_iou"),
        ("concordance of severity", "rho_c"),
        ("disease of the image right", "disease_accuracy"),
    )
    for label, name in pairs:
        values = (
            (r.severity.rho_c if name == "rho_c" else getattr(r, name)).value
            for r in (done.before, done.after)
        )
        cells = ("-" if math.isnan(value) else f"{value:.3f}" for value in values)
        lines.append(f"{label:<44}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(lines)


def _model_and_images(paths: list[Path]) -> tuple[Path | None, Path]:
    from plantseg_next.models.start import holds_model

    if len(paths) > 2:
        raise UsageError(
            f"predict got {len(paths)} paths.",
            needed="one folder or image, or a model and one folder or image",
            fix="put the images into one folder",
        )
    if len(paths) == 1 and holds_model(paths[0]):
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


def _end(skipped: Sequence[tuple[str, str]]) -> Never:
    """Print the skipped images; exit with code 1 if there are any, else 0."""
    for name, reason in skipped:
        print(f"skipped {printable(name)}: {printable(reason)}", file=sys.stderr)
    raise typer.Exit(1 if skipped else 0)


def _table(table: "PredictionTable", most: int = 12) -> str:
    """Return the first rows of the severity table as aligned text."""
    lines = [f"{'image':<40} {'severity':>10} {'lesions':>8}"]
    for row in table.rows[:most]:
        severity = row["severity_pct"]
        percent = (
            f"{severity:.2f} %"
            if isinstance(severity, float)
            else f"({row['affected_pct_of_image']:.2f} % of image)"
        )
        lines.append(
            f"{printable(row['image'])[-40:]:<40} {percent:>10} {row['n_lesions']:>8}"
        )
    if len(table.rows) > most:
        lines.append(f"... and {len(table.rows) - most} more")
    return "\n".join(lines)
