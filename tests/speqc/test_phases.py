"""Sums by phase and by kind: of every shipped shape, on every shipped target, and in reports."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from speqc.compile import CompileOptions
from speqc.compile_shape import compile_shape
from speqc.op_report import pass_fields
from speqc.phases import added, passes_of, phase_fields, run_sums
from speqc.retarget import retarget
from speqc.runtime.calls import Call
from speqc.runtime.energy import Work, energy
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.step_sums import CYCLES, DRAM_BYTES, WORK
from speqc.runtime.timing import BOUNDS, Parts
from speqc.shape_files import load_shape, shipped_shapes
from speqc.target_files import DEFAULT_TARGET, load_target, shipped_targets

CONTEXTS = 1, 300, 4000

PASSES = ("draft", 1), ("full", 1), ("full", 9), ("full", 64)
"""A draft step, a plain one, one that verifies, a chunk of a prompt."""


SHAPES = [name for name in shipped_shapes() if name != "vicuna-7b"]
"""That one has the sizes of llama-2-7b."""


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> ModuleOp:
    """Each shipped shape, compiled for the default target."""
    return compile_shape(load_shape(request.param), CompileOptions(load_target(DEFAULT_TARGET)))


def check_sums(sums: Mapping[str, Any]) -> None:
    """Parts, bounds and components each add up to their total."""
    cycles = sums["cycles"]
    assert sum(sums[part] for part in Parts._fields) == pytest.approx(cycles, rel=1e-12)
    assert sum(sums["cycles_by_bound"].values()) == pytest.approx(cycles, rel=1e-12)
    components = sums["energy_by_component"]
    assert components.keys() == {"dram", "sram", "array", "vector"}
    assert sum(components.values()) == pytest.approx(sums["energy_joules"])


def check_report(simulated: Mapping[str, Any]) -> None:
    """What a report says of a run's phases and kinds is what it says of the run."""
    phases = simulated["by_phase"].values()
    for phase in phases:
        check_sums(phase)
        for kind in phase["by_kind"].values():
            check_sums(kind)
        kinds = run_sums(phase["by_kind"].values())
        for key in ("cycles", "dram_bytes", "energy_joules", *Parts._fields):
            assert kinds[key] == pytest.approx(phase[key], rel=1e-12)
    for key in ("cycles", "dram_bytes", "energy_joules"):
        assert sum(phase[key] for phase in phases) == pytest.approx(simulated[key], rel=1e-12)


def test_parts_of_every_shape_and_context_add_up(shape: ModuleOp) -> None:
    timer = ProgramTimer(shape)
    for name, rows in PASSES:
        for past in CONTEXTS:
            step = timer.step(name, rows, past)
            assert sum(map(sum, step.timing.parts)) == step.timing.cycles
            assert {op.bound for op in step.timing.ops} <= set(BOUNDS)
            cost = timer.cost(name, rows, past)
            ops = timer.ops(name, rows, past)
            assert cost.cycles == cost.table[:, CYCLES].sum() == step.timing.cycles
            assert cost.table[:, DRAM_BYTES].sum() == sum(op.dram_bytes for op in ops)
            work = np.array([op.work for op in ops]).sum(0)
            assert cost.table[:, WORK].sum(0).tolist() == work.tolist()
            # The same floating-point sums, as they come from the same whole numbers.
            total = energy(cost.dram_bytes, Work(*work.tolist()), timer.target)
            assert timer.total([Call(name, rows, past)]).energy == total


@pytest.mark.parametrize("target", sorted(set(shipped_targets()) - {DEFAULT_TARGET}))
def test_every_shape_is_timed_on_every_target(shape: ModuleOp, target: str) -> None:
    timer = ProgramTimer(retarget(shape, load_target(target)))
    for rows in (1, 9, 64):
        cost = timer.cost("full", rows, 1000)
        least = cost.dram_bytes * timer.target.clock_hz / timer.target.dram_bytes_per_second
        assert cost.cycles >= least
        assert cost.cycles == cost.table[:, CYCLES].sum()


def test_the_omitted_shape_has_the_sizes_of_another() -> None:
    assert load_shape("vicuna-7b") == load_shape("llama-2-7b")


@pytest.mark.parametrize("target", shipped_targets())
def test_the_embedded_model_compiles_for_and_runs_on_every_target(
    invoke, model, tmp_path, target
) -> None:
    out = tmp_path / "out.speq"
    assert invoke("compile", model, "-o", out, "--target", target).exit_code == 0
    file = tmp_path / "run.json"
    command = ("run", out, "--token-ids", "5,6,7", "-n", "8", "--draft-length", "3")
    result = invoke(*command, "--json", file)
    assert result.exit_code == 0, result.stderr
    fields = json.loads(file.read_text())
    assert fields["target"] == target
    check_report(fields["simulated"])


