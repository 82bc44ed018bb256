"""What a reader wants to know of one pass, operation by operation: for traces and reports.

The resource model's ops carry costs alone. Here each op that computes or stores gets a
name, the node it comes from, its unit and mode, and what it moves and computes; a load counts to
its consumer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xdsl.dialects.builtin import TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue

from speqc.dialects import pe
from speqc.dialects.onnx import node_name
from speqc.dialects.speq import ViewType
from speqc.runtime.calls import Call
from speqc.runtime.energy import energy
from speqc.runtime.program_timing import ProgramTimer, TimedOp
from speqc.runtime.routing import expected_rows, predicates
from speqc.runtime.timing import Array, Bound, Load, Skip, StepTiming, SwitchMode, Vector
from speqc.runtime.timing_reference import Hold, walk_step

ATTENTION_PARTS = "scores", "softmax", "values"
"""Ops of the resource model that one `pe.attention` becomes, in order."""

SKIPPED = "skipped load"


@dataclass(frozen=True, slots=True)
class OpFacts:
    """One op of a pass that computes, stores, or switches the array.

    Attributes:
        name: in words, with the weight or kernel; `node` is the ONNX node it comes from, or "".
        kind: products, attention, vector, look-up, store or mode switch.
        unit: where it runs; DRAM for what only moves bytes.
        mode: of the array, "full" or "draft"; None on other units.
        bound: the unit that it keeps busy longest.
        start, end, ready: as in `timing.OpTiming`.
        unit_cycles: for how long it keeps its unit busy; 0 on DRAM.
        dram_cycles, dram_bytes: what it moves: stream, operands and results in DRAM.
        operations: additions and multiplications of products and attention, else 0.
        load, ideal, stall, drain: the step's cycles that are its own, as in `timing.Parts`.
        energy_joules: of all that it moves and computes.
    """

    name: str
    node: str
    kind: str
    unit: Bound
    mode: str | None
    bound: Bound
    start: int
    end: int
    ready: int
    unit_cycles: int
    dram_cycles: int
    dram_bytes: int
    operations: int
    load: int
    ideal: int
    stall: int
    drain: int
    energy_joules: float


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One pass: its timing, its ops, and what its units were held for.

    `owners` says for each place in the resource model's list which of `ops` it belongs to;
    `block_bytes` are for each load those of a block, and of the last.
    """

    call: Call
    timing: StepTiming
    ops: list[OpFacts]
    holds: list[Hold]
    owners: Mapping[int, int]
    block_bytes: Mapping[int, tuple[int, int]]
    blocks: Mapping[int, int]

    def hold_bytes(self, hold: Hold) -> int | None:
        """Bytes of a block's transfer; None for other holds."""
        if hold.part != "block":
            return None
        each, last = self.block_bytes[hold.op]
        return last if hold.block == self.blocks[hold.op] - 1 else each


def step_facts(timer: ProgramTimer, call: Call) -> StepFacts:
    """Walk one pass block by block. Raises SpeqcError as `ProgramTimer.step`."""
    timed = timer.ops(*call)
    timing, holds = walk_step([entry.op for entry in timed], timer.target)
    dram, unit = [0] * len(timed), [0] * len(timed)
    for hold in holds:
        (dram if hold.unit == "dram" else unit)[hold.op] += hold.end - hold.start
    loads = {place: entry for place, entry in enumerate(timed) if isinstance(entry.op, Load)}
    rows = _Work(timer, call, timed)
    names, modes = list(op_names(timed)), list(_modes(timed))
    ops: list[OpFacts] = []
    owners: dict[int, int] = {}
    for place, entry in enumerate(timed):
        if place in loads:
            continue
        stream = entry.op.load if isinstance(entry.op, Array) else None
        moved, size, work = dram[place], entry.dram_bytes, entry.work
        if stream is not None:
            owners[stream] = len(ops)
            moved, size = moved + dram[stream], size + timed[stream].dram_bytes
            work = work.plus(timed[stream].work)
        owners[place] = len(ops)
        span = timing.ops[place]
        kind, name = names[place]
        own = _unit(entry)
        ops.append(
            OpFacts(
                name=name,
                node=node_name(entry.source),
                kind=kind,
                unit=own,
                mode=modes[place] if own == "array" else None,
                bound=span.bound,
                start=span.start,
                end=span.end,
                ready=span.ready,
                unit_cycles=unit[place],
                dram_cycles=moved,
                dram_bytes=size,
                operations=rows.operations(entry, name),
                energy_joules=energy(size, work, timer.target).total,
                **timing.parts[place]._asdict(),
            )
        )
    blocks = {place: _blocks(entry) for place, entry in loads.items()}
    bank = timer.target.weight_bank_bytes
    sizes = {place: _block_bytes(entry, bank, blocks[place]) for place, entry in loads.items()}
    return StepFacts(call, timing, ops, holds, owners, sizes, blocks)


