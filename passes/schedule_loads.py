"""Order loads and stores so that the DRAM channel is busy while the array computes."""

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.dialects.pe import (
    AppendOp,
    GemmOp,
    LoadCacheOp,
    LoadConstantOp,
    LoadWeightOp,
)
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import module_target


@dataclass(frozen=True)
class ScheduleLoadsPass(ModulePass):
    """Issue each load as early as the banks could take it, and stores where they stall no load.

    The banks are a ring: a load is moved ahead of the consumer whose end frees a bank for its first
    block. The DRAM channel serves requests in order, so the store of new keys and values, which
    waits for a product, moves behind the next product: by then it is ready. A load with a predicate
    stands behind the operation that gives it, and the loads that follow behind that load.
    """

    name = "schedule-loads"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Reorder the operations of every step function.

        Raises SpeqcError where a stream has not exactly one consumer.
        """
        banks = module_target(op).weight_sram_banks
        for function in op.ops:
            if isinstance(function, FuncOp):
                _delay_stores(function.body.block)
                _hoist_loads(function.body.block, banks)


def _is_load(op: Operation) -> bool:
    return isinstance(op, LoadWeightOp | LoadConstantOp | LoadCacheOp)


def _delay_stores(block: Block) -> None:
    for op in list(block.ops):
        if not isinstance(op, AppendOp):
            continue
        following = op.next_op
        while following is not None and not isinstance(following, GemmOp):
            following = following.next_op
        if following is not None:
            op.detach()
            Rewriter.insert_op(op, InsertPoint.after(following))


def _hoist_loads(block: Block, banks: int) -> None:
    loads = [op for op in block.ops if _is_load(op)]
    consumers = [_consumer(load) for load in loads]
    places = {op: place for place, op in enumerate(block.ops)}
    start = next(op for op in block.ops if not _is_load(op))
    oldest = 0
    in_flight = 0
    earliest = start
    for load in loads:
        while in_flight >= banks:
            in_flight -= _banks(loads[oldest], banks)
            oldest += 1
        in_flight += _banks(load, banks)
        # Once the load before `oldest` is consumed, a bank is free for this one's first block.
        anchor = consumers[oldest - 1] if oldest else start
        if load.operands:
            anchor = max(anchor, _behind(load.operands[0]), key=places.__getitem__)
        anchor = earliest = max(anchor, earliest, key=places.__getitem__)
        if places[anchor] < places[load]:
            load.detach()
            Rewriter.insert_op(load, InsertPoint.before(anchor))


def _behind(predicate: SSAValue) -> Operation:
    """The operation, no load, that follows the one which gives a predicate."""
    op = predicate.owner
    following = op.next_op if isinstance(op, Operation) else op.first_op
    while following is not None and _is_load(following):
        following = following.next_op
    assert following is not None
    return following


def _consumer(load: Operation) -> Operation:
    users = [use.operation for use in load.results[0].uses]
    if len(users) != 1:
        raise SpeqcError(
            f"schedule-loads: {load.name}: a stream has one consumer, this one has {len(users)}"
        )
    return users[0]


def _banks(load: Operation, banks: int) -> int:
    """Banks that a load surely fills: none with a predicate, one for a cache of unknown length."""
    if load.operands:
        return 0
    return min(load.blocks, banks) if isinstance(load, LoadWeightOp) else 1
