"""Time a `pe` program: its step functions as ops of the resource model, for any M and cache length.

Time depends on shapes, mode and cache length, and for a mixture of experts on how many rows chose
each expert, never on other values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import NamedTuple

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Operation, SSAValue

from speqc.dialects import pe
from speqc.dialects.speq import CacheOp, View, WeightOp
from speqc.runtime import costs
from speqc.runtime.activations import (
    OFFSET,
    ROW_BYTES,
    dram_bytes,
    elements,
    row_bytes,
    shares_buffer,
)
from speqc.runtime.calls import Call
from speqc.runtime.errors import SpeqcError
from speqc.runtime.ir_values import numpy_dtype
from speqc.runtime.module_attributes import module_target
from speqc.runtime.routing import Chosen, Router, expected_rows, predicates, routers
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
)
from speqc.runtime.vector_ops import VECTOR_OPS
from speqc.runtime.weight_traffic import weight_traffic

SOFTMAX_LANE_OPS = 8
"""Vector operations on each score: scale, maximum, subtract, exp (4), and divide."""

BIAS_LANE_OPS, DIVISOR_LANE_OPS = 2, 1
"""Vector operations more on each score: product and sum of a position bias; what a division takes
more than a product."""

LARGEST_PART = 3
"""The most ops of the resource model that an operation on a cache becomes."""

LANE_OPS = {"rms_norm": 4, "rotary": 4}
"""Vector operations on each element of the kernels that are not ONNX's: multiply, add, scale twice;
two products, a sum, a move."""


@dataclass(frozen=True)
class Simulated:
    """What passes cost on the target; energy is the DRAM's."""

    cycles: int
    seconds: float
    dram_bytes: int
    energy_joules: float


class StepCost(NamedTuple):
    """One pass: its timing, op by op, and the bytes it moves to and from DRAM."""

    timing: StepTiming
    dram_bytes: int


class CallCost(NamedTuple):
    """What one pass costs in all."""

    cycles: int
    dram_bytes: int


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
        self._steps: dict[Call, StepCost] = {}
        self._routers = {name: routers(step) for name, step in self._functions.items()}
        self._builders: dict[tuple[str, int, bool], _StepBuilder] = {}
        self._costs: dict[Call, CallCost] = {}
        self._totals: dict[tuple[str, int, bool], _StepTotals] = {}

    def routers(self, function: str) -> list[Router]:
        """The routers of a step function's mixtures of experts."""
        return self._routers.get(function, [])

    def step(self, function: str, rows: int, past: int, chosen: Chosen = ()) -> StepCost:
        """Time one pass of a step function over `rows` tokens behind `past` cached positions.

        `chosen` rows go to each expert, by default as many as `routing.Router.expected` says.
        """
        call = Call(function, rows, self._cached(past), chosen)
        if call not in self._steps:
            self._steps[call] = self.time(*call)
        return self._steps[call]

    def cost(self, function: str, rows: int, past: int, chosen: Chosen = ()) -> CallCost:
        """What `step` says of the whole pass, fast for many lengths of the caches."""
        call = Call(function, rows, self._cached(past), chosen)
        if call not in self._costs:
            self._costs[call] = self._cost(call)
        return self._costs[call]

    def _cost(self, call: Call) -> CallCost:
        if call in self._steps or call.chosen:
            step = self._steps.get(call) or self.time(*call)
            return CallCost(step.timing.cycles, step.dram_bytes)
        key = call.function, call.rows, call.past > 0
        if key not in self._totals:
            # A builder of its own: this one puts other lengths only where they cost something.
            expected = expected_rows(self._routers.get(call.function, ()), call.rows)
            builder = self._build(call.function, call.rows, call.past, expected)
            self._totals[key] = _StepTotals(builder, self.target)
        return self._totals[key].at(call.past)

    def time(self, function: str, rows: int, past: int, chosen: Chosen = ()) -> StepCost:
        """Time one pass anew, whether or not it is known from before."""
        ops = self.ops(function, rows, past, chosen)
        timing = time_step([entry.op for entry in ops], self.target)
        return StepCost(timing, sum(entry.dram_bytes for entry in ops))

    def ops(self, function: str, rows: int, past: int, chosen: Chosen = ()) -> list["TimedOp"]:
        """The resource model's ops for one pass, each with its DRAM traffic and its origin."""
        past = self._cached(past)
        if chosen:
            return self._build(function, rows, past, chosen).with_past(past)
        # Steps that differ in the cache's length alone share all ops but those that read it.
        key = function, rows, past > 0
        if key not in self._builders:
            expected = expected_rows(self._routers.get(function, ()), rows)
            self._builders[key] = self._build(function, rows, past, expected)
        return self._builders[key].with_past(past)

    def _cached(self, past: int) -> int:
        return past if self._longest_past is None else min(past, self._longest_past)

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
        cycles = dram = 0
        for call in calls:
            cost = self.cost(*call)
            cycles += cost.cycles
            dram += cost.dram_bytes
        energy = costs.dram_energy_joules(dram, self.target)
        return Simulated(cycles, self.target.seconds(cycles), dram, energy)


