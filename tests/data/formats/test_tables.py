"""Tables of images: no row or cell is lost, and nothing is stated twice."""

import re

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data.formats import read_folder
from plantseg_next.data.formats.index import add_index
from plantseg_next.data.formats.tables import read_index
from plantseg_next.data.manifest import Row
from plantseg_next.errors import DataError


@pytest.mark.parametrize(
    "text",
    [
        "Name,Split\na,train\nb,\n",
        "name;split\r\na;train\r\n\r\nb;\r\n",
        'name\tsplit\n"a"\t train \nb\t""\n',
        "\ufeffname,split,,\na,train,,\nb,,,\n",
    ],
)
def test_rows_of_a_table_are_read_with_any_separator(tmp_path, text):
    """After psychopy/psychopy#129: every row may end with commas, the header too."""
    path = tmp_path / "index.csv"
    path.write_bytes(text.encode())
    assert read_index(path) == [
        {"name": "a", "split": "train"},
        {"name": "b", "split": ""},
    ]
    path.write_bytes(text.lstrip("\ufeff").encode("utf-16"))
    assert [row["name"] for row in read_index(path)] == ["a", "b"]


def test_a_cell_may_hold_separators_and_line_ends(tmp_path):
    path = tmp_path / "index.csv"
    path.write_text('name,note\na,"one, two\nthree"\n')
    assert read_index(path) == [{"name": "a", "note": "one, two\nthree"}]
    path.write_text("")
    assert read_index(path) == []


@pytest.mark.parametrize(
    ("text", "came"),
    [
        (
            "name,split\na,train\nb,test,\n",
            ", line 3, has 3 cells, for 2 columns: b,",
        ),
        ("name,split,plant\na,,test,apple\n", ", line 2, has 4 cells, for 3 columns"),
        ("name,split,plant\na,apple\n", ", line 2, has 2 cells, for 3 columns: a, apple."),
        ("name,split,Split\na,train,test\n", " has more than one column `split`"),
        ("name,,split\na,x,train\n", ", line 2, has 'x' in a column without a name"),
        (
            'name,split\n"a,train\nb,test\n',
            " is not a table: unexpected end of data",
        ),
        ('name,split\n"a"b,train\n', " is not a table: ',' expected after '\"' (line 2)"),
    ],
)
def test_a_table_with_cells_in_no_place_is_refused_with_the_line(tmp_path, text, came):
    """After pandas-dev/pandas#15203 and #14124: one cell too many moves the others."""
    path = tmp_path / "index.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(f"index.csv`{came}")):
        read_index(path)


def rows_of(folder, *names):
    return [Row(name, folder / f"{name}.jpg", "s") for name in names]


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("name,split\na/x,train\na/x,test\n", "has two different rows for `a/x`"),
        ("name,split\na/x,train\na/x.JPG,test\n", "has two different rows for `a/x.JPG`"),
        ("name,split\na/x,train\nx,test\n", "has two different rows for `x`"),
    ],
)
def test_two_rows_for_one_image_are_refused(tmp_path, text, came):
    path = tmp_path / "index.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(came)) as refused:
        add_index(rows_of(tmp_path, "a/x", "b/y"), path)
    assert refused.value.needed == "one row for each image"


def test_one_row_for_two_images_is_refused(tmp_path):
    path = tmp_path / "index.csv"
    path.write_text("name,split\nx,train\n")
    with pytest.raises(DataError, match=r"has one row `x` for 2 images, `.*a/x\.jpg` and"):
        add_index(rows_of(tmp_path, "a/x", "b/x"), path)
    path.write_text("name,split\na/x,train\nb/x,test\n")
    rows, missing = add_index(rows_of(tmp_path, "a/x", "b/x"), path)
    assert [row.split for row in rows] == ["train", "test"]
    assert not missing


PLANTSEG = "Name,Index,Plant,Disease,Split\na.jpg,0,apple,rust,\nb.jpg,1,apple,scab,\n"


def plantseg(folder, table):
    for name in "ab":
        for place, ending in (("images", "jpg"), ("annotations", "png")):
            path = folder / place / "train" / f"{name}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((6, 4), "ab".index(name) + 1, np.uint8)).save(path)
    (folder / "Metadata.csv").write_text(table)
    return folder


def test_plantseg_image_with_two_different_rows_is_read_as_if_it_had_none(tmp_path):
    manifest = read_folder(plantseg(tmp_path, f"{PLANTSEG}a.jpg,1,apple,scab,\n"))
    assert [row.disease for row in manifest.rows] == [None, "apple scab"]
    (origin,) = manifest.origins.values()
    assert origin.doubts == (
        "images with two different rows in the table, read as if they had none: 1, for "
        "example a.jpg",
    )


@pytest.mark.parametrize("index", ["254", "999999999999", "9" * 5_000])
def test_plantseg_index_that_no_mask_can_hold_is_refused(tmp_path, index):
    table = PLANTSEG.replace("b.jpg,1,", f"b.jpg,{index},")
    with pytest.raises(
        DataError, match=r"Metadata\.csv`: the index of b\.jpg is '\d+"
    ) as no:
        read_folder(plantseg(tmp_path, table))
    assert no.value.needed.startswith("indices of 0 to 253")
