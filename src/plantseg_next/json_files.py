"""JSON files with a version: written, read and refused in one way.

Such a file holds an object: its version under ``format``, 1 where it states none, and the
fields of a dataclass or a pydantic model. Every kind of file is one ``JsonFormat``.
"""

import json
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
from plantseg_next.files import write_atomically
from plantseg_next.structures import ClassMap

T = TypeVar("T")
MAX_CLASSES = 254
"""Most lesion classes, and most diseases: their ids are bytes, and 255 is IGNORE."""
MAX_NAME = 1000
"""Characters of the longest name of a class."""


def _joined(path: str, info: Any) -> Path:  # noqa: ANN401 - beartype cannot check its type
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
            return path.read_bytes()
        except OSError as error:
            raise self._refused(f"`{path}` cannot be read: {error.strerror}.") from error

    def parse(self, text: str | bytes, path: Path) -> T:
        """Return the content of the text of a file; raise as ``read`` does."""
        try:
            tree = json.loads(text)
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
        except (
            ValueError,
            AttributeError,
            KeyError,
            TypeError,
            RecursionError,
        ) as error:
            raise self._refused(f"`{path}` is not {self.what}: {error!r}.") from error

    @cached_property
    def _adapter(self) -> Any:  # noqa: ANN401 - a TypeAdapter, as above
        return TypeAdapter(self.content)

    def _refused(self, came: str, fix: str | None = None) -> PlantSegError:
        oldest = f"{self.oldest} to " if self.oldest < self.version else ""
        needed = f"{self.what} of format {oldest}{self.version}"
        return self.error(came, needed=needed, fix=fix or self.fix)
