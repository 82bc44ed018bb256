from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp, TensorType
from xdsl.dialects.func import Func, FuncOp
from xdsl.ir import Operation
from xdsl.parser import Parser

from speqc.artifact import load_artifact
from speqc.dialects import pe
from speqc.dialects.speq import CacheOp, Speq, View, ViewType, WeightOp
from speqc.passes.allocate_activations import AllocateActivationsPass
from speqc.retarget import retarget
from speqc.runtime import costs
from speqc.runtime.activations import ROW_BYTES, elements, row_bytes, shares_buffer, sram_place
from speqc.runtime.calls import Call
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import target_attribute
from speqc.runtime.program_timing import (
    BIAS_LANE_OPS,
    DIVISOR_LANE_OPS,
    LANE_OPS,
    SOFTMAX_LANE_OPS,
    ProgramTimer,
    TimedOp,
)
from speqc.runtime.step_sums import (
    CYCLES,
    DRAM_BYTES,
    KINDS,
    cycles_of,
    empty_table,
    kind_of,
    work_of,
)
from speqc.runtime.target import Target
from speqc.runtime.timing import BOUNDS, Array, Load, Store, SwitchMode, Vector
from speqc.runtime.timing_reference import time_step_by_blocks
from speqc.runtime.vector_ops import VECTOR_OPS

TARGET = Target()

TARGETS = {
    "default": TARGET,
    "one lane": replace(TARGET, draft_lanes=1),
    "little memory": replace(TARGET, activation_sram_bytes=20_000),
    "small array": replace(
        TARGET,
        array_rows=16,
        array_columns=32,
        weight_sram_bytes=49_152,
        weight_sram_banks=3,
        dram_latency_ns=13,
    ),
    "one bank": replace(TARGET, weight_sram_banks=1, vector_lanes=7),
}


@pytest.fixture(scope="module")
def program(embedded: Callable[[str], Path]) -> ModuleOp:
    return load_artifact(embedded("sets")).program


@pytest.fixture(scope="module")
def timers(program: ModuleOp) -> dict[str, ProgramTimer]:
    """Timers of the program on each target, its activations placed anew."""
    found = {}
    for name, target in TARGETS.items():
        found[name] = ProgramTimer(retarget(program, target))
    return found


@pytest.fixture
def timer(timers: dict[str, ProgramTimer]) -> ProgramTimer:
    return timers["default"]


def parse(text: str) -> ModuleOp:
    context = Context()
    for dialect in (Builtin, Func, Speq, pe.Pe):
        context.load_dialect(dialect)
    return Parser(context, text).parse_module()


def step_of(body: str, target: Target = TARGET, *, out: str = "tensor<1x?x64xf16>") -> ModuleOp:
    """A module with one step whose `body` gives %out from %tokens and %x, 64 values a row."""
    module = parse(f"""
      speq.weight @w from "w" : tensor<64x64xf16> {{digest = "sha256:00"}}
      speq.cache @half {{heads = 2, key_dim = 8, value_dim = 4, element_type = f16}}
      speq.cache @single {{heads = 2, key_dim = 8, value_dim = 4, element_type = f32}}
      func.func @full(%tokens: tensor<1x?xi64>) -> {out} {{
        %x = pe.gather @w[%tokens] : (tensor<1x?xi64>) -> tensor<1x?x64xf16>
        {body}
        func.return %out : {out}
      }}""")
    module.attributes["pe.target"] = target_attribute(target)
    AllocateActivationsPass().apply(Context(), module)
    return module


def function(module: ModuleOp, name: str = "full") -> FuncOp:
    (found,) = (op for op in module.ops if isinstance(op, FuncOp) and op.sym_name.data == name)
    return found


def declared(program: ModuleOp, kind: type, name: str):
    (found,) = (op for op in program.ops if isinstance(op, kind) and op.sym_name.data == name)
    return found


