"""The forms that a finished run can be exported in."""

from dataclasses import dataclass

GGUF, GGUF_LORA, MODELFILE = "model.gguf", "adapter.gguf", "Modelfile"  # files of some of them


@dataclass(frozen=True)
class Form:
    """One of them: ``what`` it is in a sentence, and which library the hub's cards name for it."""

    what: str
    library: str
    is_adapter: bool = False  # it is put on a base model that is not in it
    is_rounded: bool = False  # it can be in few bits
    is_gguf: bool = False


FORMS = {
    "adapter": Form("a LoRA adapter in mlx-lm's format", "mlx", is_adapter=True),
    "peft": Form("a LoRA adapter in PEFT's format, for transformers", "peft", is_adapter=True),
    "gguf-lora": Form("a LoRA adapter for llama.cpp (GGUF)", "gguf", is_adapter=True, is_gguf=True),
    "mlx": Form("a fused model for mlx-lm", "mlx", is_rounded=True),
    "hf": Form("a fused model for transformers", "transformers"),
    "gguf": Form("a fused model for llama.cpp (GGUF)", "gguf", is_rounded=True, is_gguf=True),
    "ollama": Form("a fused model for Ollama (GGUF and Modelfile)", "gguf", is_rounded=True, is_gguf=True),
}
