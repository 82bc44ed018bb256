"""The numbers of `speqc bench paper`: decoding in the steady state, timed on one target.

Every step is one of a compiled program, timed by `ProgramTimer`: the drafted program's, and those
of the baselines, whose weights are stored otherwise. All speedups are over FP16 autoregressive
decoding on the same target behind the same context.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from xdsl.dialects.builtin import ModuleOp

from speqc.baseline_files import Baseline
from speqc.compile import CompileOptions
from speqc.compile_shape import compile_variants
from speqc.decoder_shape import DecoderShape
from speqc.dialects.speq import FULL
from speqc.retarget import retarget
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.target import Target
from speqc.steady_state import RoundCost, round_cost

FP16 = "fp16"
"""The baseline that all speedups relate to."""

Advance = Callable[[int], None]
"""Is told how many programs have been compiled or timed since the last call."""


@dataclass(frozen=True)
class Grid:
    """What to time: every combination of these, for all `baselines`, of which one is `FP16`.

    `models` has shapes by name; two that are equal are timed once.
    """

    models: Mapping[str, DecoderShape]
    contexts: tuple[int, ...]
    draft_lengths: tuple[int, ...]
    acceptances: tuple[float, ...]
    baselines: tuple[Baseline, ...]
    options: CompileOptions

    @property
    def target(self) -> Target:
        """The machine."""
        return self.options.target


class Cell(NamedTuple):
    """The speedup of drafting over FP16, for one choice of everything."""

    model: str
    context: int
    draft_length: int
    acceptance: float
    speedup: float


class Step(NamedTuple):
    """One token of a baseline: its time, its traffic, and how much faster than FP16 it is."""

    model: str
    context: int
    baseline: str
    milliseconds: float
    dram_bytes: int
    bound: str
    speedup: float


class Variation(NamedTuple):
    """What becomes of the best speedup where one thing is changed; `value` is what it is then.

    `narrow` is the speedup over FP16 of a baseline with 4-bit weights, called `baseline`, there.
    """

    knob: str
    value: float
    draft_length: int
    speedup: float
    baseline: str
    narrow: float
    fp16_milliseconds: float


class Timed(NamedTuple):
    """A model's programs, compiled and read."""

    drafted: ProgramTimer
    baselines: Mapping[str, ProgramTimer]
    programs: Mapping[str, ModuleOp]

    def plain(self, context: int) -> int:
        """Cycles of an FP16 step."""
        return self.baselines[FP16].cost(FULL, 1, context).cycles


DRAFTED = "drafted"


def timed_models(grid: Grid, advance: Advance) -> Iterator[tuple[list[str], Timed]]:
    """Compile each shape once, in all variants; gives the names that share it."""
    for shape in dict.fromkeys(grid.models.values()):
        variants = [grid.options, *(replace(grid.options, baseline=b) for b in grid.baselines)]
        programs: dict[str, ModuleOp] = {}
        names = [DRAFTED, *(baseline.name for baseline in grid.baselines)]
        for name, program in zip(names, compile_variants(shape, variants), strict=True):
            programs[name] = program
            advance(1)
        timers = {name: ProgramTimer(program) for name, program in programs.items()}
        drafted = timers.pop(DRAFTED)
        sharing = [name for name, other in grid.models.items() if other == shape]
        yield sharing, Timed(drafted, timers, programs)


def cells(grid: Grid, names: Sequence[str], timed: Timed) -> Iterator[Cell]:
    """Speedups of drafting for all contexts, lengths and acceptances."""
    for context in grid.contexts:
        plain = timed.plain(context)
        for length in grid.draft_lengths:
            cost = round_cost(timed.drafted, context, length)
            for acceptance in grid.acceptances:
                found = cost.speedup(plain, acceptance)
                yield from (Cell(name, context, length, acceptance, found) for name in names)


def steps(grid: Grid, names: Sequence[str], timed: Timed) -> Iterator[Step]:
    """Steps of the baselines for all contexts."""
    for context in grid.contexts:
        plain = timed.plain(context)
        for baseline, timer in timed.baselines.items():
            cost = timer.cost(FULL, 1, context)
            row = (
                1e3 * grid.target.seconds(cost.cycles),
                cost.dram_bytes,
                step_bound(timer, context),
                plain / cost.cycles,
            )
            yield from (Step(name, context, baseline, *row) for name in names)


def step_bound(timer: ProgramTimer, context: int) -> str:
    """The unit that a step keeps busy longest."""
    timing = timer.step(FULL, 1, context).timing
    busy = {
        "dram": timing.dram_busy_cycles,
        "array": timing.array_busy_cycles,
        "vector": timing.vector_busy_cycles,
    }
    return max(busy, key=lambda unit: busy[unit])


def best(found: Sequence[Cell]) -> list[Cell]:
    """For each model, context and acceptance the cell with the best draft length."""
    chosen: dict[tuple[str, int, float], Cell] = {}
    for cell in found:
        key = cell.model, cell.context, cell.acceptance
        if key not in chosen or cell.speedup > chosen[key].speedup:
            chosen[key] = cell
    return list(chosen.values())


def machines(target: Target) -> Iterator[tuple[str, float, Target]]:
    """Targets that differ from one in lanes, bandwidth or array: what changed, and its value."""
    for lanes in (1, 2, 4, 8):
        yield "4-bit lanes per PE", lanes, replace(target, draft_lanes=lanes)
    for factor in (0.5, 1, 2, 4):
        bandwidth = int(target.dram_bytes_per_second * factor)
        value = bandwidth / 1e9
        yield "bandwidth (GB/s)", value, replace(target, dram_bytes_per_second=bandwidth)
    for factor in (0.5, 1, 2):
        side = int(target.array_rows * factor), int(target.array_columns * factor)
        if min(side) > 0:
            changed = replace(target, array_rows=side[0], array_columns=side[1])
            yield "array rows", side[0], changed


MACHINES = 11
"""How many targets `machines` gives at most."""


def variations(
    grid: Grid, timed: Timed, context: int, acceptance: float, narrow: str, advance: Advance
) -> Iterator[Variation]:
    """How the best speedup depends on the machine and on the acceptance.

    A machine that cannot hold a tile of the weights is left out.
    """
    for knob, value, target in machines(grid.target):
        try:
            names = (DRAFTED, FP16, narrow)
            found = {name: ProgramTimer(retarget(timed.programs[name], target)) for name in names}
        except SpeqcError:
            advance(1)
            continue
        yield _variation(grid, found, (knob, value), context, acceptance, narrow)
        advance(1)
    found = {DRAFTED: timed.drafted, **timed.baselines}
    for value in ACCEPTANCES:
        yield _variation(grid, found, ("acceptance", value), context, value, narrow)


ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.976, 0.99)
"""Acceptances that the sensitivity is shown for."""


def _variation(
    grid: Grid,
    timers: Mapping[str, ProgramTimer],
    what: tuple[str, float],
    context: int,
    acceptance: float,
    narrow: str,
) -> Variation:
    target = timers[FP16].target
    plain = timers[FP16].cost(FULL, 1, context).cycles
    rounds = [round_cost(timers[DRAFTED], context, length) for length in grid.draft_lengths]
    fastest: RoundCost = max(rounds, key=lambda cost: cost.speedup(plain, acceptance))
    other = timers[narrow].cost(FULL, 1, context).cycles
    return Variation(
        *what,
        fastest.length,
        fastest.speedup(plain, acceptance),
        narrow,
        plain / other,
        1e3 * target.seconds(plain),
    )
