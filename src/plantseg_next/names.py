"""Names that anyone may have chosen: shown as text, made paths, written into tables.

Names of images, folders and classes come from file systems, archives, manifests and
annotation files. They may hold escape codes, line breaks, bytes that are not UTF-8, or
lead out of a folder.
"""

import csv
import hashlib
import io
import math
import re
import sys
import unicodedata
from collections.abc import Iterable

MAX_NAME_BYTES = 240
"""Longest name of a file that is made here: systems hold 255 bytes, with the ending."""
MAX_PATH_BYTES = 1000
"""Longest path made here, below the output folder: systems hold 4,096 bytes in all."""
MAX_WORD, MAX_SHOWN = 300, 2000
"""Characters of a word and of a line that are shown, of a longer one the two ends."""

Value = str | int | float | bool | None
"""A value in a table; ``None`` is an empty cell."""

# Control characters, separators of lines, changes of the writing direction, surrogates.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NOT_IN_A_NAME = re.compile(f'[<>:"|?*\\\\]|{_HIDDEN.pattern}')
_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?",
    re.IGNORECASE | re.DOTALL,
)
_DIGEST = re.compile(r"-[0-9a-f]{16}$")
_LONG_WORD = re.compile(rf"(\S{{{MAX_WORD // 2}}})\S{{4,}}(\S{{{MAX_WORD // 2}}})")
_FORMULA = re.compile(r"\s*[=+\-@\uff0b\uff0d\uff1d\uff20]")


def escaped(text: object) -> str:
    r"""Return text in one line, without characters that a terminal or table would obey.

    They are escaped, as are bytes of a file name that are not UTF-8.

    Example:
        >>> print(escaped("leaf\n\x1b[31mred"), escaped("\udcff.jpg"))
        leaf\n\x1b[31mred \xff.jpg
    """
    shown = str(text)
    if any("\udc80" <= letter <= "\udcff" for letter in shown):
        # File names hold undecodable bytes as surrogates; with a locale that is not
        # UTF-8, those of ordinary names too.
        raw = shown.encode("utf-8", "surrogatepass")
        raw = re.sub(rb"\xed([\xb2\xb3])([\x80-\xbf])", _original_byte, raw)
        shown = raw.decode("utf-8", "backslashreplace")
    return _HIDDEN.sub(lambda hidden: _escape(hidden[0]), shown)


def printable(text: object) -> str:
    """Return text ``escaped`` for a message; very long words and texts are cut inside."""
    shown = escaped(text)
    if len(shown) > MAX_WORD:
        shown = _LONG_WORD.sub(r"\1...\2", shown)
    if len(shown) > MAX_SHOWN:
        shown = f"{shown[: MAX_SHOWN // 2]} ... {shown[-MAX_SHOWN // 2 :]}"
    return shown


def printable_lines(text: str) -> str:
    """Return text of several lines, each ``printable``."""
    return "\n".join(map(printable, text.split("\n")))


def _original_byte(surrogate: re.Match[bytes]) -> bytes:
    """Return the byte that a surrogate of U+DC80 to U+DCFF stands for."""
    return bytes([(surrogate[1][0] & 1) << 6 | surrogate[2][0] & 0x3F | 0x80])


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def shorter(name: str) -> str:
    """Return a name of at most ``MAX_NAME_BYTES``: a longer one is cut, a digest added."""
    return name if len(name.encode()) <= MAX_NAME_BYTES else _with_digest(name, name)