def of_kind(entries: Iterable[TimedOp], kind: type[Operation]) -> list[TimedOp]:
    return [entry for entry in entries if isinstance(entry.source, kind)]


@pytest.mark.parametrize("name", ["full", "draft"])
@pytest.mark.parametrize("rows", [1, 9, 80])
def test_products_cost_what_costs_says(
    program: ModuleOp, timer: ProgramTimer, name: str, rows: int
) -> None:
    entries = timer.ops(name, rows, 100)
    products = of_kind(entries, pe.GemmOp)
    assert len(products) > 10
    for product in products:
        assert isinstance(product.source, pe.GemmOp) and isinstance(product.op, Array)
        load = entries[product.op.load or 0]
        assert isinstance(load.source, pe.LoadWeightOp)
        assert isinstance(load.source.stream.type, pe.StreamType)
        view = load.source.stream.type.content
        assert isinstance(view, ViewType)
        weight = declared(program, WeightOp, load.source.weight.string_value())
        # Both views of the `sets` book read the scales of its groups of 64.
        assert weight.codebook.data == "sets"
        bits = 4 if view.view == View.DRAFT else 16
        cost = costs.gemm(*view.shape, rows, TARGET, weight_bits=bits, group_size=64)
        assert load.op == cost.load()
        assert load.dram_bytes == cost.stream_bytes
        assert replace(product.op, after=()) == replace(
            cost.compute(product.op.load),
            # With one block, nobody asks how long the others take.
            block_cycles=product.op.block_cycles if cost.blocks == 1 else cost.block_cycles,
            write_cycles=product.op.write_cycles,
        )


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("past", [0, 1, 300])
def test_attention_costs_what_costs_says(
    program: ModuleOp, timer: ProgramTimer, rows: int, past: int
) -> None:
    entries = timer.ops("full", rows, past)
    attention = of_kind(entries, pe.AttentionOp)
    for scores, softmax, values in zip(*[iter(attention)] * 3, strict=True):
        source = scores.source
        assert isinstance(source, pe.AttentionOp)
        cache = declared(program, CacheOp, source.cache.string_value())
        heads = row_type(source.query).get_shape()[1]
        shape = heads, cache.heads.value.data, cache.key_dim.value.data, past, rows, TARGET
        unit = source.unit.data.value
        for entry, cost in (
            (scores, getattr(costs, f"attention_scores_on_{unit}")(*shape)),
            (values, getattr(costs, f"attention_values_on_{unit}")(*shape)),
        ):
            assert isinstance(entry.op, Array)
            assert entry.op == cost.compute(entry.op.load, entry.op.after)
            assert (entry.op.load is None) == (past == 0)
            if entry.op.load is not None:
                assert entries[entry.op.load].op == cost.load()
                assert entries[entry.op.load].dram_bytes == cost.stream_bytes
        count = heads * rows * (past + rows)
        assert softmax.op == Vector(
            costs.vector_cycles(count, SOFTMAX_LANE_OPS, TARGET), (entries.index(scores),)
        )


def row_type(value) -> TensorType:
    assert isinstance(value.type, TensorType)
    return value.type


