"""YAML as it looks, and no more of it than stands in the file."""

import re

import pytest
import yaml

from plantseg_next.yaml_files import load_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{part}'] * 9)}]\n"
    for part, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a0: &a0 {0: background}\n" + "".join(
    f"a{i + 1}: &a{i + 1}\n  <<: [*a{i}, *a{i}]\n" for i in range(40)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases (*) that repeat more than 1,000 values"),
        (MERGES, "aliases (*) that repeat more than 1,000 values"),
        ("a: &a [*a]", "a value contains itself"),
        ("a: &a {b: *a}", "a value contains itself"),
        ("[" * 5_000, "more than 50 lists and mappings within each other"),
        ("- " * 5_000, "more than 50 lists and mappings within each other"),
        ("{a: " * 300 + "}" * 300, "more than 50 lists and mappings within each other"),
        (f"[{'1,' * 100_001}]", "more than 100,000 values"),
        ("#" * (2**20 + 1), "more than 1 MiB of YAML"),
        ("1: a\n0x1: b", "`0x1` is stated twice"),
        ("1: a\n1.0: b", "`1.0` is stated twice"),
        ("{1: a, true: b}", "`true` is stated twice"),
        ("[1]: a", "unhashable key"),
        ("a: 1\nb: .nan", '`.nan` is not a finite number\n  in "<unicode string>", line 2'),
        ("a: -.inf", "`-.inf` is not a finite number"),
        ("a: 1e999", "`1e999` is not a finite number"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("a\n---\nb", "expected a single document"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("9" * 5_000, "not YAML: Exceeds the limit"),
        ("a: *b", "undefined alias"),
        ("\0", "special characters are not allowed"),
    ],
)
def test_what_is_ambiguous_or_grows_is_refused(text, message):
    """After yaml/pyyaml#235 (aliases that multiply) and #165 (equal keys)."""
    with pytest.raises(yaml.YAMLError, match=re.escape(message)):
        load_yaml(text)


def test_aliases_and_merged_mappings_in_moderation_are_read():
    tree = load_yaml("a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, x: 3}\n1: p\n'1': q")
    assert tree["b"] == tree["a"] == {"x": 1, "y": 2}
    assert tree["c"] == {"x": 3, "y": 2}
    assert (tree[1], tree["1"]) == ("p", "q")