def is_utf8(name: str) -> bool:
    """Return whether a name can be stated in a file of UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def safe_path(name: str) -> str:
    """Return a relative path that stays below its folder and is valid on every system.

    Ordinary names stay as they are. Anything else (absolute paths, ``..``, drive letters,
    control characters, names that Windows reserves, names that are too long) is replaced
    and marked by a digest, so that different names give different paths.

    Args:
        name: A path with ``/``, as a data set, a manifest or an archive states it.

    Example:
        >>> safe_path("plot 1/leaf.jpg")
        'plot 1/leaf.jpg'
        >>> safe_path("../leaf?")
        '_-5ec1f7e700f37c3d/leaf_-acf1e95090253475'
    """
    path = "/".join(map(_safe_part, name.split("/")))
    if len(path.encode()) <= MAX_PATH_BYTES:
        return path
    return _with_digest(_cleaned(name.rpartition("/")[2]), name)


def _safe_part(name: str) -> str:
    """Return a valid file name; another one for every name."""
    cleaned = _cleaned(name)
    if cleaned != name or _DIGEST.search(name) or len(name.encode()) > MAX_NAME_BYTES:
        return _with_digest(cleaned, name)
    return name


def _cleaned(name: str) -> str:
    encoding = sys.getfilesystemencoding()
    name = name.encode(encoding, "replace").decode(encoding)
    name = _NOT_IN_A_NAME.sub("_", name).rstrip(". ") or "_"
    return f"_{name}" if _RESERVED.fullmatch(name) else name


def _with_digest(cleaned: str, name: str) -> str:
    content = name.encode("utf-8", "surrogatepass")
    end = f"-{hashlib.sha256(content).hexdigest()[:16]}"
    return cleaned.encode()[: MAX_NAME_BYTES - len(end)].decode("utf-8", "ignore") + end


class OutputPaths:
    """Paths of output files, one for each name, also where case makes no difference."""

    def __init__(self) -> None:
        self._owner: dict[str, str] = {}  # from a file, as systems compare it, to a name
        self._folders: set[str] = set()

    def path(
        self, kind: str, name: str, suffix: str = "", *, keep_ending: bool = True
    ) -> str:
        """Return the path of a file; of leaf.jpg and LEAF.jpg, the second gets a number.

        Args:
            kind: Folder of the file, or "".
            name: Names the file, see ``safe_path``; the same name has the same file.
            suffix: Ending of the file.
            keep_ending: Whether the ending of the name stays before that of the file.
        """
        stem = safe_path(name if keep_ending else _without_ending(name))
        if self._is_below_a_file(f"{kind}/{stem}"):
            stem = _with_digest("_", name)
        stem = f"{kind}/{stem}" if kind else stem
        path, number = f"{stem}{suffix}", 1
        while not self._claims(path, name):
            number += 1
            path = f"{stem}-{number}{suffix}"
        return path

    def _claims(self, path: str, name: str) -> bool:
        """Return whether a file is that of a name, or of nobody until now."""
        compared = _compared(path)
        if compared in self._folders or self._owner.setdefault(compared, name) != name:
            return False
        self._folders.update(_folders_of(compared))
        return True

    def _is_below_a_file(self, path: str) -> bool:
        return any(folder in self._owner for folder in _folders_of(_compared(path)))


def _without_ending(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def _compared(path: str) -> str:
    """Return a path in the form in which systems that ignore case compare it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _folders_of(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:n]) for n in range(1, len(parts)))


def safe_cell(value: Value) -> Value:
    """Return a value as a cell of a table that people open in a spreadsheet.

    Text is ``escaped``. Text that a spreadsheet would take for a formula gets an
    apostrophe before it; numbers stay numbers.

    Example:
        >>> safe_cell("=1+1"), safe_cell("-0.5"), safe_cell(-0.5)
        ("'=1+1", '-0.5', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = escaped(value)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def csv_line(values: Iterable[Value]) -> str:
    r"""Return one line of a table; floats to eight digits, text as a ``safe_cell``.

    NaN is an empty cell, as ``None`` is.

    Example:
        >>> csv_line(["leaf, left.jpg", 12.3456789012, None])
        '"leaf, left.jpg",12.345679,\n'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(
        _number(value) if isinstance(value, float) else safe_cell(value) for value in values
    )
    return line.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.8g}"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) is not None
