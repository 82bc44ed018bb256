"""The picture of an evaluation: speedup by draft length and threshold, and acceptance."""

from pathlib import Path
from typing import Any

from speqc.report import Fields
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError


def check_plotting() -> None:
    """Raise SpeqcError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SpeqcError("--plot needs matplotlib: pip install matplotlib") from None


def write_plot(fields: Fields, path: Path) -> None:
    """Draw the fields of an evaluation into a file, in the format that its ending names.

    Raises SpeqcError where matplotlib is missing or does not know the format.
    """
    check_plotting()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    speedup, acceptance = figure.subplots(1, 2)
    _draw_speedup(speedup, fields)
    _draw_acceptance(acceptance, fields)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise SpeqcError(f"--plot: {path}: {error}") from None


def _draw_speedup(axes: Any, fields: Fields) -> None:
    for threshold in fields["options"]["thresholds"]:
        settings = [s for s in fields["settings"] if s["exit_threshold"] == threshold]
        axes.errorbar(
            [setting["draft_length"] for setting in settings],
            [setting["speedup"]["value"] for setting in settings],
            [setting["speedup"]["stderr"] or 0 for setting in settings],
            label=f"{threshold:g}",
            marker="o",
            markersize=3,
            linewidth=1,
        )
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xlabel="draft length", ylabel="times plain decoding", title=fields["target"])
    axes.legend(title="threshold")


def _draw_acceptance(axes: Any, fields: Fields) -> None:
    figures = fields["acceptance_per_position"]
    axes.errorbar(
        range(1, len(figures) + 1),
        [figure["value"] for figure in figures],
        [figure["stderr"] or 0 for figure in figures],
        marker="o",
        markersize=3,
        linewidth=1,
    )
    axes.set(xlabel="drafted position", ylabel="share accepted", ylim=(0, 1))
    axes.set_title(counted(fields["prompts"], "prompt"))
