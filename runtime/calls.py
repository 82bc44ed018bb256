"""The record of a run: which step functions were called, with how many rows."""

from typing import NamedTuple


class Call(NamedTuple):
    """One pass of a step function: how many rows went in, how many positions the caches held."""

    function: str
    rows: int
    past: int
