"""Remedies in messages are possible: their commands, options and settings exist."""

import ast
import re
from pathlib import Path

import click
import pytest
import typer.main

import plantseg_next
from plantseg_next.cli import app
from plantseg_next.settings import setting_names

SOURCES = sorted(Path(plantseg_next.__file__).parent.rglob("*.py"))
FOREIGN = {"--help", "--always", "--dirty"}
"""Options of every command, and of git."""


def texts(path: Path) -> list[str]:
    """Return the strings of a module without its docstrings; {} for inserted values."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    parts = {
        id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in docstrings or id(node) in parts:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append(
                "".join(
                    str(v.value) if isinstance(v, ast.Constant) else "{}"
                    for v in node.values
                )
            )
    return found


def commands() -> dict[str, set[str]]:
    """Return every command, with its options."""
    found: dict[str, set[str]] = {}

    def add(command: click.Command, name: str) -> None:
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        found[name] = {option for option in options if option.startswith("--")}
        for word, inner in getattr(command, "commands", {}).items():
            add(inner, f"{name} {word}".strip())

    add(typer.main.get_command(app), "")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_options_in_messages_exist(path):
    """After NeurodataWithoutBorders/nwbinspector#748 and banzaicloud/backyards-cli#131."""
    known = set().union(*commands().values()) | FOREIGN
    for text in texts(path):
        for option in re.findall(r"(?<![\w(-])--[a-z][a-z-]*[a-z](?![\w:-])", text):
            assert option in known, f"{path.name}: {text}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_commands_in_messages_exist_with_their_options(path):
    known = commands()
    for text in texts(path):
        for words, rest in re.findall(r"plantseg-next ((?:data )?[a-z-]+)([^`;]*)", text):
            assert words in known, f"{path.name}: {text}"
            for option in re.findall(r"(?<![\w(-])--[a-z][a-z-]*[a-z](?![\w:-])", rest):
                assert option in known[words] | FOREIGN, f"{path.name}: {text}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_settings_in_messages_exist(path):
    names = set(setting_names())
    for text in texts(path):
        for name in re.findall(r"--set ([a-z_]+(?:\.[a-z_]+)*)", text):
            assert name in names, f"{path.name}: {text}"
