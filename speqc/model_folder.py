"""What lies beside a model file and belongs to it: tokenizer, end-of-text tokens, chat template."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speqc.runtime.errors import SpeqcError

LONGEST_CONTEXT = 1 << 24
"""Tokenizers say "no limit" with absurdly large numbers: such ones are no context length."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Names by which chat templates know special tokens."""


@dataclass(frozen=True)
class ModelFolder:
    """What the files beside a model say; empty or None where they say nothing."""

    tokenizer: Path | None = None
    context: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)


def read_model_folder(model: Path, tokenizer: Path | None = None) -> ModelFolder:
    """Look beside `model` for the files that exporters of Hugging Face models write.

    `tokenizer` takes the place of the `tokenizer.json` there. Raises SpeqcError for a file that
    is no JSON object, or says something of the wrong type.
    """
    folder = model.parent
    config = _read(folder / "config.json")
    generation = _read(folder / "generation_config.json")
    settings_file = folder / "tokenizer_config.json"
    settings = _read(settings_file)
    beside = folder / "tokenizer.json"
    if tokenizer is None and beside.is_file():
        tokenizer = beside
    try:
        names = {name: _token_text(settings[name]) for name in SPECIAL_TOKENS if settings.get(name)}
        template = _template(settings)
    except TypeError as error:
        raise SpeqcError(f"{settings_file}: {error}") from error
    template_file = folder / "chat_template.jinja"
    return ModelFolder(
        tokenizer,
        _context(config, settings),
        _token_ids(generation, config) or _named_token(tokenizer, names.get("eos_token")),
        _read_text(template_file) if template_file.is_file() else template,
        names,
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise SpeqcError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise SpeqcError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise SpeqcError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _context(config: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    # Names differ by family: most, GPT-2, MPT; the tokenizer's own limit comes last.
    found = [config.get(name) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    for value in (*found, settings.get("model_max_length")):
        if isinstance(value, int) and 0 < value <= LONGEST_CONTEXT:
            return value
    return None


def _token_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    for config in configs:
        value = config.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        tokens = tuple(item for item in ids if isinstance(item, int))
        if tokens:
            return tokens
    return ()


def _named_token(tokenizer: Path | None, text: str | None) -> tuple[int, ...]:
    if tokenizer is None or text is None:
        return ()
    from speqc.text import load_tokenizer

    found = load_tokenizer(tokenizer).token_to_id(text)
    return () if found is None else (found,)


def _token_text(value: object) -> str:
    """A special token stands as its text, or as an object with the text as `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise TypeError(f"expected a special token's text, got {value!r}")
    return text


def _template(settings: Mapping[str, Any]) -> str | None:
    """The chat template: a text, or of several by name the one called `default`."""
    match settings.get("chat_template"):
        case None | str() as text:
            return text
        case list(several):
            return dict(map(_named_template, several)).get("default")
        case other:
            raise TypeError(f"chat_template: expected a text, got {type(other).__name__}")


def _named_template(item: object) -> tuple[str, str]:
    match item:
        case {"name": str(name), "template": str(text)}:
            return name, text
    raise TypeError(f"chat_template: expected objects with name and template, got {item!r}")
