"""The command line: the verbs of ``api.py``; it and its bars alone print.

Nothing heavy is imported before a verb is chosen, so that ``--help`` answers at once.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Never

import typer

from plantseg_next import __version__
from plantseg_next.bars import Told, TrainingBar, bars, progress_bars
from plantseg_next.errors import PlantSegError, StoppedError, UsageError
from plantseg_next.training.watchers import Watcher

if TYPE_CHECKING:
    from plantseg_next.experiment import Experiment
    from plantseg_next.inference.records import Written

app = typer.Typer(
    name="plantseg-next",
    help="Lesions and severity from leaf photographs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DATA_HELP = (
    "A folder of pictures: with masks (images/ and masks/), the PlantSeg archive, "
    "class folders as in PlantVillage, or pictures only. The layout is recognised."
)
MODEL_HELP = "A run, or one of its models (RUN/best, RUN/last)."
Data = Annotated[Path, typer.Argument(help=DATA_HELP)]
Classes = Annotated[
    Path | None,
    typer.Option(help="File that says what mask values mean: value -> background, "
                 "leaf, ignore, or the name of a lesion class."),
]  # fmt: skip
Out = Annotated[Path, typer.Option(help="New folder for the results.")]


@app.command()
def check(
    data: Data,
    classes: Classes = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Find every defect of a data set before a run does.

    Ends with exit code 1 where training would be spoiled.
    """
    from plantseg_next import api

    with progress_bars() as progress:
        report = api.check(data, classes=classes, progress=progress)
    print(report.to_json() if json else report.to_text())
    raise typer.Exit(1 if report.spoils_training else 0)


Memory = Annotated[
    str,
    typer.Option(help="Most that the run may take, as 2GB or 900MiB: of the GPU, or on a "
                 "CPU of the whole process."),
]  # fmt: skip
Config = Annotated[
    Path | None, typer.Option(help="YAML file of settings; see RUN/settings.yaml.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, as training.rate=3e-4. Repeatable."),
]


@app.command()
def plan(
    data: Data,
    memory: Memory,
    config: Config = None,
    set_: Set = None,
    classes: Classes = None,
    *,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="There will be further pictures.")
    ] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Plan for a GPU that is not here.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File for the plan, as JSON.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="File for a picture of a step's memory, as PNG.")
    ] = None,
) -> None:
    """Find the settings with which training stays within a budget; nothing is trained.

    train --memory does the same first; train --plan takes what --out wrote.
    """
    from plantseg_next import api
    from plantseg_next.runtime import Device
    from plantseg_next.training.memory_plan import parse_bytes

    elsewhere = Device("cuda", "a GPU", has_bfloat16=True) if gpu else None
    found = api.plan(
        data,
        parse_bytes(memory),
        _settings(config, set_ or []),
        classes=classes,
        unlabelled=unlabelled,
        device=elsewhere,
    )
    print(found.to_text())
    if out is not None:
        found.write(out)
    if explain is not None:
        from plantseg_next.training.memory_picture import draw_plan

        draw_plan(found, explain)


@app.command()
def train(
    data: Annotated[Path | None, typer.Argument(help=DATA_HELP)] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the run: new, or one to go on with.")
    ] = Path("run"),
    config: Config = None,
    set_: Set = None,
    classes: Classes = None,
    *,
    memory: Annotated[
        str | None, typer.Option(help="Budget, as 2GB: settings are planned to fit.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.json to obey; it may be edited.")
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(help="Further pictures to learn from; needs no masks. Repeatable."),
    ] = None,
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
    """Learn from pictures and masks; the model is RUN/best.

    Called again in the same way, it goes on where it was interrupted.
    """
    from plantseg_next import api
    from plantseg_next.learning import Sources

    chosen = _settings(config, set_ or [])
    budget = None
    if plan is not None or memory is not None:
        from plantseg_next.training.memory_plan import parse_bytes, read_plan

        chosen = chosen if plan is None else read_plan(plan, chosen)
        budget = None if memory is None else parse_bytes(memory)
    if settings:
        print(chosen.to_yaml(), end="")
        return
    if data is None:
        raise UsageError(
            "train was called without a data set.",
            needed="a folder of pictures and masks",
            fix="plantseg-next train DATA --out RUN",
        )
    loggers = _loggers(log or [], out, chosen)
    with bars() as bar:
        trained = api.train(
            Sources(data, classes, unlabelled or (), pseudo_labels or ()),
            out,
            chosen,
            memory=budget,
            restart=restart,
            watchers=[TrainingBar(bar), *loggers],
            say=bar.console.print,
            progress=Told(bar),
        )
    best = ", ".join(f"{n} {v:.3f}" for n, v in trained.outcome.best.figures.items())
    print(
        f"{trained.outcome.steps} steps in {trained.outcome.minutes:.1f} minutes\n"
        f"best on the validation split: {best}\n"
        f"model: {trained.folder / 'best'}\n"
        f"next:  plantseg-next evaluate {trained.folder}"
    )


