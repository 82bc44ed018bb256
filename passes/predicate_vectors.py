"""`predicate-vectors`: vector operations whose results few rows need, computed for those alone.

What only products with one predicate read, directly or through such operations, needs no other
rows: the operations between the products of an expert.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

from speqc.dialects import pe
from speqc.passes.matching import shape
from speqc.runtime.activations import shares_buffer
from speqc.runtime.vector_elementwise import ELEMENTWISE

ROW_BY_ROW = frozenset({*ELEMENTWISE, "Cast", "Split"})
"""Kernels that give a row of results from the same rows of operands."""


@dataclass(frozen=True)
class PredicateVectorsPass(ModulePass):
    """Give vector operations the predicate of the products that alone read their results."""

    name = "predicate-vectors"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite every step function in place."""
        for function in op.ops:
            if isinstance(function, FuncOp):
                _predicate_block(function.body.block)


def _predicate_block(block: Block) -> None:
    ops = list(block.ops)
    if not any(isinstance(op, pe.GemmOp) and op.predicate is not None for op in ops):
        return
    places = {op: place for place, op in enumerate(ops)}
    needs: dict[SSAValue, SSAValue | None] = {}
    for op in reversed(ops):
        for result in op.results:
            needs[result] = _need(result, needs)
        if not isinstance(op, pe.VectorOp) or op.predicate is not None or shares_buffer(op):
            continue
        predicate = needs[op.results[0]]
        if (
            predicate is not None
            and all(needs[result] is predicate for result in op.results)
            and all(rows(result) == rows(predicate) for result in op.results)
            and isinstance(predicate.owner, Operation)
            and places[predicate.owner] < places[op]
        ):
            new = _give(op, predicate)
            needs.update((result, predicate) for result in new.results)
            places[new] = places[op]


def rows(value: SSAValue) -> int:
    """Rows of a value, all its dimensions but the last, as a multiple of M (the sign is M's)."""
    return prod(shape(value)[:-1])


def _need(value: SSAValue, needs: Mapping[SSAValue, SSAValue | None]) -> SSAValue | None:
    """The predicate of all that reads a value; None without one."""
    if not isinstance(value.type, TensorType):
        return None
    found = {_use(use.operation, use.index, value, needs) for use in value.uses}
    return found.pop() if len(found) == 1 else None


def _use(
    op: Operation, place: int, value: SSAValue, needs: Mapping[SSAValue, SSAValue | None]
) -> SSAValue | None:
    if isinstance(op, pe.GemmOp):
        return op.predicate if place == 0 else None
    if not isinstance(op, pe.VectorOp) or value is op.predicate:
        return None
    same = all(rows(result) == rows(value) for result in op.results)
    if shares_buffer(op) and place == 0:
        kept = shape(op.results[0])[-1] == shape(value)[-1]
        return needs[op.results[0]] if same and kept else None
    if op.predicate is None:
        return None
    return op.predicate if same and op.kernel.data in ROW_BY_ROW else None


def _give(op: pe.VectorOp, predicate: SSAValue) -> pe.VectorOp:
    new = pe.VectorOp(op.kernel.data, op.inputs, op.result_types, op.attributes_, predicate)
    new.location = op.location
    for old, result in zip(op.results, new.results, strict=True):
        result.name_hint = old.name_hint
    Rewriter.replace_op(op, new)
    return new
