"""The tables of `speqc bench paper`: for a terminal, as Markdown, CSV and JSON.

All show the same rows. CSV and JSON have every number in full.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from speqc.paper_compare import Explanation, Ratio, Reference
from speqc.paper_grid import Cell, Grid, Step, Variation

FORMAT = "speqc paper comparison"

MAIN_FILE = "paper.json"

ASSUMED = (
    "Drafting gives the tokens and logits of the FP16 model bit for bit; the baselines with narrow "
    "weights are other models, faster and less exact. The SPEQ paper's own array size, clock, "
    "memory, draft length and exit threshold are not public knowledge to us, nor how it modelled "
    "OliVe and Tender: ours are the target's, the grid's, and what those two published. Drafted "
    "tokens are assumed to be accepted independently of each other, without early exits. Nothing "
    "is tuned to come near the paper."
)


class Results(NamedTuple):
    """Everything that the command found; `best` has the cells with the best draft lengths."""

    grid: Grid
    at: Reference
    cells: Sequence[Cell]
    best: Sequence[Cell]
    steps: Sequence[Step]
    variations: Sequence[Variation]
    ratios: Sequence[Ratio]
    explanations: Sequence[Explanation]


class Table(NamedTuple):
    """A table for a reader."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def best_at(results: Results) -> Cell:
    """The cell that ours are quoted for."""
    found = (c for c in results.best if (c.model, c.context, c.acceptance) == tuple(results.at))
    return next(found)


def configuration(results: Results) -> str:
    """Under which configuration ours hold, in words."""
    grid, at = results.grid, results.at
    length = best_at(results).draft_length
    options = grid.options
    return (
        f"Ours: {at.model} behind a context of {at.context} that is held fixed, batch 1, "
        f"acceptance {at.acceptance:g}, draft length {length} (the best of "
        f"{_listed(grid.draft_lengths)}), code book {options.codebook} with groups of "
        f"{options.weights_per_scale}, the head drafted too, on {grid.target.name} "
        f"({grid.target.description}), in the steady state, without the prompt. Least and most "
        "are over the grid's models and contexts at that acceptance."
    )


def tables(results: Results) -> list[Table]:
    """All tables, the comparison first."""
    return [
        _comparison(results),
        _explained(results),
        _best(results),
        _baselines(results),
        *_lengths(results),
        _sensitivity(results),
    ]


def _comparison(results: Results) -> Table:
    rows = [
        (
            row.ratio,
            f"{row.published:.2f}" + (" (implied)" if row.implied else ""),
            f"{row.ours:.2f}",
            f"{row.least:.2f} to {row.most:.2f}",
        )
        for row in results.ratios
    ]
    return Table(
        "The paper's ratios beside ours", ("ratio", "paper", "ours", "least to most"), rows
    )


def _explained(results: Results) -> Table:
    rows = [(e.scheme, e.question, _answer(e)) for e in results.explanations]
    title = "What would have to hold on this machine for the paper's OliVe and Tender"
    return Table(title, ("scheme", "what", "answer"), rows)


def _answer(entry: Explanation) -> str:
    if entry.answer is None:
        return "-"
    space = "" if entry.unit.startswith("%") else " "
    return f"{entry.answer:.1f}{space}{entry.unit}"


def _best(results: Results) -> Table:
    acceptances = results.grid.acceptances
    found = {(c.model, c.context, c.acceptance): c for c in results.best}
    rows = []
    for model in results.grid.models:
        for context in results.grid.contexts:
            here = [found[model, context, acceptance] for acceptance in acceptances]
            rows.append(
                (model, str(context), *(f"{c.speedup:.2f} ({c.draft_length})" for c in here))
            )
    columns = ("model", "context", *(f"A = {acceptance:g}" for acceptance in acceptances))
    return Table("Speedup over FP16 at the best draft length (in brackets)", columns, rows)