def test_other_operations_cost_what_costs_says(program: ModuleOp, timer: ProgramTimer) -> None:
    rows = 6
    entries = timer.ops("full", rows, 10)
    (gather,) = of_kind(entries, pe.GatherOp)
    hidden = row_type(gather.source.results[0]).get_shape()[-1]
    size = costs.tied_embedding_bytes(hidden, rows, TARGET, group_size=64)
    assert gather.dram_bytes == size
    assert gather.op == Vector(0, (), costs.dram_cycles(size, TARGET), 0)
    for store in of_kind(entries, pe.AppendOp):
        assert isinstance(store.source, pe.AppendOp)
        cache = declared(program, CacheOp, store.source.cache.string_value())
        size = sum(
            costs.cache_append_bytes(cache.heads.value.data, width.value.data, rows, TARGET)
            for width in (cache.key_dim, cache.value_dim)
        )
        assert store.dram_bytes == size
        assert isinstance(store.op, Store)
        assert store.op.cycles == costs.dram_cycles(size, TARGET)
    modes = of_kind(entries, pe.ModeOp)
    assert [entry.op for entry in modes] == [SwitchMode(64)] * len(modes)
    own = [e for e in of_kind(entries, pe.VectorOp) if e.source.kernel.data in LANE_OPS]
    assert len(own) > 8
    for entry in own:
        # Four operations an element; the weights of a norm are a stream, in one block.
        cycles = costs.vector_cycles(elements(row_type(entry.source.results[0]), rows), 4, TARGET)
        found = entry.op.last_block_cycles if isinstance(entry.op, Array) else entry.op.cycles
        assert found == cycles


@given(
    target=st.sampled_from(sorted(TARGETS)),
    name=st.sampled_from(["full", "draft"]),
    rows=st.integers(1, 70),
    past=st.integers(0, 900),
)
@settings(max_examples=25, deadline=None)
def test_closed_form_equals_the_reference(
    timers: dict[str, ProgramTimer], target: str, name: str, rows: int, past: int
) -> None:
    timer = timers[target]
    ops = [entry.op for entry in timer.ops(name, rows, past)]
    assert timer.step(name, rows, past).timing == time_step_by_blocks(ops, timer.target)


@pytest.mark.parametrize("target", ["default", "one lane", "little memory"])
@pytest.mark.parametrize("name", ["full", "draft"])
def test_more_work_takes_no_less_time(
    timers: dict[str, ProgramTimer], target: str, name: str
) -> None:
    timer = timers[target]
    by_rows = [timer.step(name, rows, 200) for rows in (1, 2, 3, 5, 8, 9, 17, 33, 64, 65, 100)]
    by_past = [timer.step(name, 1, past) for past in (0, 1, 2, 63, 64, 65, 300, 600, 900)]
    for steps in (by_rows, by_past):
        cycles = [step.timing.cycles for step in steps]
        moved = [step.dram_bytes for step in steps]
        assert cycles == sorted(cycles) and cycles[0] < cycles[-1]
        assert moved == sorted(moved) and moved[0] < moved[-1]


def test_draft_steps_move_a_good_quarter(timer: ProgramTimer) -> None:
    """4 bits and a 16-bit scale for 64 weights against 16 bits and the scale: 4.25 / 16.25."""
    full, draft = (timer.step(name, 1, 0) for name in ("full", "draft"))
    assert draft.dram_bytes / full.dram_bytes == pytest.approx(4.25 / 16.25, rel=0.05)
    assert draft.timing.cycles < 0.5 * full.timing.cycles


def test_busy_units_are_within_the_step(timer: ProgramTimer) -> None:
    for rows, past in ((1, 0), (64, 500)):
        timing, moved = timer.step("full", rows, past)
        busy = timing.dram_busy_cycles, timing.array_busy_cycles, timing.vector_busy_cycles
        assert max(busy) <= timing.cycles <= sum(busy) + 100 * len(timing.ops)
        # Whole bursts, each transfer rounded up to a cycle.
        least = moved * TARGET.clock_hz / TARGET.dram_bytes_per_second
        assert least <= timing.dram_busy_cycles <= 1.1 * least


def test_total_is_the_sum_of_the_passes(timer: ProgramTimer) -> None:
    calls = [Call("full", 7, 0), Call("draft", 1, 7), Call("draft", 1, 8), Call("full", 3, 7)]
    steps = [timer.step(*call) for call in calls]
    total = timer.total(calls)
    assert total.cycles == sum(step.timing.cycles for step in steps)
    assert total.dram_bytes == sum(step.dram_bytes for step in steps)
    assert total.seconds == total.cycles / 500_000_000
    # 18.75 pJ a bit.
    assert total.energy.dram == pytest.approx(total.dram_bytes * 150e-12)
    assert timer.total([]).cycles == 0


