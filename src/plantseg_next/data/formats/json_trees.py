"""JSON files of annotation tools."""

from pathlib import Path
from typing import Any

from plantseg_next.errors import DataError
from plantseg_next.files import read_text
from plantseg_next.json_files import MAX_JSON_BYTES, load_json


def read_tree(path: Path) -> Any:  # noqa: ANN401
    """Return the content of a JSON file, without LabelMe's copy of the image.

    Raises:
        DataError: If it is not JSON; skipping it would silently lose annotations.
    """
    try:
        tree = load_json(read_text(path, MAX_JSON_BYTES))
    except ValueError as error:
        raise DataError(
            f"`{path}` is not JSON, or truncated: {error}.",
            needed="a complete file of an annotation tool",
            fix="export it again; or remove it from the folder if it does not describe "
            "the images",
        ) from error
    if isinstance(tree, dict):
        tree.pop("imageData", None)
    return tree
