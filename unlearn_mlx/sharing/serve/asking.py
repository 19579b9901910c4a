"""From a request to rows of the engine's batch: the model's name, tokens, room, and who hears of them."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearn_mlx.inference.chat_model import ChatModel
from unlearn_mlx.inference.chat_template import MessagesRefused
from unlearn_mlx.inference.engine import Engine
from unlearn_mlx.inference.rows import Listener, Row, RowPiece, RowRequest
from unlearn_mlx.sharing.serve.refusals import Refused, busy, too_long
from unlearn_mlx.sharing.serve.requests import NOT_SERVED, Asked, ChatAsked, CompletionAsked

MOST_WAITING = 512  # rows that wait for their turn
PART = 2**15  # characters of several prompts that are cut into tokens at a time
LONGEST_TOKEN = 128  # bytes: what no token is longer than, so that endless texts need not be cut into tokens


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it. ``hidden`` are its first tokens that the client did not write."""

    tokens: tuple[int, ...]
    text: str = ""
    hidden: int = 0


@dataclass(frozen=True)
class Served:
    """What is served: an engine, and which adapter each name means (None is the base)."""

    engine: Engine
    adapters: dict[str, Path | None]
    created: int = field(default_factory=lambda: int(time.time()))

    def check_name(self, name: object) -> str:
        """The name of a model that there is.

        Raises:
            Refused: where there is none.
        """
        if isinstance(name, str) and name in self.adapters:
            return name
        known = ", ".join(self.adapters)
        raise Refused(404, f"no model '{str(name)[:80]}': there are {known}", "model", "model_not_found")

    async def prompts(self, asked: ChatAsked | CompletionAsked) -> list[Prompt]:
        """The prompts of a request, cut into tokens in the engine's thread.

        Raises:
            Refused: where one is too long, or the request names what there is not.
        """
        found: list[Prompt] = []
        # Between two parts others get their tokens.
        for part in _parts(asked):

            def work(model: ChatModel, part: ChatAsked | CompletionAsked = part) -> list[Prompt]:
                return _prompts(model, part, self.engine.longest_prompt)

            found += await asyncio.wrap_future(self.engine.run(work))
        return found

    def ask(self, asked: ChatAsked | CompletionAsked, prompts: Sequence[Prompt], client: str) -> "Answer":
        """Have a request answered.

        Raises:
            Refused: where too many wait.
        """
        requests = [request for prompt in prompts for request in self._rows(asked, prompt)]
        waiting = self.engine.waiting
        if waiting and waiting + len(requests) > MOST_WAITING:
            raise busy(429, f"{waiting} answers wait already: ask again later", "queue_full")
        return Answer(self.engine, requests, client)

    def _rows(self, asked: ChatAsked | CompletionAsked, prompt: Prompt) -> list[RowRequest]:
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        echoes = isinstance(asked, CompletionAsked) and asked.echo
        return [
            RowRequest(
                prompt.tokens,
                asked.length,
                asked.sampling,
                key=f"choice {number}",
                seed=seed,
                adapter=self.adapters[asked.model],
                stop=tuple(asked.stop),
                likeliest=asked.likeliest,
                scores_prompt=echoes and asked.likeliest is not None,
                continues=isinstance(asked, CompletionAsked),
            )
            for number in range(asked.n)
        ]


class Answer:
    """The rows of one request, and what they say in the order in which it comes."""

    def __init__(self, engine: Engine, requests: Sequence[RowRequest], client: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, RowPiece | BaseException]] = asyncio.Queue()
        self._open = len(requests)
        self._rows: list[Row] = []
        try:
            for place, request in enumerate(requests):
                self._rows.append(engine.ask(request, self._listener(place), client))
        except BaseException:
            self.cancel()
            raise

    async def pieces(self) -> AsyncIterator[tuple[int, RowPiece]]:
        """Each piece with the place of its row; raises what went wrong with one."""
        while self._open:
            place, news = await self._news.get()
            if isinstance(news, BaseException):
                self.cancel()
                raise news
            if news.finish:
                self._open -= 1
            yield place, news

    def cancel(self) -> None:
        """Let the rows end at the next token."""
        for row in self._rows:
            row.cancel()

    def _listener(self, place: int) -> Listener:
        def hear(news: RowPiece | BaseException) -> None:
            self._loop.call_soon_threadsafe(self._news.put_nowait, (place, news))

        return hear


