"""A loaded chat model: token ids of a conversation, and log-probabilities of given texts."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from unlearn_mlx.compute.cpu_math import log_sum_exp
from unlearn_mlx.compute.device import current_device
from unlearn_mlx.compute.workers import ALONE, WorkerPool
from unlearn_mlx.errors import EnvironmentCannot
from unlearn_mlx.inference.adapters import LoraLayers, lora_layers, with_lora_layers
from unlearn_mlx.inference.answer_text import HALF
from unlearn_mlx.inference.chat_template import ChatTemplate
from unlearn_mlx.inference.chat_template import Message as Message
from unlearn_mlx.inference.patches import Patches
from unlearn_mlx.inference.shared_prefix import (
    SharedPrefix,
    common_prefix,
    rows_behind,
    sees_shared_prefixes,
    shared_prefix_caches,
)
from unlearn_mlx.inference.special_tokens import SpecialTokens
from unlearn_mlx.inference.token_bytes import TokenBytes
from unlearn_mlx.models.registry import ModelSource
from unlearn_mlx.runs.files import read_json

UNKNOWN_CONTEXT = 8192  # tokens, of a model that does not say
PLACES_AT_ONCE = 128  # whose logits exist at the same time, where answers are scored

# Prompts of one length, and the texts that are scored after each.
ScoredBatch = Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]


@dataclass
class ChatModel:
    """Weights, tokenizer and where they come from.

    While it is open, parts of mlx-lm are replaced for it (patches.py): ``release`` it when it is not used
    any longer, or open it by ``with``.
    """

    model: Any  # an mlx-lm model: nn.Module called as model(tokens, cache=...)
    tokenizer: TokenizerWrapper
    source: ModelSource
    template: ChatTemplate = field(init=False)
    stop_tokens: frozenset[int] = field(init=False)
    special_tokens: SpecialTokens = field(init=False)
    end_of_message: int = field(init=False)  # the token that the chat template puts behind a message
    has_plain_head: bool = field(init=False)  # logits are the head's product, nothing more
    sees_prefixes: bool = field(init=False)  # attention meets what rows share
    context: int = field(init=False)  # the most tokens of prompt and answer
    bytes_of: TokenBytes = field(init=False)  # what a single token stands for
    decode_batch_size: int | None = field(
        init=False, default=None
    )  # of a batch of answers, once it is measured
    copies_prefix: bool | None = field(init=False, default=None)  # rows that are decoded; once measured

    def __post_init__(self) -> None:
        self.template = ChatTemplate(self.tokenizer, self.source.name)
        self.special_tokens = SpecialTokens(self.tokenizer, self.template.sample)
        self.end_of_message = self._end_of_message()
        # Llama 3 ends a message by <|eot_id|> and a text by <|end_of_text|>: both stop. Meta's first files,
        # and others since, name the latter alone, and an answer would never end.
        self.tokenizer.eos_token_ids = {*self.tokenizer.eos_token_ids, self.end_of_message}
        self.stop_tokens = frozenset(self.tokenizer.eos_token_ids)
        self.bytes_of = TokenBytes(self.tokenizer)
        self.context = _context(self.source)
        self._stop_masks: dict[str, np.ndarray] = {}
        self._patches = Patches(self.model)
        probe = mx.array([[0, 1]])
        logits = self.model(probe)
        self.vocabulary_size = int(logits.shape[-1])
        self._check_vocabulary()
        if logits.dtype == mx.float32 and not current_device().is_gpu:
            self._patches.use_fast_activations()
        try:
            plain = vocabulary_logits(self.model, self.model.model(probe))
            self.has_plain_head = bool(mx.allclose(plain, logits, rtol=1e-3, atol=1e-3))
        except (AttributeError, TypeError, ValueError):  # an architecture built in another way
            self.has_plain_head = False
        # Every layer must keep plain keys and values, not a rolling or recurrent state.
        plain_cache = all(type(entry) is KVCache for entry in self.new_cache())
        self.sees_prefixes = False
        if self.has_plain_head and plain_cache:
            self._patches.share_prefixes()
            self.sees_prefixes = sees_shared_prefixes(self.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Put mlx-lm back as it was, where no other open model needs it changed.

        The model still answers afterwards, but computes what rows share for each of them.
        """
        self.sees_prefixes = False
        self._patches.release()

    def chat_tokens(self, messages: Sequence[Message], answer_start: str = "") -> list[int]:
        """Token ids up to the point where the assistant answers.

        ``answer_start`` is put in the assistant's mouth. The template writes the begin-of-text
        token where there is one, so the tokenizer must not add a second. What looks like a special
        token in a message is text: nobody can end their message and speak as another role.
        """
        guarded = [
            {**message, "content": self.special_tokens.guarded(message["content"])} for message in messages
        ]
        text = self.template.prompt(guarded)
        return self.special_tokens.encode(text + self.special_tokens.guarded(answer_start))

    def conversation_tokens(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Token ids of a conversation that ends with an answer, and where that answer starts.

        The ids end with the token that closes the message: it is a target of training too.
        """
        prompt = self.chat_tokens(messages[:-1])
        answer = self.text_tokens(messages[-1]["content"])
        return [*prompt, *answer, self.end_of_message], len(prompt)

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of a text as it stands, in the middle of others."""
        return self.special_tokens.encode_words(text)

    def document_tokens(self, text: str) -> list[int]:
        """Token ids of a text without a chat around it, with the mark of its beginning where there is one."""
        return [*self.special_tokens.beginning, *self.text_tokens(text)]

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens left out, and half a character at the end."""
        return self.decoded(tokens).rstrip(HALF)

    def decoded(self, tokens: Sequence[int]) -> str:
        """The same, but that a part of a character is there too, as U+FFFD."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def new_cache(self) -> list[Any]:
        """An empty key-value cache, one entry a layer."""
        return list(make_prompt_cache(self.model))

    def caches_behind(self, prefix: mx.array, rows: int, copied: bool) -> list[Any]:
        """Caches of rows behind a prefix, [length], whose keys and values they share or copy."""
        return rows_behind(shared_prefix_caches(self.model, prefix) or [], rows, copied)

    def logits_at(
        self, tokens: mx.array, rows: mx.array, columns: mx.array, cache: Sequence[Any] | None = None
    ) -> mx.array:
        """Logits at the places (rows[i], columns[i]) of a batch of tokens, [places, vocabulary].

        Only there the vocabulary's layer is computed, the widest of a small model.
        """
        return self.head(self.states_at(tokens, rows, columns, cache))

    def states_at(
        self, tokens: mx.array, rows: mx.array, columns: mx.array, cache: Sequence[Any] | None = None
    ) -> mx.array:
        """What ``head`` makes logits of at these places, [places, width]."""
        model = self.model.model if self.has_plain_head else self.model
        states: mx.array = model(tokens, cache=cache)[rows, columns]
        return states

    def head(self, states: mx.array) -> mx.array:
        """Logits of what ``states_at`` gives, [places, vocabulary]."""
        return vocabulary_logits(self.model, states) if self.has_plain_head else states

    def tokens_with(self, characters: str) -> np.ndarray:
        """Which tokens' texts contain one of ``characters``, [vocabulary]."""
        if characters not in self._stop_masks:
            # A model's vocabulary may be padded beyond its tokenizer's.
            mask = np.zeros(self.vocabulary_size, bool)
            if characters:
                texts: list[str] = self.tokenizer.batch_decode(
                    [[token] for token in range(len(self.tokenizer))]
                )
                mask[: len(texts)] = [any(character in text for character in characters) for text in texts]
            self._stop_masks[characters] = mask
        return self._stop_masks[characters]

    def log_probabilities(
        self,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[Sequence[int]]],
        batch_size: int = 64,
        workers: WorkerPool | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> list[list[np.ndarray]]:
        """Natural log-probability of each token of every text in ``texts[i]`` after ``prompts[i]``.

        Returns one float32 array a text, of the text's length. A prompt is computed once for all of its
        texts, together with others of its length; ``batch_size`` is the most rows at a time.
        ``workers`` score some of them.

        Raises:
            Cancelled: between two batches, once ``is_cancelled`` returns True.
        """
        workers = workers or ALONE
        shared = common_prefix(prompts) if prompts and self.sees_prefixes else []
        alike: dict[tuple[int, int], list[int]] = {}
        for i, prompt in enumerate(prompts):
            alike.setdefault((len(prompt), len(texts[i])), []).append(i)
        batches = [
            indices[start : start + step]
            for (_, count), indices in sorted(alike.items())
            for step in [max(1, batch_size // max(1, count))]
            for start in range(0, len(indices), step)
        ]
        found = workers.map(
            _log_probabilities,
            self,
            [[(prompts[i], texts[i]) for i in batch] for batch in batches],
            (shared, lora_layers(self.model) if workers.count else {}),
            is_cancelled,
        )
        results: list[list[np.ndarray]] = [[] for _ in prompts]
        for batch, of_batch in zip(batches, found, strict=True):
            for i, of_texts in zip(batch, of_batch, strict=True):
                results[i] = of_texts
        return results

    def _log_probabilities_of(
        self, batch: ScoredBatch, shared: int, before: Sequence[SharedPrefix] | None
    ) -> list[list[np.ndarray]]:
        """Of prompts of one length, behind the caches of what ``shared`` tokens all prompts start with."""
        length = len(batch[0][0])
        # All but the last token of a prompt, which predicts a text's first.
        skipped = length - 1 if self.sees_prefixes else 0
        heads = mx.array([list(prompt[shared:skipped]) for prompt, _ in batch])
        cache = shared_prefix_caches(self.model, heads, before)
        follow = [(prompt, text) for prompt, texts in batch for text in texts]
        rows = [[*prompt[skipped:], *text] for prompt, text in follow]
        longest = max(map(len, rows))
        tokens = mx.array([row + [0] * (longest - len(row)) for row in rows])
        row_index = mx.array([r for r, (_, text) in enumerate(follow) for _ in text])
        first = length - 1 - skipped
        columns = mx.array([first + k for _, text in follow for k in range(len(text))])
        targets = mx.array([token for _, text in follow for token in text])
        states = self.states_at(tokens, row_index, columns, cache)
        (found,) = in_chunks(
            lambda some, wanted: (target_log_probabilities(self.head(some), wanted),), states, targets
        )
        ends = np.cumsum([len(text) for _, text in follow])
        values = iter(np.split(found, ends[:-1]))
        return [[next(values) for _ in texts] for _, texts in batch]

    def _check_vocabulary(self) -> None:
        """Refuse tokens that the weights were never made for: mlx would read on behind them."""
        if max(self.special_tokens.encode(self.template.sample)) >= self.vocabulary_size:
            raise EnvironmentCannot(
                f"{self.source.name}: its chat template uses tokens that its weights do not have "
                f"(there are {self.vocabulary_size}); use another model"
            )

    def _end_of_message(self) -> int:
        end = self.special_tokens.end_of_message(self.template.behind_answer())
        if end is None:
            raise EnvironmentCannot(
                f"{self.source.name} has no token that ends an answer (eos_token): use another model"
            )
        return end


def _context(source: ModelSource) -> int:
    """How many positions a model was made for, by its configuration."""
    path = source.folder / "config.json"
    configuration = read_json(path) if path.exists() else {}
    inner = configuration.get("text_config") or configuration
    positions = inner.get("max_position_embeddings", UNKNOWN_CONTEXT)
    return positions if isinstance(positions, int) and positions > 0 else UNKNOWN_CONTEXT


def _log_probabilities(
    model: ChatModel, batches: Sequence[ScoredBatch], shared: Sequence[int], layers: LoraLayers
) -> Generator[list[list[np.ndarray]], None, None]:
    with with_lora_layers(model.model, layers):
        before = shared_prefix_caches(model.model, mx.array(list(shared)))
        for batch in batches:
            yield model._log_probabilities_of(batch, len(shared), before)


def in_chunks(function: Callable[..., Sequence[mx.array]], *arrays: mx.array) -> list[np.ndarray]:
    """What ``function`` finds for PLACES_AT_ONCE places of all arrays at a time, put together.

    Logits of all places over a large vocabulary would take more memory than the rest of the work.
    """
    found = []
    for start in range(0, arrays[0].shape[0], PLACES_AT_ONCE):
        values = function(*(array[start : start + PLACES_AT_ONCE] for array in arrays))
        mx.eval(values)
        found.append([np.array(value) for value in values])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def target_log_probabilities(logits: mx.array, targets: mx.array) -> mx.array:
    """Natural log-probabilities of tokens, [places], by logits [places, vocabulary], in float32.

    The sum over a vocabulary in half precision is wrong by more than what two choices differ.
    """
    logits = logits.astype(mx.float32)
    own = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return own - log_sum_exp(logits)


def vocabulary_logits(model: Any, hidden: mx.array) -> mx.array:
    """Logits of hidden states, [..., vocabulary]: by the head, or the tied embedding."""
    if "lm_head" in model:
        logits: mx.array = model.lm_head(hidden)
    else:
        logits = model.model.embed_tokens.as_linear(hidden)
    return logits
