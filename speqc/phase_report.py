"""The part of a text report that says where cycles, bytes and energy go: by phase, and by kind."""

from collections.abc import Iterable, Mapping
from typing import Any

from speqc.phases import run_sums
from speqc.runtime.timing import BOUNDS, Parts
from speqc.tables import print_table
from speqc.units import show_bytes, show_energy, show_share, show_time

COLUMNS = "where cycles go", "time", *Parts._fields, "bound", "DRAM", "energy"

COMPONENTS = {"dram": "DRAM", "sram": "SRAM", "array": "array", "vector": "vector unit"}


def print_phases(fields: Mapping[str, Any], *, beside: bool, stderr: bool) -> None:
    """Show a report's phases, plain decoding among them if `beside`, and the run's kinds of ops."""
    ours = fields["simulated"]
    tick = ours["seconds"] / ours["cycles"] if ours["cycles"] else 0.0
    phases = dict(ours["by_phase"])
    if beside:
        plain = fields["baseline"]["simulated"]["by_phase"]
        phases |= {f"({name})": sums for name, sums in plain.items() if name == "plain"}
    rows = [phase_row(name, sums, tick) for name, sums in phases.items()]
    kinds = run_sums(ours["by_phase"].values())["by_kind"]
    longest = sorted(kinds, key=lambda kind: -kinds[kind]["cycles"])
    rows += [phase_row(f"  {kind}", kinds[kind], tick) for kind in longest]
    print_table(COLUMNS, rows, stderr=stderr)


def phase_row(name: str, sums: Mapping[str, Any], tick: float) -> tuple[str, ...]:
    """A row of the table; `tick` is the time of a cycle in seconds."""
    cycles = sums["cycles"]
    parts = (show_share(sums[part], cycles) for part in Parts._fields)
    bound = shares({unit: sums["cycles_by_bound"][unit] for unit in BOUNDS}, cycles)
    moved, spent = show_bytes(sums["dram_bytes"]), show_energy(sums["energy_joules"])
    return name, show_time(cycles * tick), *parts, bound, moved, spent


def shares(parts: Mapping[str, float], whole: float) -> str:
    """Names with their parts in per cent, the largest first; those under half a per cent not."""
    largest = sorted(parts.items(), key=lambda item: -item[1])
    seen: Iterable[str] = (
        f"{name} {part / whole:.0%}" for name, part in largest if whole and part >= whole / 200
    )
    return ", ".join(seen)


def component_shares(simulated: Mapping[str, Any]) -> str:
    """How a run's energy is divided among the machine's components."""
    by_component = simulated["energy_by_component"]
    names = {label: by_component[name] for name, label in COMPONENTS.items()}
    return shares(names, simulated["energy_joules"])
