"""YAML as it looks: what PyYAML silently reads as something else is refused.

PyYAML reads YAML 1.1. There ``010`` is 8, ``1:30`` is 90, ``3e-4`` is text, and of two
equal keys the last one counts. Here ``3e-4`` is a number, and the others are errors.
Aliases multiply, and lists are nested without end: both are bounded before they are built.
"""

import math
import re
import textwrap
from collections.abc import Hashable, Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

MAX_YAML_BYTES = 2**20
"""Largest YAML text: PyYAML needs some ten seconds for it. Class files and settings have a
few kB."""
MAX_NODES = 100_000
"""Values in a YAML text, for the same reason: one may have two bytes."""
MAX_DEPTH = 50
"""Lists and mappings within each other; settings need 4."""
MAX_REPEATED = 1_000
"""Values that aliases (``*name``) may repeat; ten lines of them can make a billion."""

_MERGE = "tag:yaml.org,2002:merge"
_SURROGATE = re.compile("[\ud800-\udfff]")


def load_yaml(text: str) -> Any:  # noqa: ANN401
    """Return the content of a YAML text as plain values.

    Raises:
        yaml.YAMLError: If it is not YAML, too large, nested too deep, multiplied by
            aliases, a key is repeated, or a number is not finite, or not the one that it
            looks like.

    Example:
        >>> load_yaml("{lr: 3e-4, minutes: null}")
        {'lr': 0.0003, 'minutes': None}
    """
    if len(text) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"more than {MAX_YAML_BYTES // 2**20} MiB of YAML")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        # Of PyYAML itself: an impossible date, a number of 5,000 digits.
        raise yaml.YAMLError(f"not YAML: {error}") from error


def has_bool(value: object) -> bool:
    """Return whether a plain value is true or false, or contains one of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(has_bool, value))
    return isinstance(value, bool)


def commented_yaml(part: BaseModel) -> str:
    """Return a model as YAML, with the description of each field as a comment above it."""
    return "\n".join(_commented_lines(part)) + "\n"


def _commented_lines(part: BaseModel, indent: str = "") -> Iterator[str]:
    fields = type(part).model_fields
    for name, plain in part.model_dump(mode="json").items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield ""
            yield from _comment(type(value).__doc__, indent)
            yield f"{indent}{name}:"
            yield from _commented_lines(value, f"{indent}  ")
        else:
            yield from _comment(fields[name].description, indent)
            text = yaml.safe_dump({name: plain}, sort_keys=False)
            yield from textwrap.indent(text, indent).splitlines()


def _comment(about: str | None, indent: str) -> list[str]:
    summary = " ".join((about or "").split("\n\n")[0].split())
    lines = textwrap.wrap(summary, 90 - len(indent), break_on_hyphens=False)
    return [f"{indent}# {line}" for line in lines]


class _Loader(yaml.SafeLoader):
    """A loader that refuses what is ambiguous, and what grows beyond its text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0
        self._repeated = 0
        self._nodes_in: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        """Return the next node; refuse deep nesting, and aliases that multiply."""
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            came = f"more than {MAX_DEPTH} lists and mappings within each other"
            raise ComposerError(None, None, came, mark)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ComposerError(None, None, f"more than {MAX_NODES:,} values", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if not is_alias:
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in children for part in pair]
            self._nodes_in[id(node)] = 1 + sum(self._nodes_in[id(c)] for c in children)
        elif id(node) not in self._nodes_in:
            raise ComposerError(None, None, "a value contains itself", mark)
        else:
            self._repeated += self._nodes_in[id(node)]
            if self._repeated > MAX_REPEATED:
                came = f"aliases (*) that repeat more than {MAX_REPEATED:,} values"
                raise ComposerError(None, None, came, mark)
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:  # noqa: ANN401
        """Return a scalar; half of a surrogate pair cannot be written or printed."""
        value = super().construct_scalar(node)
        if isinstance(value, str) and _SURROGATE.search(value):
            came = "half of a surrogate pair"
            raise ConstructorError(None, None, came, node.start_mark)
        return value

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:
        """Return a mapping; refuse keys that are equal, however they are written."""
        seen = set()
        for key, _ in node.value:
            value = key.value if key.tag == _MERGE else self.construct_object(key, True)
            if not isinstance(value, Hashable):
                break  # refused by PyYAML
            if value in seen:
                raise ConstructorError(
                    None, None, f"`{key.value}` is stated twice", key.start_mark
                )
            seen.add(value)
        return super().construct_mapping(node, deep)


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:  # noqa: ANN401 - int or float
    text = node.value
    is_int = node.tag.endswith("int")
    value = (loader.construct_yaml_int if is_int else loader.construct_yaml_float)(node)
    if not is_int and not math.isfinite(value):
        came = f"`{text[:40]}` is not a finite number"
        raise ConstructorError(None, None, came, node.start_mark)
    if ":" in text or re.fullmatch(r"[-+]?0[0-7_]+", text):
        came = f"`{text}` means {value} in YAML; write that number, or put text into quotes"
        raise ConstructorError(None, None, came, node.start_mark)
    return value


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