def _baselines(results: Results) -> Table:
    names = [baseline.name for baseline in results.grid.baselines]
    found = {(s.model, s.context, s.baseline): s for s in results.steps}
    rows = []
    for model in results.grid.models:
        for context in results.grid.contexts:
            here = [found[model, context, name] for name in names]
            rows.append((model, str(context), *(f"{s.speedup:.2f}" for s in here)))
    return Table(
        "Baselines, decoding token by token: speedup over FP16", ("model", "context", *names), rows
    )


def _lengths(results: Results) -> Iterable[Table]:
    """A table for each acceptance: models and contexts by draft length, the best marked."""
    grid = results.grid
    found = {cell[:4]: cell.speedup for cell in results.cells}
    best = {(c.model, c.context, c.acceptance): c.draft_length for c in results.best}
    columns = ("model", "context", *(f"L = {length}" for length in grid.draft_lengths))
    for acceptance in grid.acceptances:
        rows = []
        for model in grid.models:
            for context in grid.contexts:
                cells = [
                    f"{found[model, context, length, acceptance]:.2f}"
                    + ("*" if best[model, context, acceptance] == length else "")
                    for length in grid.draft_lengths
                ]
                rows.append((model, str(context), *cells))
        yield Table(f"Speedup over FP16 by draft length, acceptance {acceptance:g}", columns, rows)


def _sensitivity(results: Results) -> Table:
    at = results.at
    title = (
        f"Sensitivity: {at.model}, context {at.context}, acceptance {at.acceptance:g} unless varied"
    )
    name = results.variations[0].baseline if results.variations else "narrow"
    rows = [
        (
            v.knob,
            f"{v.value:g}",
            f"{v.speedup:.2f} ({v.draft_length})",
            f"{v.narrow:.2f}",
            f"{v.fp16_milliseconds:.1f}",
        )
        for v in results.variations
    ]
    return Table(title, ("what", "value", "drafted", name, "FP16 step (ms)"), rows)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def markdown(results: Results) -> str:
    """A page with all tables."""
    parts = ["# Beside the SPEQ paper", configuration(results), ASSUMED]
    for table in tables(results):
        lines = [_row(table.columns), "|---" * len(table.columns) + "|"]
        parts.append(f"## {table.title}")
        parts.append("\n".join([*lines, *map(_row, table.rows)]))
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def row_groups(results: Results) -> Mapping[str, Sequence[Any]]:
    """The rows that CSV and JSON have, by the name of the file."""
    return {
        "grid": results.cells,
        "best": results.best,
        "baselines": results.steps,
        "sensitivity": results.variations,
        "comparison": results.ratios,
        "explanations": results.explanations,
    }


def document(results: Results) -> dict[str, Any]:
    """Everything as one JSON object."""
    grid = results.grid
    return {
        "format": FORMAT,
        "assumed": ASSUMED,
        "configuration": configuration(results),
        "reference": results.at._asdict(),
        "target": asdict(grid.target),
        "codebook": grid.options.codebook,
        "group_size": grid.options.weights_per_scale,
        "models": {name: asdict(shape) for name, shape in grid.models.items()},
        "baseline_files": {b.name: asdict(b) for b in grid.baselines},
        **{name: [row._asdict() for row in rows] for name, rows in row_groups(results).items()},
    }


def write_tables(folder: Path, results: Results) -> None:
    """Write `paper.json`, `paper.md`, and a CSV file for each group of rows."""
    text = json.dumps(document(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / MAIN_FILE).write_text(text, encoding="utf-8")
    (folder / "paper.md").write_text(markdown(results), encoding="utf-8")
    for name, rows in row_groups(results).items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if rows:
                writer.writerow(rows[0]._fields)
            writer.writerows(rows)


def is_result(path: Path) -> bool:
    """Whether a folder holds what an earlier run of the command wrote."""
    try:
        return json.loads((path / MAIN_FILE).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False
