"""Collects what the head of a step function was given, and where its tokens were likely."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, OpResult, SSAValue

from speqc.dialects import pe
from speqc.runtime.input_moments import weight_name
from speqc.runtime.likely_tokens import LikelyRows, LikelyTokens


class HeadInputs:
    """An observer of a machine's steps that pairs the head's inputs with the logits they gave.

    The head is the product that the logits come from. Between the two there may be operations on
    the logits, such as a scale or a cap: those with exactly one operand of the logits' shape.

    Attributes:
        weight: the head's weight; None where logits come from something else.
    """

    def __init__(self, function: FuncOp):
        self._logits = _returned(function)
        self._product = _product(self._logits)
        self.weight = None if self._product is None else weight_name(self._product)
        self._tokens = LikelyTokens()
        self._inputs: NDArray | None = None
        self._left_out: Sequence[int] = ()

    def leave_out(self, rows: Sequence[int]) -> None:
        """Name the rows that do not count in the passes from here on."""
        self._left_out = rows

    def observe(
        self, op: Operation, operands: Sequence[Any], results: Sequence[Any]
    ) -> Sequence[Any]:
        """Take the head's input, and then the logits; the results are left alone."""
        if self._product is not None and op is self._product:
            self._inputs = _rows(operands[0])
        if self._inputs is not None and op is self._logits.owner:
            counts = np.ones(len(self._inputs), np.bool_)
            counts[list(self._left_out)] = False
            self._tokens.add(self._inputs, _rows(results[0]), counts)
            self._inputs = None
        return results

    def take(self) -> LikelyRows | None:
        """What was collected; None where there was nothing."""
        return self._tokens.take()


def _rows(x: NDArray) -> NDArray:
    return x.reshape(-1, x.shape[-1])


def _returned(function: FuncOp) -> SSAValue:
    last = function.body.block.last_op
    assert last is not None
    return last.operands[0]


def _product(logits: SSAValue) -> pe.GemmOp | None:
    """The product that logits come from."""
    value = logits
    while isinstance(value, OpResult) and value.index == 0:
        op = value.op
        if isinstance(op, pe.GemmOp):
            return op if op.predicate is None else None
        alike = [operand for operand in op.operands if _shape(operand) == _shape(logits)]
        if len(alike) != 1:
            return None
        value = alike[0]
    return None


def _shape(value: SSAValue) -> tuple[int, ...] | None:
    get_shape = getattr(value.type, "get_shape", None)
    return None if get_shape is None else tuple(get_shape())
