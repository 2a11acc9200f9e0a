"""The command line's one application, and the options that its verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plantseg_next import __version__

if TYPE_CHECKING:
    from plantseg_next.settings import Settings

app = typer.Typer(
    name="plantseg-next",
    help="Lesions and severity from leaf photographs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DATA_HELP = (
    "One or more folders of images: with masks, the PlantSeg archive, with what COCO, "
    "LabelMe, CVAT, Pascal VOC or YOLO wrote, class folders as in PlantVillage, or "
    "images only. The layout is recognized."
)
MODEL_HELP = (
    "A run, one of its models (RUN/best, RUN/last), or one that comes with the package "
    "(starter, starter-field)."
)
Data = Annotated[list[Path], typer.Argument(help=DATA_HELP)]
Model = Annotated[Path, typer.Argument(help=MODEL_HELP)]
Images = Annotated[Path, typer.Argument(help="An image, or a folder of them.")]
Classes = Annotated[
    Path | None,
    typer.Option(help="File that says what mask values mean: value -> background, "
                 "leaf, ignore, or the name of a lesion class."),
]  # fmt: skip
Names = Annotated[
    Path | None,
    typer.Option(help="File of what each data set calls things and what the run calls "
                 "them; `data names` proposes one."),
]  # fmt: skip
Out = Annotated[Path, typer.Option(help="New folder for the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML file of settings; see RUN/settings.yaml.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, as training.lr=3e-4. Repeatable."),
]
Unlabeled = Annotated[
    list[Path] | None,
    typer.Option(help="Further images to learn from; needs no masks. Repeatable."),
]


@app.callback(invoke_without_command=True)
def print_version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Print the version, where that is all that was asked."""
    if version:
        print(__version__)
        raise typer.Exit


def settings_of(config: Path | None, pairs: list[str]) -> "Settings":
    """Return the settings of a file, or the defaults, with some of them changed."""
    from plantseg_next.settings import Settings

    base = Settings() if config is None else Settings.read(config)
    return base.with_settings(pairs)
