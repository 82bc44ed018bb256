"""`speqc bench paper`: the models of a grid timed beside the baselines, as tables and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click

from speqc.baseline_files import load_baseline, shipped_baselines
from speqc.compile import CompileOptions
from speqc.diagnostics import note, progress, report
from speqc.folder_writer import check_place, folder_in_the_making
from speqc.paper_bandwidth import one_lane_bandwidth
from speqc.paper_compare import (
    OVER,
    PUBLISHED,
    Reference,
    explanations,
    narrow_baselines,
    ratios,
    reference,
)
from speqc.paper_grid import (
    FP16,
    MACHINES,
    Advance,
    Cell,
    Grid,
    Step,
    Timed,
    Variation,
    best,
    cells,
    steps,
    timed_models,
    variations,
)
from speqc.paper_plots import MISSING, can_plot, write_plots
from speqc.paper_tables import ASSUMED, Results, configuration, is_result, tables, write_tables
from speqc.runtime.errors import SpeqcError
from speqc.shape_files import load_shape
from speqc.tables import print_table
from speqc.target_files import load_target

ORDER = ("fp16", "w8a16", "w8a8", "w4a16", "olive-4", "olive-8", "tender-4", "tender-8")
"""The order of baselines in tables; others follow, by name."""


@dataclass(frozen=True)
class PaperOptions:
    """What a user can choose."""

    models: tuple[str, ...]
    contexts: tuple[int, ...]
    draft_lengths: tuple[int, ...]
    acceptances: tuple[float, ...]
    target: str
    codebook: str
    group_size: int | None
    output: Path


def bench_paper(options: PaperOptions) -> None:
    """Time everything, print the tables, and write the folder.

    Raises SpeqcError where a model, target or context can't be used, or the folder is taken.
    """
    check_place(options.output, is_result, "result of 'speqc bench paper'")
    grid = _grid(options)
    drawing = can_plot()
    if not drawing:
        note(MISSING)
    results = measure(grid)
    with folder_in_the_making(options.output) as folder:
        write_tables(folder, results)
        if drawing:
            write_plots(folder, results)
    for table in tables(results):
        click.echo(f"{table.title}\n")
        print_table(table.columns, table.rows)
        click.echo()
    click.echo(f"{configuration(results)}\n\n{ASSUMED}")
    report(f"wrote {options.output}")


def _grid(options: PaperOptions) -> Grid:
    shapes = {name: load_shape(name) for name in options.models}
    for name, shape in shapes.items():
        if max(options.contexts) > shape.context:
            raise SpeqcError(
                f"{name}: a context of {max(options.contexts)} is more than its {shape.context}"
            )
    names = sorted(shipped_baselines(), key=_place)
    return Grid(
        shapes,
        options.contexts,
        options.draft_lengths,
        options.acceptances,
        tuple(load_baseline(name) for name in names),
        CompileOptions(load_target(options.target), options.codebook, options.group_size),
    )


def _place(name: str) -> tuple[int, str]:
    return ORDER.index(name) if name in ORDER else len(ORDER), name


def measure(grid: Grid) -> Results:
    """Compile and time all that a grid asks for, with progress on standard error."""
    at = reference(grid)
    shapes = len(set(grid.models.values()))
    total = shapes * (2 + len(grid.baselines)) + MACHINES + 1
    with progress("compiling and timing", total) as advance:
        found, plain, varied, one_lane = _timings(grid, at, advance)
    chosen = best(found)
    return Results(
        grid,
        at,
        found,
        chosen,
        plain,
        varied,
        ratios(grid, found, chosen, plain, at),
        explanations(grid, plain, one_lane, at),
    )


class _Timings(NamedTuple):
    """What is timed; `one_lane` as `explanations` takes it."""

    cells: list[Cell]
    steps: list[Step]
    variations: list[Variation]
    one_lane: dict[str, float | None]


def _timings(grid: Grid, at: Reference, advance: Advance) -> _Timings:
    all_of = _Timings([], [], [], {})
    for names, timed in timed_models(grid, advance):
        all_of.cells.extend(cells(grid, names, timed))
        all_of.steps.extend(steps(grid, names, timed))
        advance(1)
        if at.model in names:
            all_of.variations.extend(_variations(grid, timed, at, advance))
            all_of.one_lane.update(_one_lane(grid, timed, at))
            advance(1)
    order = list(grid.models)
    all_of.cells.sort(key=lambda cell: order.index(cell.model))
    all_of.steps.sort(key=lambda step: order.index(step.model))
    return all_of


def _variations(grid: Grid, timed: Timed, at: Reference, advance: Advance) -> Sequence[Variation]:
    narrow = next((baseline.name for baseline in narrow_baselines(grid, "OliVe")), FP16)
    return list(variations(grid, timed, at.context, at.acceptance, narrow, advance))


def _one_lane(grid: Grid, timed: Timed, at: Reference) -> Iterator[tuple[str, float | None]]:
    """For each scheme that there is a baseline of: the bandwidth for its narrowest."""
    for scheme in OVER:
        for baseline in narrow_baselines(grid, scheme)[:1]:
            wanted = PUBLISHED[scheme]
            yield (
                scheme,
                one_lane_bandwidth(timed.programs, baseline.name, at.context, wanted, grid.target),
            )
