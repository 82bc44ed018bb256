"""Text to tokens and back: the model's own tokenizer and chat template."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from speqc.runtime.errors import SpeqcError

CONTEXT_TOKENS = 8
"""Tokens before the new ones that are decoded with them: joining may depend on those."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What bytes decode to that are no complete character yet."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`; raises SpeqcError where it is missing or damaged."""
    if not path.is_file():
        raise SpeqcError(f"{path}: there is no such tokenizer file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise SpeqcError(f"{path}: not a tokenizer.json that can be read: {error}") from error


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a plain text, with the special tokens that the model's tokenizer adds."""
    return tokenizer.encode(text).ids


def encode_chat(
    tokenizer: Tokenizer, template: str, names: Mapping[str, str], text: str
) -> list[int]:
    """The tokens of a chat in which the user has said `text` and the model is to answer.

    `names` are the special tokens that the template may use, such as `bos_token`.
    """
    messages = [{"role": "user", "content": text}]
    return tokenizer.encode(render_chat(template, names, messages), add_special_tokens=False).ids


def render_chat(
    template: str, names: Mapping[str, str], messages: Sequence[Mapping[str, str]]
) -> str:
    """Fill in a chat template, which is a program of the model's author: it runs in a sandbox.

    Raises SpeqcError where the template is wrong or refuses the messages.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, **names
        )
    except Exception as error:  # a foreign program: it can raise anything
        raise SpeqcError(f"the model's chat template fails: {error}") from error


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


class TextStream:
    """Turns tokens into text as they come; a character waits until all its bytes are here."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-CONTEXT_TOKENS:])
        self._start = 0
        self._shown = len(self._tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """Take more tokens; gives the text that they complete."""
        self._tokens.extend(tokens)
        return self._take(complete=True)

    def flush(self) -> str:
        """The text held back, whether it is complete or not."""
        return self._take(complete=False)

    def _take(self, *, complete: bool) -> str:
        before = self._tokenizer.decode(self._tokens[self._start : self._shown])
        text = self._tokenizer.decode(self._tokens[self._start :])
        if complete and text.endswith(REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return text[len(before) :]
