import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speqc.runtime.target import Target
from speqc.runtime.timing import (
    BOUNDS,
    Array,
    Load,
    Op,
    OpTiming,
    Parts,
    Skip,
    StepTable,
    Store,
    SwitchMode,
    Unit,
    Vector,
    time_step,
)
from speqc.runtime.timing_reference import time_step_by_blocks, walk_step


def machine(banks: int = 8, latency: int = 0, vector_latency: int = 0) -> Target:
    """A target whose latency is given in cycles: at 1 GHz a nanosecond is one."""
    return replace(
        Target(),
        clock_hz=1_000_000_000,
        dram_latency_ns=latency,
        weight_sram_banks=banks,
        vector_latency_cycles=vector_latency,
    )


def timings(ops: Sequence[Op], target: Target) -> list[OpTiming]:
    """The ops' timings, on which both implementations must agree."""
    timing = time_step(ops, target)
    assert timing == time_step_by_blocks(ops, target)
    return list(timing.ops)


def test_empty_step() -> None:
    assert time_step([], machine()).cycles == 0


def test_stream_by_hand() -> None:
    # Transfers end at 10, 20, 30, usable 5 later. Blocks: 15..21 (2 of lead), 25..29, 35..39.
    load, array = timings([Load(3, 10, 10), Array(0, 4, 4, lead=2, drain=7)], machine(latency=5))
    assert load == (0, 30, 35, "dram")
    assert array == (15, 39, 46, "dram")


def test_last_block_by_hand() -> None:
    # Transfers end at 10, 20, 23; blocks 10..14, 20..24, 24..25.
    load, array = timings([Load(3, 10, 3), Array(0, 4, 1)], machine())
    assert load == (0, 23, 23, "dram")
    assert array == (10, 25, 25, "dram")


def test_banks_hold_transfers_back() -> None:
    # Two banks: transfers end at 1, 2, then 12 (bank freed at 11) and 22; blocks end at 11 .. 41.
    load, array = timings([Load(4, 1, 1), Array(0, 10, 10)], machine(banks=2))
    assert load == (0, 22, 22, "dram")
    assert array == (1, 41, 41, "array")


def test_bank_round_trip_is_the_bottleneck() -> None:
    # Transfer, latency and processing take 1 + 10 + 1 cycles in each of two banks: pairs of blocks
    # start every 12 cycles. Pair p ends at 12 p + 13; the 100th block is the last of pair 49.
    _, array = timings([Load(100, 1, 1), Array(0, 1, 1)], machine(banks=2, latency=10))
    assert array.end == 12 * 49 + 13


def test_one_bank_serializes() -> None:
    load, array = timings([Load(5, 3, 3), Array(0, 4, 4)], machine(banks=1, latency=2))
    assert array.end == 5 * (3 + 2 + 4)
    assert load.end == 4 * (3 + 2 + 4) + 3


def test_ring_of_banks_spans_streams() -> None:
    # Both blocks of the second stream are transferred at once, into banks freed at 11 and 21.
    ops = [Load(2, 1, 1), Load(2, 1, 1), Array(0, 10, 10), Array(1, 10, 10)]
    timing = timings(ops, machine(banks=2))
    assert timing[1] == (11, 22, 22, "dram")
    assert timing[3] == (21, 41, 41, "array")


def test_load_waits_for_its_issue() -> None:
    # The load stands after op 1, which starts at 5; the one before would be transferred at 0.
    ops = [Vector(5), Vector(3, after=(0,)), Load(1, 10, 10), Array(2, 1, 1)]
    assert timings(ops, machine())[2].start == 5


def test_prefetch_overlaps_earlier_ops() -> None:
    ops = [Load(1, 10, 10), Vector(50), Array(0, 7, 7, after=(1,))]
    load, vector, array = timings(ops, machine(vector_latency=8))
    assert load == (0, 10, 10, "dram")
    assert vector == (0, 50, 58, "vector")
    assert array == (58, 65, 65, "dram")


def test_stream_on_the_vector_unit() -> None:
    ops = [Load(2, 1, 1), Vector(20), Array(0, 5, 5, drain=3, unit="vector"), Array(None, 0, 9)]
    timing = timings(ops, machine())
    assert timing[2] == (20, 30, 33, "vector")
    assert timing[3] == (0, 9, 9, "array")


def test_store_holds_the_channel_in_program_order() -> None:
    # The store waits for op 0's result at 20 and holds the later stream back until 24.
    ops = [Vector(20), Store(4, after=(0,)), Load(1, 10, 10), Array(2, 1, 1), Store(6)]
    timing = timings(ops, machine())
    assert timing[1] == (20, 24, 24, "dram")
    assert timing[2] == (24, 34, 34, "dram")
    assert timing[4] == (34, 40, 40, "dram")


