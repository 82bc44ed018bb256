"""Reads TOML files that say one thing once: what is wrong with one fits a line."""

import re
import tomllib
from collections.abc import Collection
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from speqc.runtime.errors import SpeqcError
from speqc.runtime.strict_values import check_values, is_text


def shipped_files(folder: str) -> dict[str, Traversable]:
    """The TOML files in a folder of the package, by name without the ending."""
    files = resources.files("speqc").joinpath(folder).iterdir()
    return {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}


def find_file(
    folder: str, name_or_path: str, what: str, error: type[SpeqcError] = SpeqcError
) -> tuple[Traversable, str]:
    """A shipped file by name, or any whose name ends in `.toml`, and what to call it in messages.

    Raises `error`, one line, for a name that is not shipped; `what` describes the file.
    """
    if name_or_path.endswith(".toml"):
        return Path(name_or_path), name_or_path
    shipped = shipped_files(folder)
    if name_or_path not in shipped:
        raise error(
            f"unknown {what} {name_or_path!r}; known {what}s: {', '.join(sorted(shipped))}, "
            "or the path of a .toml file"
        )
    return shipped[name_or_path], f"{name_or_path}.toml"


def read_toml(
    file: Traversable, where: str, what: str, error: type[SpeqcError] = SpeqcError
) -> dict[str, Any]:
    """The content of a file, called `where` in messages and described as `what`.

    Raises `error`, one line, for an unreadable file and for TOML that does not parse; that includes
    duplicate keys, with the line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as reason:
        raise error(f"{where}: cannot read the {what} file: {reason.strerror}") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{where}: not valid TOML: not UTF-8 text") from reason
    try:
        return tomllib.loads(text)
    except ValueError as reason:
        line = _quoted_line(text, reason)
        raise error(f"{where}: not valid TOML: {reason}{line}") from reason


def check_sources(
    sources: Any,
    keys: Collection[str],
    where: str,
    *,
    optional: bool = False,
    error: type[SpeqcError] = SpeqcError,
) -> None:
    """Raise `error`, one line, unless a table says where the values of these keys come from.

    With `optional`, of some of them.
    """
    if not isinstance(sources, dict):
        raise error(f"{where}: [sources] must be a table of texts, got {sources!r}")
    check_values(
        sources,
        keys,
        f"{where}: [sources]",
        lambda _, source: is_text(source),
        lambda _: "where the value comes from, or 'assumption: ...'",
        optional=optional,
        error=error,
    )


def _quoted_line(text: str, error: ValueError) -> str:
    """Quote the line that a TOML error points at; the error itself names no key."""
    place = re.search(r"at line (\d+)", str(error))
    return f": {text.splitlines()[int(place[1]) - 1].strip()}" if place else ""
