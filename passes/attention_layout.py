"""From the operand of an attention product back to the cache it reads, with a proof of the layout.

Exporters repeat key and value heads for the query heads of their group, transpose keys, and scale
them, in many ways. The operations on the way are not matched one by one: those that move elements
are evaluated on a tensor of indices, which must come out as grouped-query attention reads a cache.
That none of them drops, repeats or mixes positions is told by their structure, for any length.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import Float16Type, Float32Type
from xdsl.ir import Block, Operation, SSAValue

from speqc.passes.building import Builder
from speqc.passes.matching import ANY, constant_scalar, element_type, shape, tensor_type
from speqc.passes.probe import Probe, operator
from speqc.passes.row_rules import dynamic_axis, rows_of_result

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

POSITIONS = 2
"""The dimension of positions in a cache [1, KV, T, D]."""

SAMPLE_POSITIONS = 5
"""Number of positions in the sample of a cache."""


class CacheRead(NamedTuple):
    """How a product reads a cache: the cache's value, and what is done to its elements.

    `path` are all operations from the cache on, in order; `elementwise` those of them that change
    elements, whose results are `aliases` of their operands.
    """

    root: SSAValue
    path: tuple[Operation, ...]
    elementwise: tuple[Operation, ...]
    aliases: dict[SSAValue, SSAValue]


def cache_reads(value: SSAValue) -> Iterator[CacheRead]:
    """What `value` may be a reading of: itself, and each tensor on the way to its source."""
    path: list[Operation] = []
    elementwise: list[Operation] = []
    aliases: dict[SSAValue, SSAValue] = {}
    source: SSAValue | None = value
    while source is not None:
        yield CacheRead(source, tuple(path), tuple(elementwise), dict(aliases))
        op = source.owner
        if isinstance(op, Block):
            return
        result, source = source, _elementwise_source(op)
        if source is not None:
            elementwise.insert(0, op)
            aliases[result] = source
        elif op.name in MOVERS and (op.name != "onnx.Concat" or len(set(op.operands)) == 1):
            source = op.operands[0]
        path.insert(0, op)


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


def keeps_positions(read: CacheRead, opset: int) -> bool:
    """Whether a reading has every position of its cache once, in order, however many there are."""
    if dynamic_axis(read.root) != POSITIONS:
        return False
    rows, end = {read.root: 1}, read.root
    for op in read.path:
        each = rows_of_result(op, rows, opset)
        if each is None:
            return False
        end = op.results[0]
        rows[end] = each
    return rows[end] == 1


def is_grouped_query(value: SSAValue, read: CacheRead, *, transposed: bool, opset: int) -> bool:
    """Whether `value` is the cache as H query heads read it: head h has cache head h // (H / KV).

    The batch of one may be missing. `transposed`: the last two dimensions are channels and
    positions, as for keys. Looks at a few positions: `keeps_positions` speaks of all.
    """
    if len(shape(read.root)) != 4 or len(shape(value)) not in (3, 4):
        return False
    _, heads, _, width = shape(read.root)
    if heads == ANY or width == ANY:
        return False
    cache = np.arange(heads * SAMPLE_POSITIONS * width).reshape(1, heads, SAMPLE_POSITIONS, width)
    found = Probe({read.root: cache}, opset, read.aliases).value(value)
    query_heads = shape(value)[-3]
    if found is None or found.ndim not in (3, 4) or query_heads % heads:
        return False
    expected: NDArray = np.repeat(cache, query_heads // heads, axis=1)
    expected = expected.swapaxes(2, 3) if transposed else expected
    return np.array_equal(found.reshape(-1, *found.shape[-3:]), expected)


def on_new_rows(builder: Builder, rows: SSAValue, elementwise: Sequence[Operation]) -> SSAValue:
    """The operations on a cache's elements, done to the new rows instead.

    A row's elements become the same bits whether they are changed before they are appended or each
    time the cache is read. A widening cast at the end is left out: the product widens anyway.
    """
    kept = list(elementwise)
    while kept and _is_widening(kept[-1]):
        kept.pop()
    for op in kept:
        source = _elementwise_source(op)
        operands = [rows if operand is source else operand for operand in op.operands]
        result_type = tensor_type(element_type(op.results[0]), shape(rows))
        rows = builder.onnx(operator(op), operands, result_type, op.properties)
        rows.name_hint = op.results[0].name_hint
    return rows


def _is_widening(op: Operation) -> bool:
    narrow, wide = element_type(op.operands[0]), element_type(op.results[0])
    is_cast = op.name == "onnx.Cast"
    return is_cast and isinstance(narrow, Float16Type) and isinstance(wide, Float32Type)
