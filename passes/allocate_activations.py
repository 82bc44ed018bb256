"""Give every activation of a step a place in the activation SRAM."""

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, i64
from xdsl.dialects.func import FuncOp
from xdsl.passes import ModulePass

from speqc.passes.activation_buffers import Buffer, step_buffers
from speqc.runtime.activations import OFFSET, ROW_BYTES


@dataclass(frozen=True)
class AllocateActivationsPass(ModulePass):
    """First-fit allocation in program order, in bytes for one row of M.

    A step over M rows places an activation at M times its offset. Those that end behind the
    SRAM's capacity live in DRAM in that step, as does the result of the step always. An operation
    that only renames dimensions shares its operand's place.

    Units work side by side, so that a place is free again only for operations that start after all
    that write or read it have ended (see `finish_order`).
    """

    name = "allocate-activations"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Annotate every step function of the module."""
        for function in op.ops:
            if isinstance(function, FuncOp):
                peak = _allocate(function)
                function.attributes[ROW_BYTES] = IntegerAttr(peak, i64)


def _allocate(function: FuncOp) -> int:
    buffers = step_buffers(function)
    for buffer in buffers.returned:
        for owner in buffer.owners:
            owner.properties.pop(OFFSET, None)
    for buffer, needed in buffers.with_needed():
        buffer.offset = _first_gap(needed, buffer.size)
        for owner in buffer.owners:
            owner.properties[OFFSET] = IntegerAttr(buffer.offset, i64)
    return buffers.peak()


def _first_gap(needed: list[Buffer], size: int) -> int:
    """The lowest offset at which `size` bytes overlap no buffer that is still needed."""
    offset = 0
    for other in sorted(needed, key=lambda buffer: buffer.offset):
        if offset + size <= other.offset:
            break
        offset = max(offset, other.end)
    return offset
