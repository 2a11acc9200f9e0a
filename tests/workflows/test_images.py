"""The loop over images that commands share."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from plantseg_next.data.manifest import Manifest, Origin, Row
from plantseg_next.errors import DataError
from plantseg_next.structures import ClassMap
from plantseg_next.workflows.images import (
    left_out_names,
    name_within,
    read_each,
    without_results,
    without_unstatable_names,
)


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


def test_name_never_leads_out_of_the_folder(tmp_path):
    (inside, outside, absolute) = rows(tmp_path, "x/../a.png", "../b.png", "c.png")
    absolute = replace(absolute, image=Path("/elsewhere/c.png"), key="/elsewhere/c")
    name = name_within(tmp_path)
    assert name(inside) == "a.png"
    for row in (outside, absolute, replace(outside, key="../../up")):
        assert ".." not in Path(name(row)).parts
        assert not Path(name(row)).is_absolute()
    broken = replace(inside, image=tmp_path / "line\r\nbreak\x1b[31m.png")
    assert name(broken) == r"line\r\nbreak\x1b[31m.png"


def test_image_too_large_for_memory_is_skipped_and_named():
    def read(row):
        if row.key == "a":
            raise MemoryError
        if row.key == "b":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return row.key

    manifest = Manifest(rows(Path("d"), "a.png", "b.png", "c.png"), ClassMap(()), {})
    skipped = []
    assert [c for _, c in read_each(manifest, read, skipped=skipped)] == ["c"]
    assert skipped == [
        ("a", "`d/a.png` is too large for the memory of this machine."),
        ("b", "`d/b.png` is too large for the memory of this machine."),
    ]


def test_bug_while_an_image_is_read_is_raised():
    def read(_):
        raise RuntimeError("a bug")

    manifest = Manifest(rows(Path("d"), "a.png"), ClassMap(()), {})
    with pytest.raises(RuntimeError, match="a bug"):
        list(read_each(manifest, read, skipped=[]))


def test_image_listed_twice_is_read_once():
    manifest = Manifest(rows(Path("d"), "a.png", "a.png"), ClassMap(()), {})
    skipped = []
    assert len(list(read_each(manifest, lambda row: row, skipped=skipped))) == 1
    assert skipped == [
        ("a", "An image of this name has been read already: list every image once.")
    ]


def test_results_of_an_earlier_call_are_no_images(tmp_path):
    manifest = Manifest(rows(tmp_path, "a.png", "out/masks/a.png"), ClassMap(()), {})
    left = without_results(manifest, tmp_path / "x" / ".." / "out")
    assert [row.image.name for row in left.rows] == ["a.png"]
    assert len(left) == 1


def test_images_whose_names_are_not_utf8_are_left_out_and_named():
    good, bad = rows(Path("d"), "葉.png", os.fsdecode(b"b\xff.png"))
    (key,) = rows(Path("d"), "k.png")
    origin = Origin("images", masks_without_image=(os.fsdecode(b"m\xff.png"),))
    manifest = Manifest(
        (good, bad, replace(key, key="\ud800")), ClassMap(()), {}, {"leaves": origin}
    )
    kept = without_unstatable_names(manifest)
    assert kept.rows == (good,)
    assert kept.origins["leaves"].masks_without_image == (r"m\xff.png",)
    reason = "Left out: the name is not UTF-8, so that no manifest can state it; rename it."
    assert left_out_names(kept) == [(r"d/b\xff.png", reason), ("d/k.png", reason)]


def test_data_set_of_names_that_are_not_utf8_is_refused():
    (bad,) = rows(Path(os.fsdecode(b"d\xff")), "a.png")
    manifest = Manifest((bad,), ClassMap(()), {})
    with pytest.raises(DataError) as caught:
        without_unstatable_names(manifest)
    assert caught.value.came == r"`d\xff/a.png` has a name that is not UTF-8."
    assert caught.value.needed == "names in UTF-8, so that a manifest can state them"
    assert caught.value.fix.startswith("rename the file or its folder")
