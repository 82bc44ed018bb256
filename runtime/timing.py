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

``time_step`` needs O(B) work for a stream of any length. ``timing_reference`` walks block by block
and gives the same numbers. Operands in the activation SRAM and partial sums cost nothing here.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

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


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Timing of a step: total cycles (the last ``ready``), each op, and each unit's busy cycles."""

    cycles: int
    ops: tuple[OpTiming, ...]
    dram_busy_cycles: int
    array_busy_cycles: int
    vector_busy_cycles: int


def time_step(ops: Sequence[Op], target: Target) -> StepTiming:
    """Time a step in closed form. Raises ValueError where ``check_step`` does."""
    check_step(ops)
    clock = _Clock(ops, target)
    for index, op in enumerate(ops):
        match op:
            case Load():
                clock.issue(index, op)
            case Array():
                clock.array(index, op)
            case Vector():
                clock.vector(index, op)
            case Store():
                clock.store(index, op.cycles, op.after)
            case Skip():
                clock.store(index, 0, op.after)
            case SwitchMode():
                clock.switch(index, op)
    return StepTiming(
        max((timing.ready for timing in clock.timings), default=0),
        tuple(clock.timings),
        clock.dram_busy,
        clock.busy["array"],
        clock.busy["vector"],
    )


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


class _Clock:
    """Where each unit stands while the ops are placed one after another."""

    def __init__(self, ops: Sequence[Op], target: Target) -> None:
        self.ops = ops
        self.latency = target.dram_latency_cycles
        self.vector_latency = target.vector_latency_cycles
        self.free: dict[Unit, int] = {"array": 0, "vector": 0}
        self.busy: dict[Unit, int] = {"array": 0, "vector": 0}
        self.dram_free = 0
        self.dram_busy = 0
        self.last_start = 0
        self.issued: dict[int, int] = {}
        self.releases = deque([0] * target.weight_sram_banks, target.weight_sram_banks)
        self.timings = [OpTiming(0, 0, 0, "dram")] * len(ops)

    def array(self, index: int, op: Array) -> None:
        ready = self._read(op.after, op.read_cycles)
        transferred = op.read_cycles + op.write_cycles
        worked = op.lead + op.last_block_cycles
        if op.load is None:
            start = max(self.free[op.unit], ready)
            end = start + worked
        else:
            load = self.ops[op.load]
            assert isinstance(load, Load)
            start, end = self._stream(load, op, ready)
            worked += (load.blocks - 1) * op.block_cycles
            cycles = (load.blocks - 1) * load.block_cycles + load.last_block_cycles
            transferred += cycles
            self.dram_busy += cycles
        self._finish(index, op.unit, start, end, worked, transferred, op.drain, op.write_cycles)

    def vector(self, index: int, op: Vector) -> None:
        start = max(self.free["vector"], self._read(op.after, op.read_cycles))
        end = start + op.cycles
        transferred = op.read_cycles + op.write_cycles
        latency = self.vector_latency
        self._finish(index, "vector", start, end, op.cycles, transferred, latency, op.write_cycles)

    def switch(self, index: int, op: SwitchMode) -> None:
        start = self.free["array"]
        self._finish(index, "array", start, start + op.cycles, op.cycles, 0, 0, 0)

    def issue(self, index: int, op: Load) -> None:
        self.issued[index] = max(self.last_start, self._results(op.after))

    def store(self, index: int, cycles: int, after: tuple[int, ...]) -> None:
        start = max(self.dram_free, self._results(after))
        self.dram_free = end = start + cycles
        self.dram_busy += cycles
        self.timings[index] = OpTiming(start, end, end, "dram")

    def _results(self, after: tuple[int, ...]) -> int:
        return max([self.timings[index].ready for index in after], default=0)

    def _read(self, after: tuple[int, ...], cycles: int) -> int:
        """Return when the results an op needs are on chip, fetched from DRAM if that costs."""
        ready = self._results(after)
        if not cycles:
            return ready
        self.dram_free = max(self.dram_free, ready) + cycles
        self.dram_busy += cycles
        return self.dram_free + self.latency

    def _finish(
        self,
        index: int,
        unit: Unit,
        start: int,
        end: int,
        worked: int,
        transferred: int,
        drain: int,
        write_cycles: int,
    ) -> None:
        self.free[unit] = end
        self.busy[unit] += worked
        self.last_start = start
        ready = end + drain
        if write_cycles:
            ready = self.dram_free = max(self.dram_free, ready) + write_cycles
            self.dram_busy += write_cycles
        bound = "dram" if transferred > worked else unit
        self.timings[index] = OpTiming(start, end, ready, bound)

    def _stream(self, load: Load, op: Array, ready: int) -> tuple[int, int]:
        """Place a load and its consumer; return when the consumer starts and ends on its unit."""
        assert op.load is not None
        stream = _Stream(
            max(self.dram_free, self.issued[op.load]),
            max(self.free[op.unit], ready),
            self.releases,
            self.latency,
        )
        first = load.block_cycles, op.block_cycles
        last = load.last_block_cycles, op.last_block_cycles
        if load.blocks == 1:
            first = last
        stream.blocks(1, first[0], op.lead + first[1])
        transfer_start = stream.transferred - first[0]
        start = stream.processed - op.lead - first[1]
        if load.blocks > 1:
            stream.uniform_blocks(load.blocks - 2, *first)
            stream.blocks(1, *last)
        self.dram_free = stream.transferred
        self.timings[op.load] = OpTiming(
            transfer_start, stream.transferred, stream.transferred + self.latency, "dram"
        )
        return start, stream.processed