def test_store_after_a_stream_lets_it_pass() -> None:
    ops = [Load(1, 10, 10), Vector(20), Array(0, 1, 1), Store(4, after=(1,))]
    timing = timings(ops, machine())
    assert timing[0].start == 0
    assert timing[3].start == 20


def test_operands_in_dram() -> None:
    # Read 10..13, usable at 18; computed 18..20, ready at 24; written 24..29.
    ops = [Vector(10), Vector(2, after=(0,), read_cycles=3, write_cycles=5), Vector(1, after=(1,))]
    timing = timings(ops, machine(latency=5, vector_latency=4))
    assert timing[0].ready == 14
    assert timing[1] == (22, 24, 33, "dram")
    assert timing[2].start == 33


def test_operands_in_dram_precede_the_stream() -> None:
    ops = [Vector(10), Load(1, 4, 4), Array(1, 2, 2, after=(0,), read_cycles=3)]
    timing = timings(ops, machine(latency=5))
    assert timing[1] == (13, 17, 22, "dram")
    assert timing[2] == (22, 24, 24, "dram")


def test_a_load_waits_for_its_predicate() -> None:
    # The predicate is known at 20: the load that waits for it starts then, the next behind it.
    ops = [
        Vector(20),
        Load(1, 10, 10, after=(0,)),
        Load(1, 5, 5),
        Array(1, 3, 3, after=(0,)),
        Array(2, 1, 1),
    ]
    timing = timings(ops, machine())
    assert timing[1] == (20, 30, 30, "dram")
    assert timing[2] == (30, 35, 35, "dram")


def test_a_load_that_is_not_needed_holds_the_queue_until_that_is_known() -> None:
    ops = [Vector(20), Load(1, 5, 5), Skip(after=(0,)), Array(1, 1, 1)]
    timing = timings(ops, machine(vector_latency=3))
    assert timing[2] == (23, 23, 23, "dram")
    assert timing[1] == (23, 28, 28, "dram")
    assert time_step(ops, machine()).dram_busy_cycles == 5


def test_switch_holds_the_array() -> None:
    ops = [Array(None, 0, 10, drain=100), SwitchMode(64), Array(None, 0, 1), Vector(3)]
    timing = timings(ops, machine())
    assert timing[1] == (10, 74, 74, "array")
    assert timing[2].start == 74
    assert timing[3].start == 0


def test_step_ends_with_its_last_result() -> None:
    assert time_step([Vector(3)], machine(vector_latency=8)).cycles == 11


def test_busy_cycles() -> None:
    ops = [
        Load(3, 10, 4),
        Array(0, 6, 2, lead=5, drain=9, read_cycles=1, write_cycles=2),
        Vector(7, read_cycles=3),
        Store(8),
        SwitchMode(64),
    ]
    timing = time_step(ops, machine())
    assert timing.dram_busy_cycles == 24 + 1 + 2 + 3 + 8
    assert timing.array_busy_cycles == 5 + 14 + 64
    assert timing.vector_busy_cycles == 7


def parts(ops: Sequence[Op], target: Target) -> list[Parts]:
    """What the ops do with the step's cycles, on which both implementations must agree."""
    timing = time_step(ops, target)
    assert timing == time_step_by_blocks(ops, target)
    return list(timing.parts)


def test_parts_of_a_stream_by_hand() -> None:
    # Usable at 15, 25, 35. Lead 15..17, blocks 17..21, 25..29, 35..39; ready at 46.
    _, array = parts([Load(3, 10, 10), Array(0, 4, 4, lead=2, drain=7)], machine(latency=5))
    assert array == Parts(load=17, ideal=12, stall=10, drain=7)


def test_hidden_cycles_belong_to_the_op_before() -> None:
    # Blocks 10..14, 20..24, 30..34, the vector op 0..22 and ready at 25: of the stream's cycles
    # those from 25 on are left, 5 of waiting and 4 of work.
    ops = [Load(3, 10, 10), Vector(22), Array(0, 4, 4)]
    assert parts(ops, machine(vector_latency=3))[1:] == [
        Parts(ideal=22, drain=3),
        Parts(ideal=4, stall=5),
    ]


def test_operands_results_and_stores_by_hand() -> None:
    # Read 0..3, usable at 8; computed 8..10, ready at 14; written 14..19; stored 19..26.
    ops = [Vector(2, read_cycles=3, write_cycles=5), Store(7, after=(0,)), SwitchMode(30)]
    assert parts(ops, machine(latency=5, vector_latency=4)) == [
        Parts(load=8, ideal=2, drain=9),
        Parts(ideal=7),
        Parts(ideal=4),
    ]