def _blocks(load: TimedOp) -> int:
    assert isinstance(load.op, Load)
    return load.op.blocks


def _block_bytes(load: TimedOp, bank: int, blocks: int) -> tuple[int, int]:
    """Bytes of each block of a load and of its last."""
    weight = load.source
    each = weight.block_bytes.value.data if isinstance(weight, pe.LoadWeightOp) else bank
    return each, load.dram_bytes - (blocks - 1) * each


def _unit(entry: TimedOp) -> Bound:
    match entry.op:
        case Array(unit=unit):
            return unit
        case Vector():
            return "dram" if isinstance(entry.source, pe.GatherOp | pe.LookupOp) else "vector"
        case SwitchMode():
            return "array"
        case _:
            return "dram"


def _modes(timed: list[TimedOp]) -> Iterator[str | None]:
    """The array's mode at each op; None before the first switch, and where it does not matter."""
    mode = None
    for entry in timed:
        if isinstance(entry.source, pe.ModeOp):
            mode = str(entry.source.mode.data)
        yield mode


def op_names(timed: list[TimedOp]) -> Iterator[tuple[str, str]]:
    """Kind and name of each op of a pass."""
    parts: dict[Operation, Iterator[str]] = {}
    for entry in timed:
        match entry.source:
            case pe.GemmOp(weight=weight):
                if isinstance(entry.op, Skip):
                    yield "product", SKIPPED
                else:
                    assert isinstance(weight.owner, pe.LoadWeightOp)
                    yield "product", f"gemm {weight.owner.weight.string_value()}"
            case pe.AttentionOp() as op:
                part = next(parts.setdefault(op, iter(ATTENTION_PARTS)))
                yield "attention", f"attention {part}"
            case pe.VectorOp(kernel=kernel):
                yield "vector", f"vector {kernel.data}"
            case pe.GatherOp():
                yield "look-up", "embedding"
            case pe.LookupOp() as op:
                yield "look-up", f"rows of {op.source.data}"
            case pe.AppendOp() as op:
                yield "store", f"append {op.cache.string_value()}"
            case pe.ModeOp() as op:
                yield "mode switch", f"switch to {op.mode.data.value}"
            case _:
                yield "load", entry.source.name.removeprefix("pe.")


class _Work:
    """How many additions and multiplications ops of one pass take."""

    def __init__(self, timer: ProgramTimer, call: Call, timed: list[TimedOp]):
        self.rows, self.past = timer.extent(call.rows, call.past)
        self.experts: dict[SSAValue, int] = {}
        function = timed[0].source.parent_op() if timed else None
        if isinstance(function, FuncOp):
            known = predicates(function)
            chosen = call.chosen or expected_rows(timer.routers(call.function), call.rows)
            self.experts = dict(zip(known, chosen, strict=True))

    def operations(self, entry: TimedOp, name: str) -> int:
        """Two for each multiply-add of a product, or of the scores or values of an attention."""
        match entry.source:
            case pe.GemmOp() as op if isinstance(entry.op, Array):
                assert isinstance(op.weight.type, pe.StreamType)
                assert isinstance(op.weight.type.content, ViewType)
                k, n = op.weight.type.content.shape
                rows = self.rows if op.predicate is None else self.experts[op.predicate]
                return 2 * rows * k * n
            case pe.AttentionOp() as op if isinstance(entry.op, Array):
                width = op.value.type if name.endswith("values") else op.query.type
                assert isinstance(op.query.type, TensorType) and isinstance(width, TensorType)
                heads, size = op.query.type.get_shape()[1], width.get_shape()[-1]
                return 2 * heads * self.rows * (self.past + self.rows) * size
            case _:
                return 0
