"""Traces: when each unit of the machine works on what, for Perfetto (https://ui.perfetto.dev).

The file is JSON in the Trace Event Format, the object form: complete events ("X"), one instant
("i") for each acceptance, counters ("C"), and names of processes and threads ("M"). One track shows
the host's rounds, one each the DRAM channel, the PE array and the vector unit. Slices of a track
nest and never overlap, as the format demands: on a unit's track an operation from its start to its
end, and in it, where there is more than one, each block of a stream that was transferred or worked
on, and transfers of operands and results.

Times are microseconds of simulated time in whole nanoseconds, as Perfetto keeps them; `args` have
the exact cycles. There is no `displayTimeUnit`: Perfetto once took it for the unit of `ts`. Blocks
of long runs would fill gigabytes: they are written of some passes only, and of the first so many of
each (`MOST_PARTS`), while the host's track and the counters have all passes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from speqc.dialects.speq import DRAFT
from speqc.report import Fields
from speqc.runtime.calls import Call
from speqc.runtime.counted import counted
from speqc.runtime.decode import Round
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.target import Target
from speqc.runtime.timing import BOUNDS, Bound
from speqc.runtime.timing_reference import Hold
from speqc.step_facts import OpFacts, StepFacts, step_facts
from speqc.text_files import check_destination, write_text

Event = dict[str, Any]

HOST, MACHINE = 1, 2
"""Process numbers."""

ROUNDS_TRACK = 1
TRACKS: dict[Bound, tuple[int, str]] = {
    "dram": (1, "DRAM channel"),
    "array": (2, "PE array"),
    "vector": (3, "vector unit"),
}
"""Thread number and name of each unit of the machine."""

MOST_PARTS = 20_000
"""Blocks and transfers of one pass that are slices of their own: all of a pass of some 100 million
weights, the first layers of larger ones. Operations behind them are slices as a whole."""


@dataclass(frozen=True)
class TraceOptions:
    """Where a trace goes, and how many passes it shows block by block."""

    path: str
    steps: int

    def check(self) -> None:
        """Raise SpeqcError where `write_trace` could not write, before there is what to write."""
        if self.path == "-":
            raise SpeqcError("--trace: give a file; standard output has the text or the report")
        check_destination(self.path, "--trace")


class Phase(NamedTuple):
    """A slice of the host: a name, how many passes, and what is said of its end."""

    name: str
    steps: int
    accepted: Round | None = None


@dataclass(frozen=True)
class TracedRun:
    """The passes of a run in order, and its rounds where it is speculative."""

    prompt_length: int
    calls: Sequence[Call]
    rounds: Sequence[Round]

    def phases(self) -> list[Phase]:
        """The prompt, then each round, or each token without rounds."""
        prompt = sum(call.past < self.prompt_length for call in self.calls)
        if self.rounds:
            entries = enumerate(self.rounds, 1)
            after = [Phase(f"round {n}", entry.drafted + 1, entry) for n, entry in entries]
        else:
            tokens = range(2, len(self.calls) - prompt + 2)
            after = [Phase(f"token {number}", 1) for number in tokens]
        return [Phase("prompt", prompt), *after]

    def first_detailed(self) -> int:
        """The number of the prompt's last pass, with which blocks begin."""
        return max(0, sum(call.past < self.prompt_length for call in self.calls) - 1)


def write_trace(options: TraceOptions, timer: ProgramTimer, run: TracedRun) -> None:
    """Write the trace of a run."""
    detailed = options.steps
    events = trace_events(timer, run, detailed)
    lines = ",\n".join(_json(event) for event in events)
    other = _json(_other_data(timer.target, run, detailed))
    text = f'{{"traceEvents":[\n{lines}\n],"otherData":{other}}}\n'
    write_text(text, options.path)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _other_data(target: Target, run: TracedRun, detailed: int) -> dict[str, str]:
    first = run.first_detailed()
    last = min(first + detailed, len(run.calls))
    return {
        "target": f"{target.name}: {target.description}",
        "clock_hz": str(target.clock_hz),
        "passes": str(len(run.calls)),
        "passes with blocks": f"{first + 1} to {last}" if last > first else "none",
        "most blocks and transfers of a pass": str(MOST_PARTS),
    }


def trace_events(timer: ProgramTimer, run: TracedRun, detailed: int) -> Iterator[Event]:
    """The events of a run, the blocks of `detailed` passes among them."""
    clock = _Clock(timer.target)
    yield from _names(timer.target)
    first = run.first_detailed()
    start = number = 0
    for phase in run.phases():
        calls = run.calls[number : number + phase.steps]
        costs = [timer.cost(*call) for call in calls]
        end = start + sum(cost.cycles for cost in costs)
        yield clock.slice(HOST, ROUNDS_TRACK, phase.name, "round", start, end, {})
        for call, cost in zip(calls, costs, strict=True):
            args = _step_args(call, cost.cycles, cost.dram_bytes)
            stop = start + cost.cycles
            yield clock.slice(HOST, ROUNDS_TRACK, step_name(call, run), "step", start, stop, args)
            for unit, busy in zip(BOUNDS, cost.busy, strict=True):
                yield clock.counter(start, busy, unit, cost.cycles)
            if first <= number < first + detailed:
                yield from _step_events(clock, step_facts(timer, call), start)
            number += 1
            start = stop
        if phase.accepted is not None:
            yield clock.accept(start, phase.accepted)


