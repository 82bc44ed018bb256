"""The record of a run: which step functions were called, with how many rows."""

from typing import NamedTuple


class Call(NamedTuple):
    """One pass of a step function: how many rows went in, how many positions the caches held.

    `chosen` says of a mixture of experts how many rows chose each expert (see `routing`). It is
    empty where that is not known, and where there are none.
    """

    function: str
    rows: int
    past: int
    chosen: tuple[int, ...] = ()