def test_a_step_is_timed_once(timer: ProgramTimer) -> None:
    assert timer.step("full", 3, 17) is timer.step("full", 3, 17)
    assert timer.time("full", 3, 17) == timer.step("full", 3, 17)


def test_another_cache_length_is_as_if_timed_first(program: ModuleOp) -> None:
    timer = ProgramTimer(program)
    for past in (5, 300, 0, 5, 64):
        assert timer.ops("draft", 1, past) == ProgramTimer(program).ops("draft", 1, past)


@given(steps=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=6))
@settings(max_examples=10, deadline=None)
def test_what_was_timed_before_changes_nothing(
    program: ModuleOp, steps: list[tuple[int, int]]
) -> None:
    used = ProgramTimer(program)
    for rows, past in steps:
        used.ops("full", rows, 200 * past)
    rows, past = steps[-1]
    assert used.ops("full", rows, 200 * past) == ProgramTimer(program).ops("full", rows, 200 * past)


@given(
    target=st.sampled_from(sorted(TARGETS)),
    passes=st.lists(
        st.tuples(
            st.sampled_from(["full", "draft"]),
            st.sampled_from([1, 2, 3, 9, 33, 70]),
            st.sampled_from([0, 1, 5, 64, 300, 901]),
        ),
        min_size=1,
        max_size=8,
    ),
)
@settings(max_examples=20, deadline=None)
def test_costs_of_passes_are_those_op_by_op(
    program: ModuleOp,
    timers: dict[str, ProgramTimer],
    target: str,
    passes: list[tuple[str, int, int]],
) -> None:
    """`cost` moves what it knows to other rows and lengths, in any order; `time` starts anew."""
    exact = timers[target]
    fast = ProgramTimer(retarget(program, exact.target))
    for call in passes:
        cost = fast.cost(*call)
        ops = exact.ops(*call)
        assert cost.cycles == exact.time(*call).timing.cycles
        assert cost.dram_bytes == sum(entry.dram_bytes for entry in ops)
        assert (cost.table == exact.summed(ops).table).all()


def test_unknown_function(timer: ProgramTimer) -> None:
    with pytest.raises(SpeqcError, match="the program has no step function @other"):
        timer.step("other", 1, 0)


def test_unknown_operation() -> None:
    module = parse("""
      func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?xi64> {
        %out = speq.positions %tokens : tensor<1x?xi64>
        func.return %out : tensor<1x?xi64>
      }""")
    module.attributes["pe.target"] = target_attribute(TARGET)
    with pytest.raises(SpeqcError, match=r"speq\.positions is no operation of the machine"):
        ProgramTimer(module).step("full", 1, 0)


def test_program_without_target() -> None:
    with pytest.raises(SpeqcError, match=r"no pe\.target attribute"):
        ProgramTimer(ModuleOp([]))


ADD = 'pe.vector "Add"(%x, %x) : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>'


def test_vector_operations_by_hand() -> None:
    """64 FP16 values a row: one addition is one cycle a row on 64 lanes."""
    module = step_of(f"%sum = {ADD} \n %out = {ADD.replace('%x', '%sum')}")
    _, first, second = ProgramTimer(module).ops("full", 5, 0)
    assert first.op == Vector(5, (0,), 0, 0)
    # The result goes to DRAM: 5 rows of 128 bytes take 6.25 cycles at 102.4 bytes a cycle.
    assert second.op == Vector(5, (1,), 0, 7)
    assert (first.dram_bytes, second.dram_bytes) == (0, 640)


