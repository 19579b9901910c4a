"""What Ollama needs beside a GGUF file: a Modelfile with the chat template in Go's words, and stop words."""

import re

from mlx_lm.tokenizer_utils import TokenizerWrapper

from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.chat_template import ChatTemplate, Message
from unlearn_mlx.inference.special_tokens import SpecialTokens

# Messages that no template writes by itself.
_CONVERSATION: list[Message] = [
    {"role": "system", "content": "The first thing is s1."},
    {"role": "user", "content": "The second thing is u2."},
    {"role": "assistant", "content": "The third thing is a3."},
    {"role": "user", "content": "The fourth thing is u4."},
]


def modelfile(tokenizer: TokenizerWrapper, model_name: str, gguf_name: str) -> str:
    """The Modelfile for a GGUF file beside it.

    Raises:
        UserError: where the model's chat template cannot be said in Ollama's language.
    """
    template = ChatTemplate(tokenizer, model_name)
    special_tokens = SpecialTokens(tokenizer, template.sample)
    # A GGUF file has one token that ends an answer; some models have two.
    ends = {*tokenizer.eos_token_ids, special_tokens.end_of_message(template.behind_answer())} - {None}
    stops = (tokenizer.decode([token]) for token in sorted(ends))
    # llama.cpp writes the start token itself where the tokenizer does.
    start = tokenizer.decode(special_tokens.beginning)
    lines = [
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{go_template(template, start)}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops if re.fullmatch(r'[^"\r\n]+', stop)),
    ]
    return "\n".join(lines) + "\n"


def go_template(template: ChatTemplate, start: str) -> str:
    """A chat template in Ollama's language, Go's text/template; ``start`` is left out at the beginning.

    It is read off conversations: what stands before and behind a message of each role, what takes the place
    of a system message, and what an answer follows.

    Raises:
        UserError: where the template is not of that form.
    """
    whole, bare = (_around(template.prompt(some), some) for some in (_CONVERSATION, _CONVERSATION[1:]))
    behind_user, behind_assistant = (
        _around(template.written(some), some)[-1] for some in (_CONVERSATION[1:2], _CONVERSATION[1:3])
    )
    before_user = _without(whole[3], behind_assistant, "")
    before_assistant, answer = (_without(text, behind_user, "") for text in (whole[2], whole[4]))
    behind_system, instead = (_without(text, "", before_user) for text in (whole[1], bare[0]))
    if bare[1:] != whole[2:] or not template.takes_system:
        raise _refused()
    before_system, instead = (_go(text.removeprefix(start)) for text in (whole[0], instead))
    texts = (behind_system, before_user, behind_user, before_assistant, behind_assistant, answer)
    behind_system, before_user, behind_user, before_assistant, behind_assistant, answer = map(_go, texts)
    return (
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{{{{ if and (eq $i 0) (ne .Role "system") }}}}{instead}{{{{ end }}}}'
        f'{{{{ if eq .Role "system" }}}}{before_system}{{{{ .Content }}}}{behind_system}'
        f'{{{{ else if eq .Role "user" }}}}{before_user}{{{{ .Content }}}}{behind_user}'
        f'{{{{ else if eq .Role "assistant" }}}}{before_assistant}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{behind_assistant}{{{{ end }}}}{{{{ end }}}}"
        f'{{{{ if and $last (ne .Role "assistant") }}}}{answer}{{{{ end }}}}{{{{ end }}}}'
    )


def _around(text: str, messages: list[Message]) -> list[str]:
    """What a template has written before, between and behind messages."""
    parts = re.split("|".join(re.escape(message["content"]) for message in messages), text)
    if len(parts) != len(messages) + 1:
        raise _refused()
    return parts


def _without(text: str, beginning: str, end: str) -> str:
    """A text without what it must begin and end with."""
    if not text.startswith(beginning) or not text.endswith(end) or len(text) < len(beginning) + len(end):
        raise _refused()
    return text[len(beginning) : len(text) - len(end)]


def _go(text: str) -> str:
    """A text that stands for itself in a Go template inside a Modelfile."""
    if '"""' in text:
        raise _refused()
    return text.replace("{{", '{{ "{{" }}')


def _refused() -> UserError:
    return UserError(
        "the model's chat template cannot be said in Ollama's language: use '--format gguf', and write a "
        "Modelfile for it by hand"
    )
