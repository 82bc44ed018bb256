"""Check that every dynamic size of a step is its number of rows, and that rows do not mix."""

from collections.abc import Iterator

from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import ANY, constant_integers, fail, is_weight, shape
from speqc.passes.step_samples import StepSampler

ROWS, PAST = 3, 5
"""The sample step: sizes that are no multiple or sum of each other."""

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
        SpeqcError: a dynamic size is not M, or an operation combines rows of different tokens.
    """
    probe = StepSampler(module, function).probe(ROWS, PAST)
    for op in function.body.block.ops:
        if not isinstance(op, OnnxOp):
            continue
        if _mixes_rows(op):
            raise fail(op, "it combines the rows of different tokens, which only attention may")
        for value in _sized_by_values(op):
            found = probe.value(value)
            if found is None or found.shape[shape(value).index(ANY)] != ROWS:
                raise fail(op, f"the dynamic size of {value.type} is not the number of tokens")


def _sized_by_values(op: OnnxOp) -> Iterator[SSAValue]:
    """Results with a dynamic size that depends on what the operands hold, not on their sizes."""
    first = SIZED_BY.get(op.name)
    if first is None:
        return
    if first > 0 and all(is_weight(operand) for operand in op.operands[first:]):
        return
    for value in op.results:
        if isinstance(value.type, TensorType) and ANY in shape(value):
            yield value


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
