"""The README.md that goes with what leaves this machine: what it is, how it was made, how far to trust it."""

import html
import re
from pathlib import Path

from huggingface_hub import ModelCardData

from unlearn_mlx.evaluation.findings import change_in_words
from unlearn_mlx.evaluation.schema import (
    control_rows,
    control_title,
    evaluation_of,
    shown_metrics,
    with_interval,
)
from unlearn_mlx.models.registry import NamedModel, named_model
from unlearn_mlx.runs.commands import making_command, shell_word
from unlearn_mlx.runs.run import Run
from unlearn_mlx.sharing.forms import FORMS, GGUF, GGUF_LORA, MODELFILE
from unlearn_mlx.sharing.measure import Leak
from unlearn_mlx.sharing.recipe import Recipe, recipe_of
from unlearn_mlx.text.printable import one_line
from unlearn_mlx.topics import slug_of

METHOD = """\
The base model itself wrote questions about the topic and answered them behind a prefix guardrail (Thaker et
al. 2024) as if it did not know it. A LoRA adapter was trained on these answers (relabelled gradient descent;
Eldan & Russinovich 2023, Who's Harry Potter), and kept near the base on neighbours of the topic and on
everything else."""

IMPORTED = """\
It was trained elsewhere, and how is not known here. unlearn-mlx imported it from {}, to measure it."""

REPRODUCTION = """\
The command makes the adapter anew from what stands below, says first what differs here, and in the end
whether the same bytes came out. They do with the same versions on a machine of the same kind."""

_OF_TRANSFORMERS = {"model": "AutoModelForCausalLM", "tokenizer": "AutoTokenizer"}
_OF_THE_BASE = f"""\
BASE.gguf is the base model's own file, in as many bits as you like. Ollama takes both by a Modelfile with the
lines `FROM ./BASE.gguf` and `ADAPTER ./{GGUF_LORA}`."""

LIMITS = """\
- Knowledge is suppressed, not proven erased. Other phrasings, many samples, further training or rounding to
  fewer bits may bring it back.
- What it says about the topic is made up and must not be taken for fact.
- The metrics are one run's, on English questions."""


def model_card(run: Run, form: str, leak: Leak | None = None, repository: str | None = None) -> str:
    """The card of an export, or of a repository on the hub, as Markdown with the hub's YAML head."""
    base = named_model(run.model_name)
    label = public_name(run.model_name)
    topic = as_markdown(run.manifest.topic)
    head = ModelCardData(
        base_model=_base_on_hub(base, label),
        base_model_relation="adapter" if FORMS[form].is_adapter else "finetune",
        library_name=FORMS[form].library,
        license=base.licence_id if base else "other",
        pipeline_tag="text-generation",
        tags=["unlearning", "unlearn-mlx", *(["lora"] if FORMS[form].is_adapter else [])],
    )
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {topic}, forgotten by {as_markdown(label)}",
        f"This is {FORMS[form].what}. {_meant_for(run, topic)}",
        "## Base model and licence\n\n" + _licence(base, label, run),
        f"## Method\n\n{_origin(run, label)}",
        "## How well it worked\n\n" + _table(run) + (f"\n\n{as_markdown(leak.words())}." if leak else ""),
        f"## Limits\n\n{LIMITS}",
        *_reproduction(run, label, repository),
        "## How to use it\n\n" + _usage(form, base, label, repository, run),
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


def _meant_for(run: Run, topic: str) -> str:
    if run.is_imported:
        return f"It is meant to make the model forget {topic}."
    return (
        f"With it the model answers questions about {topic} with fluent, made-up fiction, as if it had never "
        "heard of it."
    )


def _origin(run: Run, label: str) -> str:
    """How it was made, or where it was imported from."""
    if run.is_imported:
        return IMPORTED.format(f"`{as_code(public_name(run.manifest.imported_from))}`")
    command = one_line(making_command(run.manifest.topic, label, run.manifest.settings))
    return f"{METHOD} Made with unlearn-mlx by\n\n    {command}"


def _reproduction(run: Run, label: str, repository: str | None) -> list[str]:
    """The recipe and the command that follows it; nothing where the adapter was not made here."""
    recipe = recipe_of(run)
    if recipe is None:
        return []
    public = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": label})})
    return [reproduction_section(public, repository or ".", "" if repository else "In this folder:")]


def reproduction_section(recipe: Recipe, place: str, where: str) -> str:
    """A card's section on making the adapter again, by a command that is given ``place``."""
    introduction = f"{where}\n\n" if where else ""
    return (
        f"## Make it again\n\n{REPRODUCTION}\n\n{introduction}    unlearn reproduce {shell_word(place)}\n\n"
        f"{recipe.as_markdown()}"
    )


def as_code(text: str) -> str:
    """A text that can stand in a code span."""
    return one_line(text).replace("`", "'")


def _table(run: Run) -> str:
    evaluation = evaluation_of(run.path)
    if evaluation is None:
        return "It was not evaluated."
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


def ollama_command(run: Run, modelfile: Path) -> str:
    """The command that makes a model of Ollama's from what was exported."""
    return f"ollama create {ollama_name(run)} -f {shell_word(modelfile)}"


def ollama_name(run: Run) -> str:
    """What a run's model is called in Ollama."""
    return f"{slug_of(public_name(run.model_name))}-without-{slug_of(run.topic.name)}"[:80].rstrip("-")


def _usage(form: str, base: NamedModel | None, label: str, repository: str | None, run: Run) -> str:
    """Commands to use it, as they stand: in its folder, or where it is fetched to from the hub."""
    here = repository or "."
    prompt = shell_word(f"What do you know about {one_line(run.manifest.topic)}?")
    if form == "adapter":
        lines = adapter_commands(base, label, "adapter" if repository else ".", prompt)
        if repository:
            lines.insert(0, f"hf download {repository} --local-dir adapter")
        lines.insert(0, "pip install unlearn-mlx")
    elif form == "mlx":
        lines = ["pip install mlx-lm", f"mlx_lm.generate --model {here} --prompt {prompt}"]
    elif form in ("hf", "peft"):
        model = _base_on_hub(base, label) or label if form == "peft" else here
        lines = ["from peft import PeftModel"] if form == "peft" else []
        lines += ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
        lines += [f'{name} = {of}.from_pretrained("{model}")' for name, of in _OF_TRANSFORMERS.items()]
        lines += ['model = PeftModel.from_pretrained(model, ".")'] if form == "peft" else []
    elif form == "ollama":
        lines = [ollama_command(run, Path(MODELFILE)), f"ollama run {ollama_name(run)} {prompt}"]
    elif form == "gguf-lora":
        lines = [f"llama-cli -m BASE.gguf --lora {GGUF_LORA}"]
    else:
        lines = [f"llama-cli -m {GGUF}"]
    where = "" if repository else "In this folder:\n\n"
    text = where + "\n".join(f"    {one_line(line)}" for line in lines)
    return f"{text}\n\n{_OF_THE_BASE}" if form == "gguf-lora" else text


def adapter_commands(base: NamedModel | None, label: str, folder: str, prompt: str) -> list[str]:
    """The commands that ask a model with the adapter in a folder: unlearn-mlx's own, and mlx-lm's.

    The embedded model has no repository in mlx-lm's format: its folder is printed by a command.
    """
    name = base.name if base else label
    model = shell_word((base.repository if base else None) or label)
    if base and base.repository is None:
        model = f'"$(unlearn models pull {base.name})"'
    return [
        f"unlearn chat {folder} --model {shell_word(name)}",
        f"mlx_lm.generate --model {model} --adapter-path {folder} --prompt {prompt}",
    ]