def test_weights_are_written_once_and_read_once(shape: ModuleOp) -> None:
    """At one row, on-chip traffic is that of the weights but for a few per cent."""
    timer = ProgramTimer(shape)
    total = timer.total([Call("full", 1, 1)])
    bits = int(total.table[:, WORK.start].sum())
    assert 2 * 8 <= bits / total.dram_bytes <= 2 * 8 * 1.15


def test_ops_of_a_pass_add_up_to_it(shape: ModuleOp) -> None:
    timer = ProgramTimer(shape)
    calls = [Call("full", 64, 0), Call("draft", 1, 64), Call("full", 2, 64)]
    passes = passes_of(calls, 64, verifies=True)
    found = pass_fields(timer, passes)
    assert [entry["phase"] for entry in found] == ["prompt", "draft", "verify"]
    phases = phase_fields(timer, passes)
    for entry, phase in zip(found, phases.values(), strict=True):
        ops = entry["ops"]
        assert entry["cycles"] == phase["cycles"] == max(op["ready"] for op in ops)
        for key in ("load", "ideal", "stall", "drain", "dram_bytes"):
            assert sum(op[key] for op in ops) == phase[key]
        assert sum(op["energy_joules"] for op in ops) == pytest.approx(phase["energy_joules"])
        for kind, sums in phase["by_kind"].items():
            own = [op for op in ops if op["kind"] == kind]
            assert sum(op["dram_bytes"] for op in own) == sums["dram_bytes"]
            assert sum(op["ideal"] for op in own) == sums["ideal"]


def test_phases_of_a_run() -> None:
    calls = [Call("full", 3, 0), Call("draft", 1, 3), Call("draft", 1, 3), Call("full", 1, 3)]
    passes = passes_of(calls, 3, verifies=True)
    assert {phase: sum(weighted.values()) for phase, weighted in passes.items()} == {
        "prompt": 1,
        "draft": 2,
        "verify": 1,
    }
    assert list(passes_of(calls, 3, verifies=False)) == ["prompt", "draft", "plain"]


def test_added_objects_keep_what_only_one_has() -> None:
    assert added({"a": 1, "o": {"x": 2}}, {"a": 3, "o": {"y": 4}, "b": 5}) == {
        "a": 4,
        "o": {"x": 2, "y": 4},
        "b": 5,
    }


@pytest.mark.parametrize("acceptance", [None, 0.8])
def test_simulate_reports_phases(invoke, kjv, acceptance) -> None:
    arguments = ["simulate", kjv, "--prompt-length", "70", "--new-tokens", "12"]
    if acceptance is not None:
        arguments += ["--acceptance", acceptance, "--draft-length", "3"]
    result = invoke(*arguments, "--ops", "--json", "-")
    fields = json.loads(result.stdout)
    check_report(fields["simulated"])
    check_report(fields["baseline"]["simulated"])
    ours = ["prompt", "plain"] if acceptance is None else ["prompt", "draft", "verify"]
    assert list(fields["simulated"]["by_phase"]) == ours
    assert [entry["phase"] for entry in fields["passes"]] == ours
    assert list(fields["baseline"]["simulated"]["by_phase"]) == ["prompt", "plain"]
    text = invoke(*arguments).stdout
    for word in ("where cycles go", *ours, "product", "attention", "energy: ", "of which: DRAM"):
        assert word in text
    assert "gemm" not in text
    listed = invoke(*arguments, "--ops").stdout
    assert listed.startswith(text)
    for entry in fields["passes"]:
        rows = "1 row" if entry["rows"] == 1 else f"{entry['rows']} rows"
        assert f"{entry['phase']}: {rows} behind {entry['past']} positions" in listed
        assert all(op["name"] in listed for op in entry["ops"])


def test_a_run_reports_phases(invoke, kjv, tmp_path) -> None:
    file = tmp_path / "run.json"
    for mode, phases in {
        "speculative": {"prompt", "draft", "verify"},
        "autoregressive": {"prompt", "plain"},
        "draft": {"prompt", "draft"},
    }.items():
        command = ("run", kjv, "--token-ids", "5,6,7", "-n", "12", "--mode", mode)
        assert invoke(*command, "--json", file).exit_code == 0
        simulated = json.loads(file.read_text())["simulated"]
        check_report(simulated)
        assert simulated["by_phase"].keys() == phases