def test_op_that_is_ready_before_earlier_ones_has_no_cycles() -> None:
    assert parts([Vector(50), SwitchMode(64), Vector(3), Array(None, 0, 9)], machine())[2:] == [
        Parts(),
        Parts(ideal=9),
    ]


@pytest.mark.parametrize("hidden", [0, 1, 13, 500, 123_457, 10**6 - 1, 10**6 + 4, 10**7])
def test_hidden_part_of_a_long_stream(hidden: int) -> None:
    # Block i is worked on from 10 i + 10 to 10 i + 14.
    ops = [Load(100_000, 10, 10), Vector(hidden), Array(0, 4, 4)]
    _, vector, array = time_step(ops, machine()).parts
    ends = [(10 * i + 10, 10 * i + 14) for i in range(100_000)]
    assert sum(vector) == hidden
    assert array.ideal == sum(max(0, end - max(start, hidden)) for start, end in ends)
    assert sum(array) == max(0, 10**6 + 4 - hidden)
    assert array.load == max(0, 10 - hidden)


def test_long_streams_cost_nothing() -> None:
    # Nothing holds the channel up, and the last block ends 3 after its transfer.
    blocks = 10**12
    _, array = time_step([Load(blocks, 5, 5), Array(0, 3, 3)], machine()).ops
    assert array.end == 5 * blocks + 3


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([Load(1, 1, 1)], "op 0: no op consumes"),
        ([Array(0, 1, 1)], "op 0: must consume load None, consumes 0"),
        ([Load(1, 1, 1), Load(1, 1, 1), Array(1, 1, 1), Array(0, 1, 1)], "op 2: must consume"),
        ([Load(1, 1, 1), Array(0, 1, 1), Array(0, 1, 1)], "op 2: must consume load None"),
        ([Load(0, 1, 1), Array(0, 1, 1)], "op 0: a load needs at least one block"),
        ([Vector(1), Vector(1, after=(1,))], "op 1: 1 is no earlier op"),
        ([Store(1), Vector(1, after=(0,))], "op 1: 0 is no earlier op"),
        ([Load(1, 1, 1), Array(0, 1, 1, after=(0,))], "op 1: 0 is no earlier op"),
        ([Vector(1), Vector(1, after=(-1,))], "op 1: -1 is no earlier op"),
        ([Vector(1), Load(1, 1, 1, after=(2,)), Array(1, 1, 1)], "op 1: 2 is no earlier op"),
        ([Skip(), Skip(after=(0,))], "op 1: 0 is no earlier op"),
        ([Vector(-1)], "op 0: a cost is negative"),
    ],
)
def test_lists_that_are_no_step(ops: list[Op], message: str) -> None:
    for time in time_step, time_step_by_blocks:
        with pytest.raises(ValueError, match=message):
            time(ops, machine())


UNITS: tuple[Unit, ...] = ("array", "vector")
COSTS = st.one_of(st.integers(0, 12), st.integers(0, 200))
SPILLS = st.one_of(st.just(0), COSTS)


