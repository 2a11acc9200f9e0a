"""XML files, read within bounds: no document type, no deep nesting."""

from pathlib import Path
from xml.etree import ElementTree as ET
from xml.parsers import expat

from plantseg_next.errors import DataError
from plantseg_next.files import read_bytes

MAX_XML_BYTES = 2 * 2**30
"""Largest XML file that is read: annotations of a large data set in one file."""
MAX_DEPTH = 100
"""Elements within each other; annotations need 5."""


def read_xml(path: Path) -> ET.Element:
    """Return the root of an XML file.

    A document type is refused: with it, a file of a few lines may state entities that
    expand to gigabytes, or name other files. No annotation tool writes one.

    Raises:
        DataError: With the line, if it is not XML, has a document type or too many
            elements within each other; or as ``read_bytes``.
    """
    content = read_bytes(path, MAX_XML_BYTES)
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} elements within each other")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError("a document type, which annotations do not have")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, TypeError) as error:
        # A LookupError of an unknown encoding.
        line = parser.CurrentLineNumber
        raise DataError(
            f"`{path}` is not XML, or truncated: line {line}: {error}.",
            needed="a complete file of an annotation tool",
            fix="export it again; or remove it from the folder if it does not describe "
            "the images",
        ) from error
