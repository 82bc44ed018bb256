"""The pictures of `speqc bench paper`, as PNG: matplotlib draws them, if it is installed.

Colours are those of Okabe and Ito, which the colour-blind tell apart; lines also differ in marker.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from speqc.paper_compare import PUBLISHED
from speqc.paper_tables import Results, best_at

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

MISSING = "matplotlib is not installed: no pictures are drawn (pip install 'speqc[plot]')"

DOTS_PER_INCH = 150


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def write_plots(folder: Path, results: Results) -> None:
    """Write `speedup.png`, `comparison.png` and `sensitivity.png`."""
    for name, draw in (
        ("speedup", _speedups),
        ("comparison", _comparison),
        ("sensitivity", _sensitivity),
    ):
        figure = draw(results)
        figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH, metadata={"Software": "speqc"})


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure that belongs to no window, and its axes [rows][columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _style(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.6,
    }


def _speedups(results: Results) -> Any:
    """Speedup by draft length: a column for each model, a row for each acceptance."""
    grid = results.grid
    rows, columns = len(grid.acceptances), len(grid.models)
    figure, axes = _figure(rows, columns, 1.2 + 3.2 * columns, 1.2 + 2.4 * rows)
    found = {cell[:4]: cell.speedup for cell in results.cells}
    for row, acceptance in enumerate(grid.acceptances):
        for column, model in enumerate(grid.models):
            axis = axes[row][column]
            for place, context in enumerate(grid.contexts):
                values = [found[model, context, n, acceptance] for n in grid.draft_lengths]
                axis.plot(grid.draft_lengths, values, label=f"context {context}", **_style(place))
            axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
            _doubling_axis(axis, grid.draft_lengths)
            axis.set_title(f"{model}, acceptance {acceptance:g}", fontsize=10)
            axis.sharey(axes[row][0])
            if row == rows - 1:
                axis.set_xlabel("draft length")
            if column == 0:
                axis.set_ylabel("speedup over FP16")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _doubling_axis(axis: Any, values: Sequence[float]) -> None:
    """An axis whose ticks are `values`, each doubling as wide as the others."""
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.xaxis.set_minor_locator(NullLocator())


def _comparison(results: Results) -> Any:
    """Bars at the reference: ours, the baselines', and the paper's."""
    at = results.at
    chosen = best_at(results)
    titles = {baseline.name: baseline.title for baseline in results.grid.baselines}
    bars = [(f"drafted, A = {at.acceptance:g}, L = {chosen.draft_length}", chosen.speedup, 1)]
    bars += [
        (titles[step.baseline], step.speedup, 0)
        for step in results.steps
        if (step.model, step.context) == (at.model, at.context)
    ]
    bars += [
        (f"{name}, the paper" + ("" if name == "SPEQ" else " (implied)"), value, 2)
        for name, value in PUBLISHED.items()
    ]
    figure, axes = _figure(1, 1, 7.5, 0.9 + 0.36 * len(bars))
    axis = axes[0][0]
    bars.reverse()
    drawn = axis.barh(
        [name for name, _, _ in bars],
        [value for _, value, _ in bars],
        color=[COLOURS[kind] for _, _, kind in bars],
        hatch=["//" if kind == 2 else "" for _, _, kind in bars],
        edgecolor="white",
    )
    axis.bar_label(drawn, fmt="%.2f", padding=3, fontsize=9)
    axis.grid(False)
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("speedup over FP16 token by token (hatched: as published, another machine)")
    axis.set_title(f"{at.model}, context {at.context}, {results.grid.target.name}", fontsize=10)
    return figure


def _sensitivity(results: Results) -> Any:
    """A panel for each thing that is varied."""
    knobs = list(dict.fromkeys(v.knob for v in results.variations))
    figure, axes = _figure(1, len(knobs), 1.2 + 2.8 * len(knobs), 3.2)
    for axis, knob in zip(axes[0], knobs, strict=True):
        found = [v for v in results.variations if v.knob == knob]
        values = [v.value for v in found]
        axis.plot(values, [v.speedup for v in found], label="drafted", **_style(0))
        axis.plot(values, [v.narrow for v in found], label=found[0].baseline, **_style(1))
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        if knob != "acceptance":
            _doubling_axis(axis, values)
        for v in found[:: max(1, len(found) // 4)]:
            note = f"L={v.draft_length}"
            axis.annotate(
                note,
                (v.value, v.speedup),
                (0, -13),
                textcoords="offset points",
                fontsize=7,
                ha="center",
            )
        axis.margins(x=0.12)
        axis.set_xlabel(knob)
        axis.sharey(axes[0][0])
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("speedup over FP16")
    handles, labels = axes[0][0].get_legend_handles_labels()
    at = results.at
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
        title=f"{at.model}, context {at.context}, acceptance {at.acceptance:g}",
    )
    return figure
