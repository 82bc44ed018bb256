"""From the operand of an attention product back to the cache it reads, with a proof of the layout.

Exporters repeat key and value heads for the query heads of their group, transpose keys, and scale
them, in many ways. The operations on the way are not matched one by one: those that move elements
are evaluated on a tensor of indices, which must come out as grouped-query attention reads a cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import Float16Type, Float32Type
from xdsl.ir import Block, Operation, SSAValue

from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import constant_scalar, element_type, producer, shape, tensor_type
from speqc.passes.probe import Probe

MOVERS = frozenset(
    {
        "onnx.Concat",
        "onnx.Expand",
        "onnx.Flatten",
        "onnx.Gather",
        "onnx.Identity",
        "onnx.Reshape",
        "onnx.Slice",
        "onnx.Squeeze",
        "onnx.Tile",
        "onnx.Transpose",
        "onnx.Unsqueeze",
    }
)
"""Operations whose result has elements of the first operand, moved or repeated."""

SAMPLE_POSITIONS = 5
"""Number of positions in the sample of a cache."""


class CacheRead(NamedTuple):
    """How a product reads a cache: the cache's value, and what is done to its elements."""

    root: SSAValue
    elementwise: tuple[Operation, ...]
    aliases: dict[SSAValue, SSAValue]


def trace(value: SSAValue, roots: Sequence[SSAValue]) -> CacheRead | None:
    """The way from one of `roots` to `value`, or None if there is none."""
    elementwise: list[Operation] = []
    aliases: dict[SSAValue, SSAValue] = {}
    while value not in roots:
        op = value.owner
        if isinstance(op, Block):
            return None
        source = _elementwise_source(op)
        if source is not None:
            elementwise.insert(0, op)
            aliases[value] = source
        elif op.name in MOVERS and (op.name != "onnx.Concat" or len(set(op.operands)) == 1):
            source = op.operands[0]
        else:
            return None
        value = source
    return CacheRead(value, tuple(elementwise), aliases)


def _elementwise_source(op: Operation) -> SSAValue | None:
    """The operand of an operation that changes each element by itself, without regard to place."""
    if op.name == "onnx.Cast":
        return op.operands[0]
    if op.name not in ("onnx.Mul", "onnx.Div"):
        return None
    varying = [operand for operand in op.operands if constant_scalar(operand) is None]
    if len(varying) != 1 or (op.name == "onnx.Div" and varying[0] is not op.operands[0]):
        return None
    return varying[0]


def is_grouped_query(value: SSAValue, read: CacheRead, *, transposed: bool, opset: int) -> bool:
    """Whether `value` is the cache as H query heads read it: head h has cache head h // (H / KV).

    `transposed`: the last two dimensions are channels and positions, as for keys.
    """
    heads, width = shape(read.root)[1], shape(read.root)[3]
    cache = np.arange(heads * SAMPLE_POSITIONS * width).reshape(1, heads, SAMPLE_POSITIONS, width)
    found = Probe({read.root: cache}, opset, read.aliases).value(value)
    query_heads = shape(value)[1]
    if found is None or found.ndim != 4 or query_heads % heads:
        return False
    expected: NDArray = np.repeat(cache, query_heads // heads, axis=1)
    return np.array_equal(found, expected.swapaxes(2, 3) if transposed else expected)


def on_new_rows(rows: SSAValue, elementwise: Sequence[Operation]) -> list[Operation]:
    """The operations on a cache's elements, done to the new rows instead; the last has the result.

    A row's elements become the same bits whether they are changed before they are appended or each
    time the cache is read. A widening cast at the end is left out: the product widens anyway.
    """
    kept = list(elementwise)
    while kept and _is_widening(kept[-1]):
        kept.pop()
    made: list[Operation] = []
    for op in kept:
        assert isinstance(op, OnnxOp)
        made.append(_replay(op, made[-1].results[0] if made else rows))
    return made


def _is_widening(op: Operation) -> bool:
    narrow, wide = element_type(op.operands[0]), element_type(op.results[0])
    is_cast = op.name == "onnx.Cast"
    return is_cast and isinstance(narrow, Float16Type) and isinstance(wide, Float32Type)


def _replay(op: OnnxOp, rows: SSAValue) -> OnnxOp:
    source = _elementwise_source(op)
    operands = [rows if operand is source else operand for operand in op.operands]
    result_type = tensor_type(element_type(op.results[0]), shape(rows))
    return op.__class__(operands, [result_type], dict(op.properties), op.location)


def appended_rows(present: SSAValue, past: SSAValue) -> tuple[SSAValue, SSAValue] | None:
    """(the whole cache, its new rows) where `present` is `past` with rows appended."""
    whole = without_casts(present)
    concat = producer(whole, "Concat")
    if not isinstance(concat, OnnxOp) or len(concat.operands) != 2 or len(shape(whole)) != 4:
        return None
    if concat.integer("axis", 0) not in (2, -2) or without_casts(concat.operands[0]) is not past:
        return None
    return whole, concat.operands[1]


def without_casts(value: SSAValue) -> SSAValue:
    """The value before any casts."""
    while (cast := producer(value, "Cast", "Identity")) is not None:
        value = cast.operands[0]
    return value
