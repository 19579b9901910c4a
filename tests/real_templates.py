"""Chat templates as real models have them, and tiny models that have one of them."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tests.helpers import CHAT_TEMPLATE, write_config

# As Gemma's: no system role, and turns that alternate.
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Mistral's first: a system message breaks the turns.
MISTRAL = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
# A system message is left out without a word.
DEAF = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "<|im_start|>user\n{{ message['content'] }}"
    "<|im_end|>\n{% elif message['role'] == 'assistant' %}<|im_start|>assistant\n{{ message['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: the model opens a thought by itself, unless told otherwise.
QWEN3 = CHAT_TEMPLATE + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
# As DeepSeek-R1's: a thought is opened whatever is said.
ALWAYS_THINKING = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# As its first distillations': the thought is the model's to open, and is cut from answers said before.
LEFT_TO_THE_MODEL = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}"
)
# As Llama 3.2's.
DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}'
    '{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    "<|im_start|>system\nToday Date: {{ date_string }}<|im_end|>\n" + DEAF
)


def with_template(
    tiny_folder: Path,
    folder: Path,
    template: Any = CHAT_TEMPLATE,
    tokens: tuple[str, ...] = (),
    **settings: Any,
) -> Path:
    """A copy of a tiny model with another template, further tokens that are not special, and settings.

    ``template`` None leaves it out.
    """
    shutil.copytree(tiny_folder, folder)
    path = folder / "tokenizer_config.json"
    changed = {**json.loads(path.read_text()), "chat_template": template, **settings}
    write_config(path, **{key: value for key, value in changed.items() if value is not None})
    if tokens:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder
