"""Verbs about data sets."""

import typer

from plantseg_next.bars import progress_bars
from plantseg_next.cli.app import AsJson, Classes, Data, app


@app.command()
def check(
    data: Data,
    classes: Classes = None,
    json: AsJson = False,
) -> None:
    """Find every defect of a data set before a run does.

    Ends with exit code 1 where training would be spoiled.
    """
    from plantseg_next import api

    with progress_bars() as progress:
        report = api.check(data, classes=classes, progress=progress)
    print(report.to_json() if json else report.to_text())
    raise typer.Exit(1 if report.spoils_training else 0)
