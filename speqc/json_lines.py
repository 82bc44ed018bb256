"""Files with a JSON value on each line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from speqc.runtime.errors import SpeqcError


class JsonLine(NamedTuple):
    """A value, and the line that it stands on, as messages name it."""

    value: Any
    where: str


def read_json_lines(path: Path, option: str = "") -> Iterator[JsonLine]:
    """The values of a file in UTF-8; empty lines are passed over.

    Raises SpeqcError, one line that begins with `option` and names the file's, where it has others.
    """
    name = f"{option} {path}".lstrip()
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise SpeqcError(f"{name}: not a text in UTF-8: {error.reason}") from None
    # Not splitlines(): it also breaks at characters that a JSON text may hold.
    for number, line in enumerate(text.removeprefix("\N{BOM}").split("\n"), 1):
        if line.strip():
            where = f"{name}, line {number}"
            yield JsonLine(_value(line, where), where)


def _value(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise SpeqcError(f"{where}: not JSON: {error}") from None
    except RecursionError:
        raise SpeqcError(f"{where}: not JSON that can be read: nested too deeply") from None