class Steps:
    """Draws random steps: streams, vector ops, spills, stores, switches, any dependencies."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.ops: list[Op] = []
        self.loads: list[int] = []
        self.results: list[int] = []

    def after(self) -> tuple[int, ...]:
        if not self.results:
            return ()
        return tuple(self.draw(st.lists(st.sampled_from(self.results), max_size=2)))

    def load(self) -> None:
        self.loads.append(len(self.ops))
        costs = self.draw(COSTS), self.draw(COSTS)
        self.ops.append(Load(self.draw(st.integers(1, 60)), *costs, self.after()))

    def array(self, load: int | None) -> None:
        draw = self.draw
        work = draw(COSTS), draw(COSTS), draw(COSTS), draw(COSTS)
        unit: Unit = draw(st.sampled_from(UNITS))
        after = self.after()
        self.results.append(len(self.ops))
        self.ops.append(Array(load, *work, after, unit, draw(SPILLS), draw(SPILLS)))

    def other(self, kind: str) -> None:
        draw = self.draw
        after = self.after()
        if kind == "store":
            self.ops.append(Store(draw(COSTS), after))
            return
        if kind == "skip":
            self.ops.append(Skip(after))
            return
        self.results.append(len(self.ops))
        if kind == "switch":
            self.ops.append(SwitchMode(draw(COSTS)))
        else:
            self.ops.append(Vector(draw(COSTS), after, draw(SPILLS), draw(SPILLS)))


@st.composite
def steps(draw: st.DrawFn) -> list[Op]:
    step = Steps(draw)
    kinds = ["load", "load", "consume", "consume", "array", "vector", "store", "switch", "skip"]
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=8)):
        if kind == "load":
            step.load()
        elif kind == "consume" and step.loads:
            step.array(step.loads.pop(0))
        elif kind in ("consume", "array"):
            step.array(None)
        else:
            step.other(kind)
    while step.loads:
        step.array(step.loads.pop(0))
    return step.ops


MACHINES = st.builds(
    machine,
    st.integers(1, 8),
    st.sampled_from([0, 1, 5, 50, 300, 1000]),
    st.integers(0, 9),
)


@settings(max_examples=300, deadline=None)
@given(steps(), MACHINES)
def test_closed_form_is_the_reference(ops: list[Op], target: Target) -> None:
    assert time_step(ops, target) == time_step_by_blocks(ops, target)


@settings(max_examples=200, deadline=None)
@given(steps(), MACHINES)
def test_units_are_held_for_their_busy_cycles(ops: list[Op], target: Target) -> None:
    timing, holds = walk_step(ops, target)
    busy = timing.dram_busy_cycles, timing.array_busy_cycles, timing.vector_busy_cycles
    for unit, cycles in zip(("dram", "array", "vector"), busy, strict=True):
        held = [hold for hold in holds if hold.unit == unit]
        assert sum(hold.end - hold.start for hold in held) == cycles
        assert all(one.end <= next_.start for one, next_ in itertools.pairwise(held))
    for hold in holds:
        op = timing.ops[hold.op]
        assert hold.start < hold.end <= timing.cycles
        if hold.part in ("work", "block"):
            assert op.start <= hold.start and hold.end <= op.end


@settings(max_examples=400, deadline=None)
@given(
    st.integers(1, 8),
    st.one_of(st.integers(0, 60), st.integers(0, 1000)),
    st.lists(st.tuples(st.integers(1, 80), *[st.integers(0, 30)] * 5), min_size=1, max_size=3),
    st.integers(0, 600),
)
@example(8, 1000, [(21, 10, 10, 2, 1, 0), (34, 3, 1, 51, 3, 50)], 0)
def test_closed_form_of_streams(
    banks: int, latency: int, streams: list[tuple[int, int, int, int, int, int]], wait: int
) -> None:
    # All loads are issued at once; the array is held up by ``wait``, so that banks fill first.
    ops: list[Op] = [Load(blocks, c, last) for blocks, c, last, *_ in streams]
    ops.append(SwitchMode(wait))
    ops += [Array(index, *costs[3:]) for index, costs in enumerate(streams)]
    target = machine(banks, latency)
    assert time_step(ops, target) == time_step_by_blocks(ops, target)


@settings(max_examples=300, deadline=None)
@given(steps(), MACHINES, st.data())
def test_parts_add_up_to_the_step(ops: list[Op], target: Target, data: st.DataObject) -> None:
    timing = time_step(ops, target)
    assert sum(map(sum, timing.parts)) == timing.cycles
    assert min(min(own, default=0) for own in [(), *timing.parts]) >= 0
    kinds = data.draw(st.lists(st.integers(0, 3), min_size=len(ops), max_size=len(ops)))
    sums = StepTable(ops, target).parts(np.array(kinds, np.int64), 4)
    assert sums.sum() == timing.cycles
    for kind, by_bound in enumerate(sums):
        for bound, found in zip(BOUNDS, by_bound.tolist(), strict=True):
            own = [
                part
                for k, op, part in zip(kinds, timing.ops, timing.parts, strict=True)
                if (k, op.bound) == (kind, bound)
            ]
            assert found == [sum(column) for column in zip(Parts(), *own, strict=True)]


@settings(max_examples=100, deadline=None)
@given(steps(), MACHINES)
def test_no_unit_works_more_than_the_step_lasts(ops: list[Op], target: Target) -> None:
    timing = time_step(ops, target)
    busy = timing.dram_busy_cycles, timing.array_busy_cycles, timing.vector_busy_cycles
    assert max(busy) <= timing.cycles
    assert timing.cycles <= sum(busy) + serial_latency(ops, target)


def serial_latency(ops: list[Op], target: Target) -> int:
    """An upper bound of all time in which no unit works: every latency and drain, end to end."""
    latency = 0
    for op in ops:
        if isinstance(op, Load):
            latency += op.blocks * target.dram_latency_cycles
        if isinstance(op, Array):
            latency += op.drain + target.dram_latency_cycles
        if isinstance(op, Vector):
            latency += target.vector_latency_cycles + target.dram_latency_cycles
    return latency
