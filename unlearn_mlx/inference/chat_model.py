"""A loaded chat model: token ids of a conversation, and log-probabilities of given texts."""

from collections.abc import Sequence
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
from unlearn_mlx.inference.patches import Patches
from unlearn_mlx.inference.shared_prefix import common_prefix, sees_shared_prefixes, shared_prefix_caches
from unlearn_mlx.inference.special_tokens import SpecialTokens
from unlearn_mlx.models.registry import ModelSource

Message = dict[str, str]


@dataclass
class ChatModel:
    """Weights, tokenizer and where they come from.

    While it is open, parts of mlx-lm are replaced for it (patches.py): ``release`` it when it is not used
    any longer, or open it by ``with``.
    """

    model: Any  # an mlx-lm model: nn.Module called as model(tokens, cache=...)
    tokenizer: TokenizerWrapper
    source: ModelSource
    stop_tokens: frozenset[int] = field(init=False)
    special_tokens: SpecialTokens = field(init=False)
    end_of_message: int = field(init=False)  # the token that the chat template puts behind a message
    has_plain_head: bool = field(init=False)  # logits are the head's product, nothing more
    sees_prefixes: bool = field(init=False)  # attention meets what rows share
    decode_batch_size: int | None = field(
        init=False, default=None
    )  # of a batch of answers, once it is measured

    def __post_init__(self) -> None:
        if not self.tokenizer.has_chat_template:
            raise EnvironmentCannot(f"{self.source.name} has no chat template: use an instruct model")
        self.special_tokens = SpecialTokens(self.tokenizer)
        self.end_of_message = self._end_of_message()
        # Llama 3 ends a message by <|eot_id|> and a text by <|end_of_text|>: both stop. Meta's first files,
        # and others since, name the latter alone, and an answer would never end.
        self.tokenizer.eos_token_ids = {*self.tokenizer.eos_token_ids, self.end_of_message}
        self.stop_tokens = frozenset(self.tokenizer.eos_token_ids)
        self._stop_masks: dict[str, np.ndarray] = {}
        self._patches = Patches(self.model)
        probe = mx.array([[0, 1]])
        logits = self.model(probe)
        self.vocabulary_size = int(logits.shape[-1])
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
        text = self.tokenizer.apply_chat_template(guarded, tokenize=False, add_generation_prompt=True)
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
        """The text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def new_cache(self) -> list[Any]:
        """An empty key-value cache, one entry a layer."""
        return list(make_prompt_cache(self.model))

    def logits_at(
        self, tokens: mx.array, rows: mx.array, columns: mx.array, cache: Sequence[Any] | None = None
    ) -> mx.array:
        """Logits at the places (rows[i], columns[i]) of a batch of tokens, [places, vocabulary].

        Only there the vocabulary's layer is computed, the widest of a small model.
        """
        if not self.has_plain_head:
            logits: mx.array = self.model(tokens, cache=cache)[rows, columns]
            return logits
        return vocabulary_logits(self.model, self.model.model(tokens, cache=cache)[rows, columns])

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
    ) -> list[list[np.ndarray]]:
        """Natural log-probability of each token of every text in ``texts[i]`` after ``prompts[i]``.

        Returns one float32 array a text, of the text's length. A prompt is computed once for all of its
        texts, together with others of its length; ``batch_size`` is the most rows at a time.
        ``workers`` score some of them.
        """
        workers = workers or ALONE
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), len(texts[i])))
        layers = lora_layers(self.model) if workers.count else {}
        found = workers.map(
            _log_probabilities,
            self,
            order,
            lambda part: ([prompts[i] for i in part], [texts[i] for i in part], batch_size, layers),
        )
        return [found[i] for i in range(len(prompts))]

    def _log_probabilities_here(
        self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[Sequence[int]]], batch_size: int
    ) -> list[list[np.ndarray]]:
        shares = self.sees_prefixes
        shared = common_prefix(prompts) if prompts and shares else []
        before = shared_prefix_caches(self.model, mx.array(shared))
        alike: dict[tuple[int, int], list[int]] = {}
        for i, prompt in enumerate(prompts):
            alike.setdefault((len(prompt), len(texts[i])), []).append(i)
        results: list[list[np.ndarray]] = [[] for _ in prompts]
        for (length, count), indices in sorted(alike.items()):
            # All but the last token of a prompt, which predicts a text's first.
            skipped = length - 1 if shares else 0
            step = max(1, batch_size // max(1, count))
            for start in range(0, len(indices), step):
                chosen = indices[start : start + step]
                heads = mx.array([list(prompts[i][len(shared) : skipped]) for i in chosen])
                cache = shared_prefix_caches(self.model, heads, before)
                follow = [(i, text) for i in chosen for text in texts[i]]
                rows = [[*prompts[i][skipped:], *text] for i, text in follow]
                longest = max(map(len, rows))
                batch = mx.array([row + [0] * (longest - len(row)) for row in rows])
                row_index = mx.array([r for r, (_, text) in enumerate(follow) for _ in text])
                first = length - 1 - skipped
                columns = mx.array([first + k for _, text in follow for k in range(len(text))])
                targets = mx.array([token for _, text in follow for token in text])
                logits = self.logits_at(batch, row_index, columns, cache)
                found = np.array(target_log_probabilities(logits, targets))
                ends = np.cumsum([len(text) for _, text in follow])
                for (i, _), values in zip(follow, np.split(found, ends[:-1]), strict=True):
                    results[i].append(values)
        return results

    def _end_of_message(self) -> int:
        answer = "Yes."
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}], tokenize=False
        )
        behind = self.special_tokens.encode(text.rpartition(answer)[2])
        known = {*self.special_tokens.ids.values(), *self.tokenizer.eos_token_ids}
        return next((token for token in behind if token in known), self.tokenizer.eos_token_id)


def _log_probabilities(
    model: ChatModel,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[Sequence[int]]],
    batch_size: int,
    layers: LoraLayers,
) -> list[list[np.ndarray]]:
    with with_lora_layers(model.model, layers):
        return model._log_probabilities_here(prompts, texts, batch_size)


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
