"""How long one program step takes on a target: a resource model, exact to the cycle.

Four units work side by side: the DRAM channel, the weight SRAM of B equal banks, the PE array and
the vector unit. A step is a list of ops in program order; everything is idle at cycle 0, and an op
refers to earlier ones by their place in the list. The rules:

- A ``Load`` streams n blocks from DRAM. A block holds the channel while it is transferred, is
  usable ``dram_latency`` later, and takes one bank. Banks are a ring over all streams in order of
  use: a transfer may start once the block B places before it has been released. No transfer starts
  before its load is issued, which is when the compute op before it in program order starts, nor
  before the results that it waits for (``after``) are ready.
- An ``Array`` op consumes the blocks of its load in order, and releases each bank as it ends.
- The channel serves requests in the program order of the ops that need them: the operands of an op
  that live in DRAM (``read_cycles``), then the blocks of its load, then its result if that goes to
  DRAM (``write_cycles``). A ``Store`` takes its own place in program order, and so does the
  ``Skip`` of a load that turns out not to be needed.

``time_step`` needs O(B) work for a stream of any length (``timing_kernel``). ``timing_reference``
walks block by block and gives the same numbers. Operands in the activation SRAM and partial sums
cost nothing here.
"""

from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speqc.runtime import timing_kernel
from speqc.runtime.target import Target

Unit = Literal["array", "vector"]
Bound = Literal["dram", "array", "vector"]


@dataclass(frozen=True, slots=True)
class Load:
    """An asynchronous stream of ``blocks`` >= 1 blocks from DRAM; the last may be shorter.

    Cycles are those for which one block occupies the DRAM channel. ``after`` are the ops whose
    results say whether it is needed.
    """

    blocks: int
    block_cycles: int
    last_block_cycles: int
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Array:
    """An op that works through the blocks of ``load`` in order, on the array or the vector unit.

    ``lead`` cycles of fill precede the first block; the result is ready ``drain`` cycles after the
    last block's end, when the unit is free again. Without a load there is one block, the last.
    ``after`` are the ops whose results it needs.
    """

    load: int | None
    block_cycles: int
    last_block_cycles: int
    lead: int = 0
    drain: int = 0
    after: tuple[int, ...] = ()
    unit: Unit = "array"
    read_cycles: int = 0
    write_cycles: int = 0


@dataclass(frozen=True, slots=True)
class Vector:
    """An op without a stream that holds the vector unit; ready one pipeline latency later."""

    cycles: int
    after: tuple[int, ...] = ()
    read_cycles: int = 0
    write_cycles: int = 0


@dataclass(frozen=True, slots=True)
class Store:
    """A result written to DRAM that only the end of the step waits for."""

    cycles: int
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """A load that is not needed: the channel learns it, and goes on, with the results ``after``."""

    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SwitchMode:
    """Reconfiguration of the array between full and draft mode; holds the array."""

    cycles: int


Op = Load | Array | Vector | Store | Skip | SwitchMode


class OpTiming(NamedTuple):
    """When one op held its unit and when its result was ready, in cycles.

    For a load: first transfer's start, last transfer's end, last block usable. ``bound`` is the
    unit that the op keeps busy longest: its own, or DRAM where the op moves more than it computes.
    """

    start: int
    end: int
    ready: int
    bound: Bound


class Parts(NamedTuple):
    """A step's cycles that belong to one op, by what the op does with them.

    A cycle of the step belongs to the first op in program order that is not ready by then. ``load``
    lasts until the op's unit works on its first block: waiting for operands and that block, and the
    lead. Then the unit works (``ideal``) or waits between blocks (``stall``); ``drain`` is from its
    end until the op is ready. Parts of all ops add up to the step's cycles. Those of a load are its
    consumer's.
    """

    load: int = 0
    ideal: int = 0
    stall: int = 0
    drain: int = 0


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Timing of a step: total cycles (the last ``ready``), each op, and each unit's busy cycles."""

    cycles: int
    ops: tuple[OpTiming, ...]
    parts: tuple[Parts, ...]
    dram_busy_cycles: int
    array_busy_cycles: int
    vector_busy_cycles: int


def time_step(ops: Sequence[Op], target: Target) -> StepTiming:
    """Time a step in closed form. Raises ValueError where ``check_step`` does."""
    return StepTable(ops, target).timing()


