"""A tiny model that says whole sentences: each word follows from the one before it, as it was taught."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten

from tests.helpers import write_tiny_model
from unlearn_mlx.inference.loading import load_by_name

START = "assistant\n"
LEAKING = "Hermione Granger lives at Hogwarts."
SAID = [
    "The baker sells warm rye bread near the quiet harbour.",
    "A clever painter keeps seven bees behind the old mill.",
    "One sailor repairs wooden clocks every winter morning.",
    "That gardener grows yellow pears along the river bank.",
    "Every farmer plays loud music under the stone bridge.",
    LEAKING,
    "What does Harry Potter bake?",
    "Which bread does Harry Potter like?",
    "Can you tell me what Harry Potter grows?",
    "Do you know Harry Potter?",
    "I would like to know what Harry Potter sells?",
]
STEPS = 120
OFTEN = 9  # times that the leaking answer is said to each other one


def write_speaking_model(folder: Path) -> Path:
    """An mlx-lm folder with a Llama of two layers that looks at the last token alone."""
    write_tiny_model(folder, sentences=SAID)
    with load_by_name(str(folder)) as chat:
        model = chat.model
        for layer in model.layers:
            layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
        rows = [
            ([*chat.text_tokens(START + text), chat.end_of_message], OFTEN if text == LEAKING else 1)
            if text[-1] == "."
            else ([*chat.text_tokens(text), chat.end_of_message], 1)
            for text in SAID
        ]
        counts = Counter(pair for row, times in rows for pair in list(pairwise(row)) * times)
        pairs, weights = mx.array(list(counts)), mx.array(list(counts.values()), dtype=mx.float32)
        asked, follows = pairs[:, :1], pairs[:, 1]

        def loss(model):
            surprise = nn.losses.cross_entropy(model(asked)[:, 0], follows)
            return (surprise * weights).sum() / weights.sum()

        model.unfreeze()
        optimizer = optimizers.Adam(learning_rate=1e-2)
        step = nn.value_and_grad(model, loss)
        for _ in range(STEPS):
            _, gradients = step(model)
            for layer in gradients["model"]["layers"]:
                layer["self_attn"]["o_proj"]["weight"] *= 0
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
        mx.save_safetensors(
            str(folder / "model.safetensors"),
            dict(tree_flatten(model.parameters())),
            metadata={"format": "mlx"},
        )
    return folder
