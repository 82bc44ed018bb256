"""Check that a step's rows do not depend on how a sequence is cut into steps.

Every dynamic size is the number of rows, no operation but attention mixes rows, and what a step
computes from lengths and positions alone comes out the same for a token wherever its step starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from xdsl.dialects.builtin import ModuleOp, NoneType, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import ANY, element_type, fail, is_float, is_weight, shape
from speqc.passes.probe import Probe, opset_of
from speqc.passes.row_rules import dynamic_axis, rows_of_result
from speqc.passes.step_samples import StepSampler

ROWS, PAST = 3, 5
"""The sample step, in sizes that are no multiple of each other."""

TOKENS = "the number of tokens"
"""What every dynamic size must be."""

MIXES = "it combines the rows of different tokens, which only attention may"
COMPUTES = f"it computes with {TOKENS} in a step, which may only be a size"
COUNTS = (
    "how many entries it gives depends on values, not on the number of tokens; where a mixture of "
    "experts does this, export all experts' products as one batch"
)
"""Reasons for refusing an operation."""

ROWS_FROM_SIZES = frozenset({"onnx.ConstantOfShape", "onnx.Expand", "onnx.Range"})
"""Operations that may make rows out of sizes."""

SIZES_OF = {"onnx.Reshape": 1}
"""Operations on rows whose operands from this one on are the sizes of the result."""

SIZED_BY = {
    "onnx.ConstantOfShape": 0,
    "onnx.Expand": 1,
    "onnx.NonZero": 0,
    "onnx.OneHot": 1,
    "onnx.Pad": 1,
    "onnx.Range": 0,
    "onnx.Reshape": 1,
    "onnx.Resize": 1,
    "onnx.Slice": 1,
    "onnx.Split": 1,
    "onnx.Tile": 1,
    "onnx.TopK": 1,
    "onnx.Unique": 0,
}
"""Operations whose sizes depend on values, and the first operand that holds such values."""


def check_rows(module: ModuleOp, function: FuncOp) -> None:
    """Check the operations of a step.

    Raises:
        SpeqcError: a dynamic size is not M, an operation may combine rows of different tokens,
            computes with the number of rows, or counts them from the first of the step.
    """
    sampler = StepSampler(module, function)
    together = sampler.probe(ROWS, PAST)
    alone = [sampler.probe(1, PAST + row) for row in range(ROWS)]
    walk = _Walk(opset_of(module), dict.fromkeys(function.args, 1))
    for op in function.body.block.ops:
        walk.visit(op)
        if not isinstance(op, OnnxOp):
            continue
        for value in op.results:
            if dynamic_axis(value) is not None:
                _check_value(op, value, together, alone)


@dataclass
class _Walk:
    """What is known of the values of a step so far.

    `rows` are those with a dynamic dimension, `sizes` integers computed from the number of rows.
    """

    opset: int
    rows: dict[SSAValue, int]
    sizes: set[SSAValue] = field(default_factory=set)

    def visit(self, op: Operation) -> None:
        """Check an operation, and add its results."""
        sized = [index for index, value in enumerate(op.operands) if value in self.sizes]
        if not any(value in self.rows for value in op.operands):
            self._visit_without_rows(op, sized)
        elif op.name == "onnx.Shape":
            self.sizes.update(op.results)
        elif any(index < SIZES_OF.get(op.name, len(op.operands)) for index in sized):
            raise fail(op, COMPUTES)
        elif isinstance(op, ReturnOp):
            if any(self.rows.get(value) != 1 for value in op.operands):
                raise fail(op, MIXES)
        else:
            self._visit_rows(op)

    def _visit_without_rows(self, op: Operation, sized: Sequence[int]) -> None:
        dynamic = [value for value in op.results if dynamic_axis(value) is not None]
        if dynamic:
            if op.name not in ROWS_FROM_SIZES:
                raise fail(op, f"the dynamic size of {dynamic[0].type} is not {TOKENS}")
            self.rows.update(dict.fromkeys(dynamic, 1))
        elif sized:
            if any(is_float(element_type(value)) for value in op.results):
                raise fail(op, COMPUTES)
            self.sizes.update(op.results)

    def _visit_rows(self, op: Operation) -> None:
        if op.name == "onnx.NonZero":
            raise fail(op, COUNTS)
        each = rows_of_result(op, self.rows, self.opset)
        results = [value for value in op.results if isinstance(value.type, TensorType)]
        if each is None or any(dynamic_axis(value) is None for value in results):
            raise fail(op, MIXES)
        self.rows.update(dict.fromkeys(results, each))


def _check_value(op: OnnxOp, value: SSAValue, together: Probe, alone: Sequence[Probe]) -> None:
    """Check a value that lengths and positions may determine: integers, and sizes from values."""
    sized = is_sized_by_values(op)
    if not sized and is_float(element_type(value)):
        return
    axis, found = shape(value).index(ANY), together.value(value)
    if found is None and not sized:
        return
    if found is None or found.shape[axis] != ROWS:
        raise fail(op, f"the dynamic size of {value.type} is not {TOKENS}")
    for index, probe in enumerate(alone):
        row = probe.value(value)
        if row is None or not np.array_equal(row, found.take([index], axis)):
            raise fail(op, "it counts tokens from the first of a step, not of the sequence")


def is_sized_by_values(op: OnnxOp) -> bool:
    """Whether the result's sizes depend on what operands hold, not on their sizes alone."""
    first = SIZED_BY.get(op.name)
    if first is None:
        return False
    given = (value for value in op.operands[first:] if not isinstance(value.type, NoneType))
    return first == 0 or not all(map(is_weight, given))
