"""Where a step's activations live: on chip, or in DRAM where M rows of them do not fit."""

from xdsl.dialects.builtin import DYNAMIC_INDEX, IntegerAttr, TensorType
from xdsl.ir import Operation, SSAValue

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


def shares_buffer(op: VectorOp) -> bool:
    """Whether an operation only renames dimensions, so that its result is its operand."""
    kernel = op.kernel.data
    return kernel in VECTOR_OPS and VECTOR_OPS[kernel].lane_ops == 0


def dram_bytes(value: SSAValue, rows: int, target: Target) -> int:
    """Bytes that an activation takes in DRAM in a step over `rows` rows: 0 where it is on chip."""
    owner = value.owner
    if not isinstance(owner, Operation) or not isinstance(value.type, TensorType):
        return 0
    if OFFSET not in type(owner).get_irdl_definition().properties:
        return 0
    size = row_bytes(value.type) * rows
    offset = owner.properties.get(OFFSET)
    if isinstance(offset, IntegerAttr):
        end = offset.value.data * rows + size
        return 0 if end <= target.activation_sram_bytes else size
    return size
