"""Passes of a program for the HTML report: what each unit does when, operation by operation."""

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

from speqc.report import Fields
from speqc.runtime.calls import Call
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.timing import Bound
from speqc.step_facts import OpFacts, StepFacts, step_facts

UNITS: tuple[Bound, ...] = "dram", "array", "vector"


class NamedCall(NamedTuple):
    """A pass to show, and what it is called."""

    name: str
    call: Call


def step_data(timer: ProgramTimer, named: NamedCall) -> tuple[Fields, Fields]:
    """A summary of a pass, and its operations and slices for the page's script."""
    facts = step_facts(timer, named.call)
    timing = facts.timing
    summary: Fields = {
        "name": named.name,
        "rows": named.call.rows,
        "past": named.call.past,
        "cycles": timing.cycles,
        "seconds": timer.target.seconds(timing.cycles),
        "bytes": sum(op.dram_bytes for op in facts.ops),
        "busy": {
            "dram": timing.dram_busy_cycles,
            "array": timing.array_busy_cycles,
            "vector": timing.vector_busy_cycles,
        },
        "bounds": _by_bound(facts.ops),
    }
    return summary, {"ops": _columns(facts.ops), "slices": _slices(facts)}


def _by_bound(ops: Sequence[OpFacts]) -> Fields:
    """How many ops each unit bounds, of those that take time at all."""
    return {
        unit: sum(op.bound == unit and op.unit_cycles + op.dram_cycles > 0 for op in ops)
        for unit in UNITS
    }


def _columns(ops: Sequence[OpFacts]) -> Fields:
    """Ops as a list for each field: keys once, not once an op."""
    return {field.name: [getattr(op, field.name) for op in ops] for field in fields(OpFacts)}


def _slices(facts: StepFacts) -> Fields:
    """For each unit parallel lists: start, length, number of the op, and block, -1 for others."""
    slices: Fields = {unit: {"start": [], "cycles": [], "op": [], "block": []} for unit in UNITS}
    for hold in facts.holds:
        columns = slices[hold.unit]
        columns["start"].append(hold.start)
        columns["cycles"].append(hold.end - hold.start)
        columns["op"].append(facts.owners[hold.op])
        columns["block"].append(hold.block if hold.part == "block" else -1)
    return slices
