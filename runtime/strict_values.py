"""Mappings that have to have certain keys: what is wrong with one fits a line."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from speqc.runtime.errors import SpeqcError
from speqc.runtime.near_names import unknown_key


def check_values(
    values: Mapping[str, Any],
    keys: Collection[str],
    where: str,
    is_valid: Callable[[str, Any], bool],
    expectation: Callable[[str], str],
    *,
    optional: bool = False,
    error: type[SpeqcError] = SpeqcError,
) -> None:
    """Raise `error`, one line, unless `values` has just these keys, with valid values.

    `expectation` says in words what a key's value must be. With `optional`, keys may be missing.
    """
    for key in values:
        if key not in keys:
            raise error(f"{where}: {unknown_key(key, keys)}")
    for key in keys:
        if key in values and not is_valid(key, values[key]):
            raise error(f"{where}: {key} must be {expectation(key)}, got {values[key]!r}")
        if key not in values and not optional:
            raise error(f"{where}: {key} is missing; expected {expectation(key)}")


def is_text(value: object) -> bool:
    """Whether this is a text that says something."""
    return isinstance(value, str) and bool(value.strip())
