"""The places that the activations of a step need in the activation SRAM, and for how long."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects.pe import AttentionOp, GatherOp, GemmOp, LookupOp, VectorOp
from speqc.passes.finish_order import FinishOrder
from speqc.runtime.activations import is_pairs, row_bytes, shares_buffer


@dataclass(eq=False)
class Buffer:
    """One place: the operations whose results share it, and the set of those that access it.

    `size` and `offset` are bytes for one row of M.
    """

    size: int
    owners: list[Operation]
    accesses: int
    offset: int = 0

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.size


@dataclass(frozen=True)
class StepBuffers:
    """The buffers of a step in the order in which they are first needed.

    `placed` live in the SRAM, `returned` hold the step's results and live in DRAM. What has
    elements for pairs of tokens has no buffer: it always lives in DRAM.
    """

    placed: Sequence[Buffer]
    returned: Sequence[Buffer]
    order: FinishOrder

    def with_needed(self) -> Iterator[tuple[Buffer, list[Buffer]]]:
        """Each placed buffer, with the earlier ones that are still needed when it is written."""
        for place, buffer in enumerate(self.placed):
            ended = self.order.before(buffer.owners[0])
            yield buffer, [other for other in self.placed[:place] if other.accesses & ~ended]

    def peak(self) -> int:
        """Bytes that the placed buffers span, for one row of M."""
        return max((buffer.end for buffer in self.placed), default=0)


def step_buffers(function: FuncOp) -> StepBuffers:
    """The buffers of a step, at offset 0."""
    order = FinishOrder(function)
    by_value: dict[SSAValue, Buffer] = {}
    buffers: list[Buffer] = []
    returned: list[Buffer] = []
    for op in function.body.block.ops:
        for value in op.operands:
            if value in by_value:
                by_value[value].accesses |= order.set_of(op)
        if isinstance(op, ReturnOp):
            returned = [by_value[value] for value in op.operands if value in by_value]
        elif shares_buffer(op) and op.operands[0] in by_value:
            buffer = by_value[op.operands[0]]
            buffer.owners.append(op)
            by_value[op.results[0]] = buffer
        elif any(map(is_pairs, op.results)):
            continue
        elif isinstance(op, GatherOp | LookupOp | GemmOp | VectorOp | AttentionOp):
            buffer = Buffer(sum(_sizes(op.results)), [op], order.set_of(op))
            buffers.append(buffer)
            by_value.update((result, buffer) for result in op.results)
    placed = [buffer for buffer in buffers if buffer not in returned]
    return StepBuffers(placed, returned, order)


def _sizes(values: Iterable[SSAValue]) -> Iterable[int]:
    for value in values:
        assert isinstance(value.type, TensorType)
        yield row_bytes(value.type)
