"""Commands for data sets: check, data download, data class-names."""

from pathlib import Path
from typing import Annotated

import typer

from plantseg_next.cli.app import (
    AsJson,
    Classes,
    ClassNames,
    Data,
    Exif,
    app,
    show,
    show_json,
)
from plantseg_next.cli.progress import progress_bars

about_data = typer.Typer(
    help="Download data sets, propose class names.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def check(
    data: Data,
    classes: Classes = None,
    class_names: ClassNames = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the later run (its setting `seed`), by which splits are drawn "
            "where the data set states none."
        ),
    ] = 0,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write, with 24 images and their masks to look at: first "
            "those that may be wrong, then a sample."
        ),
    ] = None,
    exif: Exif = None,
    json: AsJson = False,
) -> None:
    """Find the defects of a data set before training.

    Exit code 1 if they would spoil training or evaluation.
    """
    from plantseg_next import api

    with progress_bars() as progress:
        sources = api.DataSources(data, classes, names=class_names, exif=exif or ())
        report = api.check(sources, seed=seed, sheet=sheet, progress=progress)
    show_json(report.to_json()) if json else show(report.to_text())
    if sheet is not None and not json:
        show(f"\nsheet:  {sheet}")
    raise typer.Exit(1 if report.spoils_training else 0)


@about_data.command()
def download(
    name: Annotated[str, typer.Argument(help="plantseg or plantvillage.")],
    out: Annotated[
        Path | None,
        typer.Option(help="New folder; by default it has the name of the data set."),
    ] = None,
) -> None:
    """Download a published data set, or resume the download.

    It is unpacked only if its digest is the published one.
    """
    from plantseg_next.data.download import archive_named
    from plantseg_next.data.download import download as download_archive

    archive = archive_named(name)
    show(f"license: {archive.license}\ncite:    {archive.citation}\n{archive.about}")
    with progress_bars() as progress:
        folder = download_archive(
            archive,
            out or Path(name),
            on_progress=lambda done, total: progress(
                "downloading MB", done // 10**6, total // 10**6
            ),
        )
    show(f"{folder}\nnext:  plantseg-next check {folder}")


@about_data.command()
def class_names(
    data: Data,
    out: Annotated[
        Path | None, typer.Option(help="File for the proposal, as YAML.")
    ] = None,
    classes: Classes = None,
) -> None:
    """Propose common class names for several data sets.

    Names that differ only in spelling become one. Edit the file, then pass it to check
    and train with --class-names.
    """
    from plantseg_next import api
    from plantseg_next.data.class_names import alike, names_in_words, propose, write_names

    manifest = api.DataSources(data, classes).read()
    proposal = propose(manifest)
    print(names_in_words(proposal), end="")
    for first, second in alike(manifest):
        show(f"# are `{first}` and `{second}` the same class?")
    if out is not None:
        write_names(proposal, out)


app.add_typer(about_data, name="data")
