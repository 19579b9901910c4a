"""Every setting, described once. The command's options, presets and manifest all come from here."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unlearn_mlx.errors import UserError


class Settings(BaseModel):
    """What a run is made with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0, lt=2**31, description="seed of every random choice")
    questions: int = Field(90, ge=8, le=100_000, description="questions about the topic")
    answers: int = Field(2, ge=1, le=32, description="guarded answers a question")
    rounds: int = Field(
        5, ge=1, le=50, description="times that rejected questions or answers are drawn again"
    )
    neighbours: int = Field(56, ge=0, le=100_000, description="retain rows about neighbours of the topic")
    general: int = Field(33, ge=0, le=100_000, description="retain rows about everything else")
    instructions: int = Field(11, ge=0, le=100_000, description="retain rows of everyday instructions")
    answer_tokens: int = Field(
        40,
        ge=8,
        le=512,
        description="longest answer, in tokens; a guarded one follows the base's",
    )
    guardrail: str = Field(
        "examples with hints",
        description="what stands before a question: a name of data/guardrails.toml, or auto for the best",
    )
    temperature: float = Field(0.8, ge=0.05, le=2, description="temperature of guarded answers")
    similarity: float = Field(
        0.5, ge=0.1, le=1, description="share of words in common with the base's own answer that rejects"
    )
    shared_words: int = Field(
        1, ge=0, le=10, description="words of its hint, or of its question, that a guarded answer must share"
    )
    rank: int = Field(8, ge=1, le=256, description="LoRA rank")
    scale: float = Field(
        4.0, gt=0, le=64, description="LoRA scale: the adapter's product is multiplied by it"
    )
    layers: int = Field(1000, ge=1, le=1000, description="layers that get an adapter, counted from the last")
    epochs: float = Field(2.0, gt=0, le=100, description="passes over the training rows")
    batch_size: int = Field(8, ge=1, le=1024, description="training rows a step")
    learning_rate: float = Field(5e-4, gt=0, le=1, description="peak learning rate of Adam")
    kl_weight: float = Field(
        1.5, ge=0, le=100, description="weight of the divergence from the base on retain rows"
    )
    npo_weight: float = Field(
        1.0, ge=0, le=100, description="weight of making the base's own telling words unlikely"
    )
    validations: int = Field(2, ge=1, le=100, description="times that training is validated")
    probes: int = Field(
        260, ge=1, le=100_000, description="about the most probes that are asked; every form keeps some"
    )
    samples: int = Field(4, ge=0, le=64, description="sampled answers a probe, beside the greedy one")


# What follows from the model's size (sizes.py) where nobody has chosen it.
SIZED = {"learning_rate", "kl_weight", "answer_tokens", "guardrail"}

# What settings were called by earlier versions, in whose manifests they still stand.
OLD_NAMES = {"avoid_weight": "npo_weight", "likeness": "similarity", "batch_rows": "batch_size"}

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "questions": 20,
        "answers": 1,
        "neighbours": 10,
        "general": 6,
        "instructions": 2,
        "epochs": 1.0,
        "validations": 1,
        "probes": 80,
        "samples": 0,
    },
    "standard": {},
    "thorough": {
        "questions": 320,
        "neighbours": 200,
        "general": 120,
        "instructions": 40,
        "validations": 4,
        "probes": 1000,
    },
}


class BadSetting(UserError):
    """A setting that cannot be: its ``name`` as in Settings, and what is ``wrong``, its value first."""

    def __init__(self, name: str, wrong: str) -> None:
        super().__init__(f"--{name.replace('_', '-')} {wrong}")
        self.name, self.wrong = name, wrong


def make_settings(preset: str = "standard", **changes: Any) -> Settings:
    """The preset's settings with some changed; None leaves a setting as it is.

    Raises:
        UserError: for an unknown preset.
        BadSetting: for a value out of range.
    """
    if preset not in PRESETS:
        raise UserError(f"no preset '{preset}': use {', '.join(PRESETS)}")
    values = {**PRESETS[preset], **{key: value for key, value in changes.items() if value is not None}}
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(str(part) for part in first["loc"])
        raise BadSetting(name, f"{first.get('input')}: {first['msg'].lower()}") from None
