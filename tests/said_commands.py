"""The commands that the program's own texts name, read from its source."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

from unlearn_mlx.cli.main import _parser

ROOT = Path(__file__).parents[1]
COMMANDS = next(
    action.choices for action in _parser([])._actions if isinstance(action, argparse._SubParsersAction)
)
# What a message is given a whole command by.
MAKERS = (
    *("making_command", "import_command", "stage_command", "gentler_training", "way_to_adapter", "_way_out"),
    "command",  # a variable that holds one
)
_NAMED = re.compile(rf"\bunlearn (?:(?:{'|'.join(COMMANDS)})\b|{{}})|{{command}}")
_SAID = re.compile(r"['`](unlearn [^'`]+)['`]|(?:Next: |, or )(unlearn .+?)(?=, or |$)", re.MULTILINE)


def texts_with_commands() -> set[str]:
    """Every text of the source, docstrings aside, that names a command; {} stands for what is filled in."""
    files = [ROOT / "demo_app.py"]
    for folder in ("unlearn_mlx", "tui", "demo"):
        files += (ROOT / folder).rglob("*.py")
    return {text for path in files for text in _texts(ast.parse(path.read_text())) if _NAMED.search(text)}


def commands_in(message: str) -> list[str]:
    """The commands that a message names, as they stand."""
    return [quoted or after for quoted, after in _SAID.findall(message)]


def _texts(tree: ast.Module) -> Iterator[str]:
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(_piece, node.values))
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        waiting += ast.iter_child_nodes(node)


def _piece(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    names = {getattr(part, "attr", getattr(part, "id", "")) for part in ast.walk(node)}
    return "{command}" if names & set(MAKERS) else "{}"