class _Stream:
    """The recurrence of one stream over its blocks, one block or many rounds of B at a time.

    With D = end of a block's transfer (``transferred``) and A = end of its processing
    (``processed``), c and a cycles a block, and latency l::

        D[i] = max(D[i-1], A[i-B]) + c
        A[i] = max(A[i-1], D[i] + l) + a

    ``releases`` holds A[i-B] .. A[i-1] of the ring, earlier streams' blocks included.
    """

    __slots__ = ("latency", "processed", "releases", "transferred")

    def __init__(
        self, transferred: int, processed: int, releases: deque[int], latency: int
    ) -> None:
        self.transferred = transferred
        self.processed = processed
        self.releases = releases
        self.latency = latency

    def blocks(self, count: int, c: int, a: int) -> None:
        """Apply the recurrence ``count`` times."""
        transferred, processed, latency = self.transferred, self.processed, self.latency
        releases = self.releases
        # Conditional expressions here and in ``rounds``: calls of max() double the time of a step.
        for _ in range(count):
            free = releases[0]
            transferred = (free if free > transferred else transferred) + c
            usable = transferred + latency
            processed = (usable if usable > processed else processed) + a
            releases.append(processed)
        self.transferred, self.processed = transferred, processed

    def uniform_blocks(self, count: int, c: int, a: int) -> None:
        """Continue a stream that has placed one block by ``count`` equal ones, in O(B)."""
        banks = len(self.releases)
        head = min(count, banks - 1)
        self.blocks(head, c, a)
        rounds, rest = divmod(count - head, banks)
        if rounds:
            self.rounds(rounds, c, a)
        self.blocks(rest, c, a)

    def rounds(self, p: int, c: int, a: int) -> None:
        """Continue by ``p`` >= 1 rounds of B equal blocks, once ``releases`` is all this stream's.

        A value of a max-plus recurrence is the longest path to it. Number the known blocks 0..B-1;
        wanted are A[r + pB] for each r < B, and D[B-1 + pB]. A path moves on by one block along D
        (c cycles) or along A (a), crosses from D to A at one block (l + a), and crosses back from
        A[i] to D[i + B] (c). A path that goes on by t blocks in q round trips of both crossings
        therefore spends q W + (t - q B) m, with W = c + l + a and m = max(a, c). That is linear in
        q: where W <= B m no round trip is best, else as many as fit, and the rest at m a block. A
        full round costs max(W, B m) either way, and the longest path to A[r + pB] is one of

        - A[s] back to D[s + B], p-1 full rounds, to A at the end: W + (p-1) rounds + (r - s) m for
          s <= r; for s > r one round fewer and (B + r - s) m, which takes p > 1;
        - D[B-1] to A with p-1 full rounds on the way: l + a + (p-1) rounds + (r + 1) m;
        - A[B-1] along A alone.

        The next transfer waits for A[pB] as well, so D[B-1 + pB] matters only where it is later.
        Then it is reached along D, from D[B-1] or after one crossing back from a known A[s]. For
        let the last crossing back be from A[k], k < pB. If a >= c, A[pB] is later along A. Else,
        if k is known, that is the case above; if not, A[k] is reached from some D[j], and the path
        on from D[j] along D is as late where W <= B c, and the path to A[pB] where W > B c; or
        from A[B-1] along A, and crossing back from A[B-1] at once is as late.
        Nothing here needs B > 1.
        """
        known = list(self.releases)
        banks = len(known)
        m = max(a, c)
        round_trip = c + self.latency + a
        full_round = max(round_trip, banks * m)
        from_d = self.transferred + self.latency + a + (p - 1) * full_round + m
        from_a = known[-1] + ((p - 1) * banks + 1) * a
        same_round = round_trip + (p - 1) * full_round
        next_round = same_round - full_round + banks * m
        levelled = [end - s * m for s, end in enumerate(known)]
        beyond = _maxima_beyond(levelled) if p > 1 else []
        latest = from_d - same_round
        for r in range(banks):
            latest = levelled[r] if levelled[r] > latest else latest
            end = latest + same_round + r * m
            along_a = from_a + r * a
            end = along_a if along_a > end else end
            if r < len(beyond):
                wrapped = beyond[r] + next_round + r * m
                end = wrapped if wrapped > end else end
            self.releases.append(end)
        self.processed = self.releases[-1]
        back = max(end - s * c for s, end in enumerate(known))
        self.transferred = max(self.transferred, back) + p * banks * c


def _maxima_beyond(values: list[int]) -> list[int]:
    """Return for each place but the last the maximum of the values after it."""
    maxima = values[1:]
    for place in range(len(maxima) - 2, -1, -1):
        following = maxima[place + 1]
        if following > maxima[place]:
            maxima[place] = following
    return maxima
