"""Which operations have surely ended before another starts, by the rules that `timing` states."""

from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects import pe
from speqc.runtime.vector_ops import VECTOR_OPS


class FinishOrder:
    """The operations of a step function that have ended, in every run, before a given one starts.

    An operation starts when the results that it needs are ready and the one before it on its unit
    has ended. The DRAM channel is a queue, so what streams weights or constants also starts after
    every earlier store. (A cache may be empty: then its stream waits for nothing.) A gather or
    look-up reads DRAM before its turn on the vector unit comes, so nothing has surely ended when it
    writes.

    An operation with a predicate may not run at all: then its result, which is zero, waits for the
    predicate alone. Of what it would have waited for, that is sure which the predicate waits for
    too, and what has the same predicate, which does not run either.

    Sets of operations are integers with a bit for each.
    """

    def __init__(self, function: FuncOp):
        self._bits: dict[Operation, int] = {}
        self._before: dict[Operation, int] = {}
        self._ready: dict[Operation, int] = {}
        latest: dict[str, int] = {"array": 0, "vector": 0}
        together: dict[SSAValue, int] = {}
        stores = 0
        for place, op in enumerate(function.body.block.ops):
            before = 0
            for value in op.operands:
                before |= self._with(value)
            unit = unit_of(op)
            if unit in latest:
                before |= latest[unit]
            if _streams(op):
                before |= stores
            self._bits[op] = 1 << place if unit is not None else 0
            self._before[op] = 0 if isinstance(op, pe.GatherOp | pe.LookupOp) else before
            self._ready[op] = ended = before | self._bits[op]
            predicate = _predicate(op)
            if predicate is not None:
                together[predicate] = together.get(predicate, 0) | self._bits[op]
                self._ready[op] &= self._with(predicate) | together[predicate]
                ended &= latest.get(unit or "", 0) | together[predicate]
            if unit in latest:
                latest[unit] = ended
            elif unit == "dram":
                stores |= self._ready[op]

    def set_of(self, *ops: Operation) -> int:
        """The set of some operations that run on a unit (others take no time and are left out)."""
        members = 0
        for op in ops:
            members |= self._bits[op]
        return members

    def before(self, op: Operation) -> int:
        """The set of operations that have ended when `op` starts."""
        return self._before[op]

    def _with(self, value: SSAValue) -> int:
        """The operations that have ended when a value is ready."""
        owner = value.owner
        return self._ready[owner] if isinstance(owner, Operation) else 0


def _predicate(op: Operation) -> SSAValue | None:
    return op.predicate if isinstance(op, pe.GemmOp | pe.VectorOp) else None


def unit_of(op: Operation) -> str | None:
    """The unit on which an operation ends: array, vector or dram; None where it takes no time."""
    match op:
        case pe.GemmOp():
            return "array"
        case pe.AttentionOp():
            return op.unit.data.value
        case pe.VectorOp():
            return "vector" if _takes_time(op) else None
        case pe.GatherOp() | pe.LookupOp():
            return "vector"
        case pe.AppendOp():
            return "dram"
        case _:
            return None


def _takes_time(op: pe.VectorOp) -> bool:
    renames = op.kernel.data in VECTOR_OPS and not VECTOR_OPS[op.kernel.data].lane_ops
    return _streams(op) or not renames


def _streams(op: Operation) -> bool:
    return any(
        isinstance(value.owner, pe.LoadWeightOp | pe.LoadConstantOp) for value in op.operands
    )
