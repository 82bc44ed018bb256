"""Sums over the ops of passes: cycles by kind of op, bound and part, DRAM bytes, and work.

A table [kinds, `COLUMNS`] of whole numbers, so that tables of passes can be added, and weighted
where passes are expected and not known. The cycles in it add up to the passes' cycles.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import Operation

from speqc.dialects import pe
from speqc.runtime.energy import Work
from speqc.runtime.timing import BOUNDS, Parts

KINDS = "product", "attention", "vector", "look-up", "store", "mode switch"
"""Kinds of ops, in the order of a table's rows."""

CYCLES = slice(0, len(BOUNDS) * len(Parts._fields))
"""Columns of cycles: for each bound, each part."""

DRAM_BYTES = CYCLES.stop
WORK = slice(DRAM_BYTES + 1, DRAM_BYTES + 1 + len(Work._fields))
COLUMNS = WORK.stop


def kind_of(source: Operation) -> str:
    """The kind of an operation of a step; that of a load is its consumer's."""
    match source:
        case pe.GemmOp() | pe.LoadWeightOp():
            return "product"
        case pe.AttentionOp() | pe.LoadCacheOp():
            return "attention"
        case pe.GatherOp() | pe.LookupOp():
            return "look-up"
        case pe.AppendOp():
            return "store"
        case pe.ModeOp():
            return "mode switch"
        case _:
            return "vector"


def empty_table() -> NDArray[np.int64]:
    """The sums over no passes."""
    return np.zeros((len(KINDS), COLUMNS), np.int64)


def counts(dram_bytes: int, work: Work) -> NDArray[np.int64]:
    """The columns of an op from `DRAM_BYTES` on."""
    return np.array((dram_bytes, *work), np.int64)


def cycles_of(table: NDArray) -> NDArray:
    """Cycles [kinds, bounds, parts] of a table, or of some of its rows; a view of them."""
    return table[:, CYCLES].reshape(-1, len(BOUNDS), len(Parts._fields))


def work_of(table: NDArray) -> Work:
    """The work of all kinds together."""
    return Work(*table[:, WORK].sum(0).tolist())


def add_tables(tables: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The sum of tables."""
    total = empty_table()
    for table in tables:
        total += table
    return total


def count_ops(ops: Sequence[tuple[Operation, int, Work]]) -> NDArray[np.int64]:
    """A table without cycles: DRAM bytes and work of ops, each with the operation it comes from."""
    table = empty_table()
    for source, dram_bytes, work in ops:
        table[KINDS.index(kind_of(source)), DRAM_BYTES:] += counts(dram_bytes, work)
    return table


def kind_numbers(sources: Iterable[Operation]) -> NDArray[np.int64]:
    """The row of a table for each operation."""
    return np.array([KINDS.index(kind_of(source)) for source in sources], np.int64)
