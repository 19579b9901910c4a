"""Settings that follow from how large a model is, where nobody has chosen them.

Two sizes were measured, SmolLM2 (135M parameters) and Qwen2.5-Coder (0.5B): docs/recipe.md. A larger model
has more to lose: it learns slower and is held nearer to the base. What is said of 8B parameters is the same
rule, whose rate is the lower end of what the literature takes there (1e-4 to 2e-4), and is not measured.
"""

from collections.abc import Collection

from unlearn_mlx.config import Settings

SMALL = 300e6  # parameters; smaller models ramble in long answers and follow hints rather than instructions
LARGE: dict[str, float | int | str] = {
    "learning_rate": 1e-4,
    "kl_weight": 6.0,
    "answer_tokens": 160,
    "guardrail": "auto",
}


def sized(settings: Settings, parameters: int, given: Collection[str]) -> Settings:
    """The settings with what follows from the model's size; those that were ``given`` stay."""
    values = LARGE if parameters >= SMALL else {}
    return settings.model_copy(update={name: value for name, value in values.items() if name not in given})
