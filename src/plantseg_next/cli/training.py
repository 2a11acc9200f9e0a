"""Verbs that make a run, or look at one."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plantseg_next.cli.app import (
    DATA_HELP,
    Classes,
    Config,
    Data,
    Names,
    Set,
    Unlabeled,
    app,
    settings_of,
)
from plantseg_next.cli.progress import Told, TrainingBar, bars
from plantseg_next.errors import UsageError
from plantseg_next.training.callbacks.callback import Callback

if TYPE_CHECKING:
    from plantseg_next.settings import Settings

Memory = Annotated[
    str,
    typer.Option(help="Most that the run may take, as 2GB or 900MiB: of the GPU, or on a "
                 "CPU of the whole process."),
]  # fmt: skip
Ram = Annotated[
    str | None,
    typer.Option(help="Most main memory for reading images beside a GPU, as 4GB."),
]
Run = Annotated[Path, typer.Argument(help="Folder of a run.")]


@app.command()
def plan(
    data: Data,
    memory: Memory,
    config: Config = None,
    set_: Set = None,
    classes: Classes = None,
    names: Names = None,
    *,
    ram: Ram = None,
    unlabeled: Annotated[
        bool, typer.Option("--unlabeled", help="There will be further images.")
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Plan for a GPU that is not here.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File for the plan, as JSON.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="File for an image of a step's memory, as PNG.")
    ] = None,
) -> None:
    """Find settings that stay within a memory budget.

    Nothing is trained. train --memory does the same first, train --plan takes what --out
    wrote.
    """
    from plantseg_next import api
    from plantseg_next.memory.plan import parse_bytes
    from plantseg_next.runtime import Device

    elsewhere = Device("cuda", "a GPU", has_bfloat16=True) if gpu else None
    found = api.plan(
        api.DataSources(data, classes, names=names),
        parse_bytes(memory),
        settings_of(config, set_ or []),
        ram=None if ram is None else parse_bytes(ram),
        unlabeled=unlabeled,
        device=elsewhere,
    )
    print(found.to_text())
    if out is not None:
        found.write(out)
    if explain is not None:
        from plantseg_next.memory.plot import plot_plan

        plot_plan(found, explain)


@app.command()
def train(
    data: Annotated[list[Path] | None, typer.Argument(help=DATA_HELP)] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the run: new, or one to go on with.")
    ] = Path("run"),
    config: Config = None,
    set_: Set = None,
    classes: Classes = None,
    names: Names = None,
    *,
    memory: Annotated[
        str | None, typer.Option(help="Budget, as 2GB: settings are planned to fit.")
    ] = None,
    ram: Ram = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.json to obey; it may be edited.")
    ] = None,
    unlabeled: Unlabeled = None,
    pseudo_labels: Annotated[
        list[Path] | None,
        typer.Option(help="Folders that pseudo-label wrote. Repeatable."),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Set an earlier run aside and begin anew."),
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Tell tensorboard or mlflow of it too. Repeatable."),
    ] = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="Print all settings and stop.")
    ] = False,
) -> None:
    """Learn from images and masks; the model is RUN/best.

    Called again in the same way, it goes on where it was interrupted.
    """
    from plantseg_next import api
    from plantseg_next.workflows.setup import DataSources

    chosen = settings_of(config, set_ or [])
    budget = main_memory = None
    if ram is not None and memory is None:
        raise UsageError(
            "train got --ram without --memory.",
            needed="the GPU's budget too",
            fix="for example --memory 2GB --ram 4GB",
        )
    if plan is not None or memory is not None:
        from plantseg_next.memory.plan import parse_bytes, read_plan

        chosen = chosen if plan is None else read_plan(plan, chosen)
        budget = None if memory is None else parse_bytes(memory)
        main_memory = None if ram is None else parse_bytes(ram)
    if settings:
        print(chosen.to_yaml(), end="")
        return
    if not data:
        raise UsageError(
            "train was called without a data set.",
            needed="a folder of images and masks",
            fix="plantseg-next train DATA --out RUN",
        )
    loggers = _loggers(log or [], out, chosen)
    with bars() as bar:
        trained = api.train(
            DataSources(data, classes, unlabeled or (), pseudo_labels or (), names),
            out,
            chosen,
            memory=budget,
            ram=main_memory,
            restart=restart,
            callbacks=[TrainingBar(bar), *loggers],
            log=bar.console.print,
            progress=Told(bar),
        )
    best = ", ".join(f"{n} {v:.3f}" for n, v in trained.summary.best.metrics.items())
    print(
        f"{trained.summary.steps} steps in {trained.summary.minutes:.1f} minutes\n"
        f"best on the validation split: {best}\n"
        f"model: {trained.folder / 'best'}\n"
        f"next:  plantseg-next evaluate {trained.folder}"
    )


@app.command()
def self_train(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Folder for the runs: new, or to go on with.")
    ] = Path("rounds"),
    rounds: Annotated[
        int, typer.Option(min=1, help="Times that images are labeled and learned from.")
    ] = 1,
    config: Config = None,
    set_: Set = None,
    unlabeled: Unlabeled = None,
    names: Names = None,
) -> None:
    """Train, label images without masks, train on both, again."""
    from plantseg_next import api
    from plantseg_next.workflows.setup import DataSources

    with bars() as bar:
        runs = api.self_train(
            DataSources(data, unlabeled=unlabeled or (), names=names),
            out,
            settings_of(config, set_ or []),
            rounds=rounds,
            callbacks=[TrainingBar(bar)],
            log=bar.console.print,
            progress=Told(bar),
        )
    for run in runs:
        best = ", ".join(f"{n} {v:.3f}" for n, v in run.summary.best.metrics.items())
        print(f"{run.folder}: best on the validation split: {best}")
    print(f"next:  plantseg-next evaluate {runs[-1].folder}")


@app.command()
def status(run: Run) -> None:
    """Say how a run is doing, or what became of it."""
    from plantseg_next.training.callbacks.status import read_status

    print(read_status(run))


@app.command()
def watch(
    run: Run,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between looks.")] = 2.0,
) -> None:
    """Follow a run until it ends; Ctrl-C leaves the run alone."""
    import time

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from plantseg_next.training.callbacks.status import read_status

    found = read_status(run)
    console = Console()
    with (
        suppress(KeyboardInterrupt),
        Live(Text(str(found)), console=console, auto_refresh=False) as live,
    ):
        while found.state == "running":
            time.sleep(every)
            found = read_status(run)
            live.update(Text(str(found)), refresh=True)


@app.command()
def verify(run: Run) -> None:
    """Repeat the first steps of a run, compared bit for bit.

    Ends with exit code 1 where they differ.
    """
    from plantseg_next import api

    with bars() as bar:
        found = api.verify(run, log=bar.console.print)
    for line in found.conditions:
        print(f"not as it was: {line}")
    if found.difference is None:
        print("the first steps are repeated bit for bit")
        return
    print(f"the first steps differ: {found.difference}")
    raise typer.Exit(1)


def _loggers(names: list[str], run: Path, settings: "Settings") -> list[Callback]:
    if not names:
        return []
    from plantseg_next.training.callbacks.loggers import logger

    found = []
    for name in names:
        match name:
            case "tensorboard" | "mlflow":
                found.append(logger(name, run, settings))
            case _:
                raise UsageError(
                    f"--log is {name!r}.",
                    needed="tensorboard or mlflow",
                    fix="leave it out: every run keeps its own history",
                )
    return found