def test_renaming_costs_nothing_and_keeps_every_operand() -> None:
    module = step_of(f"""
        %far = {ADD}
        %near = pe.vector "Abs"(%far) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
        %shape = pe.immediate dense<[1, -1, 4, 16]> : tensor<4xi64>
        %heads = pe.vector "Reshape"(%near, %shape)
          : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x?x4x16xf16>
        %flat = pe.immediate dense<[1, -1, 64]> : tensor<3xi64>
        %back = pe.vector "Reshape"(%heads, %flat)
          : (tensor<1x?x4x16xf16>, tensor<3xi64>) -> tensor<1x?x64xf16>
        %out = {ADD.replace("%x, %x", "%back, %far")}""")
    entries = ProgramTimer(module).ops("full", 2, 0)
    assert [type(entry.source) for entry in entries] == [pe.GatherOp, *[pe.VectorOp] * 3]
    assert isinstance(entries[3].op, Vector)
    assert entries[3].op.after == (1, 2)


def test_renamed_spill_is_moved_once() -> None:
    """Operations whose activations live in DRAM pay for them; a renaming between them does not."""
    body = f"""
        %a = {ADD}
        %shape = pe.immediate dense<[1, -1, 4, 16]> : tensor<4xi64>
        %heads = pe.vector "Reshape"(%a, %shape)
          : (tensor<1x?x64xf16>, tensor<4xi64>) -> tensor<1x?x4x16xf16>
        %out = pe.vector "Neg"(%heads) : (tensor<1x?x4x16xf16>) -> tensor<1x?x4x16xf16>"""
    module = step_of(body, replace(TARGET, activation_sram_bytes=128), out="tensor<1x?x4x16xf16>")
    _, add, negate = ProgramTimer(module).ops("full", 10, 0)
    # %x fills the memory for one row: all of ten rows is in DRAM, 1280 bytes a tensor.
    assert add.dram_bytes == 2 * 1280 + 1280
    assert negate.dram_bytes == 1280 + 1280


def test_spills_begin_where_memory_ends() -> None:
    body = f"%sum = {ADD} \n %out = {ADD.replace('%x', '%sum')}"
    module = step_of(body, replace(TARGET, activation_sram_bytes=256 * 4))
    (peak,) = (
        attribute.value.data  # type: ignore[attr-defined]
        for attribute in [function(module).attributes[ROW_BYTES]]
    )
    assert peak == 2 * 128
    timer = ProgramTimer(module)
    moved = [sum(e.dram_bytes for e in timer.ops("full", rows, 0)[1:]) for rows in (4, 5)]
    # Behind four rows the second tensor no longer fits: written, and read twice by the addition.
    assert moved == [4 * 128, 5 * 128 * (1 + 2 + 1)]


def test_little_memory_costs_traffic_and_time(timers: dict[str, ProgramTimer]) -> None:
    for rows in (1, 64):
        ample, little = (
            timers[name].step("full", rows, 100) for name in ("default", "little memory")
        )
        assert (little.dram_bytes > ample.dram_bytes) == (rows == 64)
        assert (little.timing.cycles > ample.timing.cycles) == (rows == 64)


def test_products_of_activations_count_their_columns() -> None:
    """[1, 64, 1] x [1, 1, M] on the vector unit: 64 M products; the last dimension is dynamic."""
    module = step_of(
        """
        %column = pe.immediate dense<1.0> : tensor<1x64x1xf16>
        %numbers = pe.vector "Cast"(%tokens) {arguments = {to = 10 : i64}}
          : (tensor<1x?xi64>) -> tensor<1x?xf16>
        %axis = pe.immediate dense<1> : tensor<1xi64>
        %row = pe.vector "Unsqueeze"(%numbers, %axis)
          : (tensor<1x?xf16>, tensor<1xi64>) -> tensor<1x1x?xf16>
        %out = pe.vector "MatMul"(%column, %row)
          : (tensor<1x64x1xf16>, tensor<1x1x?xf16>) -> tensor<1x64x?xf16>""",
        out="tensor<1x64x?xf16>",
    )
    *_, product = ProgramTimer(module).ops("full", 3, 0)
    assert isinstance(product.op, Vector)
    assert product.op.cycles == 3 * VECTOR_OPS["MatMul"].lane_ops


