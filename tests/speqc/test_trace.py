import itertools
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import expert_models
import jsonschema
import onnx
import pytest
from onnx_models import decoder
from trace_schema import TRACE

from speqc import trace
from speqc.artifact import load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.replay import Replay
from speqc.report import prompt_calls, round_calls
from speqc.retarget import retarget
from speqc.runtime.calls import Call
from speqc.runtime.decode import Round
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.target import Target
from speqc.simulate import drawn_run
from speqc.step_facts import StepFacts, step_facts
from speqc.target_files import load_target
from speqc.trace import HOST, MACHINE, TRACKS, TracedRun, trace_events

ROUNDS = (Round(2, 1, False), Round(3, 3, True), Round(0, 0, False))
PROMPT = 70
CALLS = (Call("draft", 1, 90), Call("full", 9, 90), Call("full", 64, 0))
UNITS = ("dram", "array", "vector")

Slices = list[tuple[int, int, str]]


@pytest.fixture(scope="module")
def timer(kjv: Path) -> ProgramTimer:
    return ProgramTimer(load_artifact(kjv).program)


@pytest.fixture(scope="module")
def odd_timer(kjv: Path) -> ProgramTimer:
    """A machine of which no cycle takes whole nanoseconds, with little memory for activations."""
    odd = replace(Target(), clock_hz=1_300_000_000, activation_sram_bytes=4096)
    return ProgramTimer(retarget(load_artifact(kjv).program, odd))


def a_run() -> TracedRun:
    calls = prompt_calls(PROMPT, 64) + round_calls(PROMPT, ROUNDS)
    return TracedRun(PROMPT, calls, ROUNDS)


def slices(events: list[dict]) -> dict[tuple[int, int], Slices]:
    """Complete events by track, in nanoseconds: start, end, name."""
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            start, length = round(event["ts"] * 1000), round(event["dur"] * 1000)
            tracks[event["pid"], event["tid"]].append((start, start + length, event["name"]))
    return tracks


def leaves(track: Slices) -> Slices:
    """Slices of a track that no other one lies in; those that hold others come before them."""
    return [
        one
        for one, following in itertools.pairwise([*track, (track[-1][1], track[-1][1], "")])
        if following[0] >= one[1]
    ]


def busy(facts: StepFacts, unit: str) -> int:
    return getattr(facts.timing, f"{unit}_busy_cycles")


@pytest.mark.parametrize("call", CALLS)
def test_operations_add_up_to_the_step(
    timer: ProgramTimer, odd_timer: ProgramTimer, call: Call
) -> None:
    for each in timer, odd_timer:
        facts, cost = step_facts(each, call), each.step(*call)
        assert facts.timing == cost.timing
        assert sum(op.dram_bytes for op in facts.ops) == cost.dram_bytes
        assert sum(op.dram_cycles for op in facts.ops) == cost.timing.dram_busy_cycles
        for unit in "array", "vector":
            assert sum(op.unit_cycles for op in facts.ops if op.unit == unit) == busy(facts, unit)
        assert max(op.ready for op in facts.ops) <= cost.timing.cycles
        for op in facts.ops:
            longest = "dram" if op.dram_cycles > op.unit_cycles or op.unit == "dram" else op.unit
            assert op.bound == longest, op


def test_blocks_have_the_bytes_of_their_stream(timer: ProgramTimer) -> None:
    facts = step_facts(timer, CALLS[1])
    moved = defaultdict(int)
    for hold in facts.holds:
        moved[hold.op] += facts.hold_bytes(hold) or 0
    streams = {place for place, size in moved.items() if size}
    assert streams == set(facts.blocks)
    ops = timer.ops(*CALLS[1])
    assert {place: moved[place] for place in streams} == {p: ops[p].dram_bytes for p in streams}


def test_operations_of_products_by_hand(timer: ProgramTimer) -> None:
    head = step_facts(timer, CALLS[1]).ops[-1]
    assert (head.name, head.mode, head.kind) == ("gemm model.lm_head", "full", "product")
    assert head.operations == 2 * 9 * 256 * 2048
    draft = step_facts(timer, CALLS[0]).ops
    assert {op.mode for op in draft if op.kind == "product"} == {"draft"}
    scores = next(op for op in draft if op.name == "attention scores")
    # Four heads of 64 over the 90 cached positions and the new one.
    assert scores.operations == 2 * 4 * 64 * 91


