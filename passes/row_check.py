"""Check that a step's rows do not depend on how a sequence is cut into steps.

Every dynamic size is the number of rows, no operation but attention mixes rows, and what a step
computes from lengths and positions alone comes out the same for a token wherever its step starts.
"""

from collections.abc import Sequence

import numpy as np
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import (
    ANY,
    constant_integers,
    element_type,
    fail,
    is_float,
    is_weight,
    shape,
)
from speqc.passes.probe import Probe
from speqc.passes.step_samples import StepSampler

ROWS, PAST = 3, 5
"""The sample step, in sizes that are no multiple of each other."""

ALONG_AXIS = frozenset(
    {
        "onnx.Concat",
        "onnx.CumSum",
        "onnx.LogSoftmax",
        "onnx.Slice",
        "onnx.Softmax",
        "onnx.Split",
        "onnx.TopK",
    }
)
"""Operations that combine or drop elements along their axes; and all reductions."""

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
    """Check the ONNX operations of a step.

    Raises:
        SpeqcError: a dynamic size is not M, an operation combines rows of different tokens, or
            counts them from the first of the step.
    """
    sampler = StepSampler(module, function)
    together = sampler.probe(ROWS, PAST)
    alone = [sampler.probe(1, PAST + row) for row in range(ROWS)]
    for op in function.body.block.ops:
        if not isinstance(op, OnnxOp):
            continue
        if _mixes_rows(op):
            raise fail(op, "it combines the rows of different tokens, which only attention may")
        for value in op.results:
            if isinstance(value.type, TensorType) and ANY in shape(value):
                _check_value(op, value, together, alone)


def _check_value(op: OnnxOp, value: SSAValue, together: Probe, alone: Sequence[Probe]) -> None:
    """Check a value that lengths and positions may determine: integers, and sizes from values."""
    sized = _is_sized_by_values(op)
    if not sized and is_float(element_type(value)):
        return
    axis, found = shape(value).index(ANY), together.value(value)
    if found is None and not sized:
        return
    if found is None or found.shape[axis] != ROWS:
        raise fail(op, f"the dynamic size of {value.type} is not the number of tokens")
    for index, probe in enumerate(alone):
        row = probe.value(value)
        if row is None or not np.array_equal(row, found.take([index], axis)):
            raise fail(op, "it counts tokens from the first of a step, not of the sequence")


def _is_sized_by_values(op: OnnxOp) -> bool:
    """Whether the result's sizes depend on what operands hold, not on their sizes alone."""
    first = SIZED_BY.get(op.name)
    if first is None:
        return False
    return first == 0 or not all(is_weight(operand) for operand in op.operands[first:])


def _mixes_rows(op: OnnxOp) -> bool:
    if not op.operands or not isinstance(op.operands[0].type, TensorType):
        return False
    if op.name == "onnx.MatMul":
        left, right = shape(op.operands[0]), shape(op.operands[1])
        return ANY in (left[-1], *right[-2:][:1])
    sizes = shape(op.operands[0])
    if op.name not in ALONG_AXIS and not op.name.startswith("onnx.Reduce"):
        return False
    axes = _axes(op)
    if axes is None:
        return ANY in sizes
    return any(sizes[axis] == ANY for axis in axes)


def _axes(op: OnnxOp) -> tuple[int, ...] | None:
    """The dimensions that an operation works along; None if it may be all."""
    if (axes := op.integers("axes")) is not None:
        return axes
    names = op.schema().inputs
    for name in ("axes", "axis"):
        if name in names and op.input(name) is not None:
            return constant_integers(op.input(name))
    if "axis" in op.schema().attributes:
        return (op.integer("axis", -1),)
    return None
