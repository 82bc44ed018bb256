"""What a model is calibrated on: its own text, or that of a file.

A file is one of: `.npy` (integers, one dimension, or a row for each text), `.jsonl` (a line for
each text: a list of token ids, or an object whose `prompt` the model continues, in its chat
template with `"chat": true`), else plain UTF-8 text.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from speqc.json_lines import JsonLine, read_json_lines
from speqc.model_folder import ModelFolder
from speqc.prompt_sets import CALIBRATION, PromptLine, prompt_line, read_prompts
from speqc.runtime.errors import SpeqcError
from speqc.text import encode, encode_chat, load_tokenizer

SELF = "self"
"""Instead of a file: the model continues prompts that come with speqc."""

TOKENS = 12288
"""Tokens that a calibration reads at most, unless a user says otherwise."""

LENGTH = 512
"""Tokens of a text at most: longer ones are cut into pieces."""

SELF_LENGTH = 256
"""Tokens of a text that the model writes, its prompt included, at most."""

FIRST_TOKENS = 64
"""Texts begun with a random token each, where there is no tokenizer for prompts."""


@dataclass(frozen=True)
class CalibrationText:
    """Tokens to calibrate on.

    Attributes:
        source: the file's name, or `SELF`.
        texts: token ids. Where `written`, prompts that the model is to continue.
        length: tokens of a text at most.
        tokens: tokens to read in all, at most.
    """

    source: str
    texts: Sequence[Sequence[int]]
    written: bool
    length: int
    tokens: int


def read_calibration(
    source: str, folder: ModelFolder, tokens: int, context: int, vocabulary: int
) -> CalibrationText:
    """Read what `source`, a file or `SELF`, has for a model of this vocabulary.

    Raises SpeqcError where there is no such file, it is not what its name says, has nothing for the
    model, or needs a tokenizer that is not there.
    """
    tokenizer = None if folder.tokenizer is None else load_tokenizer(folder.tokenizer)
    if source == SELF:
        texts, written = _own_prompts(folder, tokenizer, vocabulary), True
    else:
        texts, written = _read_file(Path(source), folder, tokenizer)
    _check_ids(source, texts, vocabulary)
    if written:
        length = min(SELF_LENGTH, context)
        texts = [text for text in texts if 0 < len(text) < length]
    else:
        length = min(LENGTH, context)
        texts = _pieces(texts, length, tokens)
    if not texts:
        why = f"has no prompt shorter than {length} tokens" if written else "has no tokens"
        raise SpeqcError(f"--calibration {source}: {why}")
    return CalibrationText(source, texts, written, length, tokens)


def text_digest(texts: Sequence[Sequence[int]]) -> str:
    """SHA-256 of token ids: each text's as little-endian 64-bit integers, behind their number."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(np.array([len(text), *text], "<i8").tobytes())
    return f"sha256:{digest.hexdigest()}"


def _own_prompts(
    folder: ModelFolder, tokenizer: Tokenizer | None, vocabulary: int
) -> list[list[int]]:
    if tokenizer is None:
        first = np.random.default_rng(0).integers(0, vocabulary, FIRST_TOKENS)
        return [[token] for token in first.tolist()]
    return [
        _prompt_ids(prompt, folder, tokenizer)
        for prompt in read_prompts(CALIBRATION)
        if not prompt.chat or folder.chat_template is not None
    ]


def _prompt_ids(prompt: PromptLine, folder: ModelFolder, tokenizer: Tokenizer) -> list[int]:
    if not prompt.chat:
        return encode(tokenizer, prompt.text)
    if folder.chat_template is None:
        raise SpeqcError(f'{prompt.where}: "chat" is true, but the model has no chat template')
    return encode_chat(tokenizer, folder.chat_template, folder.special_tokens, prompt.text)


def _read_file(
    path: Path, folder: ModelFolder, tokenizer: Tokenizer | None
) -> tuple[list[list[int]], bool]:
    """The texts of a file, and whether they are prompts to continue."""
    if not path.is_file():
        raise SpeqcError(f"--calibration {path}: there is no such file (and it is not '{SELF}')")
    if path.suffix == ".npy":
        return _read_array(path), False
    if path.suffix == ".jsonl":
        return _read_lines(path, folder, tokenizer)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise SpeqcError(f"--calibration {path}: not a text in UTF-8: {error.reason}") from None
    return [encode(_needed(path, tokenizer), text)], False


def _read_array(path: Path) -> list[list[int]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SpeqcError(f"--calibration {path}: not an .npy file: {error}") from None
    if (
        not isinstance(array, np.ndarray)
        or array.ndim not in (1, 2)
        or array.dtype.kind not in "iu"
    ):
        raise SpeqcError(f"--calibration {path}: expected token ids of one or two dimensions")
    return np.atleast_2d(array).tolist()


def _read_lines(
    path: Path, folder: ModelFolder, tokenizer: Tokenizer | None
) -> tuple[list[list[int]], bool]:
    ids: list[list[int]] = []
    prompts: list[PromptLine] = []
    for line in read_json_lines(path, "--calibration"):
        if isinstance(line.value, dict):
            prompts.append(prompt_line(line, path.stem))
        else:
            ids.append(_token_ids(line))
    if ids and prompts:
        raise SpeqcError(f"--calibration {path}: has both prompts and token ids: use one of them")
    if prompts:
        return [_prompt_ids(line, folder, _needed(path, tokenizer)) for line in prompts], True
    return ids, False


def _token_ids(line: JsonLine) -> list[int]:
    if isinstance(line.value, list) and all(type(item) is int for item in line.value):
        return line.value
    raise SpeqcError(
        f'{line.where}: expected a list of token ids, or an object such as {{"prompt": "..."}}'
    )


def _needed(path: Path, tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise SpeqcError(
            f"--calibration {path}: its text needs a tokenizer: give --tokenizer FILE, or token ids"
        )
    return tokenizer


def _check_ids(source: str, texts: Sequence[Sequence[int]], vocabulary: int) -> None:
    for text in texts:
        for token in text:
            if not 0 <= token < vocabulary:
                raise SpeqcError(
                    f"--calibration {source}: token id {token} is out of range: the model has the "
                    f"ids 0 to {vocabulary - 1}"
                )


def _pieces(texts: Sequence[Sequence[int]], length: int, tokens: int) -> list[list[int]]:
    """The texts cut to `length` tokens each; of too many, `tokens` in pieces from everywhere."""
    pieces = [
        list(text[start : start + length])
        for text in texts
        for start in range(0, len(text), length)
    ]
    total = sum(map(len, pieces))
    if total <= tokens:
        return pieces
    lengths = np.cumsum([0, *map(len, pieces)])
    # A piece is taken where its share of the tokens wanted passes what was taken before it.
    chosen, taken = [], 0
    for piece, end in zip(pieces, lengths[1:], strict=True):
        if end * tokens > taken * total and taken < tokens:
            chosen.append(piece[: tokens - taken])
            taken += len(chosen[-1])
    return chosen
