"""Which operations of a step keep the rows of different tokens apart.

A rule takes an operation with operands that have a dynamic dimension, and gives how many places of
the result's dynamic dimension belong to each token (more than one where a reshape moved heads
into it), or None where a result's row may depend on other tokens. An operation without a rule is
refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

from xdsl.dialects.builtin import StringAttr, TensorType
from xdsl.ir import Operation, SSAValue

from speqc.dialects import speq
from speqc.dialects.onnx import OnnxOp
from speqc.passes.matching import ANY, constant_integers, shape
from speqc.passes.probe import operator
from speqc.runtime.vector_einsum import labels_of
from speqc.runtime.vector_elementwise import ELEMENTWISE
from speqc.runtime.vector_logic import LOGIC
from speqc.runtime.vector_reductions import REDUCTIONS

Rows = Mapping[SSAValue, int]
"""Places in the dynamic dimension for each token, of every value that has one."""

Rule = Callable[[OnnxOp, Rows], int | None]

SOFTMAX_ALONG_ONE = 13
"""Before this opset softmax ran over its axis and all dimensions behind it."""


def dynamic_axis(value: SSAValue) -> int | None:
    """The dimension of a value that holds the rows, from the front; None if it has none."""
    if not isinstance(value.type, TensorType):
        return None
    sizes = shape(value)
    return sizes.index(ANY) if ANY in sizes else None


def rows_of_result(op: Operation, rows: Rows, opset: int) -> int | None:
    """Places for each token in the results of an operation that has operands with rows.

    None if it may combine rows of different tokens. `opset` is the version of ONNX's operators.
    """
    if isinstance(op, OnnxOp):
        name = operator(op)
        if name in ("Softmax", "LogSoftmax") and opset < SOFTMAX_ALONG_ONE:
            return _to_the_end(op, rows, 1)
        rule = RULES.get(name)
        return None if rule is None else rule(op, rows)
    if isinstance(op, speq.AttentionOp | speq.CacheAppendOp):
        return _attention(op.operands, rows)
    if isinstance(op, speq.RotaryOp):
        return _aligned(op.operands, rows)
    if isinstance(op, speq.MatmulOp):
        return _along(op.input, rows, [-1]) if _aligned(_not_weights(op), rows) else None
    if isinstance(op, speq.RMSNormOp):
        return _along(op.operands[0], rows, [-1])
    if isinstance(op, speq.EmbeddingOp | speq.PositionsOp):
        return rows[op.operands[0]]
    return None


def _attention(operands: Iterable[SSAValue], rows: Rows) -> int | None:
    """Attention and caches take [1, heads, M, width]."""
    apart = all(dynamic_axis(value) == 2 and rows[value] == 1 for value in operands)
    return 1 if apart else None


def _not_weights(op: speq.MatmulOp) -> list[SSAValue]:
    return [op.input] if op.predicate is None else [op.input, op.predicate]


def _from_back(value: SSAValue) -> int | None:
    axis = dynamic_axis(value)
    return None if axis is None else axis - len(shape(value))


def _aligned(operands: Sequence[SSAValue], rows: Rows) -> int | None:
    """Broadcasting: rows meet rows of the same tokens, or one value for all rows."""
    found = {(_from_back(value), rows[value]) for value in operands if value in rows}
    if len(found) != 1:
        return None
    ((axis, each),) = found
    assert axis is not None
    rest = [shape(v) for v in operands if v not in rows and isinstance(v.type, TensorType)]
    return each if all(len(sizes) < -axis or sizes[axis] == 1 for sizes in rest) else None


def _elementwise(op: OnnxOp, rows: Rows) -> int | None:
    return _aligned(op.operands, rows)


def _along(value: SSAValue, rows: Rows, axes: Iterable[int] | None) -> int | None:
    """Elements of `value` are combined along `axes` (None: not known which)."""
    if value not in rows or axes is None:
        return None
    rank = len(shape(value))
    return None if dynamic_axis(value) in {axis % rank for axis in axes} else rows[value]


def _only_first(op: OnnxOp, rows: Rows) -> bool:
    return not any(value in rows for value in op.operands[1:])


def _along_axis(default: int) -> Rule:
    """An operator that works along its attribute `axis`."""

    def rule(op: OnnxOp, rows: Rows) -> int | None:
        axis = op.integer("axis", default)
        return _along(op.operands[0], rows, [axis]) if _only_first(op, rows) else None

    return rule


def _along_axes(op: OnnxOp, rows: Rows) -> int | None:
    """Reductions: along `axes`, an attribute or an operand; without them along all."""
    axes = op.integers("axes")
    if axes is None and len(op.operands) > 1:
        axes = constant_integers(op.operands[1])
    return _along(op.operands[0], rows, axes) if axes and _only_first(op, rows) else None


def _cumulative(op: OnnxOp, rows: Rows) -> int | None:
    return _along(op.operands[0], rows, constant_integers(op.operands[1]))


def _slice(op: OnnxOp, rows: Rows) -> int | None:
    axes = op.integers("axes")
    if axes is None and len(op.operands) > 3:
        axes = constant_integers(op.operands[3])
    elif axes is None:
        starts = op.integers("starts") or constant_integers(op.operands[1])
        axes = None if starts is None else tuple(range(len(starts)))
    return _along(op.operands[0], rows, axes) if _only_first(op, rows) else None


def _to_the_end(op: OnnxOp, rows: Rows, default: int = -1) -> int | None:
    """Normalisation over `axis` and all dimensions after it."""
    if not _only_first(op, rows):
        return None
    rank = len(shape(op.operands[0]))
    return _along(op.operands[0], rows, range(op.integer("axis", default) % rank, rank))


def _same_rows(op: OnnxOp, rows: Rows) -> int | None:
    """All operands have the rows in one dimension, which is not the one worked along."""
    if not all(value in rows for value in op.operands) or _aligned(op.operands, rows) is None:
        return None
    return _along(op.operands[0], rows, [op.integer("axis", 0)])


def _gather(op: OnnxOp, rows: Rows) -> int | None:
    data, indices = op.operands
    if data not in rows:
        return rows[indices]
    return None if indices in rows else _along(data, rows, [op.integer("axis", 0)])


def _gather_elements(op: OnnxOp, rows: Rows) -> int | None:
    """Indices into a table along the rows stand for themselves."""
    data, indices = op.operands
    if data in rows or indices not in rows:
        return _same_rows(op, rows)
    axis = op.integer("axis", 0) % len(shape(indices))
    return rows[indices] if dynamic_axis(indices) == axis else None


def _gather_nd(op: OnnxOp, rows: Rows) -> int | None:
    data, indices = op.operands
    if op.integer("batch_dims", 0):
        return None
    if data not in rows:
        return _along(indices, rows, [-1])
    return None if indices in rows else _along(data, rows, range(shape(indices)[-1]))


def _groups(op: OnnxOp, rows: Rows) -> int | None:
    """Normalisation over all dimensions but the first."""
    if not _only_first(op, rows):
        return None
    return _along(op.operands[0], rows, range(1, len(shape(op.operands[0]))))


def _scaled(op: OnnxOp, rows: Rows) -> int | None:
    """Quantisation: scales of one tensor, or along `axis`."""
    if not _only_first(op, rows):
        return None
    per_tensor = shape(op.operands[1]) in ((), (1,))
    return _along(op.operands[0], rows, [] if per_tensor else [op.integer("axis", 1)])


def _pad(op: OnnxOp, rows: Rows) -> int | None:
    pads, axes = constant_integers(op.operands[1]), op.input("axes")
    along = range(len(shape(op.operands[0]))) if axes is None else constant_integers(axes)
    if pads is None or along is None or not _only_first(op, rows):
        return None
    padded = [
        axis for axis, *ends in zip(along, pads, pads[len(along) :], strict=False) if any(ends)
    ]
    return _along(op.operands[0], rows, padded)


def _einsum(op: OnnxOp, rows: Rows) -> int | None:
    """The label of the rows stays in the result, and is nowhere that of anything else."""
    equation = op.properties["equation"]
    assert isinstance(equation, StringAttr)
    terms, result = labels_of(equation.data, [len(shape(value)) for value in op.operands])
    dynamic = [dynamic_axis(value) for value in op.operands]
    labels = {term[axis] for term, axis in zip(terms, dynamic, strict=True) if axis is not None}
    each = {rows[value] for value in op.operands if value in rows}
    if len(labels) != 1 or len(each) != 1 or not labels <= set(result):
        return None
    (label,) = labels
    places = sum(term.count(label) for term in terms)
    return each.pop() if places == len(dynamic) - dynamic.count(None) else None


def _transpose(op: OnnxOp, rows: Rows) -> int | None:
    return rows[op.operands[0]]


def _reshape(op: OnnxOp, rows: Rows) -> int | None:
    """What stands before the rows stays there; each token keeps its own elements behind it."""
    if not _only_first(op, rows) or len(op.results) != 1 or dynamic_axis(op.results[0]) is None:
        return None
    (before, behind), (new_before, new_behind) = map(_around, (op.operands[0], op.results[0]))
    elements = rows[op.operands[0]] * behind
    if before != new_before or new_behind == 0 or elements % new_behind:
        return None
    return elements // new_behind or None


def _around(value: SSAValue) -> tuple[int, int]:
    """Elements of the dimensions before the rows, and of those behind."""
    sizes, axis = shape(value), dynamic_axis(value)
    assert axis is not None
    return prod(sizes[:axis]), prod(sizes[axis + 1 :])


def _expand(op: OnnxOp, rows: Rows) -> int | None:
    sizes, axis = constant_integers(op.operands[1]), _from_back(op.operands[0])
    if sizes is None or axis is None:
        return None
    return rows[op.operands[0]] if len(sizes) < -axis or sizes[axis] == 1 else None


def _tile(op: OnnxOp, rows: Rows) -> int | None:
    repeats, axis = constant_integers(op.operands[1]), dynamic_axis(op.operands[0])
    if repeats is None or axis is None or repeats[axis] != 1:
        return None
    return rows[op.operands[0]]


def _trilu(op: OnnxOp, rows: Rows) -> int | None:
    return _along(op.operands[0], rows, [-1, -2]) if _only_first(op, rows) else None


def _one_hot(op: OnnxOp, rows: Rows) -> int | None:
    return rows[op.operands[0]] if _only_first(op, rows) else None


def _matmul(op: OnnxOp, rows: Rows) -> int | None:
    left, right = op.operands
    left_axis, right_axis = _from_back(left), _from_back(right)
    if left_axis == -1 or right_axis == -2 or (right_axis == -1 and len(shape(right)) == 1):
        return None
    if left_axis == -2 or right_axis == -1:
        one = left if left_axis == -2 else right
        return rows[one] if (left in rows) != (right in rows) else None
    return _aligned((left, right), rows)


def _gemm(op: OnnxOp, rows: Rows) -> int | None:
    left, right, *addends = op.operands
    row_axis = 1 if op.integer("transA", 0) else 0
    if right in rows or dynamic_axis(left) != row_axis:
        return None
    each = rows[left]
    for value in addends:
        if value in rows:
            if (_from_back(value), rows[value]) != (-2, each):
                return None
        elif isinstance(value.type, TensorType) and shape(value)[-2:-1] not in ((), (1,)):
            return None
    return each


RULES: Mapping[str, Rule] = {
    **dict.fromkeys([*ELEMENTWISE, *LOGIC, "Dropout", "Identity"], _elementwise),
    **dict.fromkeys(REDUCTIONS, _along_axes),
    **dict.fromkeys(
        ["Hardmax", "LogSoftmax", "LpNormalization", "Softmax", "TopK"], _along_axis(-1)
    ),
    **dict.fromkeys(["ArgMax", "ArgMin", "Split"], _along_axis(0)),
    **dict.fromkeys(["CumProd", "CumSum"], _cumulative),
    **dict.fromkeys(["DequantizeLinear", "QuantizeLinear"], _scaled),
    **dict.fromkeys(["GroupNormalization", "InstanceNormalization"], _groups),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization"], _to_the_end),
    **dict.fromkeys(["Flatten", "Reshape", "Squeeze", "Unsqueeze"], _reshape),
    **dict.fromkeys(["Concat", "ScatterElements"], _same_rows),
    "Einsum": _einsum,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Slice": _slice,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
}
"""The rule of each operator that may stand in a step; others never keep rows apart."""
