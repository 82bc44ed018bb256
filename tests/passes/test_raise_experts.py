"""A mixture of experts on its way from the dense form to a program, and what that costs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from expert_text import CHOSEN, EXPERTS, TO_PE, model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, ModuleOp, i64
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation
from xdsl.parser import Parser

from speqc.dialects import pe
from speqc.dialects.speq import EXPERTS as ATTRIBUTE
from speqc.dialects.speq import MatmulOp
from speqc.passes.finish_order import FinishOrder
from speqc.passes.verify_pe import VerifyPePass
from speqc.runtime import costs
from speqc.runtime.activations import sram_place
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer, TimedOp
from speqc.runtime.routing import Chosen, Router, expected_rows
from speqc.runtime.target import Target
from speqc.runtime.timing import Array, Load, Skip, Vector
from speqc.runtime.timing_reference import time_step_by_blocks

RunPasses = Callable[..., ModuleOp]

TARGETS = {
    "default": Target(),
    "little memory": replace(Target(), activation_sram_bytes=20_000),
    "small array": replace(
        Target(),
        array_rows=16,
        array_columns=32,
        weight_sram_bytes=49_152,
        weight_sram_banks=3,
        dram_latency_ns=13,
    ),
    "one bank": replace(Target(), weight_sram_banks=1, vector_lanes=7),
}

ALL = 2 * EXPERTS


@pytest.fixture
def program(run_passes: RunPasses) -> ModuleOp:
    return run_passes(model(), *TO_PE, "verify-pe")


@pytest.fixture
def timer(program: ModuleOp) -> ProgramTimer:
    return ProgramTimer(program)


def steps(module: ModuleOp) -> list[FuncOp]:
    return [op for op in module.ops if isinstance(op, FuncOp)]


def test_both_steps_have_the_experts(timer: ProgramTimer) -> None:
    for name in ("full", "draft"):
        assert timer.routers(name) == [Router(EXPERTS, CHOSEN)] * 2


def test_all_between_the_products_of_an_expert_has_its_predicate(program: ModuleOp) -> None:
    for step in steps(program):
        kinds = [
            op.kernel.data if isinstance(op, pe.VectorOp) else op.name
            for op in step.body.block.ops
            if isinstance(op, pe.GemmOp | pe.VectorOp) and op.predicate is not None
        ]
        assert kinds == ["pe.gemm", "Sigmoid", "Mul", "pe.gemm"] * ALL


def test_dense_models_stay_as_they_are(run_passes: RunPasses) -> None:
    """Without a choice no pass changes anything, nor does it where a gate is never zero."""
    text = model().replace("onnx.Mul %l0b, %l0e0f", "onnx.Add %l0b, %l0e0f")
    raised = run_passes(text, "raise-experts")
    chosen = [op.predicate for op in raised.walk() if isinstance(op, MatmulOp)]
    # The weight of one expert is no longer zero anywhere: its router's experts are no choice.
    assert sum(predicate is not None for predicate in chosen) == 2 * EXPERTS
    plain = run_passes(model(), "form-draft-verify", "lower-to-pe")
    before = str(plain)
    run = run_passes(before, "predicate-vectors")
    assert str(run) == before


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    target=st.sampled_from(sorted(TARGETS)),
    step=st.sampled_from(["full", "draft"]),
    rows=st.integers(1, 70),
    past=st.integers(0, 120),
    data=st.data(),
)
def test_closed_form_equals_the_reference(
    run_passes: RunPasses, target: str, step: str, rows: int, past: int, data: st.DataObject
) -> None:
    timer = _timer(run_passes, target)
    chosen = tuple(data.draw(st.lists(st.integers(0, rows), min_size=ALL, max_size=ALL)))
    ops = [entry.op for entry in timer.ops(step, rows, past, chosen)]
    timing = timer.step(step, rows, past, chosen).timing
    assert timing == time_step_by_blocks(ops, timer.target)
    _check_places(timer.ops(step, rows, past, chosen), timing.ops)


TIMERS: dict[str, ProgramTimer] = {}


def _timer(run_passes: RunPasses, target: str) -> ProgramTimer:
    if target not in TIMERS:
        module = run_passes(model(TARGETS[target]), *TO_PE, "verify-pe")
        TIMERS[target] = ProgramTimer(module)
    return TIMERS[target]


def _check_places(entries, timings) -> None:
    """No operation writes where another, which has not ended, still reads or writes."""
    spans: dict[Operation, tuple[int, int]] = {}
    for entry, when in zip(entries, timings, strict=True):
        if isinstance(entry.op, Skip):
            continue
        start, end = spans.get(entry.source, (when.start, when.end))
        spans[entry.source] = min(start, when.start), max(end, when.end)
    before: list[Operation] = []
    for op, (start, _) in spans.items():
        written = [place for value in op.results if (place := sram_place(value)) is not None]
        for other in before:
            values = (*other.operands, *other.results)
            accessed = [place for value in values if (place := sram_place(value)) is not None]
            for first, end in written:
                if any(a < end and first < b for a, b in accessed):
                    assert spans[other][1] <= start, f"{other} is overwritten by {op}"
        before.append(op)


def of_experts(entries: list[TimedOp]) -> list[TimedOp]:
    return [
        entry
        for entry in entries
        if isinstance(entry.source, pe.LoadWeightOp | pe.GemmOp | pe.VectorOp)
        and entry.source.predicate is not None
    ]


def test_an_expert_that_nobody_chose_costs_nothing(timer: ProgramTimer) -> None:
    entries = timer.ops("full", 4, 9, (0,) * ALL)
    left = of_experts(entries)
    # For each product the channel learns that its load is not needed.
    assert [type(entry.op) for entry in left] == [Skip] * 2 * ALL
    assert sum(entry.dram_bytes for entry in left) == 0
    nobody = timer.step("full", 4, 9, (0,) * ALL)
    one = timer.step("full", 4, 9, (0, 0, 1, 0, 0, 0))
    traffic = sum(
        costs.gemm(k, n, 1, Target(), weight_bits=16, group_size=64).stream_bytes
        for k, n in ((64, 512), (512, 64))
    )
    assert one.dram_bytes - nobody.dram_bytes == traffic
    assert one.timing.cycles > nobody.timing.cycles


def test_cost_follows_the_rows_that_chose(timer: ProgramTimer) -> None:
    few, many = (of_experts(timer.ops("full", 200, 0, (rows, *[0] * 5))) for rows in (1, 128))
    pairs = [(a.op, b.op) for a, b in zip(few, many, strict=True) if not isinstance(a.op, Skip)]
    loads = [pair for pair in pairs if isinstance(pair[0], Load)]
    assert len(loads) == 2 and all(a == b for a, b in loads)
    arrays = [(a, b) for a, b in pairs if isinstance(a, Array) and isinstance(b, Array)]
    # 64 rows of the array for one row of activations, 128 for 128.
    assert len(arrays) == 2
    assert all(b.last_block_cycles == 2 * a.last_block_cycles for a, b in arrays)
    vectors = [
        (a.cycles, b.cycles) for a, b in pairs if isinstance(a, Vector) and isinstance(b, Vector)
    ]
    # Sigmoid: 7 operations on each of 512 elements by 64 lanes; a product: one.
    assert vectors == [(56, 128 * 56), (8, 128 * 8)]


def test_loads_wait_for_the_predicate(timer: ProgramTimer) -> None:
    entries = timer.ops("full", 1, 9, (1, 1, 0, 1, 0, 1))
    timing = timer.step("full", 1, 9, (1, 1, 0, 1, 0, 1)).timing
    ready = {entry.source: when.ready for entry, when in zip(entries, timing.ops, strict=True)}
    waited = 0
    for entry, when in zip(entries, timing.ops, strict=True):
        if isinstance(entry.source, pe.LoadWeightOp) and entry.source.predicate is not None:
            owner = entry.source.predicate.owner
            assert when.start >= ready[owner]
            waited += 1
    assert waited == 2 * 4


def test_without_a_record_the_expected_rows_are_timed(timer: ProgramTimer) -> None:
    for rows in (1, 2, 9):
        expected = expected_rows(timer.routers("full"), rows)
        assert timer.step("full", rows, 5) == timer.step("full", rows, 5, expected)


@pytest.mark.parametrize("chosen", [(1,), (1,) * 7])
def test_a_pass_of_another_program_is_refused(timer: ProgramTimer, chosen: Chosen) -> None:
    with pytest.raises(SpeqcError, match=rf"has 6 experts, the pass to time {len(chosen)}"):
        timer.step("full", 1, 0, chosen)


def verify(module: ModuleOp) -> None:
    VerifyPePass().apply(Context(), module)


def test_a_product_has_the_predicate_of_its_load(program: ModuleOp) -> None:
    gemms = [op for op in program.walk() if isinstance(op, pe.GemmOp) and op.predicate is not None]
    gemms[0].operands[2] = gemms[2].operands[2]
    with pytest.raises(SpeqcError, match=r"@full, pe\.gemm: its weight is loaded with another"):
        verify(program)


def test_experts_are_declared(program: ModuleOp) -> None:
    step = steps(program)[0]
    step.attributes[ATTRIBUTE] = ArrayAttr([DenseArrayBase.from_list(i64, [EXPERTS, CHOSEN])])
    with pytest.raises(SpeqcError, match=r"have 6 predicates, speq\.experts tells of 3"):
        verify(program)


def test_what_is_skipped_waits_for_its_predicate_alone(context: Context) -> None:
    """A product that may not run says nothing of the one before it on the array."""
    module = Parser(
        context,
        """
      func.func @full(%x: tensor<1x?x64xf16>, %w: tensor<1x?x1xf16>,
          %a: !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16> {
        %chosen = pe.vector "Cast"(%w) {arguments = {to = 9 : i64}}
          : (tensor<1x?x1xf16>) -> tensor<1x?x1xi1>
        %slow = pe.gemm %x, %a
          : (tensor<1x?x64xf16>, !pe.stream<!speq.view<64x64, full>>) -> tensor<1x?x64xf16>
        %few = pe.vector "Neg"(%slow) when %chosen : tensor<1x?x1xi1>
          : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
        %fewer = pe.vector "Abs"(%few) when %chosen : tensor<1x?x1xi1>
          : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
        %out = pe.vector "Exp"(%fewer) : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>
        func.return %out : tensor<1x?x64xf16>
      }""",
    ).parse_module()
    (step,) = steps(module)
    order = FinishOrder(step)
    cast, slow, few, fewer, out, _ = step.body.block.ops
    assert order.before(few) == order.set_of(cast, slow)
    assert order.before(fewer) & order.set_of(few)
    # Where no row is chosen nothing waits for %slow; what is not run has ended all the same.
    assert order.before(out) == order.set_of(cast, few, fewer)
