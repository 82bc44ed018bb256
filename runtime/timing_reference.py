"""The timing rules of ``timing`` block by block: slow, obvious, the measure of the closed form.

The walk also knows what the closed form leaves out: when each unit was held, and by which block.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from speqc.runtime.target import Target
from speqc.runtime.timing import (
    Array,
    Bound,
    Load,
    Op,
    OpTiming,
    Parts,
    Skip,
    StepTiming,
    Store,
    SwitchMode,
    Vector,
    check_step,
)

Part = Literal["read", "block", "work", "write"]


class Hold(NamedTuple):
    """A unit held from cycle ``start`` to ``end``.

    ``part`` says for what: an operand read from DRAM, block number ``block`` of a stream, work (on
    that block), or a result written to DRAM. ``op`` is the place of the op, for a block the load's.
    """

    unit: Bound
    op: int
    part: Part
    block: int
    start: int
    end: int


def time_step_by_blocks(ops: Sequence[Op], target: Target) -> StepTiming:
    """Time a step by placing every block of every stream. Raises ValueError as ``time_step``."""
    return walk_step(ops, target)[0]


def walk_step(ops: Sequence[Op], target: Target) -> tuple[StepTiming, list[Hold]]:
    """``time_step_by_blocks``, and all that units were held for, each unit's in order of time.

    Raises ValueError as ``time_step``.
    """
    check_step(ops)
    reference = _Reference(ops, target)
    for index, op in enumerate(ops):
        reference.place(index, op)
    timings = tuple(reference.timings[index] for index in range(len(ops)))
    cycles = max((timing.ready for timing in timings), default=0)
    parts = tuple(reference.parts.get(index, Parts()) for index in range(len(ops)))
    busy = (reference.busy[unit] for unit in reference.busy)
    return StepTiming(cycles, timings, parts, *busy), reference.holds


class _Reference:
    """All that has happened so far; ``released`` lists every block of the step in order of use."""

    def __init__(self, ops: Sequence[Op], target: Target) -> None:
        self.ops = ops
        self.target = target
        self.free: dict[Bound, int] = {"dram": 0, "array": 0, "vector": 0}
        self.busy: dict[Bound, int] = {"dram": 0, "array": 0, "vector": 0}
        self.holds: list[Hold] = []
        self.released: list[int] = []
        self.issued: dict[int, int] = {}
        self.last_start = 0
        self.timings: dict[int, OpTiming] = {}
        self.parts: dict[int, Parts] = {}

    def hold(
        self, unit: Bound, earliest: int, cycles: int, op: int, part: Part, block: int = 0
    ) -> int:
        """Hold a unit for ``cycles`` once it is free, not before ``earliest``; give the end."""
        end = self.free[unit] = max(self.free[unit], earliest) + cycles
        self.busy[unit] += cycles
        if cycles:
            self.holds.append(Hold(unit, op, part, block, end - cycles, end))
        return end

    def place(self, index: int, op: Op) -> None:
        if isinstance(op, Load):
            self.issued[index] = max(self.last_start, self.results(op.after))
        elif isinstance(op, Store):
            end = self.hold("dram", self.results(op.after), op.cycles, index, "write")
            self.parts[index] = Parts(ideal=max(0, end - self.reached()))
            self.timings[index] = OpTiming(end - op.cycles, end, end, "dram")
        elif isinstance(op, Skip):
            end = self.hold("dram", self.results(op.after), 0, index, "write")
            self.parts[index] = Parts(ideal=max(0, end - self.reached()))
            self.timings[index] = OpTiming(end, end, end, "dram")
        elif isinstance(op, SwitchMode):
            self.compute(index, "array", None, [op.cycles], 0, 0, (), 0, 0)
        elif isinstance(op, Vector):
            drain = self.target.vector_latency_cycles
            spill = op.read_cycles, op.write_cycles
            self.compute(index, "vector", None, [op.cycles], 0, drain, op.after, *spill)
        else:
            self.place_array(index, op)

    def place_array(self, index: int, op: Array) -> None:
        blocks = 1
        if op.load is not None:
            load = self.ops[op.load]
            assert isinstance(load, Load)
            blocks = load.blocks
        work = [op.block_cycles] * (blocks - 1) + [op.last_block_cycles]
        spill = op.read_cycles, op.write_cycles
        self.compute(index, op.unit, op.load, work, op.lead, op.drain, op.after, *spill)

    def reached(self) -> int:
        """When the last of all ops so far was ready; loads count with their consumers."""
        done = (t.ready for i, t in self.timings.items() if not isinstance(self.ops[i], Load))
        return max(done, default=0)

    def results(self, after: tuple[int, ...]) -> int:
        return max((self.timings[index].ready for index in after), default=0)

    def compute(
        self,
        index: int,
        unit: Bound,
        load: int | None,
        work: list[int],
        lead: int,
        drain: int,
        after: tuple[int, ...],
        read_cycles: int,
        write_cycles: int,
    ) -> None:
        dram_before = self.busy["dram"]
        ready = self.results(after)
        if read_cycles:
            read = self.hold("dram", ready, read_cycles, index, "read")
            ready = read + self.target.dram_latency_cycles
        usable = [0] * len(work)
        starts, ends = [], []
        transfers = []
        for block, cycles in enumerate(work):
            if load is not None:
                transfers.append(self.transfer(load, block))
                usable[block] = transfers[-1] + self.target.dram_latency_cycles
            if block == 0:
                cycles += lead
            end = self.hold(unit, max(usable[block], ready), cycles, index, "work", block)
            starts.append(end - cycles)
            ends.append(end)
            if load is not None:
                self.released.append(end)
        if load is not None:
            self.time_load(load, transfers)
        end = self.free[unit]
        ready = end + drain
        if write_cycles:
            ready = self.hold("dram", ready, write_cycles, index, "write")
        worked = lead + sum(work)
        bound = "dram" if self.busy["dram"] - dram_before > worked else unit
        self.last_start = starts[0]
        begins = [starts[0] + lead, *starts[1:]]
        self.parts[index] = split_cycles(self.reached(), begins, ends, ready)
        self.timings[index] = OpTiming(starts[0], end, ready, bound)

    def transfer(self, load_index: int, block: int) -> int:
        """Transfer one block into the next bank of the ring; give the end."""
        banks = self.target.weight_sram_banks
        bank_free = self.released[-banks] if len(self.released) >= banks else 0
        cycles = self.block_cycles(load_index, block)
        earliest = max(bank_free, self.issued[load_index])
        return self.hold("dram", earliest, cycles, load_index, "block", block)

    def block_cycles(self, load_index: int, block: int) -> int:
        load = self.ops[load_index]
        assert isinstance(load, Load)
        return load.last_block_cycles if block == load.blocks - 1 else load.block_cycles

    def time_load(self, load: int, transfers: list[int]) -> None:
        start = transfers[0] - self.block_cycles(load, 0)
        end = transfers[-1]
        self.timings[load] = OpTiming(start, end, end + self.target.dram_latency_cycles, "dram")


def split_cycles(reached: int, starts: list[int], ends: list[int], ready: int) -> Parts:
    """What an op does with its cycles: those from ``reached`` on, to its result at ``ready``.

    It works on its blocks from ``starts`` to ``ends``, the lead before the first not included.
    """

    def new(start: int, end: int) -> int:
        return max(0, end - max(start, reached))

    return Parts(
        load=new(0, starts[0]),
        ideal=sum(map(new, starts, ends)),
        stall=sum(map(new, ends[:-1], starts[1:])),
        drain=new(ends[-1], ready),
    )
