"""A folder of images without labels, or a single image."""

from pathlib import Path

from plantseg_next.data.formats.folders import keys_of
from plantseg_next.data.manifest import Manifest, Origin, Row
from plantseg_next.structures import ClassMap


def read_plain(images: list[Path], root: Path, source: str) -> Manifest:
    """Return the images as unlabeled rows.

    Args:
        images: All images, anywhere below ``root``.
        root: The folder that keys are relative to.
        source: Name of the data set.
    """
    rows = (
        Row(key=key, image=image, source=source, split="unlabeled")
        for image, key in keys_of(images, root).items()
    )
    return Manifest(tuple(rows), ClassMap(()), {}, {source: Origin("images only")})
