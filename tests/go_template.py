"""As much of Go's text/template as a Modelfile's template of ours uses, with Ollama's messages."""

import re
from typing import Any

FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "not": lambda a: not a,
    "len": len,
    "slice": lambda values, start: values[start:],
}


def rendered(template: str, messages: list[dict[str, str]]) -> str:
    """What Ollama would give the model for messages."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)
    nodes, rest = _block(list(zip(["text", "do"] * len(parts), parts, strict=False)))
    assert not rest
    data = {"Messages": [{"Role": each["role"], "Content": each["content"]} for each in messages]}
    return _run(nodes, {"$": data, ".": data})


def _block(parts: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]]]:
    """The nodes up to the end of a block, and what comes behind."""
    nodes: list[Any] = []
    while parts:
        (kind, text), parts = parts[0], parts[1:]
        if kind == "text":
            nodes.append(("text", text))
        elif text == "end" or text.startswith("else"):
            return nodes, [(kind, text), *parts]
        elif text.startswith(("if ", "range ")):
            branches, what = [], text
            while what != "end":
                inner, parts = _block(parts)
                branches.append((what, inner))
                (_, what), parts = parts[0], parts[1:]
            nodes.append(("branches", branches))
        else:
            nodes.append(("do", text))
    return nodes, []


def _run(nodes: list[Any], names: dict[str, Any]) -> str:
    written = ""
    for kind, content in nodes:
        if kind == "text":
            written += content
        elif kind == "do" and ":=" in content:
            name, _, expression = content.partition(" := ")
            names[name] = _value(expression, names)
        elif kind == "do":
            written += str(_value(content, names))
        else:
            written += _branches(content, names)
    return written


def _branches(branches: list[Any], names: dict[str, Any]) -> str:
    for head, nodes in branches:
        if head.startswith("range "):
            variables, _, expression = head.removeprefix("range ").partition(" := ")
            index, _ = variables.split(", ")
            each = enumerate(_value(expression, names))
            return "".join(_run(nodes, {**names, index: number, ".": value}) for number, value in each)
        if head == "else" or _value(head.removeprefix("else ").removeprefix("if "), names):
            return _run(nodes, names)
    return ""


def _value(expression: str, names: dict[str, Any]) -> Any:
    tokens = re.findall(r'"[^"]*"|[()]|[^\s()]+', expression)

    def whole(ends: int) -> Any:
        values = []
        while len(tokens) > ends and tokens[0] != ")":
            values.append(one())
        return values[0](*values[1:]) if callable(values[0]) else values[0]

    def one() -> Any:
        token = tokens.pop(0)
        if token == "(":
            value = whole(0)
            assert tokens.pop(0) == ")"
            return value
        if token.startswith('"'):
            return token[1:-1]
        if token.isdecimal():
            return int(token)
        if token in FUNCTIONS:
            return FUNCTIONS[token]
        name, _, member = token.partition(".")
        owner = names[name or "."]
        return owner[member] if member else owner

    return whole(0)