def step_name(call: Call, run: TracedRun) -> str:
    """What a pass is for."""
    if call.past < run.prompt_length:
        return f"prompt, {counted(call.rows, 'token')}"
    if call.function == DRAFT:
        return "draft"
    return f"verify {call.rows - 1}" if run.rounds else "full"


def _step_args(call: Call, cycles: int, size: int) -> Fields:
    return {"rows": call.rows, "past": call.past, "cycles": cycles, "bytes": size}


def _names(target: Target) -> Iterator[Event]:
    """Metadata: what processes and threads are called, and in which order they stand."""
    threads = [(HOST, ROUNDS_TRACK, "rounds")]
    threads += [(MACHINE, number, name) for number, name in TRACKS.values()]
    for pid, name in ((HOST, "host"), (MACHINE, target.name)):
        yield _metadata(pid, 0, "process_name", "name", name)
        yield _metadata(pid, 0, "process_sort_index", "sort_index", pid)
    for pid, tid, name in threads:
        yield _metadata(pid, tid, "thread_name", "name", name)
        yield _metadata(pid, tid, "thread_sort_index", "sort_index", tid)


def _metadata(pid: int, tid: int, what: str, key: str, value: object) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": what, "args": {key: value}}


def _step_events(clock: "_Clock", facts: StepFacts, start: int) -> Iterator[Event]:
    """Operations of a pass on their units' tracks, with what they hold the units for inside."""
    shown = 0
    for (unit, number), holds in holds_by_op(facts).items():
        op = facts.ops[number]
        begin, end = start + holds[0].start, start + holds[-1].end
        name = f"{op.name} {op.node}".rstrip()
        yield clock.unit(unit, name, op.kind, begin, end, _op_args(op))
        shown += len(holds)
        if len(holds) > 1 and shown <= MOST_PARTS:
            for hold in holds:
                begin, end = start + hold.start, start + hold.end
                label = f"block {hold.block + 1}" if hold.part in ("block", "work") else hold.part
                yield clock.unit(unit, label, hold.part, begin, end, _hold_args(facts, hold))


def holds_by_op(facts: StepFacts) -> dict[tuple[Bound, int], list[Hold]]:
    """What each unit was held for, by the operation's number in `facts.ops`, in order of time."""
    found: dict[tuple[Bound, int], list[Hold]] = {}
    for hold in facts.holds:
        found.setdefault((hold.unit, facts.owners[hold.op]), []).append(hold)
    return found


def _hold_args(facts: StepFacts, hold: Hold) -> Fields:
    args: Fields = {"cycles": hold.end - hold.start}
    size = facts.hold_bytes(hold)
    return args if size is None else args | {"bytes": size}


def _op_args(op: OpFacts) -> Fields:
    args: Fields = {
        "node": op.node,
        "bytes": op.dram_bytes,
        "cycles": op.unit_cycles,
        "dram_cycles": op.dram_cycles,
        "bound": op.bound,
        "load": op.load,
        "ideal": op.ideal,
        "stall": op.stall,
        "drain": op.drain,
        "energy_joules": op.energy_joules,
    }
    return args if op.mode is None else args | {"mode": op.mode}


class _Clock:
    """Makes events of times in cycles."""

    def __init__(self, target: Target):
        self._hertz = target.clock_hz

    def nanoseconds(self, cycle: int) -> int:
        """Simulated time of a cycle, rounded: slices that touch in cycles touch here too."""
        return (2 * cycle * 10**9 + self._hertz) // (2 * self._hertz)

    def slice(
        self, pid: int, tid: int, name: str, category: str, start: int, end: int, args: Fields
    ) -> Event:
        begin = self.nanoseconds(start)
        return {
            "ph": "X",
            "pid": pid,
            "tid": tid,
            "ts": begin / 1000,
            "dur": (self.nanoseconds(end) - begin) / 1000,
            "name": name,
            "cat": category,
            "args": args,
        }

    def unit(
        self, unit: Bound, name: str, category: str, start: int, end: int, args: Fields
    ) -> Event:
        return self.slice(MACHINE, TRACKS[unit][0], name, category, start, end, args)

    def counter(self, start: int, busy: int, unit: Bound, cycles: int) -> Event:
        share = busy / cycles if cycles else 0.0
        return {
            "ph": "C",
            "pid": MACHINE,
            "tid": 0,
            "ts": self.nanoseconds(start) / 1000,
            "name": f"{TRACKS[unit][1]}: busy share of each pass",
            "args": {"share": round(share, 6)},
        }

    def accept(self, at: int, entry: Round) -> Event:
        args = {
            "drafted": entry.drafted,
            "accepted": entry.accepted,
            "early_exit": entry.early_exit,
        }
        return {
            "ph": "i",
            "s": "t",
            "pid": HOST,
            "tid": ROUNDS_TRACK,
            "ts": self.nanoseconds(at) / 1000,
            "name": f"accept {entry.accepted} of {entry.drafted}",
            "cat": "round",
            "args": args,
        }