class TimedOp(NamedTuple):
    """An op of the resource model, the bytes it moves to or from DRAM, and where it comes from."""

    op: Op
    dram_bytes: int
    source: Operation


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
        self.varying: list[tuple[int, Operation]] = []
        self.ready: dict[SSAValue, tuple[int, ...]] = {}
        self.loads: dict[SSAValue, int] = {}

    def with_past(self, past: int) -> list[TimedOp]:
        """The ops for another length of the caches, which must be empty or not as before."""
        if past != self.past:
            self.past = past
            for place, op in self.varying:
                self.place = place
                self._translate(op)
        return list(self.ops)

    def translated(self, op: Operation, place: int) -> Iterator[tuple[TimedOp, TimedOp]]:
        """Translate an operation at its place anew: each op as it was, and as it is now."""
        before = self.ops[place : place + LARGEST_PART]
        self.place = place
        self._translate(op)
        yield from zip(before, self.ops[place : self.place], strict=False)

    def signature(self, op: Operation) -> tuple:
        """What, beside the cache's length, the costs of an operation on a cache depend on."""
        assert isinstance(op, pe.LoadCacheOp | pe.AttentionOp)
        cache = self.caches[op.cache.string_value()]
        sizes = cache.heads, cache.key_dim, cache.value_dim, cache.element_type
        own = {"cache", OFFSET}
        stated = frozenset(item for item in op.properties.items() if item[0] not in own)
        return op.name, sizes, tuple(op.operand_types), stated, self._inputs(op)[1:]

    def add(self, op: Operation) -> None:
        """Append what `op` does."""
        if isinstance(op, pe.LoadCacheOp | pe.AttentionOp):
            self.varying.append((self.place, op))
        self._translate(op)

    def _translate(self, op: Operation) -> None:
        """Put what `op` does at the present place."""
        match op:
            case pe.ModeOp():
                self._append(SwitchMode(self.target.mode_switch_cycles), 0, op)
            case pe.LoadWeightOp():
                self._load_weight(op)
            case pe.LoadConstantOp():
                self._load_bytes(op, self._constant_bytes(op))
            case pe.LoadCacheOp():
                self._load_cache(op)
            case pe.GatherOp():
                self._gather(op)
            case pe.LookupOp():
                self._look_up(op)
            case pe.GemmOp():
                self._gemm(op)
            case pe.VectorOp():
                self._vector(op)
            case pe.AttentionOp():
                self._attention(op)
            case pe.AppendOp():
                self._store(op)
            case pe.PositionsOp() | pe.ImmediateOp() | ReturnOp():
                pass
            case _:
                raise SpeqcError(f"{op.name} is no operation of the machine")

    def _append(self, timed: Op, size: int, source: Operation) -> int:
        self.ops[self.place : self.place + 1] = [TimedOp(timed, size, source)]
        self.place += 1
        return self.place - 1

    def _load(self, op: Operation, load: Load, size: int) -> None:
        self.loads[op.results[0]] = self._append(load, size, op)

    def _cycles(self, size: int) -> int:
        return costs.dram_cycles(size, self.target)

    def _load_weight(self, op: pe.LoadWeightOp) -> None:
        block, last = op.block_bytes.value.data, op.last_block_bytes.value.data
        after = self._known(op.predicate)
        if op.predicate is not None and not self.experts[op.predicate]:
            return
        load = Load(op.blocks, self._cycles(block), self._cycles(last), after)
        self._load(op, load, (op.blocks - 1) * block + last)

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
        cache = self.caches[op.cache.string_value()]
        keys = op.half.data == pe.CacheHalf.KEYS
        width = (cache.key_dim if keys else cache.value_dim).value.data
        heads = cache.heads.value.data
        cost = costs.attention_scores_on_vector(
            heads, heads, width, self.past, self.rows, self.target, _item_bytes(cache.element_type)
        )
        self._load(op, cost.load(), cost.stream_bytes)

    def _inputs(self, op: Operation) -> tuple[tuple[int, ...], int, int]:
        """Ops whose results `op` waits for, and bytes of operands and results that live in DRAM.

        With a predicate, of the rows that it holds for.
        """
        after = tuple(sorted({place for v in op.operands for place in self.ready.get(v, ())}))
        read = sum(dram_bytes(v, self.rows, self.target) for v in op.operands if v in self.ready)
        write = sum(dram_bytes(v, self.rows, self.target) for v in op.results)
        if isinstance(op, pe.GemmOp | pe.VectorOp) and op.predicate is not None:
            share = self._share(op.predicate)
            return after, ceil(read * share), ceil(write * share)
        return after, read, write

    def _finish(self, op: Operation, timed: Op, size: int) -> None:
        place = self._append(timed, size, op)
        self.ready.update((result, (place,)) for result in op.results)

    def _gather(self, op: pe.GatherOp) -> None:
        weight = self.weights[op.weight.string_value()]
        k, _ = weight.shape
        if weight.is_split:
            _, group_size = weight_traffic(weight, View.FULL)
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
        self._finish(op, timed, read + write)

    def _vector(self, op: pe.VectorOp) -> None:
        if self._skips(op):
            return
        kernel = op.kernel.data
        count, lane_ops = self._vector_work(op, kernel)
        if op.predicate is not None:
            count = ceil(count * self._share(op.predicate))
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
        self._finish(op, timed, read + write)

    def _rename(self, op: Operation, after: tuple[int, ...]) -> None:
        """An op that costs nothing: its results are ready with its operands."""
        if after:
            self.ready.update((result, after) for result in op.results)

    def _vector_work(self, op: pe.VectorOp, kernel: str) -> tuple[int, int]:
        """Elements, and vector operations on each."""
        result = op.results_[0].type
        assert isinstance(result, TensorType)
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
        cache = self.caches[op.cache.string_value()]
        assert isinstance(op.query.type, TensorType)
        heads, kv_heads = op.query.type.get_shape()[1], cache.heads.value.data
        on_array = op.unit.data == pe.Unit.ARRAY
        after, read, write = self._inputs(op)
        scores, weights = self._scratch(op, heads // kv_heads, heads)
        shape = heads, kv_heads
        item = _item_bytes(cache.element_type)
        keys = self._half(on_array, True, (*shape, cache.key_dim.value.data), item)
        values = self._half(on_array, False, (*shape, cache.value_dim.value.data), item)
        first = self._append(
            keys.compute(
                self.loads.get(op.cached_keys), after, self._cycles(read), self._cycles(scores)
            ),
            read + scores,
            op,
        )
        count = heads * self.rows * (self.past + self.rows)
        lane_ops = SOFTMAX_LANE_OPS
        lane_ops += BIAS_LANE_OPS if op.position_bias is not None else 0
        lane_ops += DIVISOR_LANE_OPS if op.score_divisor is not None else 0
        work = costs.vector_cycles(count, lane_ops, self.target)
        second = self._append(
            Vector(work, (first,), self._cycles(scores), self._cycles(weights)),
            scores + weights,
            op,
        )
        timed = values.compute(
            self.loads.get(op.cached_values), (second,), self._cycles(weights), self._cycles(write)
        )
        self._finish(op, timed, weights + write)

    def _half(
        self, on_array: bool, keys: bool, shape: tuple[int, int, int], item_bytes: int
    ) -> costs.StreamCost:
        cost: Callable[..., costs.StreamCost] = {
            (True, True): costs.attention_scores_on_array,
            (True, False): costs.attention_values_on_array,
            (False, True): costs.attention_scores_on_vector,
            (False, False): costs.attention_values_on_vector,
        }[on_array, keys]
        return cost(*shape, self.past, self.rows, self.target, item_bytes)

    def _scratch(self, op: pe.AttentionOp, group: int, heads: int) -> tuple[int, int]:
        """Bytes of scores and of probabilities that go to DRAM.

        None, where those of one cache head at a time fit the SRAM beside the step's activations.
        """
        function = op.parent_op()
        assert isinstance(function, FuncOp)
        peak = function.attributes.get(ROW_BYTES)
        used = peak.value.data if isinstance(peak, IntegerAttr) else 0
        total = self.past + self.rows
        sizes = _item_bytes(op.score_type), _item_bytes(op.probability_type)
        if self.rows * (used + group * total * max(sizes)) <= self.target.activation_sram_bytes:
            return 0, 0
        scores, weights = (heads * self.rows * total * size for size in sizes)
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


class _StepTotals:
    """A step whose caches change: cycles and bytes for any length, all lengths 0 or none.

    Of operations that read caches alike, one is translated, and stands for the others.
    """

    def __init__(self, builder: _StepBuilder, target: Target):
        self._builder = builder
        self._table = StepTable([entry.op for entry in builder.ops], target)
        self._bytes = sum(entry.dram_bytes for entry in builder.ops)
        alike: dict[tuple, list[int]] = {}
        first: dict[tuple, Operation] = {}
        for place, op in builder.varying:
            alike.setdefault(builder.signature(op), []).append(place)
            first.setdefault(builder.signature(op), op)
        self._groups = [(op, np.array(alike[key])) for key, op in first.items()]

    def at(self, past: int) -> CallCost:
        """The step's cost behind `past` positions."""
        builder = self._builder
        builder.past = past
        for op, places in self._groups:
            for k, (before, now) in enumerate(builder.translated(op, int(places[0]))):
                self._table.replace(places + k, now.op)
                self._bytes += len(places) * (now.dram_bytes - before.dram_bytes)
        return CallCost(self._table.cycles(), self._bytes)


def _item_bytes(element: Attribute) -> int:
    return numpy_dtype(element).itemsize


def _tensors(values: Iterable[SSAValue]) -> Iterable[TensorType]:
    for value in values:
        if isinstance(value.type, TensorType):
            yield value.type
        elif isinstance(value.type, pe.StreamType) and isinstance(value.type.content, TensorType):
            yield value.type.content
