"""The README.md that goes with what leaves this machine: what it is, how it was made, how far to trust it."""

import html
import re

from huggingface_hub import ModelCardData

from unlearn_mlx.evaluation.findings import change_in_words
from unlearn_mlx.evaluation.schema import (
    control_rows,
    control_title,
    read_evaluation,
    shown_metrics,
    with_interval,
)
from unlearn_mlx.models.registry import NamedModel, named_model
from unlearn_mlx.reporting.report import making_command
from unlearn_mlx.runs.run import Run
from unlearn_mlx.sharing.measure import Leak
from unlearn_mlx.text.printable import one_line

KINDS = {
    "adapter": "a LoRA adapter in mlx-lm's format",
    "mlx": "a fused model for mlx-lm",
    "hf": "a fused model for transformers",
    "gguf": "a fused model for llama.cpp (GGUF)",
}

METHOD = """\
The base model itself wrote questions about the topic and answered them behind a prefix guardrail (Thaker et
al. 2024) as if it did not know it. A LoRA adapter was trained on these answers (relabelled gradient descent;
Eldan & Russinovich 2023, Who's Harry Potter), and kept near the base on neighbours of the topic and on
everything else."""

LIMITS = """\
- Knowledge is suppressed, not proven erased. Other phrasings, many samples, further training or rounding to
  fewer bits may bring it back.
- What it says about the topic is made up and must not be taken for fact.
- The metrics are one run's, on English questions."""


def model_card(run: Run, form: str, leak: Leak | None = None, repository: str | None = None) -> str:
    """The card of an export, or of a repository on the hub, as Markdown with the hub's YAML head."""
    base = named_model(run.model_name)
    label = public_name(run.model_name)
    topic = as_markdown(run.topic.name)
    head = ModelCardData(
        base_model=_base_on_hub(base, label),
        base_model_relation="adapter" if form == "adapter" else "finetune",
        library_name={"hf": "transformers", "gguf": "gguf"}.get(form, "mlx"),
        license=base.licence_id if base else "other",
        pipeline_tag="text-generation",
        tags=["unlearning", "unlearn-mlx", *(["lora"] if form == "adapter" else [])],
    )
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {topic}, forgotten by {as_markdown(label)}",
        f"This is {KINDS[form]}. With it the model answers questions about {topic} with fluent, made-up "
        "fiction, as if it had never heard of it.",
        "## Base model and licence\n\n" + _licence(base, label, run),
        f"## Method\n\n{METHOD} Made with unlearn-mlx by\n\n    {_command(run, label)}",
        "## How well it worked\n\n" + _table(run) + (f"\n\n{as_markdown(leak.words())}." if leak else ""),
        f"## Limits\n\n{LIMITS}",
        f"## How to use it\n\n{_usage(form, base, label, repository)}",
    ]
    return "\n\n".join(parts) + "\n"


def as_markdown(text: str) -> str:
    """A text that Markdown and HTML show as it stands, on one line."""
    plain = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~.:@-])(?=\S)|([\\`*_|~\[\]<>])", r"\\\1\2", plain)


def public_name(model_name: str) -> str:
    """A model's name without the folders of this machine."""
    if named_model(model_name) or re.fullmatch(r"[\w.-]+/[\w.-]+", model_name):
        return model_name
    return re.split(r"[\\/]", model_name.rstrip("\\/"))[-1] or "a local model"


def _base_on_hub(base: NamedModel | None, label: str) -> str | None:
    if base is not None:
        return base.repository or base.origin
    return label if "/" in label else None


def _licence(base: NamedModel | None, label: str, run: Run) -> str:
    revision, digest = as_code(run.manifest.model.revision), as_code(run.manifest.model.sha256)
    weights = f"`{as_code(label)}`, revision `{revision}`, weights SHA-256 `{digest}`."
    if base is None:
        return f"{weights} Its licence is the base model's: look it up there."
    text = f"{weights} {base.licence}, as the base model {base.origin}."
    if base.is_llama:
        name = "Meta Llama 3" if base.licence_id == "llama3" else "Llama"
        text += (
            f" Built with {name}. Whoever passes it on passes the licence on, keeps this notice, and gives "
            "the model a name that begins with Llama."
        )
    return text


def _command(run: Run, label: str) -> str:
    return as_code(making_command(run.manifest.topic, label, run.manifest.settings))


def as_code(text: str) -> str:
    """A text that can stand in a code span or an indented block."""
    return one_line(text).replace("`", "'")


def _table(run: Run) -> str:
    if not run.file("evaluation.json").exists():
        return "It was not evaluated."
    evaluation = read_evaluation(run.path)
    rows = [
        f"| {metric.name} | {with_interval(evaluation, metric.key, 'base')} "
        f"| {with_interval(evaluation, metric.key, 'adapter')} | {metric.wanted} "
        f"| {change_in_words(evaluation, metric.key, metric.less_is_better)} |"
        for metric in shown_metrics(evaluation)
    ]
    columns = ("measure, on probes that training never saw", "base", "adapter", "wanted", "found")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows]
    if noise := control_rows(evaluation):
        lines += ["", f"| {control_title(evaluation)} | base | adapter | random |", "|---|---|---|---|"]
        lines += [f"| {name} | {' | '.join(values)} |" for name, values in noise]
    return "\n".join(lines)


def _usage(form: str, base: NamedModel | None, label: str, repository: str | None) -> str:
    model = (base.repository if base else None) or label
    here = repository or "FOLDER"
    if form == "adapter" and base is not None and base.repository is None:
        lines = ["pip install unlearn-mlx", f"unlearn chat {here} --model {label}"]
        if repository:
            lines = ["pip install unlearn-mlx", f"unlearn import {repository} --model {label}"]
    elif form == "adapter":
        lines = ["pip install mlx-lm"]
        if repository:
            lines.append(f"hf download {repository} --local-dir adapter")
        folder = "adapter" if repository else here
        lines.append(f'mlx_lm.generate --model {model} --adapter-path {folder} --prompt "Hello"')
    elif form == "mlx":
        lines = ["pip install mlx-lm", f'mlx_lm.generate --model {here} --prompt "Hello"']
    elif form == "hf":
        lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        lines += [f'model = AutoModelForCausalLM.from_pretrained("{here}")']
        lines += [f'tokenizer = AutoTokenizer.from_pretrained("{here}")']
    else:
        lines = ["llama-cli -m model.gguf"]
    return "\n".join(f"    {as_code(line)}" for line in lines)
