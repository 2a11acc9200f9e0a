"""YAML as it looks: what PyYAML silently reads as something else is refused.

PyYAML reads YAML 1.1. There ``010`` is 8, ``1:30`` is 90, ``3e-4`` is text, and of two
equal keys the last one counts. Here ``3e-4`` is a number, and the others are errors.
"""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from yaml.constructor import ConstructorError


def load_yaml(text: str) -> Any:  # noqa: ANN401
    """Return the content of a YAML text as plain values.

    Raises:
        yaml.YAMLError: If it is not YAML, a key is repeated, or a number is not the one
            that it looks like.

    Example:
        >>> load_yaml("{lr: 3e-4, minutes: null}")
        {'lr': 0.0003, 'minutes': None}
    """
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
    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise ConstructorError(
                    None, None, f"`{key.value}` is stated twice", key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:  # noqa: ANN401 - int or float
    text = node.value
    is_int = node.tag.endswith("int")
    value = (loader.construct_yaml_int if is_int else loader.construct_yaml_float)(node)
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
