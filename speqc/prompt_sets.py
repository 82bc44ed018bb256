"""Prompts to measure with: files with a JSON object on each line, and the sets that speqc ships.

`prompt` is the text. `set` names the group that its figures also belong to (default: the file's
name). With `chat` true, the text is put into the model's chat template, if it has one. Other fields
are left alone.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from speqc.json_lines import JsonLine, read_json_lines
from speqc.runtime.errors import SpeqcError

SETS = ("text", "code", "math", "dialogue")
"""The sets to measure with."""

CALIBRATION = "calibration"
"""The set that a model writes its own calibration text from: no prompt is in another set."""

FIELDS = {"prompt": str, "set": str, "chat": bool}
"""The fields of a line, with their types."""

KINDS = {str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class PromptLine:
    """One prompt of a file; `where` names its line."""

    text: str
    set: str
    chat: bool
    where: str


def read_prompts(source: str) -> list[PromptLine]:
    """The prompts of a shipped set, of `all` of `SETS`, or of a file.

    Raises SpeqcError, which names the line, where the source is no such thing.
    """
    if source == "all":
        return [line for name in SETS for line in read_prompts(name)]
    if source in (*SETS, CALIBRATION):
        return _read(Path(str(files("speqc") / "prompts" / f"{source}.jsonl")))
    path = Path(source)
    if not path.is_file():
        known = ", ".join(("all", *SETS))
        raise SpeqcError(f"{source}: there is no such file, and no such set of prompts ({known})")
    return _read(path)


def prompt_line(line: JsonLine, name: str) -> PromptLine:
    """The prompt that a line says, of the set `name` unless it names another.

    Raises SpeqcError, which names the line, where it says none, or not as it has to.
    """
    fields, where = line
    if not isinstance(fields, dict):
        raise SpeqcError(f'{where}: expected an object such as {{"prompt": "..."}}')
    _check_fields(fields, where)
    return PromptLine(fields["prompt"], fields.get("set", name), fields.get("chat", False), where)


def _read(path: Path) -> list[PromptLine]:
    found = [prompt_line(line, path.stem) for line in read_json_lines(path)]
    if not found:
        raise SpeqcError(f"{path}: there is no prompt in it")
    return found


def _check_fields(fields: dict[str, Any], where: str) -> None:
    if not fields.get("prompt"):
        raise SpeqcError(f'{where}: there is no "prompt", or it is empty')
    for field, kind in FIELDS.items():
        if field in fields and not isinstance(fields[field], kind):
            raise SpeqcError(f'{where}: "{field}" must be {KINDS[kind]}, got {fields[field]!r:.40}')
