"""Where a step's activations live: on chip, or in DRAM where M rows of them do not fit."""

from xdsl.dialects.builtin import DYNAMIC_INDEX, IntegerAttr, TensorType
from xdsl.ir import Operation, SSAValue
from xdsl.irdl import IRDLOperation

from speqc.dialects.pe import VectorOp
from speqc.runtime.ir_values import numpy_dtype
from speqc.runtime.target import Target
from speqc.runtime.vector_ops import VECTOR_OPS

OFFSET = "sram_row_offset"
"""The property with an activation's offset in the activation SRAM, in bytes for one row of M."""

ROW_BYTES = "pe.sram_row_bytes"
"""The function attribute with the bytes that a step's activations need for each row of M."""


def elements(type: TensorType, rows: int) -> int:
    """Elements of a tensor whose dynamic dimension is `rows`."""
    count = 1
    for size in type.get_shape():
        count *= rows if size == DYNAMIC_INDEX else size
    return count


def row_bytes(type: TensorType) -> int:
    """Bytes of a tensor for one row of M."""
    return elements(type, 1) * numpy_dtype(type.element_type).itemsize


def is_pairs(value: SSAValue) -> bool:
    """Whether a value has elements for pairs of tokens: it has two dynamic sizes.

    Its bytes for one row of M are none in particular, so that it always lives in DRAM.
    """
    type = value.type
    return isinstance(type, TensorType) and list(type.get_shape()).count(DYNAMIC_INDEX) > 1


def shares_buffer(op: Operation) -> bool:
    """Whether an operation only renames dimensions, so that its result is its operand."""
    if not isinstance(op, VectorOp) or op.kernel.data not in VECTOR_OPS:
        return False
    if VECTOR_OPS[op.kernel.data].lane_ops or not op.inputs:
        return False
    operand, result = op.inputs[0].type, op.results_[0].type
    return (
        isinstance(operand, TensorType)
        and isinstance(result, TensorType)
        and (operand.element_type, row_bytes(operand)) == (result.element_type, row_bytes(result))
    )


def sram_place(value: SSAValue) -> tuple[int, int] | None:
    """First byte of a value's place and the first behind it, for one row of M; None: it has none.

    Results of one operation stand one after another.
    """
    owner = value.owner
    if not isinstance(owner, Operation):
        return None
    offset = owner.properties.get(OFFSET)
    if not isinstance(offset, IntegerAttr):
        return None
    start = offset.value.data
    for result in owner.results:
        assert isinstance(result.type, TensorType)
        end = start + row_bytes(result.type)
        if result is value:
            return start, end
        start = end
    return None


def has_place(value: SSAValue) -> bool:
    """Whether a value is an activation, which lives on chip or in DRAM."""
    owner = value.owner
    return (
        isinstance(owner, IRDLOperation)
        and isinstance(value.type, TensorType)
        and OFFSET in type(owner).get_irdl_definition().properties
    )


def dram_bytes(value: SSAValue, rows: int, target: Target) -> int:
    """Bytes that an activation takes in DRAM in a step over `rows` rows: 0 where it is on chip."""
    if not has_place(value):
        return 0
    assert isinstance(value.type, TensorType)
    place = sram_place(value)
    if place is not None and place[1] * rows <= target.activation_sram_bytes:
        return 0
    return elements(value.type, rows) * numpy_dtype(value.type.element_type).itemsize
