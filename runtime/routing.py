"""Which rows of a pass chose which experts: what a program says, a machine records, a timer needs.

An expert is a predicate of a step function: a value that says for which rows products, and the
operations between them, are computed. Predicates are numbered in the order of their first product.
"""

from collections.abc import Sequence
from typing import NamedTuple

from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from speqc.dialects.pe import GemmOp
from speqc.dialects.speq import EXPERTS, MatmulOp

Chosen = tuple[int, ...]
"""For each predicate how many rows it holds for."""


class Router(NamedTuple):
    """How many experts a router has, and how many of them it chooses for a token."""

    experts: int
    chosen: int

    def expected(self, tokens: int) -> Chosen:
        """Rows for each expert where tokens choose independently, every expert alike.

        E experts of which a token chooses k: E (1 - (1 - k/E)^M) of them are chosen by one of M
        tokens at least. That many, rounded, the first ones, share the k M rows.
        """
        share = self.chosen / self.experts
        distinct = round(self.experts * (1 - (1 - share) ** tokens))
        distinct = max(1, min(distinct, self.experts))
        each, more = divmod(self.chosen * tokens, distinct)
        rows = [each + (place < more) for place in range(distinct)]
        return (*rows, *[0] * (self.experts - distinct))


def predicates(function: FuncOp) -> list[SSAValue]:
    """The predicates of a step function by number."""
    found: dict[SSAValue, None] = {}
    for op in function.body.block.ops:
        if isinstance(op, GemmOp | MatmulOp) and op.predicate is not None:
            found[op.predicate] = None
    return list(found)


def routers(function: FuncOp) -> list[Router]:
    """The routers of a step function, whose experts are its predicates in order."""
    attribute = function.attributes.get(EXPERTS)
    if not isinstance(attribute, ArrayAttr):
        return []
    found = []
    for entry in attribute:
        assert isinstance(entry, DenseArrayBase)
        experts, chosen = entry.get_values()
        found.append(Router(int(experts), int(chosen)))
    return found


def expected_rows(routing: Sequence[Router], tokens: int) -> Chosen:
    """What `Router.expected` says of all routers, one after another."""
    return tuple(rows for router in routing for rows in router.expected(tokens))


def to_text(chosen: Chosen) -> str:
    """Numbers of the predicates that hold for a row, and of more than one how many: "0 3x12 7"."""
    entries = ((place, rows) for place, rows in enumerate(chosen) if rows)
    return " ".join(str(place) if rows == 1 else f"{place}x{rows}" for place, rows in entries)


def from_text(text: str, count: int) -> Chosen:
    """What `to_text` wrote of `count` predicates; raises ValueError where it did not."""
    rows = [0] * count
    for entry in text.split():
        place, _, number = entry.partition("x")
        if not 0 <= int(place) < count or int(number or 1) < 1:
            raise ValueError(f"{entry!r} is no expert of {count}, or no number of rows")
        rows[int(place)] = int(number or 1)
    return tuple(rows)