def attention(cache: str, element: str, unit: str = "vector") -> str:
    new = f"tensor<1x2x?x8x{element}>, tensor<1x2x?x4x{element}>"
    stream = f"!pe.stream<tensor<2x?x8x{element}>>, !pe.stream<tensor<2x?x4x{element}>>"
    keys, values = stream.split(", ")
    return f"""
        %sizes = pe.immediate dense<[1, 4, -1, 8]> : tensor<4xi64>
        %wide = pe.vector "Cast"(%x) {{arguments = {{to = 1 : i64}}}}
          : (tensor<1x?x64xf16>) -> tensor<1x?x32x{element}>
        %q = pe.vector "Reshape"(%wide, %sizes)
          : (tensor<1x?x32x{element}>, tensor<4xi64>) -> tensor<1x4x?x8x{element}>
        %k = pe.vector "Abs"(%wide) : (tensor<1x?x32x{element}>) -> tensor<1x2x?x8x{element}>
        %v = pe.vector "Abs"(%wide) : (tensor<1x?x32x{element}>) -> tensor<1x2x?x4x{element}>
        %keys = pe.load_cache @{cache} keys : {keys}
        %values = pe.load_cache @{cache} values : {values}
        pe.mode full
        %out = pe.attention @{cache}, %q, %k, %v, %keys, %values on {unit}
          {{score_type = {element}, probability_type = f16}}
          : (tensor<1x4x?x8x{element}>, {new}, {stream}) -> tensor<1x4x?x4x{element}>
        pe.append @{cache}, %k, %v : ({new})"""


@pytest.mark.parametrize("unit", ["vector", "array"])
def test_wide_caches_move_twice_the_bytes(unit: str) -> None:
    past = 7000
    loads: dict[str, int] = {}
    work: dict[str, int] = {}
    for cache, element in (("half", "f16"), ("single", "f32")):
        module = step_of(attention(cache, element, unit), out=f"tensor<1x4x?x4x{element}>")
        entries = ProgramTimer(module).ops("full", 1, past)
        loads[cache] = sum(entry.dram_bytes for entry in of_kind(entries, pe.LoadCacheOp))
        scores = of_kind(entries, pe.AttentionOp)[0].op
        assert isinstance(scores, Array) and scores.load is not None
        stream = entries[scores.load].op
        assert isinstance(stream, Load) and stream.blocks > 1
        work[cache] = (stream.blocks - 1) * scores.block_cycles + scores.last_block_cycles
    # 2 heads of 8 + 4 numbers a position.
    assert loads == {"half": past * 2 * 12 * 2, "single": past * 2 * 12 * 4}
    assert work["half"] == work["single"]


@pytest.mark.parametrize(
    ("attributes", "more"),
    [
        (
            "position_bias = #speq.position_bias"
            "<row, array<f32: 1.0, 0.5, 0.25, 0.125>, f32, f32, f32>",
            BIAS_LANE_OPS,
        ),
        ("score_divisor = 3.0 : f16", DIVISOR_LANE_OPS),
    ],
)
def test_biases_and_divisions_take_the_vector_unit_longer(attributes: str, more: int) -> None:
    text = attention("half", "f16").replace("{score_type", f"{{{attributes}, score_type")
    module = step_of(text, out="tensor<1x4x?x4xf16>")
    _, softmax, _ = of_kind(ProgramTimer(module).ops("full", 3, 100), pe.AttentionOp)
    assert isinstance(softmax.op, Vector)
    expected = costs.vector_cycles(4 * 3 * 103, SOFTMAX_LANE_OPS + more, TARGET)
    assert softmax.op.cycles == expected