def test_tracks_add_up_to_each_step(timer: ProgramTimer) -> None:
    run = a_run()
    start = 0
    for number, call in enumerate(run.calls):
        cost = timer.step(*call).timing
        only = TracedRun(0, [call], ())
        tracks = slices(list(trace_events(timer, only, 1)))
        ends = []
        for unit in UNITS:
            parts = leaves(tracks[MACHINE, TRACKS[unit][0]])
            # At 500 MHz a cycle takes two nanoseconds.
            assert sum(end - begin for begin, end, _ in parts) == 2 * getattr(
                cost, f"{unit}_busy_cycles"
            )
            ends.append(parts[-1][1])
        assert max(ends) == 2 * cost.cycles
        steps = leaves(slices(list(trace_events(timer, run, 0)))[HOST, 1])
        assert steps[number][:2] == (2 * start, 2 * (start + cost.cycles))
        start += cost.cycles


@pytest.mark.parametrize("name", ["timer", "odd_timer"])
def test_slices_of_a_track_nest(name: str, request: pytest.FixtureRequest) -> None:
    each = request.getfixturevalue(name)
    tracks = slices(list(trace_events(each, a_run(), 4)))
    assert set(tracks) == {(HOST, 1), *((MACHINE, number) for number, _ in TRACKS.values())}
    for track in tracks.values():
        open_slices: list[int] = []
        for start, end, name in track:
            while open_slices and open_slices[-1] <= start:
                open_slices.pop()
            assert not open_slices or end <= open_slices[-1], name
            assert start <= end
            open_slices.append(end)


def test_passes_without_blocks_are_not_listed_op_by_op(timer: ProgramTimer, monkeypatch) -> None:
    """Slices and counters of a pass that is not shown come from its sums: the same, and fast."""
    quick = list(trace_events(timer, a_run(), 0))
    monkeypatch.setattr(timer, "time", None)
    monkeypatch.setattr(timer, "ops", None)
    assert list(trace_events(timer, a_run(), 0)) == quick
    shares = [event for event in quick if event["ph"] == "C"]
    monkeypatch.undo()
    for number, call in enumerate(a_run().calls):
        timing = timer.time(*call).timing
        units = timing.dram_busy_cycles, timing.array_busy_cycles, timing.vector_busy_cycles
        of_call = shares[3 * number : 3 * number + 3]
        expected = [round(busy / timing.cycles, 6) for busy in units]
        assert [event["args"]["share"] for event in of_call] == expected


def test_rounds_of_the_host(timer: ProgramTimer) -> None:
    events = [e for e in trace_events(timer, a_run(), 0) if e["pid"] == HOST and e["ph"] != "M"]
    draft = ["draft"]
    assert [event["name"] for event in events] == [
        *("prompt", "prompt, 64 tokens", "prompt, 6 tokens"),
        *("round 1", *draft * 2, "verify 2", "accept 1 of 2"),
        *("round 2", *draft * 3, "verify 3", "accept 3 of 3"),
        *("round 3", "verify 0", "accept 0 of 0"),
    ]
    total = timer.total(a_run().calls)
    assert events[-1]["ts"] == pytest.approx(total.seconds * 1e6)
    assert sum(e["args"]["bytes"] for e in events if e.get("cat") == "step") == total.dram_bytes


def test_only_some_passes_have_blocks(timer: ProgramTimer) -> None:
    run = a_run()
    begins = list(itertools.accumulate(timer.step(*c).timing.cycles * 2 for c in run.calls))
    for detailed in 0, 1, 3, 100:
        tracks = slices(list(trace_events(timer, run, detailed)))
        found = [s for (pid, _), track in tracks.items() if pid == MACHINE for s in track]
        last = min(1 + detailed, len(run.calls)) - 1
        if detailed:
            # The prompt's last pass is the run's second.
            assert min(found)[0] >= begins[0]
            assert max(end for _, end, _ in found) == begins[last]
        else:
            assert found == []


