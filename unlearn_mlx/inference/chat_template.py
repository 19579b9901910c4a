"""A model's chat template: whatever it asks for or refuses is put right here, for all that asks a model.

A template is a program that came with the model. Some have no place for a system message; some let the
model think aloud first, which no guarded answer, probe or row is made for; some write today's date into
every prompt, so that no run could be repeated tomorrow.
"""

import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

from unlearn_mlx.errors import EnvironmentCannot, UserError
from unlearn_mlx.text.printable import one_line

Message = dict[str, str]

# The day that every template is told. It is the one that Llama 3.2's own falls back to.
TEMPLATE_DATE = datetime.date(2024, 7, 26)
DATE_CALL = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")

_SYSTEM = {"role": "system", "content": "Answer briefly."}
_ASKED = {"role": "user", "content": "Is it?"}
_ANSWERED = {"role": "assistant", "content": "It is."}
_ASKED_AGAIN = {"role": "user", "content": "And then?"}


class MessagesRefused(UserError):
    """Messages that a model's chat template has no place for."""


class ChatTemplate:
    """What a model is given for messages. ``sample`` is a conversation as the template writes it."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Try the tokenizer's template on plain conversations; its date is fixed in the tokenizer too.

        Raises:
            EnvironmentCannot: where there is none, or none that a conversation can be held in.
        """
        self.tokenizer = tokenizer
        source = default_template(tokenizer.chat_template, name)
        if not tokenizer.has_chat_template:
            raise EnvironmentCannot(f"{name} has no chat template: use an instruct model")
        self.has_date = "strftime_now" in source
        if self.has_date:
            source = with_fixed_date(source, name)
        if source:  # empty where mlx-lm has a program of its own instead
            tokenizer.chat_template = source
        self.takes_system = self._takes_system()
        conversation = [_ASKED, _ANSWERED, _ASKED_AGAIN]
        for asked, what in (([_ASKED], "a question"), (conversation, "a second question")):
            self._check(asked, what, name)
        self.end_of_thought, self.thinks = self._thought(source)
        self.sample = self.prompt([_SYSTEM, *conversation])

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to where the assistant answers, a thought already behind it.

        A template that has no place for a system message gets it in front of the question behind it.

        Raises:
            MessagesRefused: where the template does not take them.
        """
        if not self.takes_system:
            messages = with_system_in_question(messages)
        try:
            return self._written(messages) + self.end_of_thought
        except Exception as error:  # the template is a program of its own, and fails in its own ways
            raise MessagesRefused(
                f"the model's chat template refuses the messages: {_line(error)}"
            ) from error

    def written(self, messages: Sequence[Message]) -> str:
        """The text of a conversation, with nothing behind its last message."""
        return self._written(messages, add_generation_prompt=False)

    def behind_answer(self) -> str:
        """What stands behind an assistant's message."""
        return self.written([_ASKED, _ANSWERED]).rpartition(_ANSWERED["content"])[2]

    def notes(self) -> dict[str, str]:
        """What was put right, as a run's manifest keeps it."""
        notes = {}
        if self.has_date:
            notes["date"] = TEMPLATE_DATE.isoformat()
        if self.thinks:
            notes["thinking"] = "off"
        if not self.takes_system:
            notes["system"] = "in front of the first question"
        return notes

    def _written(self, messages: Sequence[Message], **options: Any) -> str:
        # Templates ask for a thought by one of these names.
        wanted = {"add_generation_prompt": True, "enable_thinking": False, "thinking": False, **options}
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **wanted))

    def _check(self, messages: Sequence[Message], what: str, name: str) -> None:
        try:
            text = self._written(messages)
        except Exception as error:
            raise EnvironmentCannot(
                f"{name}: its chat template refuses {what} ({_line(error)}); use another model"
            ) from error
        if not all(message["content"] in text for message in messages):
            raise EnvironmentCannot(
                f"{name}: its chat template is empty, or leaves out what was said; use another model"
            )

    def _takes_system(self) -> bool:
        try:
            return _SYSTEM["content"] in self._written([_SYSTEM, _ASKED])
        except Exception:  # it raises, or has no such role
            return False

    def _thought(self, source: str) -> tuple[str, bool]:
        """What ends the thought that a prompt leaves to the model, and whether the model has any."""
        begin, end = self.tokenizer.think_start, self.tokenizer.think_end
        if begin is None:
            return "", False
        written = self._written([_ASKED]).rpartition(_ASKED["content"])[2]
        if end in written:  # the template ends it by itself where it is asked to
            return "", True
        if begin in written:
            return f"{'' if written.endswith(chr(10)) else chr(10)}\n{end}\n\n", True
        if begin in source or end in source:  # it leaves the beginning to the model too
            return f"{begin}\n\n{end}\n\n", True
        return "", False


def default_template(templates: Any, name: str) -> str:
    """The template for plain conversations, of one or of several by name; empty where there is none.

    Raises:
        EnvironmentCannot: where none of several is the default.
    """
    if not isinstance(templates, dict):
        return templates or ""
    if len(templates) == 1:
        return str(next(iter(templates.values())))
    if "default" not in templates:
        names = one_line(", ".join(map(str, templates)))[:200]
        raise EnvironmentCannot(
            f"{name} has the chat templates {names}, and none is the default: use another model"
        )
    return str(templates["default"])


def with_fixed_date(source: str, name: str) -> str:
    """A template that is told ``TEMPLATE_DATE`` where it asks for today.

    Raises:
        EnvironmentCannot: where it asks in a way that cannot be answered beforehand.
    """
    fixed = DATE_CALL.sub(lambda call: json.dumps(TEMPLATE_DATE.strftime(call[2])), source)
    if re.search(r"strftime_now\s*\(", fixed):
        raise EnvironmentCannot(
            f"{name}: its chat template writes today's date in a way that cannot be fixed, and no run could "
            "be repeated; use another model"
        )
    return fixed


def with_system_in_question(messages: Sequence[Message]) -> list[Message]:
    """The messages with each system message put in front of the next question."""
    result: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            result.append({**message, "content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            result.append(message)
    return result + [{"role": "user", "content": text} for text in waiting]


def _line(error: Exception) -> str:
    return one_line(str(error))[:200] or type(error).__name__
