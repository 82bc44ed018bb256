from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pe_text import TO_PE, RunPasses, model
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.artifact import load_artifact
from speqc.dialects.pe import (
    AppendOp,
    AttentionOp,
    LoadCacheOp,
    LoadConstantOp,
    LoadWeightOp,
)
from speqc.passes.allocate_activations import AllocateActivationsPass
from speqc.passes.verify_pe import VerifyPePass
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.target import Target
from speqc.runtime.timing import Store

UNSCHEDULED = tuple(name for name in TO_PE if name != "schedule-loads")

LOADS = LoadWeightOp | LoadConstantOp | LoadCacheOp


def functions(module: ModuleOp) -> list[FuncOp]:
    return [op for op in module.ops if isinstance(op, FuncOp)]


def names(module: ModuleOp, *, loads: bool) -> list[str]:
    """Operations of the steps in order: the loads, or all that are neither loads nor stores."""
    ops = (op for step in functions(module) for op in step.body.block.ops)
    if loads:
        return [str(op) for op in ops if isinstance(op, LOADS)]
    return [op.name for op in ops if not isinstance(op, LOADS | AppendOp)]


def test_only_loads_and_stores_move(run_passes: RunPasses) -> None:
    before, after = run_passes(model(), *UNSCHEDULED), run_passes(model(), *TO_PE)
    for loads in (False, True):
        assert names(after, loads=loads) == names(before, loads=loads)
    VerifyPePass().apply(Context(), after)


def unscheduled(program: ModuleOp) -> ModuleOp:
    """The same program with loads just ahead of their consumers, stores just behind attention."""
    module = program.clone()
    for step in functions(module):
        ops = list(step.body.block.ops)
        attention = {op.cache: op for op in ops if isinstance(op, AttentionOp)}
        for op in ops:
            if isinstance(op, AppendOp):
                move(op, InsertPoint.after(attention[op.cache]))
            elif isinstance(op, LOADS):
                (use,) = op.results[0].uses
                move(op, InsertPoint.before(use.operation))
    AllocateActivationsPass().apply(Context(), module)
    VerifyPePass().apply(Context(), module)
    return module


def move(op: Operation, place: InsertPoint) -> None:
    op.detach()
    Rewriter.insert_op(op, place)


@given(
    banks=st.integers(1, 12),
    bank_kib=st.integers(9, 70),
    bandwidth=st.sampled_from([10**9, 10**10, 51_200_000_000, 10**12]),
    latency=st.sampled_from([0, 100, 2000]),
    lanes=st.sampled_from([1, 4]),
    vector_lanes=st.sampled_from([1, 8, 64]),
    step=st.sampled_from(["full", "draft"]),
    rows=st.integers(1, 16),
    past=st.integers(0, 110),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_slower_by_no_more_than_a_store(
    run_passes: RunPasses,
    banks: int,
    bank_kib: int,
    bandwidth: int,
    latency: int,
    lanes: int,
    vector_lanes: int,
    step: str,
    rows: int,
    past: int,
) -> None:
    """With all activations on chip, for they live longer where a store waits for the next product.

    Such a store may cost its own time, where the channel would have been idle at its old place.
    """
    target = replace(
        Target(),
        weight_sram_banks=banks,
        weight_sram_bytes=banks * bank_kib * 1024,
        dram_bytes_per_second=bandwidth,
        dram_latency_ns=latency,
        draft_lanes=lanes,
        vector_lanes=vector_lanes,
    )
    before, after = (
        ProgramTimer(run_passes(model(target), *names)) for names in (UNSCHEDULED, TO_PE)
    )
    stores = [entry.op for entry in after.ops(step, rows, past) if isinstance(entry.op, Store)]
    assert len(stores) == 1
    plain, scheduled = before.step(step, rows, past), after.step(step, rows, past)
    assert scheduled.dram_bytes == plain.dram_bytes
    assert scheduled.timing.cycles <= plain.timing.cycles + stores[0].cycles


def test_faster_on_a_real_model(embedded: Callable[[str], Path]) -> None:
    program = load_artifact(embedded("sets")).program
    scheduled, plain = ProgramTimer(program), ProgramTimer(unscheduled(program))
    for step in ("full", "draft"):
        for rows, past in ((1, 0), (1, 500), (9, 64), (32, 500)):
            ours = scheduled.step(step, rows, past).timing.cycles
            assert ours < 0.95 * plain.step(step, rows, past).timing.cycles


@pytest.mark.parametrize(("consumers", "message"), [(0, "this one has 0"), (2, "this one has 2")])
def test_streams_have_one_consumer(run_passes: RunPasses, consumers: int, message: str) -> None:
    full, draft = str(run_passes(model(), *UNSCHEDULED)).split("func.func @draft")
    norm = next(line for line in full.splitlines() if "rms_norm" in line)
    copies = [norm.replace("%normed = ", f"%copy_{place} = ") for place in range(consumers)]
    before, behind = full.split(norm)
    behind = behind.replace("%normed", "%x")
    text = "\n".join((before, *copies, behind)) + "func.func @draft" + draft
    with pytest.raises(SpeqcError, match=f"a stream has one consumer, {message}"):
        run_passes(text, "schedule-loads")
