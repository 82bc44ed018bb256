"""Where a run's cycles, bytes and energy go: by phase of decoding, and by kind of operation.

A phase is what a pass is for: the prompt, drafting, verifying, or plain decoding. Passes may be
weighted, where a run is expected and not known. Sums over phases, kinds, bounds and parts are those
of the run (see `runtime/timing.Parts` for what the parts are).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from numpy.typing import NDArray

from speqc.dialects.speq import DRAFT, FULL
from speqc.runtime.calls import Call
from speqc.runtime.energy import energy
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.step_sums import DRAM_BYTES, KINDS, cycles_of, empty_table, work_of
from speqc.runtime.target import Target
from speqc.runtime.timing import BOUNDS, Parts

PHASES = "prompt", "draft", "verify", "plain"

Passes = Mapping[str, Mapping[Call, float]]
"""For each phase its passes, and how often each is made."""


def passes_of(calls: Iterable[Call], prompt_length: int, *, verifies: bool) -> Passes:
    """The passes of a run by phase; `verifies`: full passes after the prompt verify drafts."""
    phases: dict[str, Counter[Call]] = {}
    for call in calls:
        phase = "verify" if verifies else "plain"
        if call.past < prompt_length:
            phase = "prompt"
        elif call.function == DRAFT:
            phase = DRAFT
        phases.setdefault(phase, Counter())[call] += 1
    return {phase: phases[phase] for phase in PHASES if phase in phases}


def expected_passes(prompt_length: int, chances: Mapping[tuple[int, int], float]) -> Passes:
    """The passes after a prompt on average.

    `chances` says for (emitted, drafted) how likely a round begins behind so many new tokens, and
    drafts so many.
    """
    drafts: dict[Call, float] = defaultdict(float)
    verifications: dict[Call, float] = defaultdict(float)
    for (emitted, drafted), chance in chances.items():
        past = prompt_length + emitted - 1
        for place in range(drafted):
            drafts[Call(DRAFT, 1, past + place)] += chance
        verifications[Call(FULL, 1 + drafted, past)] += chance
    phases: Passes = {"draft": drafts, "verify": verifications}
    return {phase: weighted for phase, weighted in phases.items() if weighted}


def phase_fields(timer: ProgramTimer, passes: Passes) -> dict[str, dict]:
    """What each phase takes, with its kinds of operations; whole numbers where passes are."""
    return {phase: _phase(timer, weighted) for phase, weighted in passes.items()}


def _phase(timer: ProgramTimer, weighted: Mapping[Call, float]) -> dict:
    table: NDArray = empty_table()
    for call, times in weighted.items():
        table = table + timer.cost(*call).table * times
    sums = sum_fields(table, timer.target)
    kinds = kind_fields(table, timer.target)
    return {"passes": sum(weighted.values()), **sums, "by_kind": kinds}


def run_sums(phases: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of a run's phases; kinds that only some of them have are as if zero elsewhere."""
    total: dict[str, Any] = {}
    for phase in phases:
        total = added(total, phase)
    return total


def added(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """The sums of two objects of numbers, objects in them included."""
    total = dict(one)
    for key, value in two.items():
        if isinstance(value, Mapping):
            total[key] = added(one.get(key, {}), value)
        else:
            total[key] = one.get(key, 0) + value
    return total


def kind_fields(table: NDArray, target: Target) -> dict:
    """What each kind of operation takes, of those that there are."""
    rows = ((kind, table[place : place + 1]) for place, kind in enumerate(KINDS))
    return {kind: sum_fields(row, target) for kind, row in rows if row.any()}


def sum_fields(table: NDArray, target: Target) -> dict:
    """Cycles with their parts and bounds, DRAM bytes and energy of a table, or some of its rows."""
    by_part = cycles_of(table).sum(0)
    dram = table[:, DRAM_BYTES].sum().item()
    spent = energy(dram, work_of(table), target)
    return {
        "cycles": by_part.sum().item(),
        **dict(zip(Parts._fields, by_part.sum(0).tolist(), strict=True)),
        "cycles_by_bound": dict(zip(BOUNDS, by_part.sum(1).tolist(), strict=True)),
        "dram_bytes": dram,
        "energy_joules": spent.total,
        "energy_by_component": asdict(spent),
    }
