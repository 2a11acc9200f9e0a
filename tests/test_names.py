"""Names that anyone may have chosen: shown, made paths, written into tables."""

import csv
import io
import os
import re
import sys
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plantseg_next.names import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    OutputPaths,
    csv_line,
    escaped,
    printable,
    printable_lines,
    safe_cell,
    safe_path,
)

# Of all of Unicode, lone surrogates included, and what names are attacked with.
ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cs"])) | st.lists(
    st.sampled_from(
        ["..", ".", "", "/", "\\", "C:", "CON", "nul.txt", "a", "A", "é", "e\u0301", "\0",
         "\r\n", "x" * 300, "葉" * 90, " ", "~", "-0123456789abcdef", "\udcff", "\u202e"]
    ),
    max_size=8,
).map("/".join)  # fmt: skip

ORDINARY = [
    "leaf.jpg", "plot 1/leaf (2).tif", "葉/leaf", "a.b.c", "-n", "~", "#1", "x" * 240,
    "IMG_2023.rf.0123456789abcdef0123456789abcdef", "ünïcode/é", "%20", "[red]a[/red]",
    "consul", "nullo.png", ".hidden", "a'b", "=1+1", "👩‍🌾",
]  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_stay_as_they_are(name):
    assert safe_path(name) == name


@given(ANY_TEXT)
def test_safe_path_stays_inside_is_valid_and_deterministic(name):
    path = safe_path(name)
    assert path == safe_path(name)
    out = Path("/out")
    assert Path(os.path.normpath(out / path)).is_relative_to(out)
    assert Path(os.path.normpath(out / path)) == out / path
    assert len(path.encode()) <= MAX_PATH_BYTES
    for part in path.split("/"):
        assert 0 < len(part.encode()) <= MAX_NAME_BYTES
        assert not re.search(r'[<>:"\\|?*\x00-\x1f\x7f]', part)
        assert part not in (".", "..")
        assert not part.endswith((".", " "))
        assert not PureWindowsPath(part).is_reserved()


@given(ANY_TEXT, ANY_TEXT)
@example("../x", "x")
@example("a", safe_path("a?"))
@example("a?", safe_path("a?"))
def test_safe_path_of_different_names_is_different(first, second):
    assert (safe_path(first) == safe_path(second)) == (first == second)


@given(st.lists(ANY_TEXT, unique=True), st.sampled_from(["", ".png"]))
@example(["a", "A", "a.png/b", "A.png"], ".png")
@example(["a.png/b", "a"], ".png")
@example(["é", "e\u0301", "E\u0301"], ".png")
def test_output_paths_are_one_for_each_name_where_case_makes_no_difference(names, suffix):
    """After madsmtm/objc2#353 and microsoft/Windows-Dev-Performance#10."""
    paths = OutputPaths()
    given_out = [paths.path("masks", name, suffix) for name in names]
    assert given_out == [paths.path("masks", name, suffix) for name in names]
    compared = [
        unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
        for path in given_out
    ]
    assert len(set(compared)) == len(names)
    for path in compared:
        assert path.startswith("masks/")
        assert not any(other.startswith(f"{path}/") for other in compared)


def test_output_paths_drop_the_ending_where_asked():
    paths = OutputPaths()
    names = ["a/leaf.jpg", "a/leaf.tif", "a.b/c", ".hidden", "..jpg"]
    assert [paths.path("", n, ".png", keep_ending=False) for n in names] == [
        "a/leaf.png",
        "a/leaf-2.png",
        "a.b/c.png",
        ".hidden.png",
        f"{safe_path('.')}.png",
    ]


def test_long_names_are_cut_and_different():
    """After obss/sahi#400 and ludwig-ai/ludwig#3927."""
    names = [f"{'葉' * 80}/{'a' * 245}{i}" for i in range(3)]
    short = [safe_path(name) for name in names]
    assert len(set(short)) == 3
    for name in short:
        folder, file = name.split("/")
        assert folder == "葉" * 80
        assert len(file.encode()) <= MAX_NAME_BYTES
    assert safe_path("葉" * 85).startswith("葉" * 74)
    assert safe_path("a/" * 3000 + "leaf").startswith("leaf-")


def test_safe_path_is_valid_where_the_system_knows_ascii_only(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert re.fullmatch(r"leaf_-[0-9a-f]{16}", safe_path("leaf葉"))
    assert safe_path("leaf") == "leaf"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("leaf", "leaf"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J\x00", r"\x9b2J\x00"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("line\u2028break", r"line\u2028break"),
        (os.fsdecode(b"\xff\xfe.jpg"), r"\xff\xfe.jpg"),
        ("\udcc3\udcbc", "ü"),  # as a locale that is not UTF-8 reads it
        ("\ud800rust", r"\ud800rust"),
        ("葉 ü 👩‍🌾 \u3000", "葉 ü 👩‍🌾 \u3000"),
    ],
)
def test_text_is_escaped(text, shown):
    """After devsnd/tarindexer#9 and arsenetar/dupeguru#335."""
    assert escaped(text) == printable(text) == shown
    shown.encode()


@given(st.text(st.characters() | st.characters(categories=["Cs"])))
def test_escaped_text_is_one_line_of_utf8(text):
    line = escaped(text)
    line.encode()
    assert len(line.splitlines()) <= 1
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl") for letter in line)


def test_long_text_is_cut_where_it_is_shown():
    shown = printable(f"`{'x' * 2_000_000}` is a class")
    assert len(shown) < 400
    assert shown.startswith("`xxx")
    assert shown.endswith("` is a class")
    assert len(printable("word " * 10_000)) < 2100
    assert printable_lines("a\x1b\nb") == "a\\x1b\nb"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=cmd|'calc'!A0.jpg", "'=cmd|'calc'!A0.jpg"),
        ("+cmd.jpg", "'+cmd.jpg"),
        ("-1+1.jpg", "'-1+1.jpg"),
        ("@SUM(A1).jpg", "'@SUM(A1).jpg"),
        ("  =x.jpg", "'  =x.jpg"),
        ("\u3000=x", "'\u3000=x"),
        ("\uff1dx", "'\uff1dx"),
        ("\t=x.jpg", r"\t=x.jpg"),
        ("\r=x.jpg", r"\r=x.jpg"),
        ("leaf=1.jpg", "leaf=1.jpg"),
        ("-0.5", "-0.5"),
        ("+3e-4", "+3e-4"),
        (-0.5, "-0.5"),
        (-3, "-3"),
        (True, "True"),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_table_cells_are_no_formulas_and_numbers_stay_numbers(value, cell):
    """After hhurz/tableExport.jquery.plugin#230 and DestinyItemManager/DIM#11824."""
    (row,) = csv.reader(io.StringIO(csv_line(["a", value])))
    assert row == ["a", cell]
    assert safe_cell("leaf") == "leaf"


@given(st.lists(st.text(st.characters() | st.characters(categories=["Cs"])), min_size=1))
def test_csv_line_is_one_row_of_one_line(values):
    """After arsenetar/dupeguru#210: a table that could not be written."""
    line = csv_line(values)
    line.encode()
    assert len(line.splitlines()) == 1
    ((*row,),) = csv.reader(io.StringIO(line, newline="")) if any(values) else [values]
    assert len(row) == len(values)
