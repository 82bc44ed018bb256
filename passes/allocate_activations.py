"""Give every activation of a step a place in the activation SRAM."""

from collections.abc import Iterable
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, TensorType, i64
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass

from speqc.dialects.pe import AttentionOp, GatherOp, GemmOp, VectorOp
from speqc.runtime.activations import OFFSET, ROW_BYTES, row_bytes, shares_buffer


@dataclass(frozen=True)
class AllocateActivationsPass(ModulePass):
    """First-fit allocation over live ranges, in bytes for one row of M.

    A step over M rows places an activation at M times its offset. Those that end behind the
    SRAM's capacity live in DRAM in that step, as does the result of the step always. An operation
    that only renames dimensions shares its operand's place.
    """

    name = "allocate-activations"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Annotate every step function of the module."""
        for function in op.ops:
            if isinstance(function, FuncOp):
                peak = _allocate(function)
                function.attributes[ROW_BYTES] = IntegerAttr(peak, i64)


@dataclass
class _Buffer:
    """One place: the values that share it, and when it is needed."""

    size: int
    first: int
    last: int
    owners: list[Operation]
    offset: int = 0

    @property
    def end(self) -> int:
        return self.offset + self.size


def _allocate(function: FuncOp) -> int:
    buffers = _live_buffers(function)
    placed: list[_Buffer] = []
    for buffer in buffers:
        placed = [other for other in placed if other.last >= buffer.first]
        buffer.offset = _first_gap(placed, buffer.size)
        placed.append(buffer)
        for owner in buffer.owners:
            owner.properties[OFFSET] = IntegerAttr(buffer.offset, i64)
    return max((buffer.end for buffer in buffers), default=0)


def _live_buffers(function: FuncOp) -> list[_Buffer]:
    """The buffers of a step in the order in which they are first needed."""
    by_value: dict[SSAValue, _Buffer] = {}
    buffers: list[_Buffer] = []
    for place, op in enumerate(function.body.block.ops):
        for value in op.operands:
            if value in by_value:
                by_value[value].last = place
        if isinstance(op, ReturnOp):
            for value in op.operands:
                _send_to_dram(by_value, buffers, value)
        elif isinstance(op, VectorOp) and shares_buffer(op) and op.inputs[0] in by_value:
            buffer = by_value[op.inputs[0]]
            buffer.owners.append(op)
            by_value[op.results_[0]] = buffer
        elif isinstance(op, GatherOp | GemmOp | VectorOp | AttentionOp):
            buffer = _Buffer(sum(_sizes(op.results)), place, place, [op])
            buffers.append(buffer)
            by_value.update((result, buffer) for result in op.results)
    return buffers


def _send_to_dram(
    by_value: dict[SSAValue, _Buffer], buffers: list[_Buffer], value: SSAValue
) -> None:
    if value in by_value and by_value[value] in buffers:
        buffer = by_value[value]
        buffers.remove(buffer)
        for owner in buffer.owners:
            owner.properties.pop(OFFSET, None)


def _sizes(values: Iterable[SSAValue]) -> Iterable[int]:
    for value in values:
        assert isinstance(value.type, TensorType)
        yield row_bytes(value.type)


def _first_gap(placed: list[_Buffer], size: int) -> int:
    """The lowest offset at which `size` bytes overlap no placed buffer."""
    offset = 0
    for other in sorted(placed, key=lambda buffer: buffer.offset):
        if offset + size <= other.offset:
            break
        offset = max(offset, other.end)
    return offset
