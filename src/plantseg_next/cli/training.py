"""Commands that train a model or report on a run."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from plantseg_next.cli.app import (
    DATA_HELP,
    Classes,
    ClassNames,
    Config,
    Data,
    Set,
    Unlabeled,
    app,
    settings_of,
)
from plantseg_next.cli.progress import TrainingBar, bars, progress_bars, task_bars
from plantseg_next.errors import UsageError
from plantseg_next.files import parse_bytes
from plantseg_next.training.callbacks.callback import Callback

NO_LESION = (
    "The model finds none of the lesions of the validation images: do not measure with it. "
    "Train for longer, or start from the starter model."
)
Memory = Annotated[
    str,
    typer.Option(help="Most memory that the run may take, as 2GB or 900MiB: of the GPU, "
                 "or on a CPU of the whole process."),
]  # fmt: skip
Ram = Annotated[
    str | None,
    typer.Option(help="Most main memory for reading images, beside a GPU, as 4GB."),
]
Run = Annotated[Path, typer.Argument(help="Folder of a run.")]


@app.command()
def plan(
    data: Data,
    memory: Memory,
    config: Config = None,
    set_: Set = None,
    classes: Classes = None,
    class_names: ClassNames = None,
    *,
    ram: Ram = None,
    unlabeled: Annotated[
        bool,
        typer.Option("--unlabeled", help="There will be further images without masks."),
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Plan for a GPU that is not in this machine.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File for the plan, as JSON.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="File for a plot of the memory of a step, as PNG.")
    ] = None,
) -> None:
    """Find settings that stay within a memory budget.

    Nothing is trained. train --memory does the same before training; train --plan reads
    the file that --out wrote.
    """
    from plantseg_next import api
    from plantseg_next.runtime import Device

    device = Device("cuda", "a GPU", has_bfloat16=True) if gpu else None
    with progress_bars() as progress:
        memory_plan = api.plan(
            api.DataSources(data, classes, names=class_names),
            parse_bytes(memory),
            settings_of(config, set_ or []),
            ram=None if ram is None else parse_bytes(ram),
            unlabeled=unlabeled,
            device=device,
            progress=progress,
        )
    print(memory_plan.to_text())
    if out is not None:
        memory_plan.write(out)
    if explain is not None:
        from plantseg_next.memory.plot import plot_plan

        plot_plan(memory_plan, explain)


@app.command()
def train(
    data: Annotated[list[Path] | None, typer.Argument(help=DATA_HELP)] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the run: new, or one to resume.")
    ] = Path("run"),
    config: Config = None,
    set_: Set = None,
    classes: Classes = None,
    class_names: ClassNames = None,
    *,
    memory: Annotated[
        str | None, typer.Option(help="Memory budget, as 2GB: plan settings that fit it.")
    ] = None,
    ram: Ram = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Use the settings of this plan.json; it may be edited."),
    ] = None,
    unlabeled: Unlabeled = None,
    pseudo_labels: Annotated[
        list[Path] | None,
        typer.Option(help="Folders that pseudo-label wrote. Repeatable."),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Archive an earlier run and start a new one."),
    ] = False,
    data_moved: Annotated[
        list[str] | None,
        typer.Option(
            "--data-moved",
            help="OLD=NEW: a folder of the run that was moved, and where it is now. "
            "Repeatable.",
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Log to tensorboard or mlflow too. Repeatable."),
    ] = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="Print all settings, described, and stop.")
    ] = False,
) -> None:
    """Train a model on images and masks; the best one is RUN/best.

    The same command resumes a run that was interrupted.
    """
    from plantseg_next import api
    from plantseg_next.workflows.moved_data import parse_moves

    chosen = settings_of(config, set_ or [])
    if ram is not None and memory is None:
        raise UsageError(
            "train got --ram without --memory.",
            needed="a budget for the GPU too",
            fix="for example --memory 2GB --ram 4GB",
        )
    budget = None if memory is None else parse_bytes(memory)
    main_memory = None if ram is None else parse_bytes(ram)
    if plan is not None:
        from plantseg_next.memory.plan import read_plan

        chosen = read_plan(plan, chosen)
    if settings:
        print(chosen.to_commented_yaml(), end="")
        return
    if not data:
        raise UsageError(
            "train was called without a data set.",
            needed="a folder of images and masks",
            fix="plantseg-next train DATA --out RUN",
        )
    loggers: list[Callback] = []
    if log:
        from plantseg_next.training.callbacks.loggers import logger

        loggers = [logger(name, out, chosen) for name in log]
    with _interruption_reported(), bars() as bar:
        trained = api.train(
            api.DataSources(
                data, classes, unlabeled or (), pseudo_labels or (), class_names
            ),
            out,
            chosen,
            memory=budget,
            ram=main_memory,
            restart=restart,
            data_moved=parse_moves(data_moved or []),
            callbacks=[TrainingBar(bar), *loggers],
            log=bar.console.print,
            progress=task_bars(bar),
        )
    summary = trained.summary
    print(
        f"{summary.steps} steps in {summary.minutes:.1f} minutes\n"
        + (f"{NO_LESION}\n" if summary.best.metrics.get("lesion_dice") == 0 else "")
        + (f"{trained.few_steps}\n" if trained.few_steps else "")
        + f"best on the validation split: {summary.best}\n"
        f"model: {trained.folder / 'best'}\n"
        f"next:  plantseg-next evaluate {trained.folder}"
    )


@contextmanager
def _interruption_reported() -> Iterator[None]:
    """Print what a second Ctrl-C left; Typer would say nothing."""
    try:
        yield
    except KeyboardInterrupt as interrupted:
        if text := str(interrupted):
            print(f"{text} The same command resumes from there.", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None


@app.command()
def self_train(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Folder of the runs: new, or one to resume.")
    ] = Path("rounds"),
    rounds: Annotated[
        int, typer.Option(min=1, help="How many times images are labeled.")
    ] = 1,
    config: Config = None,
    set_: Set = None,
    unlabeled: Unlabeled = None,
    class_names: ClassNames = None,
) -> None:
    """Train, label images without masks, train again.

    The labels of the images without masks are learned from beside the masks; this may be
    repeated.
    """
    from plantseg_next import api

    with bars() as bar:
        runs = api.self_train(
            api.DataSources(data, unlabeled=unlabeled or (), names=class_names),
            out,
            settings_of(config, set_ or []),
            rounds=rounds,
            callbacks=[TrainingBar(bar)],
            log=bar.console.print,
            progress=task_bars(bar),
        )
    for run in runs:
        print(f"{run.folder}: best on the validation split: {run.summary.best}")
    print(f"next:  plantseg-next evaluate {runs[-1].folder}")


@app.command()
def status(run: Run) -> None:
    """Print the state of a run, or how it ended."""
    from plantseg_next.training.callbacks.status import read_status

    print(read_status(run))


@app.command()
def watch(
    run: Run,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between updates.")] = 2.0,
) -> None:
    """Show the state of a run until it ends.

    Ctrl-C does not stop the run.
    """
    import time

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from plantseg_next.training.callbacks.status import read_status

    shown = read_status(run)
    console = Console()
    with (
        suppress(KeyboardInterrupt),
        Live(Text(str(shown)), console=console, auto_refresh=False) as live,
    ):
        while shown.state == "running":
            time.sleep(every)
            shown = read_status(run)
            live.update(Text(str(shown)), refresh=True)


@app.command()
def verify(run: Run) -> None:
    """Repeat the first steps of a run, bit for bit.

    Exit code 1 if they differ.
    """
    from plantseg_next import api

    with bars() as bar:
        result = api.verify(run, log=bar.console.print)
    for line in result.conditions:
        print(f"changed since the run: {line}")
    if result.difference is None:
        print("the first steps are repeated bit for bit")
        return
    print(f"the first steps differ: {result.difference}")
    raise typer.Exit(1)
