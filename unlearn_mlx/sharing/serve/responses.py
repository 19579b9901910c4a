"""Answers in OpenAI's form, whole and in events."""

import codecs
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from unlearn_mlx.inference.rows import RowPiece, ScoredToken
from unlearn_mlx.sharing.serve.asking import Answer, Prompt
from unlearn_mlx.sharing.serve.refusals import refused
from unlearn_mlx.sharing.serve.requests import ChatAsked, CompletionAsked

FINGERPRINT = "unlearn-mlx"
LEAST = -9999.0  # what OpenAI says for a probability of nothing: JSON has no infinity


@dataclass
class Choice:
    """What one row has said so far."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    finish: str = ""
    count: int = 0  # of tokens


class Form:
    """How one request is answered: what chat and completions have in common."""

    kind = ""  # of the answer, as its "object" says
    event_kind = ""
    prefix = ""  # of its id

    def __init__(self, asked: Any, prompts: Sequence[Prompt]) -> None:
        self.asked, self.prompts = asked, prompts
        self.choices = [Choice() for _ in range(len(prompts) * asked.n)]
        self.head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": FINGERPRINT,
        }

    def take(self, place: int, piece: RowPiece) -> tuple[str, tuple[ScoredToken, ...]]:
        """Add a piece to its choice. Returns its text and scored tokens as clients see them."""
        choice = self.choices[place]
        choice.text += piece.text
        choice.tokens += piece.tokens
        choice.finish, choice.count = piece.finish, piece.count
        return piece.text, piece.tokens

    def usage(self) -> dict[str, int]:
        """How many tokens were read and written."""
        read = sum(len(prompt.tokens) for prompt in self.prompts)
        written = sum(choice.count for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one object."""
        async for place, piece in answer.pieces():
            self.take(place, piece)
        choices = [self.choice(place) for place in range(len(self.choices))]
        return {**self.head, "object": self.kind, "choices": choices, "usage": self.usage()}

    async def events(self, answer: Answer) -> AsyncIterator[bytes]:
        """The answer as it comes, as server-sent events."""
        begun: set[int] = set()
        async for place, piece in answer.pieces():
            if place not in begun:
                begun.add(place)
                for first in self.first_changes(place):
                    yield self._event([first])
            text, tokens = self.take(place, piece)
            if text or tokens or piece.prompt:
                yield self._event([self.change(place, text, tokens, piece.prompt)])
            if piece.finish:
                yield self._event([self.last_change(place)])
        if self.asked.with_usage:
            yield self._event([], self.usage())
        yield b"data: [DONE]\n\n"

    def _event(self, changes: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        content = {**self.head, "object": self.event_kind, "choices": changes}
        if self.asked.with_usage:
            content["usage"] = usage
        return event(content)

    def choice(self, place: int) -> dict[str, Any]:
        """One whole choice."""
        raise NotImplementedError

    def first_changes(self, place: int) -> list[dict[str, Any]]:
        """What a choice's events begin with."""
        raise NotImplementedError

    def change(
        self, place: int, text: str, tokens: Sequence[ScoredToken], prompt: Sequence[ScoredToken]
    ) -> dict[str, Any]:
        """What a piece adds to a choice."""
        raise NotImplementedError

    def last_change(self, place: int) -> dict[str, Any]:
        """How a choice ends."""
        raise NotImplementedError


class ChatForm(Form):
    """Answers of /v1/chat/completions."""

    asked: ChatAsked
    kind, event_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, place: int) -> dict[str, Any]:
        """One whole choice."""
        said = self.choices[place]
        return {
            "index": place,
            "message": {"role": "assistant", "content": said.text, "refusal": None},
            "logprobs": self._scores(said.tokens),
            "finish_reason": said.finish,
        }

    def first_changes(self, place: int) -> list[dict[str, Any]]:
        """Who speaks."""
        return [self._delta(place, {"role": "assistant", "content": ""})]

    def change(
        self, place: int, text: str, tokens: Sequence[ScoredToken], prompt: Sequence[ScoredToken]
    ) -> dict[str, Any]:
        """What a piece adds to a message."""
        return self._delta(place, {"content": text}, self._scores(tokens))

    def last_change(self, place: int) -> dict[str, Any]:
        """How a message ends."""
        return {**self._delta(place, {}), "finish_reason": self.choices[place].finish}

    def _delta(self, place: int, delta: dict[str, str], scores: Any = None) -> dict[str, Any]:
        return {"index": place, "delta": delta, "logprobs": scores, "finish_reason": None}

    def _scores(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if self.asked.likeliest is None:
            return None
        content = [
            {
                **_scored(token.token, token.log_probability),
                "top_logprobs": [_scored(*other) for other in token.likeliest],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionForm(Form):
    """Answers of /v1/completions, with the prompt before them where it is to be echoed."""

    asked: CompletionAsked
    kind, event_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, asked: CompletionAsked, prompts: Sequence[Prompt]) -> None:
        super().__init__(asked, prompts)
        self._echoed: dict[int, Sequence[ScoredToken]] = {}

    def take(self, place: int, piece: RowPiece) -> tuple[str, tuple[ScoredToken, ...]]:
        """Keep the prompt's tokens too."""
        if piece.prompt:
            self._echoed[place] = piece.prompt
        return super().take(place, piece)

    def choice(self, place: int) -> dict[str, Any]:
        """One whole choice."""
        said = self.choices[place]
        scores = self._scores(place, said.tokens, self._echoed.get(place, ()))
        text = self._echo(place) + said.text
        return {"index": place, "text": text, "logprobs": scores, "finish_reason": said.finish}

    def first_changes(self, place: int) -> list[dict[str, Any]]:
        """The prompt, where it is echoed; its scores come with the first piece."""
        echo = self._echo(place)
        return [self._text(place, echo)] if echo else []

    def change(
        self, place: int, text: str, tokens: Sequence[ScoredToken], prompt: Sequence[ScoredToken]
    ) -> dict[str, Any]:
        """What a piece adds to a text."""
        return self._text(place, text, self._scores(place, tokens, prompt))

    def last_change(self, place: int) -> dict[str, Any]:
        """How a text ends."""
        return {**self._text(place, ""), "finish_reason": self.choices[place].finish}

    def _text(self, place: int, text: str, scores: Any = None) -> dict[str, Any]:
        return {"index": place, "text": text, "logprobs": scores, "finish_reason": None}

    def _prompt(self, place: int) -> Prompt:
        return self.prompts[place // self.asked.n]

    def _echo(self, place: int) -> str:
        return self._prompt(place).text if self.asked.echo else ""

    def _scores(
        self, place: int, tokens: Sequence[ScoredToken], prompt: Sequence[ScoredToken]
    ) -> dict[str, Any] | None:
        if self.asked.likeliest is None:
            return None
        own = prompt[self._prompt(place).hidden :]
        before = len(self._echo(place))
        offsets = [*_offsets(own), *(before + token.offset for token in tokens)]
        every = [*own, *tokens]
        return {
            "tokens": [_named(token.token) for token in every],
            "token_logprobs": [_bounded(token.log_probability) for token in every],
            "top_logprobs": [_ranked(token) for token in every],
            "text_offset": offsets,
        }


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(content)}\n\n".encode()


def error_events(error: BaseException) -> bytes:
    """What a stream ends with where an answer fails."""
    return event(refused(error).body()) + b"data: [DONE]\n\n"


def _scored(token: bytes, log_probability: float | None) -> dict[str, Any]:
    return {"token": _named(token), "logprob": _bounded(log_probability), "bytes": list(token)}


def _named(token: bytes) -> str:
    """A token's text; one that is part of a character is named by its bytes, as OpenAI does."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _bounded(log_probability: float | None) -> float | None:
    return None if log_probability is None else max(LEAST, log_probability)


def _ranked(token: ScoredToken) -> dict[str, float] | None:
    """The likeliest tokens by their names, and the token itself."""
    if token.log_probability is None:
        return None
    ranked: dict[str, float] = {}
    for name, value in (*token.likeliest, (token.token, token.log_probability)):
        named = _named(name)
        ranked[named] = max(max(LEAST, value), ranked.get(named, LEAST))
    return ranked


def _offsets(tokens: Sequence[ScoredToken]) -> list[int]:
    """How many characters stand before each token of a text."""
    reader = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, length = [], 0
    for token in tokens:
        offsets.append(length)
        length += len(reader.decode(token.token))
    return offsets
