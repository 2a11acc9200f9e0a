"""Versioned JSON files: what is written, what is read, and what is refused."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pydantic import ConfigDict, with_config

from plantseg_next.errors import DataError, UsageError
from plantseg_next.json_files import JsonFormat, PathInFile, load_json


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Leaf:
    name: str
    image: PathInFile
    sizes: tuple[int, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


def renamed(fields):
    fields["name"] = fields.pop("title")
    return fields


LEAVES = JsonFormat(
    Leaf, "a leaf", version=3, fix="draw it", oldest=2, fix_older="grow", migrate=renamed
)


def test_written_file_has_version_first_and_relative_paths(tmp_path):
    leaf = Leaf("Blatt é", tmp_path / "images" / "a.jpg", (1, 2), {"dice": 0.1})
    LEAVES.write(tmp_path / "new folder" / "leaf.json", leaf)
    LEAVES.write(tmp_path / "leaf.json", leaf)
    assert (tmp_path / "leaf.json").read_text("utf-8") == (
        '{\n "format": 3,\n "name": "Blatt é",\n "image": "images/a.jpg",\n "sizes": [\n'
        '  1,\n  2\n ],\n "scores": {\n  "dice": 0.1\n }\n}'
    )
    for folder in (tmp_path, tmp_path / "new folder"):
        assert LEAVES.read(folder / "leaf.json") == leaf
        assert [path.suffix for path in folder.glob("leaf*")] == [".json"]


def test_defaults_are_left_out_if_asked(tmp_path):
    short = replace(LEAVES, omit_defaults=True)
    leaf = Leaf("a", Path("/b.jpg"))
    tree = json.loads(short.to_bytes(leaf, tmp_path))
    assert tree == {"format": 3, "name": "a", "image": "/b.jpg"}
    assert short.parse(json.dumps(tree), tmp_path / "leaf.json") == leaf


def test_older_file_is_converted(tmp_path):
    text = '{"format": 2, "title": "a", "image": "b.jpg"}'
    leaf = LEAVES.parse(text, tmp_path / "leaf.json")
    assert leaf == Leaf("a", tmp_path / "b.jpg")


@pytest.mark.parametrize(
    ("text", "came", "fix"),
    [
        ("", "is not a leaf: JSONDecodeError('Expecting value: line 1 col", "draw it"),
        (b"\xff", "is not a leaf: UnicodeDecodeError(", "draw it"),
        ("[3]", "is not a leaf: it holds no object.", "draw it"),
        ("[" * 100_000, "is not a leaf: line 1: more than 100 lists", "draw it"),
        (
            '{"format": 3, "name": "a",\n"name": "b"}',
            "is not a leaf: line 2: `name`",
            "draw",
        ),
        ('{"format": "3"}', 'is not a leaf: `format` is "3", not a whole n', "draw it"),
        ('{"format": [3]}', "is not a leaf: `format` is [3], not a whole n", "draw it"),
        ('{"format": null}', "is not a leaf: `format` is null, not a whole", "draw it"),
        ('{"format": true}', "is not a leaf: `format` is true, not a whole", "draw it"),
        ('{"format": 3.0}', "is not a leaf: `format` is 3.0, not a whole n", "draw it"),
        ('{"name": "a"}', "was written by an older version (format 1).", "grow"),
        ('{"format": 3, "name": "a"}', "is not a leaf: `image`: Field required.", "draw"),
        ('{"format": 3, "name": 1, "image": "b"}', "is not a leaf: `name`: Input", "draw"),
        (
            '{"format": 3, "name": "a", "image": "b", "sizes": [1, "x"]}',
            "is not a leaf: `sizes.1`: Input should be a valid integer",
            "draw it",
        ),
        (
            '{"format": 3, "name": "a", "image": "b", "picture": "c"}',
            "is not a leaf: `picture`: Unexpected keyword argument.",
            "draw it",
        ),
        ('{"format": 2, "name": "a"}', "is not a leaf: KeyError('title').", "draw it"),
        ('{"format": 1}', "was written by an older version (format 1).", "grow"),
        ('{"format": 4}', "was written by a newer version (format 4).", "update plantseg-"),
    ],
)
def test_other_content_is_refused_with_the_reason(tmp_path, text, came, fix):
    path = tmp_path / "leaf.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        LEAVES.read(path)
    assert caught.value.came.startswith(f"`{path}` {came}")
    assert caught.value.needed == "a leaf of format 2 to 3"
    assert caught.value.fix.startswith(fix)


def test_missing_file_is_refused_by_the_error_of_the_format(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file") as caught:
        replace(LEAVES, error=UsageError).read(tmp_path / "leaf.json")
    assert caught.value.needed == "a leaf of format 2 to 3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n"a": 2}', "line 2: `a` is stated twice in one object"),
        (
            '[{"b": 1},\n{"b": 1,\n"\\u0062": 2}]',
            "line 3: `b` is stated twice in one",
        ),
        ('{"x": "NaN",\n"y": NaN}', "line 2: NaN is not a finite number"),
        ("[1,\n-Infinity]", "line 2: -Infinity is not a finite number"),
        ("[1e5,\n1e999]", "line 2: 1e999 is not a finite number"),
        (f"[\n{'9' * 400}.0]", "line 2: 999999"),
        (f"[\n\n{'9' * 21}]", "line 3: a whole number of 21 digits"),
        ("9" * 5_000, "line 1: a whole number of 5000 digits"),
        ('["a",\n"\\ud800"]', "line 2: half of a surrogate pair"),
        ('{"\\udfff": 1}', "line 1: half of a surrogate pair"),
        ("[" * 100_000, "line 1: more than 100 lists and objects within each other"),
        ("[\n" * 200 + "]" * 200, "line 101: more than 100 lists and objects"),
        ('{"a":' * 101 + "1" + "}" * 101, "line 1: more than 100 lists and objects"),
        ('"' + '\\"' * 300_000, "Unterminated string"),
        (b"\xff{}", "'utf-8' codec can't decode"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_python_reads_as_something_else_is_refused_with_the_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_json(text)


def test_json_is_read_as_python_reads_it():
    deep = "[" * 100 + "]" * 100
    numbers = '[1e5, 1e-999, -0.0, 18446744073709551615, "\\ud83d\\ude00", "\\\\ud800"]'
    strings = '{"[[[": "{\\"", "a": [true, null, "NaN", "1e999"]}'
    for text in (deep, numbers, strings, strings.encode("utf-16"), b"\xef\xbb\xbf{}"):
        assert load_json(text) == json.loads(text)
    assert str(load_json("[NaN, Infinity, 1e999]", own=True)) == "[nan, inf, inf]"
    assert load_json(r'["\udcff"]', own=True) == ["\udcff"]  # of a name that is not UTF-8
    with pytest.raises(ValueError, match="line 1: half of a surrogate pair"):
        load_json(r'["\ud800"]', own=True)
