"""Time a `pe` program: its step functions as ops of the resource model, for any M and cache length.

Time depends on shapes, mode and cache length, and for a mixture of experts on how many rows chose
each expert, never on other values.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Operation, SSAValue

from speqc.dialects import pe
from speqc.dialects.speq import CacheOp, View, ViewType, WeightOp
from speqc.runtime import costs, energy
from speqc.runtime.activations import (
    ROW_BYTES,
    dram_bytes,
    elements,
    row_bytes,
    shares_buffer,
)
from speqc.runtime.alike import Form, Forms
from speqc.runtime.calls import Call
from speqc.runtime.energy import Energy, Work, buffered, touched
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import numpy_dtype
from speqc.runtime.module_attributes import module_target, recompute_reason
from speqc.runtime.routing import Chosen, Router, expected_rows, predicates, routers
from speqc.runtime.step_sums import (
    CYCLES,
    DRAM_BYTES,
    KINDS,
    add_tables,
    count_ops,
    cycles_of,
    empty_table,
    kind_numbers,
    kind_of,
    work_of,
)
from speqc.runtime.target import Target
from speqc.runtime.timing import (
    Array,
    Load,
    Op,
    Skip,
    StepTable,
    StepTiming,
    Store,
    SwitchMode,
    Vector,
    time_step,
    wiring,
)
from speqc.runtime.vector_ops import VECTOR_OPS
from speqc.runtime.weight_traffic import weight_traffic

SOFTMAX_LANE_OPS = 8
"""Vector operations on each score: scale, maximum, subtract, exp (4), and divide."""

BIAS_LANE_OPS, DIVISOR_LANE_OPS = 2, 1
"""Vector operations more on each score: product and sum of a position bias; what a division takes
more than a product."""

LANE_OPS = {"rms_norm": 4, "rotary": 4, "causal_softmax": VECTOR_OPS["Softmax"].lane_ops}
"""Vector operations on each element of the kernels that are not ONNX's: multiply, add, scale twice;
two products, a sum, a move; those of a softmax."""


@dataclass(frozen=True)
class Simulated:
    """What passes cost on the target; `table` has it by kind of op (see `step_sums`)."""

    cycles: int
    seconds: float
    dram_bytes: int
    energy: Energy
    table: NDArray[np.int64]


class StepCost(NamedTuple):
    """One pass: its timing, op by op, and the bytes it moves to and from DRAM."""

    timing: StepTiming
    dram_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class CallCost:
    """What one pass costs in all, and by kind of op (see `step_sums`).

    `busy` are the cycles for which DRAM channel, array and vector unit work.
    """

    cycles: int
    dram_bytes: int
    table: NDArray[np.int64]
    busy: tuple[int, int, int]

    @classmethod
    def of(cls, table: NDArray[np.int64], busy: tuple[int, int, int]) -> "CallCost":
        """The cost that a table has by kind."""
        return cls(int(table[:, CYCLES].sum()), int(table[:, DRAM_BYTES].sum()), table, busy)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same by kind of op, too."""
        return isinstance(other, CallCost) and np.array_equal(self.table, other.table)


