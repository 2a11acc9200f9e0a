"""XML files: what is read, and what is refused before it grows."""

import re

import pytest

from plantseg_next.errors import DataError
from plantseg_next.xml_files import read_xml

LAUGHS = "".join(
    f'<!ENTITY {name} "{f"&{part};" * 10}">'
    for part, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_elements_attributes_and_text_are_read(tmp_path):
    path = tmp_path / "a.xml"
    text = '<?xml version="1.0"?><a>\n<b x="é&amp;1">c &lt; d</b><b/></a>'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        root = read_xml(path)
        assert [(b.tag, b.attrib, b.text) for b in root] == [
            ("b", {"x": "é&1"}, "c < d"),
            ("b", {}, None),
        ]


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("", "line 1: no element found"),
        ("<a>\n<b></a>", "line 2: mismatched tag"),
        ("<a>\n", "line 2: no element found"),
        ("<a/><a/>", "line 1: junk after document element"),
        ("<a>&b;</a>", "line 1: undefined entity"),
        (f'<!DOCTYPE a [<!ENTITY a "ha">{LAUGHS}]><a>&i;</a>', "line 1: a document type"),
        ('\n<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "line 2: a document type"),
        ("<a>\n" * 200_000, "line 101: more than 100 elements within each other"),
        ('<?xml version="1.0" encoding="none"?><a/>', "line 1: unknown encoding"),
        ("<a>\0</a>", "line 1: not well-formed"),
    ],
)
def test_what_is_no_plain_xml_is_refused_with_the_line(tmp_path, text, came):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(f"is not XML, or truncated: {came}")):
        read_xml(path)
