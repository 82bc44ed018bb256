"""One pass of each phase, operation by operation: what each takes of the step."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import click

from speqc.dialects.onnx import node_name
from speqc.phases import Passes
from speqc.runtime.calls import Call
from speqc.runtime.counted import counted
from speqc.runtime.energy import energy
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.timing import Array, Load, Parts, time_step
from speqc.step_facts import op_names
from speqc.tables import print_table
from speqc.units import show_bytes, show_energy


def pass_fields(timer: ProgramTimer, passes: Passes) -> list[dict[str, Any]]:
    """The first pass of each phase, with its operations."""
    return [_pass(timer, phase, next(iter(weighted))) for phase, weighted in passes.items()]


def _pass(timer: ProgramTimer, phase: str, call: Call) -> dict[str, Any]:
    ops = list(_ops(timer, call))
    cycles = sum(op[part] for op in ops for part in Parts._fields)
    return {
        "phase": phase,
        "function": call.function,
        "rows": call.rows,
        "past": call.past,
        "cycles": cycles,
        "ops": ops,
    }


def _ops(timer: ProgramTimer, call: Call) -> Iterator[dict[str, Any]]:
    """The operations of a pass; a load counts to its consumer."""
    timed = timer.ops(*call)
    timing = time_step([entry.op for entry in timed], timer.target)
    steps = zip(timed, op_names(timed), timing.ops, timing.parts, strict=True)
    for entry, (kind, name), span, parts in steps:
        if isinstance(entry.op, Load):
            continue
        moved, work = entry.dram_bytes, entry.work
        if isinstance(entry.op, Array) and entry.op.load is not None:
            stream = timed[entry.op.load]
            moved, work = moved + stream.dram_bytes, work.plus(stream.work)
        spent = energy(moved, work, timer.target)
        yield {
            "name": name,
            "node": node_name(entry.source),
            "kind": kind,
            "bound": span.bound,
            "start": span.start,
            "ready": span.ready,
            **parts._asdict(),
            "dram_bytes": moved,
            "energy_joules": spent.total,
            "energy_by_component": asdict(spent),
        }


def print_passes(passes: Iterable[dict[str, Any]]) -> None:
    """Show passes operation by operation."""
    for entry in passes:
        rows, past, cycles = entry["rows"], entry["past"], entry["cycles"]
        place = f"{counted(rows, 'row')} behind {counted(past, 'position')}"
        click.echo(f"\n{entry['phase']}: {place}, {counted(cycles, 'cycle')}")
        columns = "operation", "node", "start", *Parts._fields, "bound", "DRAM", "energy"
        print_table(columns, [_row(op) for op in entry["ops"]])


def _row(op: dict[str, Any]) -> tuple[str, ...]:
    parts = (f"{op[part]:,}" for part in Parts._fields)
    moved, spent = show_bytes(op["dram_bytes"]), show_energy(op["energy_joules"])
    return op["name"], op["node"], f"{op['start']:,}", *parts, op["bound"], moved, spent
