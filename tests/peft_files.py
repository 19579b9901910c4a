"""PEFT's files written by hand for tests, and what they must come to, worked out by hand."""

import json

import mlx.core as mx
import numpy as np

from tests.helpers import QUESTIONS, chat_prompt
from unlearn_mlx.inference.adapters import load_adapter
from unlearn_mlx.inference.loading import load_model
from unlearn_mlx.models.registry import resolve_model


def logits_of(model, tokens):
    return np.array(model(mx.array([tokens])).astype(mx.float32))


def imported_logits(run):
    model = load_model(resolve_model(run.model_name))
    load_adapter(model.model, run.file("adapter"))
    return logits_of(model.model, chat_prompt(model, QUESTIONS[0]))


def write_peft(folder, weights, **changes):
    """An adapter as PEFT saves it."""
    folder.mkdir(parents=True)
    configuration = {
        "peft_type": "LORA",
        "base_model_name_or_path": "/somewhere/else",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), weights)
    return folder


def peft_weights(model, names=("q_proj", "v_proj"), layers=(0, 1), rank=4):
    """Random A and B under PEFT's names, and W + scale * B A worked out by hand for the test."""
    source = np.random.default_rng(3)
    weights = {}
    for number in layers:
        for name in names:
            part = "self_attn" if name in model.model.layers[number].self_attn else "mlp"
            rows, columns = model.model.layers[number][part][name].weight.shape
            stem = f"base_model.model.model.layers.{number}.{part}.{name}"
            weights[f"{stem}.lora_A.weight"] = mx.array(
                source.normal(0, 0.3, (rank, columns)).astype(np.float32)
            )
            weights[f"{stem}.lora_B.weight"] = mx.array(
                source.normal(0, 0.3, (rows, rank)).astype(np.float32)
            )
    return weights


def by_hand(folder, weights, scale):
    """The logits of the base with scale * B A added to its weights; ``scale`` is one, or of each module."""
    model = load_model(resolve_model(str(folder)))
    modules = dict(model.model.named_modules())
    for name, a in weights.items():
        if name.endswith("lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = weights[name.replace("lora_A", "lora_B")].astype(mx.float32)
            factor = scale(module) if callable(scale) else scale
            modules[module].weight = modules[module].weight + factor * (b @ a.astype(mx.float32))
    return logits_of(model.model, chat_prompt(model, QUESTIONS[0]))
