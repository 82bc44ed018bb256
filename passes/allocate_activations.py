"""Give every activation of a step a place in the activation SRAM."""

from collections.abc import Iterable
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, TensorType, i64
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass

from speqc.dialects.pe import AttentionOp, GatherOp, GemmOp, VectorOp
from speqc.passes.finish_order import FinishOrder
from speqc.runtime.activations import OFFSET, ROW_BYTES, row_bytes, shares_buffer


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


@dataclass(eq=False)
class _Buffer:
    """One place: the operations whose results share it, and the set of those that access it."""

    size: int
    owners: list[Operation]
    accesses: int
    offset: int = 0

    @property
    def end(self) -> int:
        return self.offset + self.size


def _allocate(function: FuncOp) -> int:
    order = FinishOrder(function)
    buffers = _buffers(function, order)
    for place, buffer in enumerate(buffers):
        ended = order.before(buffer.owners[0])
        needed = [other for other in buffers[:place] if other.accesses & ~ended]
        buffer.offset = _first_gap(needed, buffer.size)
        for owner in buffer.owners:
            owner.properties[OFFSET] = IntegerAttr(buffer.offset, i64)
    return max((buffer.end for buffer in buffers), default=0)


def _buffers(function: FuncOp, order: FinishOrder) -> list[_Buffer]:
    """The buffers of a step in the order in which they are first needed."""
    by_value: dict[SSAValue, _Buffer] = {}
    buffers: list[_Buffer] = []
    for op in function.body.block.ops:
        for value in op.operands:
            if value in by_value:
                by_value[value].accesses |= order.set_of(op)
        if isinstance(op, ReturnOp):
            returned = {by_value[value] for value in op.operands if value in by_value}
            buffers = [buffer for buffer in buffers if buffer not in returned]
            for buffer in returned:
                _send_to_dram(buffer)
        elif shares_buffer(op) and op.operands[0] in by_value:
            buffer = by_value[op.operands[0]]
            buffer.owners.append(op)
            by_value[op.results[0]] = buffer
        elif isinstance(op, GatherOp | GemmOp | VectorOp | AttentionOp):
            buffer = _Buffer(sum(_sizes(op.results)), [op], order.set_of(op))
            buffers.append(buffer)
            by_value.update((result, buffer) for result in op.results)
    return buffers


def _send_to_dram(buffer: _Buffer) -> None:
    for owner in buffer.owners:
        owner.properties.pop(OFFSET, None)


def _sizes(values: Iterable[SSAValue]) -> Iterable[int]:
    for value in values:
        assert isinstance(value.type, TensorType)
        yield row_bytes(value.type)


def _first_gap(needed: list[_Buffer], size: int) -> int:
    """The lowest offset at which `size` bytes overlap no buffer that is still needed."""
    offset = 0
    for other in sorted(needed, key=lambda buffer: buffer.offset):
        if offset + size <= other.offset:
            break
        offset = max(offset, other.end)
    return offset
