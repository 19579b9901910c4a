"""What can be done: for the help that lies over a screen, and for the command palette."""

from dataclasses import dataclass
from inspect import getdoc
from typing import Any

from textual.actions import parse
from textual.binding import Binding
from textual.dom import DOMNode
from textual.screen import Screen


@dataclass(frozen=True)
class Action:
    """Something that can be done now: its name, what it does, its keys, and who does it."""

    title: str
    told: str
    keys: str
    action: str
    node: DOMNode

    @property
    def is_own(self) -> bool:
        """Whether it belongs to the screen, not to the app or to the widget that has the focus."""
        return isinstance(self.node, Screen) and bool(self.told)


def actions_of(screen: Screen[Any]) -> list[Action]:
    """What can be done on a screen as it stands, its own actions first."""
    keys: dict[tuple[str, str], list[str]] = {}
    nodes: dict[tuple[str, str], DOMNode] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if active.enabled and binding.description and not binding.system:
            named = (binding.description, binding.action)
            keys.setdefault(named, []).append(screen.app.get_key_display(binding))
            nodes.setdefault(named, active.node)
    actions = [
        Action(title, _told(node, action), " ".join(dict.fromkeys(keys[title, action])), action, node)
        for (title, action), node in nodes.items()
    ]
    return sorted(actions, key=lambda action: not action.is_own)


def actions_on(screen: type[Screen[Any]]) -> list[tuple[str, str, str]]:
    """What a screen can do that is not up: each action's title, itself, and what it does."""
    found = []
    for binding in screen.BINDINGS:
        if isinstance(binding, Binding) and binding.show:
            method = getattr(screen, f"action_{parse(binding.action)[1]}", None)
            if method is not None:
                found.append((binding.description, binding.action, (getdoc(method) or "").split("\n", 1)[0]))
    return found


def _told(node: DOMNode, action: str) -> str:
    """What an action does, as its method says; of our own alone, others write theirs for programmers."""
    namespace, name, _ = parse(action)
    method = getattr(node.app if namespace == "app" else node, f"action_{name}", None)
    if not getattr(method, "__module__", "").startswith("tui."):
        return ""
    return (getdoc(method) or "").split("\n", 1)[0]
