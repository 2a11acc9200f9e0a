"""A folder of pictures about which nothing is known, or a single picture."""

from pathlib import Path

from plantseg_next.data.layouts.folders import keys_of
from plantseg_next.data.manifest import Manifest, Origin, Row
from plantseg_next.structures import ClassMap


def read_plain(pictures: list[Path], root: Path, source: str) -> Manifest:
    """Return the pictures as unlabelled rows.

    Args:
        pictures: All pictures, anywhere below ``root``.
        root: The folder that keys are relative to.
        source: Name of the data set.
    """
    rows = (
        Row(key=key, image=picture, source=source, split="unlabelled")
        for picture, key in keys_of(pictures, root).items()
    )
    return Manifest(tuple(rows), ClassMap(()), {}, {source: Origin("pictures only")})
