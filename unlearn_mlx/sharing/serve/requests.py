"""What clients may ask, with bounds. Fields that nobody knows are ignored, and null is what is left out."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    field_validator,
    model_validator,
)

from unlearn_mlx.inference.sampling import Sampling

MOST_TOKENS = 4096  # of one answer
FEWEST_TOKENS = 16  # of a completion that says no number, as OpenAI's
MOST_CHOICES = 16
MOST_ROWS = 256  # prompts times choices
MOST_STOPS = 16
LONGEST_STOP = 512  # characters
MOST_BIASES = 1024
MOST_LIKELIEST = 20
# What would change the answer in a way that is not there: better refused than ignored.
NOT_SERVED = {
    "tools": "tools are not served here: the model answers in text",
    "functions": "functions are not served here: the model answers in text",
    "audio": "audio is not served here: the model answers in text",
    "suffix": "text in front of a suffix is not served here: leave it out",
    "adapters": "adapters are chosen by the name of the model",
    "draft_model": "no other model is loaded here",
    "chat_template_kwargs": "the chat template takes no options here",
    "role_mapping": "the chat template takes no options here",
}
ROLES = ("system", "developer", "user", "assistant", "tool")


def _whole(value: Any) -> Any:
    """A whole number, also where it is written as 5.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]


class StreamOptions(BaseModel):
    """How an answer comes in events."""

    include_usage: StrictBool = False


class Asked(BaseModel):
    """What chat and completions have in common."""

    model_config = ConfigDict(extra="ignore")

    model: StrictStr
    max_tokens: Annotated[Whole, Field(ge=0, le=MOST_TOKENS)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[Number, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[Whole, Field(ge=-1)] = 0  # 0 and -1 are all
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] = 1.0  # next to nothing, logits overflow
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] = Field({}, max_length=MOST_BIASES)
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: list[Annotated[StrictStr, Field(max_length=LONGEST_STOP)]] = Field([], max_length=MOST_STOPS)
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    n: Annotated[Whole, Field(ge=1, le=MOST_CHOICES)] = 1
    best_of: Annotated[Whole, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _what_is_there(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("the request is no JSON object")
        return {key: value for key, value in data.items() if value is not None}

    @field_validator("stop", mode="before")
    @classmethod
    def _list_of_stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, bias: dict[str, float]) -> dict[str, float]:
        if wrong := [key for key in bias if not (key.isascii() and key.isdigit() and len(key) < 12)]:
            raise ValueError(f"has '{wrong[0][:20]}', which is no token's number")
        return bias

    @model_validator(mode="after")
    def _is_served(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' belong to '\"stream\": true'")
        if self.best_of not in (None, self.n):
            raise ValueError("'best_of' is 'n' here: all choices are given")
        return self

    @property
    def with_usage(self) -> bool:
        """Whether the last event counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def sampling(self) -> Sampling:
        """How the tokens are drawn."""
        return Sampling(
            temperature=self.temperature,
            min_p=self.min_p,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
        )


class Message(BaseModel):
    """One message of a chat, with its text in one piece."""

    role: Literal[ROLES]  # type: ignore[valid-type]
    content: str = ""

    @model_validator(mode="before")
    @classmethod
    def _has_content(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("is no message {role, content}")
        # An assistant that only called tools has said nothing.
        if data.get("content") is None and data.get("role") != "assistant":
            raise ValueError("has no content")
        return {key: value for key, value in data.items() if value is not None}

    @field_validator("content", mode="before")
    @classmethod
    def _one_text(cls, content: Any) -> str:
        if isinstance(content, str):
            return content
        if not isinstance(content, list) or not content:
            raise ValueError("must be a text, or a list of parts")
        return "".join(map(_text_of, content))

    def as_told(self) -> dict[str, str]:
        """As the chat template takes it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


def _text_of(part: Any) -> str:
    if isinstance(part, dict):
        kind = part.get("type", "text")
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind in ("text", "input_text", "output_text", "refusal") and isinstance(text, str):
            return text
    # Another kind could name a picture to be fetched.
    raise ValueError("has a part that is no text: only text is served here")


class ChatAsked(Asked):
    """A request to /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[Whole, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[Whole, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=MOST_LIKELIEST)] = 0

    @property
    def length(self) -> int:
        """The most tokens of an answer."""
        return self.max_completion_tokens or self.max_tokens or MOST_TOKENS

    @property
    def likeliest(self) -> int | None:
        """How many tokens are scored beside each; None scores none."""
        return self.top_logprobs if self.logprobs else None


Prompt = str | list[int]


class CompletionAsked(Asked):
    """A request to /v1/completions."""

    prompt: list[Prompt]  # one text or list of token ids, or several
    echo: StrictBool = False
    logprobs: Annotated[Whole, Field(ge=0, le=MOST_LIKELIEST)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, prompt: Any) -> list[Prompt]:
        many = prompt if _are(prompt, list) or _are(prompt, str) else [prompt]
        for each in many:
            if not isinstance(each, str) and not (_are(each, int) and not _are(each, bool)):
                raise ValueError("must be a text or a list of token ids, or a list of those")
        if not all(many):
            raise ValueError("must not be empty")
        return list(many)

    @model_validator(mode="after")
    def _rows(self) -> Self:
        if len(self.prompt) * self.n > MOST_ROWS:
            raise ValueError(f"'prompt' times 'n' is at most {MOST_ROWS}: send several requests")
        return self

    @property
    def length(self) -> int:
        """The most tokens of an answer."""
        return FEWEST_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many tokens are scored beside each; None scores none."""
        return self.logprobs


def _are(values: Any, kind: type) -> bool:
    """Whether something is a list of these, with one at least."""
    return isinstance(values, list) and bool(values) and all(isinstance(each, kind) for each in values)
