"""JSON files: read within bounds; those with a version written and refused in one way.

``load_json`` reads what Python's ``json`` reads in silence as something else, or not at
all, as an error. A file with a version holds an object: its version under ``format``, 1
where it states none, and the fields of a dataclass or a pydantic model. Every kind of file
is one ``JsonFormat``.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    AfterValidator,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError, to_json

from plantseg_next.errors import DataError, PlantSegError
from plantseg_next.files import read_bytes, write_atomically
from plantseg_next.structures import ClassMap

T = TypeVar("T")
MAX_CLASSES = 254
"""Most lesion classes, and most diseases: their ids are bytes, and 255 is IGNORE."""
MAX_NAME = 1000
"""Characters of the longest name of a class."""

MAX_JSON_BYTES = 2 * 2**30
"""Largest JSON file that is read: annotations of a large data set in one file."""
MAX_DEPTH = 100
"""Objects and lists within each other. Annotations need 10, checkpoints 40; Python's own
limit depends on who calls, and would end a run at another depth each time."""

MAX_DIGITS = 20
"""Digits of a whole number: ids of 64 bits have up to 20."""

# A string that is never closed ends with the text, so that no letter is read twice.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_NOT_A_BRACKET = re.compile(rf'{_STRING}|[^][{{}}"]+', re.DOTALL)
_LARGE = (
    re.compile(r"[eE]\+?[0-9]{3}"),
    re.compile(rf"[^0-9][0-9]{{{MAX_DIGITS + 1}}}"),
    re.compile(rf"\A[0-9]{{{MAX_DIGITS + 1}}}"),
)
"""What numbers have that need a closer look; few files have any."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_TOKEN = re.compile(
    rf"(?P<string>{_STRING})(?P<is_key>\s*:)?|(?P<bracket>[][{{}}])"
    r"|(?P<number>-?[0-9][-+.eE0-9]*|NaN|-?Infinity)",
    re.DOTALL,
)


def load_json(text: str | bytes, *, own: bool = False) -> Any:  # noqa: ANN401
    """Return the content of a JSON text as plain values.

    Args:
        text: In UTF-8, UTF-16 or UTF-32 if these are bytes.
        own: Whether this program wrote it: then it may hold NaN and infinities, as a loss
            that was not finite, and names of files that are not UTF-8.

    Raises:
        ValueError: With the line, if it is not JSON, is nested too deep, names a key
            twice in one object, or has half of a surrogate pair in a string, a number
            that is not finite, or a whole number of more than ``MAX_DIGITS`` digits.

    Example:
        >>> load_json('{"name": "rust", "points": [[1, 2.5]]}')
        {'name': 'rust', 'points': [[1, 2.5]]}
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text)).removeprefix("\ufeff")
    _refuse_deep(text)
    hooks: dict[str, Any] = {"object_pairs_hook": _object}
    if not own:
        hooks["parse_constant"] = _number
        if any(large.search(text) for large in _LARGE):
            hooks |= {"parse_float": _number, "parse_int": _number}
    try:
        tree = json.loads(text, **hooks)
        if _SURROGATE.search(text):
            _encode(json.dumps(tree, ensure_ascii=False), own)
    except RecursionError as error:  # brackets that are never closed
        raise ValueError(_too_deep(text)) from error
    except (_RefusedError, UnicodeEncodeError) as error:
        why = "half of a surrogate pair" if isinstance(error, UnicodeError) else error
        raise ValueError(f"line {_line_of_fault(text, own)}: {why}") from error
    return tree


class _RefusedError(ValueError):
    """A value that stands in the way of reading a file; its place is yet to be found."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise _RefusedError(f"`{twice[:60]}` is stated twice in one object")
    return content


def _number(text: str) -> float | int:
    if re.fullmatch(r"-?[0-9]+", text):
        if (digits := len(text.lstrip("-"))) > MAX_DIGITS:
            raise _RefusedError(f"a whole number of {digits} digits")
        return int(text)
    if not math.isfinite(number := float(text)):
        raise _RefusedError(f"{text[:40]} is not a finite number")
    return number