class ProgramTimer:
    """Times the step functions of a program on its target (`retarget` moves it to another)."""

    def __init__(self, program: ModuleOp, longest_past: int | None = None):
        """Read the program; raises SpeqcError where it names no target.

        Passes behind more than `longest_past` cached positions are timed as if it were so many.
        """
        self._longest_past = longest_past
        self.target = module_target(program)
        self._weights = {w.sym_name.data: w for w in program.ops if isinstance(w, WeightOp)}
        self._caches = {c.sym_name.data: c for c in program.ops if isinstance(c, CacheOp)}
        self._functions = {f.sym_name.data: f for f in program.ops if isinstance(f, FuncOp)}
        self._recomputes = recompute_reason(program) is not None
        self._steps: dict[Call, StepCost] = {}
        self._routers = {name: routers(step) for name, step in self._functions.items()}
        self._builders: dict[tuple[str, int, bool], _StepBuilder] = {}
        self._costs: dict[Call, CallCost] = {}
        self._totals: dict[tuple[str, int, bool], _StepTotals] = {}
        self._forms = Forms(self._caches, self._weights)

    def routers(self, function: str) -> list[Router]:
        """The routers of a step function's mixtures of experts."""
        return self._routers.get(function, [])

    def step(self, function: str, rows: int, past: int, chosen: Chosen = ()) -> StepCost:
        """Time one pass of a step function over `rows` tokens behind `past` cached positions.

        `chosen` rows go to each expert, by default as many as `routing.Router.expected` says.
        """
        call = Call(function, *self.extent(rows, past), chosen)
        if call not in self._steps:
            self._steps[call] = self.time(*call)
        return self._steps[call]

    def cost(self, function: str, rows: int, past: int, chosen: Chosen = ()) -> CallCost:
        """What `step` says of the whole pass, fast for many lengths of the caches."""
        call = Call(function, *self.extent(rows, past), chosen)
        if call not in self._costs:
            self._costs[call] = self._cost(call)
        return self._costs[call]

    def _cost(self, call: Call) -> CallCost:
        if call.chosen or self._recomputes:
            return self.summed(self.ops(*call))
        key = call.function, call.rows, call.past > 0
        if key not in self._totals:
            self._totals[key] = self._moved_totals(call) or self._built_totals(call)
        return self._totals[key].at(call.past)

    def summed(self, ops: list["TimedOp"]) -> CallCost:
        """What the ops of a pass cost together."""
        table = count_ops([(entry.source, entry.dram_bytes, entry.work) for entry in ops])
        kinds = kind_numbers(entry.source for entry in ops)
        step = StepTable([entry.op for entry in ops], self.target)
        cycles_of(table)[:], busy = step.sums(kinds, len(KINDS))
        return CallCost.of(table, busy)

    def _built_totals(self, call: Call) -> "_StepTotals":
        # A builder of its own: it puts other lengths only where they cost something.
        expected = expected_rows(self._routers.get(call.function, ()), call.rows)
        builder = self._build(call.function, call.rows, call.past, expected)
        return _StepTotals(builder, self.target, self._forms)

    def _moved_totals(self, call: Call) -> "_StepTotals | None":
        """Those of the same step function, known for another M, moved to this one."""
        for (function, _, cached), known in self._totals.items():
            if (function, cached) == (call.function, call.past > 0):
                return known.with_rows(call.rows, call.past)
        return None

    def time(self, function: str, rows: int, past: int, chosen: Chosen = ()) -> StepCost:
        """Time one pass anew, whether or not it is known from before."""
        ops = self.ops(function, rows, past, chosen)
        timing = time_step([entry.op for entry in ops], self.target)
        return StepCost(timing, sum(entry.dram_bytes for entry in ops))

    def ops(self, function: str, rows: int, past: int, chosen: Chosen = ()) -> list["TimedOp"]:
        """The resource model's ops for one pass, each with its DRAM traffic and its origin."""
        rows, past = self.extent(rows, past)
        if chosen or self._recomputes:
            return self._build(function, rows, past, chosen).with_past(past)
        # Steps that differ in the cache's length alone share all ops but those that read it.
        key = function, rows, past > 0
        if key not in self._builders:
            expected = expected_rows(self._routers.get(function, ()), rows)
            self._builders[key] = self._build(function, rows, past, expected)
        return self._builders[key].with_past(past)

    def extent(self, rows: int, past: int) -> tuple[int, int]:
        """Rows that a pass computes for `rows` tokens behind `past` positions, and those cached.

        A program that recomputes its prefix computes rows for all of them, and has no caches.
        """
        behind = past if self._longest_past is None else min(past, self._longest_past)
        return (rows + behind, 0) if self._recomputes else (rows, behind)

    def _build(self, function: str, rows: int, past: int, chosen: Chosen) -> "_StepBuilder":
        if function not in self._functions:
            raise SpeqcError(f"the program has no step function @{function}")
        step = self._functions[function]
        known = predicates(step)
        if len(known) != len(chosen):
            raise SpeqcError(
                f"@{function}: the program has {len(known)} experts, the pass to time {len(chosen)}"
            )
        experts = dict(zip(known, chosen, strict=True))
        builder = _StepBuilder(self.target, self._weights, self._caches, rows, past, experts)
        for op in step.body.block.ops:
            builder.add(op)
        return builder

    def total(self, calls: Iterable[Call]) -> Simulated:
        """Cost of passes one after another."""
        table = add_tables(self.cost(*call).table for call in calls)
        cycles, dram_bytes = int(table[:, CYCLES].sum()), int(table[:, DRAM_BYTES].sum())
        spent = energy.energy(dram_bytes, work_of(table), self.target)
        return Simulated(cycles, self.target.seconds(cycles), dram_bytes, spent, table)


