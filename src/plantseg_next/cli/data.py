"""Verbs about data sets."""

from pathlib import Path
from typing import Annotated

import typer

from plantseg_next.cli.app import AsJson, Classes, Data, Names, app
from plantseg_next.cli.progress import progress_bars

about_data = typer.Typer(
    help="Fetch data sets, name their classes.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def check(
    data: Data,
    classes: Classes = None,
    names: Names = None,
    json: AsJson = False,
) -> None:
    """Find every defect of a data set before a run does.

    Ends with exit code 1 where training would be spoiled.
    """
    from plantseg_next import api

    with progress_bars() as progress:
        sources = api.DataSources(data, classes, names=names)
        report = api.check(sources, progress=progress)
    print(report.to_json() if json else report.to_text())
    raise typer.Exit(1 if report.spoils_training else 0)


@about_data.command()
def fetch(
    name: Annotated[str, typer.Argument(help="plantseg or plantvillage.")],
    out: Annotated[
        Path | None, typer.Option(help="New folder for it; named after it by default.")
    ] = None,
) -> None:
    """Fetch a published data set, or go on fetching it.

    It is unpacked only if its digest is the published one.
    """
    from plantseg_next.data.download import archive_named
    from plantseg_next.data.download import download as fetch_archive

    archive = archive_named(name)
    print(f"license: {archive.license}\ncite:    {archive.citation}\n{archive.about}")
    with progress_bars() as progress:
        folder = fetch_archive(
            archive,
            out or Path(name),
            on_progress=lambda done, total: progress(
                "fetching MB", done // 10**6, total // 10**6
            ),
        )
    print(f"{folder}\nnext:  plantseg-next check {folder}")


@about_data.command()
def names(
    data: Data,
    out: Annotated[
        Path | None, typer.Option(help="File for the proposal, as YAML.")
    ] = None,
    classes: Classes = None,
) -> None:
    """Propose what to call the classes of data sets.

    Names that differ in spelling alone become one. Edit the file, then give it to check
    and train with --names.
    """
    from plantseg_next import api
    from plantseg_next.data.class_names import alike, names_in_words, propose, write_names

    manifest = api.DataSources(data, classes).read()
    found = propose(manifest)
    print(names_in_words(found), end="")
    for one, other in alike(manifest):
        print(f"# are `{one}` and `{other}` one?")
    if out is not None:
        write_names(found, out)


app.add_typer(about_data, name="data")