def test_scores_that_do_not_fit_go_to_dram() -> None:
    past, rows = 1000, 4
    total = past + rows

    def scores(element: str, memory: int) -> list[int]:
        module = step_of(
            attention("half" if element == "f16" else "single", element),
            replace(TARGET, activation_sram_bytes=memory),
            out=f"tensor<1x4x?x4x{element}>",
        )
        entries = ProgramTimer(module).ops("full", rows, past)
        return [entry.dram_bytes for entry in of_kind(entries, pe.AttentionOp)]

    module = step_of(attention("half", "f16"), out="tensor<1x4x?x4xf16>")
    peak = function(module).attributes[ROW_BYTES].value.data  # type: ignore[attr-defined]
    # The scores of one cache head, two query heads, are on chip beside the activations.
    enough = rows * (peak + 2 * total * 2)
    result = rows * 4 * 4 * 2
    assert scores("f16", enough) == [0, 0, result]
    size = 4 * rows * total * 2
    assert scores("f16", enough - 1) == [size, 2 * size, size + result]
    # Scores in FP32 take twice as much, their probabilities in FP16 do not.
    assert scores("f32", enough) == [2 * size, 3 * size, size + 2 * result]


def accessed(entry: Operation) -> list[tuple[int, int]]:
    """Places that an operation reads or writes."""
    found = (sram_place(value) for value in (*entry.operands, *entry.results))
    return [place for place in found if place is not None]


@pytest.mark.parametrize("target", ["default", "small array", "one bank"])
@pytest.mark.parametrize("name", ["full", "draft"])
@pytest.mark.parametrize(("rows", "past"), [(1, 0), (1, 300), (9, 500), (64, 0), (64, 300)])
def test_no_place_is_written_while_it_is_in_use(
    timers: dict[str, ProgramTimer], target: str, name: str, rows: int, past: int
) -> None:
    """Units run side by side: an operation must not overwrite what another still reads."""
    timer = timers[target]
    spans: dict[Operation, tuple[int, int]] = {}
    timing = timer.step(name, rows, past).timing
    for entry, when in zip(timer.ops(name, rows, past), timing.ops, strict=True):
        start, end = spans.get(entry.source, (when.start, when.end))
        spans[entry.source] = min(start, when.start), max(end, when.end)
    before: list[Operation] = []
    for op, (start, _) in spans.items():
        written = [place for value in op.results if (place := sram_place(value)) is not None]
        for other in before:
            for first, end in written:
                if any(a < end and first < b for a, b in accessed(other)):
                    assert spans[other][1] <= start, f"{other} is overwritten by {op}"
        before.append(op)


def test_places_are_reused(program: ModuleOp) -> None:
    """The test above is not passed by giving every activation a place of its own."""
    step = function(program)
    peak = step.attributes[ROW_BYTES].value.data  # type: ignore[attr-defined]
    own = [op for op in step.body.block.ops if op.results and sram_place(op.results[0])]
    sizes = [row_bytes(row_type(r)) for op in own if not shares_buffer(op) for r in op.results]
    assert sum(sizes) > 4 * peak


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_cost_is_the_sum_of_the_step(
    program: ModuleOp, timers: dict[str, ProgramTimer], target: str
) -> None:
    # A timer that knows no step yet: the first length makes a table, the others change it.
    fresh = ProgramTimer(retarget(program, TARGETS[target]))
    for name, rows in (("full", 1), ("draft", 1), ("full", 9), ("full", 80)):
        for past in (0, 77, 78, 64, 901, 1):
            step = timers[target].step(name, rows, past)
            cost = fresh.cost(name, rows, past)
            assert (cost.cycles, cost.dram_bytes) == (step.timing.cycles, step.dram_bytes)
            assert np.array_equal(cost.table, by_hand(timers[target], name, rows, past))