class TimedOp(NamedTuple):
    """An op of the resource model: bytes to or from DRAM, its origin, and what else it takes."""

    op: Op
    dram_bytes: int
    source: Operation
    work: Work


class _StepBuilder:
    """Translates the operations of one step function for one M and cache length."""

    def __init__(
        self,
        target: Target,
        weights: dict[str, WeightOp],
        caches: dict[str, CacheOp],
        rows: int,
        past: int,
        experts: Mapping[SSAValue, int],
    ):
        self.target = target
        self.weights = weights
        self.caches = caches
        self.rows = rows
        self.past = past
        self.experts = experts
        self.ops: list[TimedOp] = []
        self.place = 0
        self.places: list[tuple[int, Operation]] = []
        self.ready: dict[SSAValue, tuple[int, ...]] = {}
        self.loads: dict[SSAValue, int] = {}
        self.inputs: dict[Operation, tuple[tuple[int, ...], int, int]] = {}
        self.attentions: dict[Operation, _AttentionFacts] = {}
        self.halves: dict[Operation, tuple[int, int, int]] = {}

    def with_past(self, past: int) -> list[TimedOp]:
        """The ops for another length of the caches, which must be empty or not as before."""
        if past != self.past:
            self.past = past
            for place, op in self.places:
                if reads_cache(op):
                    self.translate(op, place)
        return list(self.ops)

    def with_rows(self, rows: int, past: int) -> "_StepBuilder":
        """A builder with the same ops, to translate some of them anew for another M."""
        other = copy(self)
        other.rows, other.past = rows, past
        other.ops, other.inputs = list(self.ops), {}
        other.ready, other.loads = dict(self.ready), dict(self.loads)
        return other

    def translate(self, op: Operation, place: int) -> list[TimedOp]:
        """Translate an operation at its place anew: the ops that it is now."""
        self.place = place
        self._translate(op)
        return self.ops[place : self.place]

    def form(self, op: Operation, forms: Forms) -> Form:
        """What tells whether an operation costs the same as others (see `alike`)."""
        return forms.of(op, lambda value: value in self.ready or value in self.loads)

    def cache_costs(self, op: Operation) -> Form | None:
        """What the costs of an operation on a cache depend on, for one M; None for others."""
        match op:
            case pe.LoadCacheOp():
                return (op.half.data, *self._cache_sizes(op))
            case pe.AttentionOp():
                _, read, write = self._inputs(op)
                return *self._facts(op)[:-2], read, write
        return None

    def add(self, op: Operation) -> None:
        """Append what `op` does."""
        self.places.append((self.place, op))
        self._translate(op)

    def _translate(self, op: Operation) -> None:
        """Put what `op` does at the present place."""
        # By its very class: a `match` would ask of each of a dozen classes whether it is one.
        if type(op) not in TRANSLATIONS:
            raise SpeqcError(f"{op.name} is no operation of the machine")
        TRANSLATIONS[type(op)](self, op)

    def _nothing(self, op: Operation) -> None:
        """What the program says takes no time."""

    def _switch(self, op: pe.ModeOp) -> None:
        self._append(SwitchMode(self.target.mode_switch_cycles), 0, op)

    def _load_constant(self, op: pe.LoadConstantOp) -> None:
        self._load_bytes(op, self._constant_bytes(op))

    def _append(self, timed: Op, size: int, source: Operation, work: Work | None = None) -> int:
        work = buffered(size) if work is None else buffered(size).plus(work)
        self.ops[self.place : self.place + 1] = [TimedOp(timed, size, source, work)]
        self.place += 1
        return self.place - 1

    def _load(self, op: Operation, load: Load, size: int, work: Work | None = None) -> None:
        self.loads[op.results[0]] = self._append(load, size, op, work)

    def _cycles(self, size: int) -> int:
        return costs.dram_cycles(size, self.target)

    def _load_weight(self, op: pe.LoadWeightOp) -> None:
        block, last = op.block_bytes.value.data, op.last_block_bytes.value.data
        after = self._known(op.predicate)
        if op.predicate is not None and not self.experts[op.predicate]:
            return
        load = Load(op.blocks, self._cycles(block), self._cycles(last), after)
        size = (op.blocks - 1) * block + last
        self._load(op, load, size, touched(size))

    def _known(self, predicate: SSAValue | None) -> tuple[int, ...]:
        """Ops whose results a predicate waits for."""
        return () if predicate is None else self.ready.get(predicate, ())

    def _skips(self, op: pe.GemmOp | pe.VectorOp) -> bool:
        """Whether no row of an op is computed: then its results are zero with the predicate."""
        if op.predicate is None or self.experts[op.predicate]:
            return False
        after = self._known(op.predicate)
        if isinstance(op, pe.GemmOp):
            self._append(Skip(after), 0, op)
        self._rename(op, after)
        return True

    def _share_of(self, op: pe.GemmOp | pe.VectorOp) -> Fraction:
        """The share of rows that an operation computes."""
        return Fraction(1) if op.predicate is None else self._share(op.predicate)

    def _share(self, predicate: SSAValue) -> Fraction:
        """The share of rows that a predicate holds for."""
        assert isinstance(predicate.type, TensorType)
        return Fraction(self.experts[predicate], elements(predicate.type, self.rows))

    def _constant_bytes(self, op: pe.LoadConstantOp) -> int:
        assert isinstance(op.stream.type, pe.StreamType)
        assert isinstance(op.stream.type.content, TensorType)
        return row_bytes(op.stream.type.content)

    def _load_bytes(self, op: Operation, size: int) -> None:
        bank = self.target.weight_bank_bytes
        blocks = max(1, -(-size // bank))
        last = size - (blocks - 1) * bank
        self._load(op, Load(blocks, self._cycles(bank), self._cycles(last)), size)

    def _load_cache(self, op: pe.LoadCacheOp) -> None:
        """The stream of one half of a cache; nothing where the cache is still empty."""
        if not self.past:
            return
        heads, width, item_bytes = self._cache_sizes(op)
        cost = costs.attention_scores_on_vector(
            heads, heads, width, self.past, self.rows, self.target, item_bytes
        )
        self._load(op, cost.load(), cost.stream_bytes)

    def _cache_sizes(self, op: pe.LoadCacheOp) -> tuple[int, int, int]:
        """Heads of a cache, channels of each in one half of it, bytes of a number."""
        if op not in self.halves:
            cache = self.caches[op.cache.string_value()]
            keys = op.half.data == pe.CacheHalf.KEYS
            width = (cache.key_dim if keys else cache.value_dim).value.data
            self.halves[op] = cache.heads.value.data, width, _item_bytes(cache.element_type)
        return self.halves[op]

    def _inputs(self, op: Operation) -> tuple[tuple[int, ...], int, int]:
        """Ops whose results `op` waits for, and bytes of operands and results that live in DRAM.

        With a predicate, of the rows that it holds for. They do not depend on the cache's length.
        """
        if op not in self.inputs:
            self.inputs[op] = self._find_inputs(op)
        return self.inputs[op]

    def _find_inputs(self, op: Operation) -> tuple[tuple[int, ...], int, int]:
        after = tuple(sorted({place for v in op.operands for place in self.ready.get(v, ())}))
        read = sum(dram_bytes(v, self.rows, self.target) for v in op.operands if v in self.ready)
        write = sum(dram_bytes(v, self.rows, self.target) for v in op.results)
        if isinstance(op, pe.GemmOp | pe.VectorOp):
            share = self._share_of(op)
            return after, ceil(read * share), ceil(write * share)
        return after, read, write

    def _finish(self, op: Operation, timed: Op, size: int, work: Work | None = None) -> None:
        place = self._append(timed, size, op, work)
        self.ready.update((result, (place,)) for result in op.results)

    def _gather(self, op: pe.GatherOp) -> None:
        weight = self.weights[op.weight.string_value()]
        k, _ = weight.shape
        if weight.is_split:
            group_size = weight_traffic(weight, View.FULL).group_size
            size = costs.tied_embedding_bytes(k, self.rows, self.target, group_size=group_size)
        else:
            size = costs.embedding_bytes(k, self.rows, self.target)
        self._read_rows(op, size)

    def _look_up(self, op: pe.LookupOp) -> None:
        assert isinstance(op.indices.type, TensorType)
        count = elements(op.indices.type, self.rows)
        row = row_bytes(op.type) // op.type.get_shape()[0]
        self._read_rows(op, costs.rows_bytes(row, count, self.target))

    def _read_rows(self, op: pe.GatherOp | pe.LookupOp, size: int) -> None:
        """Rows that come from DRAM once their indices are known, `size` bytes in all."""
        after, read, write = self._inputs(op)
        timed = Vector(0, after, self._cycles(read) + self._cycles(size), self._cycles(write))
        self._finish(op, timed, read + size + write)

    def _gemm(self, op: pe.GemmOp) -> None:
        if self._skips(op):
            return
        load = op.weight.owner
        assert isinstance(load, pe.LoadWeightOp)
        tiling = load.tiling
        rows = self.rows if op.predicate is None else self.experts[op.predicate]
        tile_cycles = max(self.target.array_rows, rows)
        full_blocks = load.blocks - 1
        last_tiles = tiling.tiles - full_blocks * tiling.tiles_per_block
        after, read, write = self._inputs(op)
        timed = Array(
            self.loads[op.weight],
            tiling.tiles_per_block * tile_cycles,
            last_tiles * tile_cycles,
            self.target.array_rows,
            costs.wavefront_cycles(self.target),
            after,
            "array",
            self._cycles(read),
            self._cycles(write),
        )
        lanes = self._on_lanes(op.weight.type, self.weights[load.weight.string_value()])
        work = energy.product(tiling.grid, tiling.tile, rows, draft=lanes)
        work = work.plus(touched(ceil(self._bytes(op.results) * self._share_of(op))))
        self._finish(op, timed, read + write, work)

    def _on_lanes(self, stream: Attribute, weight: WeightOp) -> bool:
        """Whether a product goes through the draft lanes, and not the full multipliers."""
        assert isinstance(stream, pe.StreamType) and isinstance(stream.content, ViewType)
        traffic = weight_traffic(weight, stream.content.view)
        narrow = traffic.weight_bits < costs.FULL_BITS
        return narrow and traffic.mantissa_bits <= self.target.draft_mantissa_bits

    def _bytes(self, values: Iterable[SSAValue]) -> int:
        """Bytes of tensors in a step."""
        sizes = ((elements(t, self.rows), _item_bytes(t.element_type)) for t in _tensors(values))
        return sum(count * size for count, size in sizes)

    def _vector(self, op: pe.VectorOp) -> None:
        if self._skips(op):
            return
        kernel = op.kernel.data
        count, lane_ops = self._vector_work(op, kernel)
        share = self._share_of(op)
        count = ceil(count * share)
        moved = ceil(self._bytes((*op.operands, *op.results)) * share)
        work = touched(moved).plus(Work(vector_operations=count * lane_ops))
        cycles = costs.vector_cycles(count, lane_ops, self.target)
        after, read, write = self._inputs(op)
        streams = [self.loads[value] for value in op.operands if value in self.loads]
        if not streams and (shares_buffer(op) or not (cycles or write)):
            self._rename(op, after)
            return
        for stream in streams[:-1]:
            after = (*after, self._append(Array(stream, 0, 0, unit="vector"), 0, op))
        latency = self.target.vector_latency_cycles
        read_cycles, write_cycles = self._cycles(read), self._cycles(write)
        if streams:
            timed = Array(
                streams[-1], 0, cycles, 0, latency, after, "vector", read_cycles, write_cycles
            )
        else:
            timed = Vector(cycles, after, read_cycles, write_cycles)
        self._finish(op, timed, read + write, work)

    def _rename(self, op: Operation, after: tuple[int, ...]) -> None:
        """An op that costs nothing: its results are ready with its operands."""
        if after:
            self.ready.update((result, after) for result in op.results)

    def _vector_work(self, op: pe.VectorOp, kernel: str) -> tuple[int, int]:
        """Elements, and vector operations on each."""
        result = op.results_[0].type
        assert isinstance(result, TensorType)
        if kernel == "causal_matmul":
            kernel = "MatMul"
        if kernel in LANE_OPS:
            return elements(result, self.rows), LANE_OPS[kernel]
        entry = VECTOR_OPS[kernel]
        if entry.counted == "output":
            return sum(elements(t, self.rows) for t in _tensors(op.results)), entry.lane_ops
        first = next(iter(_tensors(op.operands)))
        count = elements(first, self.rows)
        if entry.counted == "product":
            count *= elements(TensorType(result.element_type, result.get_shape()[-1:]), self.rows)
        return count, entry.lane_ops

    def _attention(self, op: pe.AttentionOp) -> None:
        facts = self._facts(op)
        after, read, write = self._inputs(op)
        scores, weights = self._scratch(facts)
        keys, values = self._half(facts, True), self._half(facts, False)
        first = self._append(
            keys.compute(
                self.loads.get(facts.cached_keys), after, self._cycles(read), self._cycles(scores)
            ),
            read + scores,
            op,
            self._half_work(facts, True),
        )
        count = facts.heads * self.rows * (self.past + self.rows)
        softmax = touched(count * (facts.score_bytes + facts.probability_bytes))
        work = costs.vector_cycles(count, facts.softmax_lane_ops, self.target)
        second = self._append(
            Vector(work, (first,), self._cycles(scores), self._cycles(weights)),
            scores + weights,
            op,
            softmax.plus(Work(vector_operations=count * facts.softmax_lane_ops)),
        )
        timed = values.compute(
            self.loads.get(facts.cached_values),
            (second,),
            self._cycles(weights),
            self._cycles(write),
        )
        self._finish(op, timed, weights + write, self._half_work(facts, False))

    def _facts(self, op: pe.AttentionOp) -> "_AttentionFacts":
        if op not in self.attentions:
            self.attentions[op] = _AttentionFacts.of(op, self.caches[op.cache.string_value()])
        return self.attentions[op]

    def _half_work(self, facts: "_AttentionFacts", keys: bool) -> Work:
        """What the scores, or the values, take beside DRAM traffic."""
        total, bits = self.past + self.rows, 8 * facts.probability_bytes
        k, n = (facts.key_dim, total) if keys else (total, facts.value_dim)
        rows = facts.heads * self.rows
        written = touched(rows * n * (facts.score_bytes if keys else facts.probability_bytes))
        if not facts.on_array:
            return energy.attention_on_vector(rows, k, n, facts.item_bytes, bits).plus(written)
        heads, group = facts.cache_heads, rows // facts.cache_heads
        item = facts.item_bytes
        return energy.attention_on_array(heads, group, k, n, self.target, item, bits).plus(written)

    def _half(self, facts: "_AttentionFacts", keys: bool) -> costs.StreamCost:
        cost: Callable[..., costs.StreamCost] = {
            (True, True): costs.attention_scores_on_array,
            (True, False): costs.attention_values_on_array,
            (False, True): costs.attention_scores_on_vector,
            (False, False): costs.attention_values_on_vector,
        }[facts.on_array, keys]
        width = facts.key_dim if keys else facts.value_dim
        shape = facts.heads, facts.cache_heads, width
        return cost(*shape, self.past, self.rows, self.target, facts.item_bytes)

    def _scratch(self, facts: "_AttentionFacts") -> tuple[int, int]:
        """Bytes of scores and of probabilities that go to DRAM.

        None, where those of one cache head at a time fit the SRAM beside the step's activations.
        """
        total = self.past + self.rows
        sizes = facts.score_bytes, facts.probability_bytes
        group = facts.heads // facts.cache_heads
        needed = facts.step_row_bytes + group * total * max(sizes)
        if self.rows * needed <= self.target.activation_sram_bytes:
            return 0, 0
        scores, weights = (facts.heads * self.rows * total * size for size in sizes)
        return scores, weights

    def _store(self, op: pe.AppendOp) -> None:
        cache = self.caches[op.cache.string_value()]
        heads = cache.heads.value.data
        item = _item_bytes(cache.element_type)
        size = sum(
            costs.cache_append_bytes(heads, width.value.data, self.rows, self.target, item)
            for width in (cache.key_dim, cache.value_dim)
        )
        after, read, _ = self._inputs(op)
        self._append(Store(self._cycles(read) + self._cycles(size), after), read + size, op)


TRANSLATIONS: Mapping[type[Operation], Callable[[_StepBuilder, Any], None]] = {
    pe.ModeOp: _StepBuilder._switch,
    pe.LoadWeightOp: _StepBuilder._load_weight,
    pe.LoadConstantOp: _StepBuilder._load_constant,
    pe.LoadCacheOp: _StepBuilder._load_cache,
    pe.GatherOp: _StepBuilder._gather,
    pe.LookupOp: _StepBuilder._look_up,
    pe.GemmOp: _StepBuilder._gemm,
    pe.VectorOp: _StepBuilder._vector,
    pe.AttentionOp: _StepBuilder._attention,
    pe.AppendOp: _StepBuilder._store,
    pe.PositionsOp: _StepBuilder._nothing,
    pe.ImmediateOp: _StepBuilder._nothing,
    ReturnOp: _StepBuilder._nothing,
}
"""How each operation of the machine becomes ops of the resource model."""


class _AttentionFacts(NamedTuple):
    """What is stated of an attention, whatever M and the cache's length: read from the IR once."""

    heads: int
    cache_heads: int
    key_dim: int
    value_dim: int
    item_bytes: int
    score_bytes: int
    probability_bytes: int
    step_row_bytes: int
    softmax_lane_ops: int
    on_array: bool
    cached_keys: SSAValue
    cached_values: SSAValue

    @classmethod
    def of(cls, op: pe.AttentionOp, cache: CacheOp) -> "_AttentionFacts":
        """The facts of an attention on a cache."""
        assert isinstance(op.query.type, TensorType)
        lane_ops = SOFTMAX_LANE_OPS
        lane_ops += BIAS_LANE_OPS if op.position_bias is not None else 0
        lane_ops += DIVISOR_LANE_OPS if op.score_divisor is not None else 0
        function = op.parent_op()
        assert isinstance(function, FuncOp)
        peak = function.attributes.get(ROW_BYTES)
        return cls(
            heads=op.query.type.get_shape()[1],
            cache_heads=cache.heads.value.data,
            key_dim=cache.key_dim.value.data,
            value_dim=cache.value_dim.value.data,
            item_bytes=_item_bytes(cache.element_type),
            score_bytes=_item_bytes(op.score_type),
            probability_bytes=_item_bytes(op.probability_type),
            step_row_bytes=peak.value.data if isinstance(peak, IntegerAttr) else 0,
            softmax_lane_ops=lane_ops,
            on_array=op.unit.data == pe.Unit.ARRAY,
            cached_keys=op.cached_keys,
            cached_values=op.cached_values,
        )


class _Alike(NamedTuple):
    """Operations that cost the same: one of them, the number of its kind, and for each op of the
    resource model that it becomes the places of all.

    `place` is that of its first op.
    """

    op: Operation
    kind: int
    place: int
    places: list[NDArray[np.int64]]


class _StepTotals:
    """A step whose caches change: its cost for any length, all lengths 0 or none.

    Of operations alike, one is translated, and stands for the others.
    """

    def __init__(self, builder: _StepBuilder, target: Target, forms: Forms):
        self._builder = builder
        self._steps = StepTable([entry.op for entry in builder.ops], target)
        self._kinds = kind_numbers(entry.source for entry in builder.ops)
        self._table = count_ops(
            [(entry.source, entry.dram_bytes, entry.work) for entry in builder.ops]
        )
        self._groups = _alike(builder, lambda op: builder.form(op, forms))
        self._on_caches = _alike(builder, builder.cache_costs)

    def at(self, past: int) -> CallCost:
        """The step's cost behind `past` positions."""
        self._builder.past = past
        self._renew(self._on_caches)
        cycles_of(self._table)[:], busy = self._steps.sums(self._kinds, len(KINDS))
        return CallCost.of(self._table.copy(), busy)

    def with_rows(self, rows: int, past: int) -> "_StepTotals | None":
        """The same step for another M; None where M changes which ops there are."""
        if self._builder.experts:
            return None
        other = copy(self)
        other._builder, other._steps = self._builder.with_rows(rows, past), self._steps.copy()
        other._table = empty_table()
        if not other._renew(self._groups, counted=False):
            return None
        other._on_caches = _alike(other._builder, other._builder.cache_costs)
        return other

    def _renew(self, groups: Sequence[_Alike], *, counted: bool = True) -> bool:
        """Put what operations cost now; False where they are no longer ops of the same kinds.

        `counted` says whether what they cost before stands in the table.
        """
        ops: list[Op] = []
        places: list[NDArray[np.int64]] = []
        for group in groups:
            before = self._builder.ops[group.place : group.place + len(group.places)]
            after = self._builder.translate(group.op, group.place)
            if [wiring(entry.op) for entry in before] != [wiring(entry.op) for entry in after]:
                return False
            ops += [entry.op for entry in after]
            places += group.places
            if after:
                growth = np.array(_growth(before if counted else [], after), np.int64)
                self._table[group.kind, DRAM_BYTES:] += len(group.places[0]) * growth
        self._steps.replace(places, ops)
        return True


def _growth(before: Sequence[TimedOp], after: Sequence[TimedOp]) -> list[int]:
    """By how much DRAM bytes and work of ops have grown."""
    rows = [(entry.dram_bytes, *entry.work) for entry in after]
    rows += [tuple(-count for count in (entry.dram_bytes, *entry.work)) for entry in before]
    return [sum(column) for column in zip(*rows, strict=True)]


def reads_cache(op: Operation) -> bool:
    """Whether what an operation costs depends on the length of a cache."""
    return isinstance(op, pe.LoadCacheOp | pe.AttentionOp)


def _alike(builder: _StepBuilder, form: Callable[[Operation], Form | None]) -> list[_Alike]:
    """A step's operations by form, but those that have none."""
    found: dict[Form, list[int]] = {}
    first: dict[Form, tuple[Operation, int]] = {}
    ends = [place for place, _ in builder.places[1:]] + [len(builder.ops)]
    for (place, op), end in zip(builder.places, ends, strict=True):
        own = form(op)
        if own is not None:
            found.setdefault(own, []).append(place)
            first.setdefault(own, (op, end - place))
    return [
        _Alike(
            op,
            KINDS.index(kind_of(op)),
            found[own][0],
            [np.array(found[own]) + k for k in range(count)],
        )
        for own, (op, count) in first.items()
    ]


def _item_bytes(element: Attribute) -> int:
    return numpy_dtype(element).itemsize


def _tensors(values: Iterable[SSAValue]) -> Iterable[TensorType]:
    for value in values:
        if isinstance(value.type, TensorType):
            yield value.type
        elif isinstance(value.type, pe.StreamType) and isinstance(value.type.content, TensorType):
            yield value.type.content