def test_large_passes_have_the_first_blocks_only(
    timer: ProgramTimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = TracedRun(0, [CALLS[1]], ())
    whole = slices(list(trace_events(timer, only, 1)))
    monkeypatch.setattr(trace, "MOST_PARTS", 50)
    cut = slices(list(trace_events(timer, only, 1)))
    for unit in UNITS:
        key = MACHINE, TRACKS[unit][0]
        # What is left is what was there, and every operation with its span is left.
        assert set(cut[key]) <= set(whole[key])
        operations = [one for one in whole[key] if " " in one[2] and "block" not in one[2]]
        assert set(operations) <= set(cut[key])
    key = MACHINE, TRACKS["dram"][0]
    assert 0 < sum("block" in name for *_, name in cut[key]) <= 50
    assert sum("block" in name for *_, name in whole[key]) > 50


def test_a_mixture_of_experts_adds_up(tmp_path: Path) -> None:
    onnx.save(decoder(last=expert_models.mask), tmp_path / "model.onnx")
    options = CompileOptions(load_target("speq-64x64"), context=64)
    compile_model(tmp_path / "model.onnx", tmp_path / "m.speq", options)
    timer = ProgramTimer(load_artifact(tmp_path / "m.speq").program)
    (router,) = timer.routers("full")
    one = (3,) + (0,) * (router.experts - 1)
    work = []
    for call in Call("full", 3, 5), Call("full", 3, 5, one):
        facts, cost = step_facts(timer, call), timer.step(*call)
        assert facts.timing == cost.timing
        assert sum(op.dram_bytes for op in facts.ops) == cost.dram_bytes
        work.append(sum(op.operations for op in facts.ops))
    assert work[1] < work[0]


def check_file(path: Path) -> list[dict]:
    written = json.loads(path.read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(TRACE)
    assert [error.message for error in validator.iter_errors(written)] == []
    return written["traceEvents"]


def test_the_schema_refuses_what_is_no_event() -> None:
    good = {"ph": "X", "name": "a", "cat": "b", "ts": 0, "dur": 1, "pid": 1, "tid": 1, "args": {}}
    validator = jsonschema.Draft202012Validator(TRACE)
    jsonschema.Draft202012Validator.check_schema(TRACE)
    assert validator.is_valid({"traceEvents": [good]})
    for field in good:
        assert not validator.is_valid({"traceEvents": [{k: good[k] for k in good if k != field}]})
    for wrong in {"ts": "0"}, {"dur": -1}, {"ph": "Q"}, {"more": 1}, {"name": ""}:
        assert not validator.is_valid({"traceEvents": [good | wrong]})


def test_run_writes_a_trace(invoke, kjv: Path, tmp_path: Path) -> None:
    file, report = tmp_path / "trace.json", tmp_path / "run.json"
    arguments = ("--token-ids", "5,6,7", "-n", "20", "--json", report, "--trace", file)
    assert invoke("run", kjv, *arguments).exit_code == 0
    events = check_file(file)
    rounds = json.loads(report.read_text())["rounds"]
    accepted = [event["args"] for event in events if event["ph"] == "i"]
    assert accepted == rounds
    again = tmp_path / "again.json"
    assert invoke("simulate", kjv, "--replay", report, "--trace", again).exit_code == 0
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("more", [(), ("--acceptance", "0.8"), ("--target", "speq-64x64-one-lane")])
def test_simulate_writes_a_trace(invoke, kjv: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    file = tmp_path / "trace.json"
    arguments = ("--prompt-length", "9", "--new-tokens", "12", "--trace", file)
    result = invoke("simulate", kjv, *arguments, "--trace-steps", "2", *more)
    assert result.exit_code == 0
    events = check_file(file)
    assert ("drawn with seed 0" in result.stderr) == ("--acceptance" in more)
    assert any(event["ph"] == "i" for event in events) == ("--acceptance" in more)
    assert any(event["name"] == "block 2" for event in events)


def test_a_drawn_course_is_one_that_rounds_can_take() -> None:
    run = Replay("autoregressive", 5, 40, (), None)
    for acceptance, taken in (0, [0] * 39), (1, [8, 8, 8, 8, 2]), (0.6, None):
        rounds = drawn_run(run, acceptance, 8).rounds
        accepted = [entry.accepted for entry in rounds]
        assert sum(accepted) + len(rounds) == 39
        assert taken is None or accepted == taken
        assert all(entry.accepted <= entry.drafted <= 8 for entry in rounds)


@pytest.mark.parametrize(
    ("destination", "fragment"),
    [("-", "--trace: give a file"), ("no/such/t.json", "--trace"), (".", "is a folder")],
)
def test_bad_destinations_are_one_line(invoke, kjv, destination: str, fragment: str) -> None:
    for command in (
        ("run", kjv, "--token-ids", "5,6", "-n", "2"),
        ("simulate", kjv, "--prompt-length", "4", "--new-tokens", "2"),
    ):
        result = invoke(*command, "--trace", destination)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and fragment in line