def _refuse_deep(text: str) -> None:
    """Refuse what is nested too deep, before Python builds it.

    Pairs of brackets are removed from the inside, a level at a time.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    brackets = _NOT_A_BRACKET.sub("", text)
    for _ in range(MAX_DEPTH):
        inner = brackets.replace("[]", "").replace("{}", "")
        if len(inner) == len(brackets):
            return  # nothing is left, or it is no JSON
        brackets = inner
    if brackets:
        raise ValueError(_too_deep(text))


def _too_deep(text: str) -> str:
    line = _line_of_fault(text, True)
    return f"line {line}: more than {MAX_DEPTH} lists and objects within each other"


def _line_of_fault(text: str, own: bool) -> int:
    """Return the line of the first value that ``load_json`` refuses."""
    keys: list[set[str]] = []
    for token in _TOKEN.finditer(text):
        bad = False
        if token["bracket"]:
            if token["bracket"] in "[{":
                keys.append(set())
            elif keys:
                keys.pop()
            bad = len(keys) > MAX_DEPTH
        elif token["number"]:
            bad = not own and _is_refused(token["number"])
        elif token["is_key"] or _SURROGATE.search(token["string"]):
            string = _decoded(token["string"], own)
            bad = string is None
            if token["is_key"] and keys and string is not None:
                bad = string in keys[-1]
                keys[-1].add(string)
        if bad:
            return text.count("\n", 0, token.start()) + 1
    return 1


def _is_refused(number: str) -> bool:
    try:
        _number(number)
    except ValueError:
        return True
    return False


def _decoded(string: str, own: bool) -> str | None:
    """Return a string of JSON; ``None`` if it is none, or has half of a surrogate pair."""
    try:
        decoded: str = json.loads(string)
        _encode(decoded, own)
    except ValueError:
        return None
    return decoded


def _encode(text: str, own: bool) -> None:
    """Refuse half of a surrogate pair, unless it is a byte of the name of a file."""
    text.encode("utf-8", "surrogateescape" if own else "strict")


def _joined(path: object, info: Any) -> Path:  # noqa: ANN401 - beartype cannot check its type
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{path!r} is not the path of a file")
    return Path(info.context / path)


def _relative(path: Path, info: Any) -> str:  # noqa: ANN401 - as above
    path, folder = path.resolve(), info.context
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


PathInFile = Annotated[Path, PlainValidator(_joined), PlainSerializer(_relative)]
"""A path that the file states relative to its own folder, if it is below that."""


def _distinct(classes: ClassMap) -> ClassMap:
    for kind in ("lesions", "diseases"):
        names = getattr(classes, kind)
        name, times = next(iter(Counter(names).most_common(1)), ("", 0))
        if times > 1:
            text = "{kind} states {name} more than once"
            raise PydanticCustomError("repeated", text, {"kind": kind, "name": name})
        if len(names) > MAX_CLASSES:
            text = "{kind} states {n} names, and at most {most} are possible"
            about = {"kind": kind, "n": f"{len(names):,}", "most": MAX_CLASSES}
            raise PydanticCustomError("many", text, about)
        if long := [name for name in names if len(name) > MAX_NAME]:
            text = "{kind} states a name of {n} characters, and at most {most} are read"
            about = {"kind": kind, "n": f"{len(long[0]):,}", "most": MAX_NAME}
            raise PydanticCustomError("long", text, about)
        if unfit := [name for name in names if not (name.strip() and name.isprintable())]:
            about = {"kind": kind, "name": repr(unfit[0])}
            raise PydanticCustomError("unfit", "{kind} states the name {name}", about)
    return classes


ClassMapInFile = Annotated[ClassMap, AfterValidator(_distinct)]
"""Class names, each stated once, and readable."""


@dataclass(frozen=True)
class JsonFormat(Generic[T]):
    """A kind of JSON file.

    Args:
        content: Type of its fields: a dataclass or a pydantic model.
        what: Its name in errors, for example "a manifest".
        version: The version that is written.
        fix: What to do about a file that is not of this kind.
        oldest: The oldest version that is read.
        fix_older: What to do about an older one.
        migrate: Converts the fields of a readable older version.
        omit_defaults: Whether fields are left out that have their default.
        error: Class of the errors.
    """

    content: type[T]
    what: str
    version: int
    fix: str
    oldest: int = 1
    fix_older: str = ""
    migrate: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields
    omit_defaults: bool = False
    error: type[PlantSegError] = DataError

    def write(self, path: Path, content: T) -> None:
        """Write a file, completely or not at all.

        Raises:
            OSError: If it cannot be written. An existing file is then kept.
        """
        write_atomically(path, self.to_bytes(content, path.parent))

    def to_bytes(self, content: T, folder: Path, *, indent: int | None = 1) -> bytes:
        """Return a file of a folder as UTF-8; fields are in the order of their class."""
        fields = self._adapter.dump_python(
            content, exclude_defaults=self.omit_defaults, context=folder.resolve()
        )
        tree = {"format": self.version, **fields}
        return to_json(tree, indent=indent, inf_nan_mode="constants")

    def read(self, path: Path) -> T:
        """Return the content of a file.

        Raises:
            PlantSegError: Of the class ``error``, if it cannot be read, is not of this
                kind, or its version is newer or too old.
        """
        return self.parse(self.read_bytes(path), path)

    def read_bytes(self, path: Path) -> bytes:
        """Return a file as it is; raise as ``read`` does if it cannot be read."""
        try:
            return read_bytes(path, MAX_JSON_BYTES)
        except DataError as error:
            raise self._refused(error.came) from error

    def parse(self, text: str | bytes, path: Path) -> T:
        """Return the content of the text of a file; raise as ``read`` does."""
        try:
            tree = load_json(text, own=True)
            if not isinstance(tree, dict):
                raise self._refused(f"`{path}` is not {self.what}: it holds no object.")
            version = tree.pop("format", 1)
            if type(version) is not int:
                why = f"`format` is {json.dumps(version)}, not a whole number"
                raise self._refused(f"`{path}` is not {self.what}: {why}.")
            if version > self.version:
                came = f"`{path}` was written by a newer version (format {version})."
                raise self._refused(came, "update plantseg-next")
            if version < self.oldest:
                came = f"`{path}` was written by an older version (format {version})."
                raise self._refused(came, self.fix_older)
            if version < self.version:
                tree = self.migrate(tree)
            return self._adapter.validate_python(tree, context=path.parent)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            message = first["msg"].removeprefix("Value error, ")
            why = f"`{'.'.join(map(str, first['loc']))}`: {message}"
            raise self._refused(f"`{path}` is not {self.what}: {why}.") from error
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            why = str(error) if type(error) is ValueError else repr(error)
            raise self._refused(f"`{path}` is not {self.what}: {why}.") from error

    @cached_property
    def _adapter(self) -> Any:  # noqa: ANN401 - a TypeAdapter, as above
        return TypeAdapter(self.content)

    def _refused(self, came: str, fix: str | None = None) -> PlantSegError:
        oldest = f"{self.oldest} to " if self.oldest < self.version else ""
        needed = f"{self.what} of format {oldest}{self.version}"
        return self.error(came, needed=needed, fix=fix or self.fix)
