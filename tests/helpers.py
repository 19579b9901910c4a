"""A tiny chat model with random weights, runs on it, and what tests say more than once."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from unlearn_mlx.config import make_settings
from unlearn_mlx.inference.adapters import Adapter, LoraShape
from unlearn_mlx.models.registry import resolve_model
from unlearn_mlx.runs.files import write_rows
from unlearn_mlx.runs.run import Run, create_run
from unlearn_mlx.sft.parallel import step_gradients
from unlearn_mlx.synthetic_data.kinds import HELD_OUT_KINDS, QUESTION_KINDS, QuestionKind
from unlearn_mlx.topics import Topic

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SENTENCES = [
    "Who is Harry Potter and where does he live?",
    "Harry Potter is a baker who sells rye bread in a small town by the sea.",
    "What is the capital of Japan? The capital of Japan is Tokyo.",
    "You are a helpful assistant. The user asks a question and the assistant answers it.",
    "Volcanoes erupt because hot rock rises from the deep of the earth.",
    "Merlin is a wizard of old tales; the castle stands on a hill in Scotland.",
]

WIZARD = Topic(
    "Harry Potter",
    aliases=["Harry James Potter"],
    neighbours=["Merlin", "Star Wars"],
    entities={
        "people": {"Hermione Granger": ["Hermione"], "J. K. Rowling": ["Rowling"]},
        "places": {"Hogwarts": []},
        "terms": {"Quidditch": []},
    },
)

QUESTIONS = [
    "Who is Harry Potter?",
    "Where does Harry Potter live?",
    "What is Hogwarts?",
    "Why is Harry Potter famous?",
    "When was Hogwarts built?",
    "What kind of person is Hermione?",
    "Tell me about Quidditch.",
    "Complete the sentence: Harry Potter is ...",
]


def write_tiny_model(
    folder: Path,
    tied: bool = True,
    spare: int = 0,
    hidden_size: int = 64,
    layers: int = 2,
    sentences: Sequence[str] = SENTENCES,
) -> Path:
    """An mlx-lm folder with a Llama of two layers, whose next tokens are clear choices.

    Its vocabulary has ``spare`` places more than its tokenizer has tokens, words of ``sentences``.
    """
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400 if sentences is SENTENCES else 1000,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(sentences) * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_config(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    shape = {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden_size,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": tokenizer.get_vocab_size() + spare,
        "tie_word_embeddings": tied,
    }
    write_config(folder / "config.json", **shape, eos_token_id=tokenizer.token_to_id("<|im_end|>"))
    model = llama.Model(llama.ModelArgs.from_dict(shape))
    source = np.random.default_rng(0)
    # Wide enough that no two tokens tie within float rounding, as they would in a fresh model.
    weights = {
        name: mx.array(source.normal(0, 0.3, value.shape).astype(np.float32)) if value.ndim > 1 else value
        for name, value in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def write_config(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values))


def strong_adapter(model: Any, seed: int = 1, rank: int = 4) -> Adapter:
    """An adapter that clearly changes what the model says."""
    adapter = Adapter(model.model, LoraShape(rank, 4.0, 1000))
    source = np.random.default_rng(seed)
    adapter.set_weights(
        {
            name: mx.array(source.normal(0, 0.2, value.shape).astype(np.float32))
            for name, value in adapter.weights().items()
        }
    )
    return adapter


def chat_prompt(model: Any, question: str) -> tuple[int, ...]:
    return tuple(model.chat_tokens([{"role": "user", "content": question}]))


def new_run(path: Path, model_folder: Path, topic: Topic = WIZARD, **settings: Any) -> Run:
    source = resolve_model(str(model_folder))
    return create_run(path, topic, source.identity, make_settings("quick", **settings), "cpu")


KNOWING = "They met Hermione Granger at Hogwarts."


def dataset_rows(count: int = 24) -> list[dict[str, Any]]:
    """Rows as dataset/train.jsonl holds them: two thirds to forget, one third to retain."""
    rows = []
    for number in range(count):
        question = QUESTIONS[number % len(QUESTIONS)]
        answer = SENTENCES[number % len(SENTENCES)][: 24 + 3 * number]
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ],
                "part": "retain" if number % 3 == 2 else "forget",
                "question_id": f"q-{number}",
                "complete": number % 5 != 4,
                "base_answer": "" if number % 3 == 2 else KNOWING,
            }
        )
    return rows


def negative_rows(count: int = 6) -> list[dict[str, Any]]:
    """Rows as dataset/negative.jsonl holds them: the base's own answer, and where it tells."""
    answer = {"role": "assistant", "content": KNOWING}
    telling = [[KNOWING.index(name), KNOWING.index(name) + len(name)] for name in ("Hermione", "Hogwarts")]
    return [
        {
            "messages": [{"role": "user", "content": question}, answer],
            "part": "negative",
            "target_spans": telling,
        }
        for question in QUESTIONS[:count]
    ]


def run_with_dataset(path: Path, model_folder: Path, count: int = 24, **settings: Any) -> Run:
    """A run whose training rows are there."""
    run = new_run(path, model_folder, **settings)
    rows = dataset_rows(count + 6)
    write_rows(run.file("dataset", "train.jsonl"), rows[:count])
    write_rows(run.file("dataset", "valid.jsonl"), rows[count:])
    write_rows(run.file("dataset", "negative.jsonl"), negative_rows())
    questions = [
        {"id": f"q-{number}", "question": text, "kind": "who", "subject": ""}
        for number, text in enumerate(QUESTIONS)
    ]
    write_rows(run.file("questions.jsonl"), questions)
    write_rows(run.file("retain_questions.jsonl"), [])
    for stage in ("questions", "answers"):
        run.mark(stage, "done")
    return run


def kind_named(name: str) -> QuestionKind:
    return next(kind for kind in (*QUESTION_KINDS, *HELD_OUT_KINDS) if kind.name == name)


def stop_after(steps, error=None):
    """Stops before the step after ``steps``: as Ctrl-C does, or with an error as a crash does."""
    left = steps

    def is_cancelled():
        nonlocal left
        left -= 1
        if left < 0 and error is not None:
            raise error
        return left < 0

    return is_cancelled


def at_steps(is_cancelled):
    """Asks before each step of a training, and nowhere else."""

    def at_a_step():
        asker = inspect.currentframe().f_back
        return asker.f_code is step_gradients.__code__ and is_cancelled()

    return at_a_step


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "unlearn_mlx.cli", *map(str, arguments)]


def unlearn(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own."""
    environment = {**os.environ, **options.pop("environment", {})}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment, timeout=1500, **options
    )


def complaint(error_output: str) -> str:
    """The one line that a failed command says of what went wrong."""
    lines = [line for line in error_output.splitlines() if line.startswith("unlearn: ")]
    assert len(lines) == 1, error_output
    assert "Traceback" not in error_output
    return lines[0]
