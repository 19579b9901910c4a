"""What a model's small files say against using it: told before gigabytes are fetched, or any work begins."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from unlearn_mlx.errors import UserError
from unlearn_mlx.runs.files import read_json
from unlearn_mlx.text.printable import one_line

# Ways of rounding weights that mlx computes with as they are. All others were made for other programs.
ROUNDED_FOR_MLX = ("mxfp4", "mxfp8", "bitnet")


def refusal(folder: Path) -> str | None:
    """Why a model folder cannot be used, weights aside, and the way out; None where it can."""
    config = _content(folder / "config.json")
    inner = config.get("text_config")
    for each in (config, inner if isinstance(inner, dict) else {}):
        rounding = each.get("quantization_config")
        method = rounding.get("quant_method") if isinstance(rounding, dict) else None
        if method and not each.get("quantization") and method not in ROUNDED_FOR_MLX:
            return (
                f"is quantized by {one_line(str(method))[:40]}, which mlx cannot compute with: "
                "use the model it was made from, or a copy that mlx-community has made"
            )
    if not _has_chat_template(folder, config):
        return "has no chat template: use an instruct model"
    return None


def unknown_architecture(folder: Path) -> str | None:
    """Why mlx-lm has no program for a model folder; None where it has one.

    Asking costs seconds, as mlx-lm is imported: it is done before a download.
    """
    from mlx_lm.utils import MODEL_REMAPPING

    kind = str(_content(folder / "config.json").get("model_type"))
    kind = MODEL_REMAPPING.get(kind, kind)
    if re.fullmatch(r"[\w-]+", kind) and importlib.util.find_spec(f"mlx_lm.models.{kind}"):
        return None
    return f"is of the architecture '{one_line(kind)[:40]}', which mlx-lm does not know: use another model"


def _has_chat_template(folder: Path, config: dict[str, Any]) -> bool:
    files = ("chat_template.jinja", "chat_template.json")
    settings = _content(folder / "tokenizer_config.json")
    # mlx-lm has programs in the place of a template for a few; what is empty is told once it is loaded.
    named = ("chat_template" in settings and settings["chat_template"] is not None) or (
        "chat_template_type" in settings or config.get("model_type") == "muse_spark"
    )
    return named or any((folder / name).exists() for name in files)


def _content(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none, or a damaged one, which loading tells better."""
    try:
        content = read_json(path) if path.exists() else {}
    except UserError:
        content = {}
    return content if isinstance(content, dict) else {}
