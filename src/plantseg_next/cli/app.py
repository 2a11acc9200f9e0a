"""The Typer application, and the options that its commands share."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plantseg_next import __version__
from plantseg_next.names import printable_lines

if TYPE_CHECKING:
    from plantseg_next.settings import Settings

app = typer.Typer(
    name="plantseg-next",
    help="Segment lesions on leaf photographs and measure their severity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DATA_HELP = (
    "One or more folders of images: with masks, the PlantSeg archive, annotations of COCO, "
    "LabelMe, CVAT, Pascal VOC or YOLO, class folders as in PlantVillage, or images only. "
    "The layout is recognized."
)
MODEL_HELP = (
    "A run, one of its models (RUN/best, RUN/last), or a model of the package (starter, "
    "starter-field)."
)
Data = Annotated[list[Path], typer.Argument(help=DATA_HELP)]
Model = Annotated[Path, typer.Argument(help=MODEL_HELP)]
Images = Annotated[Path, typer.Argument(help="An image, or a folder of images.")]
Classes = Annotated[
    Path | None,
    typer.Option(help="File of what mask values mean: value -> background, leaf, ignore, "
                 "or the name of a lesion class."),
]  # fmt: skip
ClassNames = Annotated[
    Path | None,
    typer.Option("--class-names", help="File of the class names of each data set, with "
                 "the names that the run uses; `data class-names` proposes one."),
]  # fmt: skip
Exif = Annotated[
    list[str] | None,
    typer.Option(
        "--exif",
        help="Which way images with an EXIF orientation were annotated: as-stored or "
        "upright; NAME=as-stored for one data set of several. Repeatable.",
    ),
]
Out = Annotated[Path, typer.Option(help="New folder for the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML file of settings, as RUN/settings.yaml.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, as training.lr=3e-4. Repeatable."),
]
Unlabeled = Annotated[
    list[Path] | None,
    typer.Option(
        "--unlabeled", help="Further images to learn from, without masks. Repeatable."
    ),
]


@app.callback(invoke_without_command=True)
def print_version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Print the version if --version is given."""
    if version:
        print(__version__)
        raise typer.Exit


def show(text: str) -> None:
    """Print lines of text; what a terminal would obey in them is escaped."""
    print(printable_lines(text))


def show_json(text: str) -> None:
    """Print JSON that stays JSON where the output cannot encode all its characters."""
    import json

    encoding = (sys.stdout.encoding or "").lower()
    print(text if encoding.startswith("utf") else json.dumps(json.loads(text), indent=1))


def settings_of(config: Path | None, pairs: list[str]) -> "Settings":
    """Return the settings of a file, or the defaults, with ``--set`` applied."""
    from plantseg_next.settings import Settings

    base = Settings() if config is None else Settings.read(config)
    return base.with_settings(pairs)