Run = Annotated[Path, typer.Argument(help="Folder of a run.")]


@app.command()
def status(run: Run) -> None:
    """Say how a run is doing, or what became of it; from any terminal, at any time."""
    from plantseg_next.training.status import read_status

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

    from plantseg_next.training.status import read_status

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
    """Repeat the first steps of a run and compare them bit for bit.

    Ends with exit code 1 where they differ.
    """
    from plantseg_next import api

    with bars() as bar:
        found = api.verify(run, say=bar.console.print)
    for line in found.conditions:
        print(f"not as it was: {line}")
    if found.difference is None:
        print("the first steps are repeated bit for bit")
        return
    print(f"the first steps differ: {found.difference}")
    raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
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
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Judge a model, on the test pictures of its run unless told otherwise."""
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
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    pictures: Annotated[Path, typer.Argument(help="A picture, or a folder of them.")],
    out: Out = Path("predictions"),
    min_lesion_px: Annotated[
        int, typer.Option(min=1, help="Smaller lesions, in pixels, are not counted.")
    ] = 20,
) -> None:
    """Measure new pictures: severity.csv, lesions.csv, masks and overlays.

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
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    pictures: Annotated[Path, typer.Argument(help="A picture, or a folder of them.")],
    out: Out = Path("pseudo_labels"),
    threshold: Annotated[
        float, typer.Option(help="Least probability believed; the rest is ignored.")
    ] = 0.9,
) -> None:
    """Label pictures with what a model is sure of; train --pseudo-labels reads them.

    Ends with exit code 1 if a picture could not be read; the others are labelled.
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
def self_train(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Folder for the runs: new, or to go on with.")
    ] = Path("rounds"),
    rounds: Annotated[
        int, typer.Option(min=1, help="Times that pictures are labelled and learned from.")
    ] = 1,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting. Repeatable.")
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(help="Further pictures to learn from; needs no masks. Repeatable."),
    ] = None,
) -> None:
    """Train, label the pictures without masks, train anew on both, in rounds."""
    from plantseg_next import api
    from plantseg_next.learning import Sources

    with bars() as bar:
        runs = api.self_train(
            Sources(data, unlabelled=unlabelled or ()),
            out,
            _settings(config, set_ or []),
            rounds=rounds,
            watchers=[TrainingBar(bar)],
            say=bar.console.print,
            progress=Told(bar),
        )
    for run in runs:
        best = ", ".join(f"{n} {v:.3f}" for n, v in run.outcome.best.figures.items())
        print(f"{run.folder}: best on the validation split: {best}")
    print(f"next:  plantseg-next evaluate {runs[-1].folder}")


@app.command()
def demo(
    out: Out = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Minutes of training.")] = 3.0,
    leaves: Annotated[int, typer.Option(min=40, help="Leaves to draw.")] = 240,
) -> None:
    """Go the whole way on drawn leaves: draw, check, train, evaluate, predict."""
    from plantseg_next import api

    with bars() as bar:
        done = api.demo(
            out,
            minutes=minutes,
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


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's error is printed without a traceback."""
    try:
        app()
    except StoppedError as stopped:
        print(f"{stopped.came} {stopped.fix.capitalize()}.", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except PlantSegError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and "map segment" not in str(error):
            raise
        too_small = PlantSegError(
            f"Memory ran out ({error or type(error).__name__}).",
            needed="about 1 GiB for PyTorch alone, and address space for its libraries",
            fix="close other programs, or raise the limit (ulimit -v)",
        )
        print(f"error: {too_small}", file=sys.stderr)
        sys.exit(1)


def _settings(config: Path | None, pairs: list[str]) -> "Experiment":
    from plantseg_next.experiment import Experiment

    base = Experiment() if config is None else Experiment.read(config)
    return base.with_settings(pairs)


def _loggers(names: list[str], run: Path, settings: "Experiment") -> list[Watcher]:
    if not names:
        return []
    from plantseg_next.training.loggers import logger

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