def by_hand(timer: ProgramTimer, name: str, rows: int, past: int) -> NDArray[np.int64]:
    """A pass's table, from its ops one by one, and from the reference that walks its blocks."""
    entries = timer.ops(name, rows, past)
    timing = time_step_by_blocks([entry.op for entry in entries], timer.target)
    table = empty_table()
    for entry, op, parts in zip(entries, timing.ops, timing.parts, strict=True):
        kind = KINDS.index(kind_of(entry.source))
        cycles_of(table)[kind, BOUNDS.index(op.bound)] += parts
        table[kind, DRAM_BYTES:] += (entry.dram_bytes, *entry.work)
    assert table[:, CYCLES].sum() == timing.cycles
    return table


def test_drafts_that_lanes_cannot_multiply_take_the_full_multipliers(program: ModuleOp) -> None:
    _, full, draft, _ = work_of(ProgramTimer(program).cost("draft", 1, 5).table)
    narrow = ProgramTimer(retarget(program, replace(TARGET, draft_mantissa_bits=0)))
    _, more, none, _ = work_of(narrow.cost("draft", 1, 5).table)
    assert draft > 0 == none
    assert more > full


def test_longest_past(program: ModuleOp, timer: ProgramTimer) -> None:
    held = ProgramTimer(program, longest_past=100)
    for past in (0, 60, 100):
        assert held.step("full", 1, past) == timer.step("full", 1, past)
    for past in (101, 700):
        assert held.cost("draft", 1, past) == timer.cost("draft", 1, 100)
        assert held.ops("full", 2, past)[3].dram_bytes == timer.ops("full", 2, 100)[3].dram_bytes


@pytest.mark.parametrize("rows", [1, 5])
def test_look_ups_move_rows_in_whole_bursts(rows: int) -> None:
    # A row of 64 FP16 values is two bursts; one of 10 lies across two of 64 bytes at worst.
    for width, bursts in ((64, 2), (10, 2)):
        module = step_of(
            f"""
            %p = pe.positions %tokens : tensor<1x?xi64>
            %r = pe.lookup "t"[%p] {{digest = "sha256:01"}}
              : (tensor<500x{width}xf16>, tensor<1x?xi64>) -> tensor<1x?x{width}xf16>
            %out = pe.vector "Identity"(%r) : (tensor<1x?x{width}xf16>) -> tensor<1x?x{width}xf16>
            """,
            out=f"tensor<1x?x{width}xf16>",
        )
        (found,) = of_kind(ProgramTimer(module).ops("full", rows, 0), pe.LookupOp)
        assert isinstance(found.op, Vector) and found.op.cycles == 0
        assert found.op.read_cycles == costs.dram_cycles(rows * bursts * 64, TARGET)
        spilled = rows * width * 2
        assert found.dram_bytes in (rows * bursts * 64, rows * bursts * 64 + spilled)


def test_look_up_waits_for_computed_indices() -> None:
    module = step_of("""
        %q = pe.vector "Add"(%tokens, %tokens)
          : (tensor<1x?xi64>, tensor<1x?xi64>) -> tensor<1x?xi64>
        %r = pe.lookup "t"[%q] {digest = "sha256:01"}
          : (tensor<500x64xf16>, tensor<1x?xi64>) -> tensor<1x?x64xf16>
        %out = pe.vector "Add"(%r, %x)
          : (tensor<1x?x64xf16>, tensor<1x?x64xf16>) -> tensor<1x?x64xf16>""")
    timer = ProgramTimer(module)
    entries = timer.ops("full", 3, 0)
    timing = timer.step("full", 3, 0).timing
    by_kind = {
        entry.source.name: when
        for entry, when in zip(entries, timing.ops, strict=True)
        if not isinstance(entry.source, pe.VectorOp)
    }
    add = next(
        when
        for entry, when in zip(entries, timing.ops, strict=True)
        if isinstance(entry.source, pe.VectorOp)
    )
    assert by_kind["pe.lookup"].start >= add.ready + TARGET.dram_latency_cycles