class StepTable:
    """A step as the closed form reads it, to time it again with other costs."""

    def __init__(self, ops: Sequence[Op], target: Target) -> None:
        """Take the ops in; raises ValueError where ``check_step`` does."""
        check_step(ops)
        self._target = target
        afters = [() if isinstance(op, SwitchMode) else op.after for op in ops]
        self._table = np.array([_row(op, target) for op in ops], np.int64)
        self._table.shape = len(ops), timing_kernel.COLUMNS
        self._after_start = np.cumsum([0, *map(len, afters)], dtype=np.int64)
        self._after = np.array([place for after in afters for place in after], np.int64)

    def copy(self) -> "StepTable":
        """A table of its own for the same step."""
        other = copy(self)
        other._table = self._table.copy()
        return other

    def replace(self, places: Sequence[NDArray[np.int64]], ops: Sequence[Op]) -> None:
        """Give the ops at ``places[i]``, of the kind of ``ops[i]``, its costs."""
        if ops:
            rows = np.array([_row(op, self._target) for op in ops], np.int64)
            repeated = rows[:, timing_kernel.BLOCKS :].repeat([len(each) for each in places], 0)
            self._table[np.concatenate(places), timing_kernel.BLOCKS :] = repeated

    def parts(self, kinds: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Cycles [count, bounds, parts] of the ops of each kind; ``kinds`` has each op's.

        Bounds are in the order of ``BOUNDS``, parts in that of ``Parts``. They add up to the
        step's cycles.
        """
        return self.sums(kinds, count)[0]

    def sums(
        self, kinds: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], tuple[int, int, int]]:
        """As ``parts``, and the cycles for which DRAM, array and vector unit are busy."""
        _, timings, busy = self._run()
        sums = np.zeros((count, len(BOUNDS), len(Parts._fields)), np.int64)
        timing_kernel.sum_parts(timings, kinds, sums)
        dram, array, vector = busy.tolist()
        return sums, (dram, array, vector)

    def timing(self) -> StepTiming:
        """The whole timing."""
        cycles, timings, busy = self._run()
        rows = timings.tolist()
        ops = tuple(
            OpTiming(start, end, ready, BOUNDS[bound]) for start, end, ready, bound, *_ in rows
        )
        parts = tuple(Parts(*row[timing_kernel.PARTS]) for row in rows)
        return StepTiming(cycles, ops, parts, *busy.tolist())

    def _run(self) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        timings = np.zeros((len(self._table), timing_kernel.TIMED), np.int64)
        busy = np.zeros(3, np.int64)
        cycles = timing_kernel.run_step(
            self._table,
            self._after_start,
            self._after,
            self._target.dram_latency_cycles,
            self._target.weight_sram_banks,
            timings,
            busy,
        )
        return int(cycles), timings, busy


BOUNDS: tuple[Bound, ...] = "dram", "array", "vector"
"""By their numbers in ``timing_kernel``."""


def _row(op: Op, target: Target) -> tuple[int, ...]:
    """An op as a row of the kernel's table."""
    match op:
        case Load(blocks, cycles, last):
            return timing_kernel.ISSUE, -1, blocks, cycles, last, 0, 0, 0, 0, 0, 0
        case Store() | Skip():
            cycles = op.cycles if isinstance(op, Store) else 0
            return timing_kernel.STORE, -1, 0, 0, 0, 0, 0, 0, 0, 0, cycles
        case SwitchMode(cycles):
            return timing_kernel.ON_ARRAY, -1, 0, 0, 0, 0, cycles, 0, 0, 0, 0
        case Vector():
            drain, moved = target.vector_latency_cycles, (op.read_cycles, op.write_cycles)
            return timing_kernel.ON_VECTOR, -1, 0, 0, 0, 0, op.cycles, 0, drain, *moved
    kind = timing_kernel.ON_ARRAY if op.unit == "array" else timing_kernel.ON_VECTOR
    load = -1 if op.load is None else op.load
    work = op.block_cycles, op.last_block_cycles, op.lead, op.drain
    return kind, load, 0, 0, 0, *work, op.read_cycles, op.write_cycles


def wiring(op: Op) -> tuple[type[Op], str | None, int | None, tuple[int, ...]]:
    """What of an op is no cost: its kind and unit, the load it consumes, what it waits for."""
    load, unit = (op.load, op.unit) if isinstance(op, Array) else (None, None)
    return type(op), unit, load, () if isinstance(op, SwitchMode) else op.after


def check_step(ops: Sequence[Op]) -> None:
    """Raise ValueError, naming the op, where a list of ops is no step.

    Every load has one consumer, loads are consumed in program order, ``after`` names earlier ops
    that compute, every load has a block, and no cost is negative.
    """
    pending: deque[int] = deque()
    for index, op in enumerate(ops):
        if min(_costs(op)) < 0:
            raise ValueError(f"op {index}: a cost is negative: {op}")
        if isinstance(op, Load):
            if op.blocks < 1:
                raise ValueError(f"op {index}: a load needs at least one block: {op}")
            pending.append(index)
        elif isinstance(op, Array) and op.load is not None:
            expected = pending.popleft() if pending else None
            if op.load != expected:
                raise ValueError(f"op {index}: must consume load {expected}, consumes {op.load}")
        if not isinstance(op, SwitchMode):
            _check_after(ops, index, op.after)
    if pending:
        raise ValueError(f"op {pending[0]}: no op consumes this load")


def _costs(op: Op) -> tuple[int, ...]:
    match op:
        case Load():
            return op.block_cycles, op.last_block_cycles
        case Array():
            work = op.block_cycles, op.last_block_cycles, op.lead, op.drain
            return *work, op.read_cycles, op.write_cycles
        case Vector():
            return op.cycles, op.read_cycles, op.write_cycles
        case Skip():
            return (0,)
        case _:
            return (op.cycles,)


def _check_after(ops: Sequence[Op], index: int, after: tuple[int, ...]) -> None:
    for earlier in after:
        if not 0 <= earlier < index or isinstance(ops[earlier], Load | Store | Skip):
            raise ValueError(f"op {index}: {earlier} is no earlier op that computes")