def check_served(body: dict[str, object]) -> None:
    """Refuse in words what would change the answer and is not there.

    Raises:
        Refused: naming the field.
    """
    for name, why in NOT_SERVED.items():
        if body.get(name):
            raise Refused(400, f"'{name}': {why}", name)
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise Refused(400, '\'response_format\' is {"type": "text"} here', "response_format")
    choice = body.get("tool_choice")
    if choice not in (None, "none", "auto"):
        raise Refused(400, "'tool_choice': tools are not served here", "tool_choice")
    modalities = body.get("modalities")
    if modalities not in (None, ["text"]):
        raise Refused(400, "'modalities' are [\"text\"] here", "modalities")


def _parts(asked: ChatAsked | CompletionAsked) -> list[ChatAsked | CompletionAsked]:
    """A request in parts, each with no more prompts than are soon cut into tokens."""
    if isinstance(asked, ChatAsked):
        return [asked]
    parts: list[list[str | list[int]]] = [[]]
    length = 0
    for prompt in asked.prompt:
        if length > PART:
            parts.append([])
            length = 0
        parts[-1].append(prompt)
        length += len(prompt)
    return [asked.model_copy(update={"prompt": part}) for part in parts]


def _prompts(model: ChatModel, asked: ChatAsked | CompletionAsked, room: int) -> list[Prompt]:
    _check_bias(model, asked)
    if isinstance(asked, ChatAsked):
        prompts = [_chat_prompt(model, asked, room)]
        field_name = "messages"
    else:
        prompts = [_text_prompt(model, prompt, room) for prompt in asked.prompt]
        field_name = "prompt"
    # One more, for the first token of the answer.
    most = room - min(1, asked.length)
    for prompt in prompts:
        if len(prompt.tokens) > most:
            raise too_long(str(len(prompt.tokens)), room, field_name)
    return prompts


def _chat_prompt(model: ChatModel, asked: ChatAsked, room: int) -> Prompt:
    length = sum(len(message.content.encode()) for message in asked.messages)
    # Each message takes a token at least, beside its text.
    if length > room * LONGEST_TOKEN or len(asked.messages) > room:
        raise too_long("far more", room, "messages")
    try:
        return Prompt(tuple(model.chat_tokens([message.as_told() for message in asked.messages])))
    except MessagesRefused as error:  # roles that the model's template has no place for
        raise Refused(400, str(error), "messages") from error


def _text_prompt(model: ChatModel, prompt: str | list[int], room: int) -> Prompt:
    if isinstance(prompt, list):
        if wrong := [token for token in prompt if not 0 <= token < model.vocabulary_size]:
            raise Refused(400, f"'prompt' has no token {str(wrong[0])[:20]}", "prompt")
        text = str(model.tokenizer.decode(prompt)) if len(prompt) <= room else ""
        return Prompt(tuple(prompt), text)
    if len(prompt.encode()) > room * LONGEST_TOKEN:
        raise too_long("far more", room, "prompt")
    beginning = model.tokenizer.bos_token or ""
    # A client that writes the mark of the beginning itself does not mean two.
    text = prompt.removeprefix(beginning) if model.special_tokens.beginning else prompt
    tokens = model.document_tokens(text)
    return Prompt(tuple(tokens), prompt, len(model.special_tokens.beginning) if text == prompt else 0)


def _check_bias(model: ChatModel, asked: Asked) -> None:
    if wrong := [token for token in asked.logit_bias if int(token) >= model.vocabulary_size]:
        raise Refused(400, f"'logit_bias' has no token {wrong[0]}", "logit_bias")
