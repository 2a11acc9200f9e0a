"""The loop over images that commands share."""

from pathlib import Path

import pytest

from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.errors import DataError
from plantseg_next.structures import ClassMap
from plantseg_next.workflows.images import name_within, read_each


def rows(folder, *names):
    return tuple(Row(name.removesuffix(".png"), folder / name, "leaves") for name in names)


def test_read_each_skips_the_unreadable_and_reports_every_row():
    def read(row):
        if row.key == "b":
            raise DataError("It is damaged.", needed="an image", fix="copy it again")
        return row.key.upper()

    manifest = Manifest(rows(Path(), "a.png", "b.png", "c.png"), ClassMap(()), {})
    skipped, calls = [], []
    images = read_each(
        manifest, read, skipped=skipped, on_progress=lambda *call: calls.append(call)
    )
    assert [(row.key, content) for row, content in images] == [
        ("a", "A"),
        ("c", "C"),
    ]
    assert skipped == [("b", "It is damaged.")]
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_error_of_what_is_done_with_an_image_is_not_skipped():
    manifest = Manifest(rows(Path(), "a.png", "b.png"), ClassMap(()), {})
    skipped = []
    images = read_each(manifest, lambda row: row.key, skipped=skipped)
    next(images)
    with pytest.raises(DataError, match=r"The disk is full\."):
        images.throw(DataError("The disk is full.", needed="free space", fix="free some"))
    assert skipped == []


def test_name_is_the_path_within_the_folder_or_the_key(tmp_path):
    (inside,) = rows(tmp_path / "plot 1", "a.png")
    (outside,) = rows(tmp_path.parent, "b.png")
    assert name_within(tmp_path)(inside) == "plot 1/a.png"
    assert name_within(tmp_path)(outside) == "b.png"
    assert name_within(inside.image)(inside) == "a.png"
