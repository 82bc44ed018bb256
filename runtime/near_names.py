"""What a misspelt name was meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question whether the nearest known name was meant, or "" if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say of a key that is none of the known ones."""
    known = tuple(known)
    hint = did_you_mean(key, known) or f"known keys: {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"
