"""`speqc bench baselines`: the baselines that come with speqc, value by value."""

import click

from speqc.baseline_files import OPS, WIDTHS, load_baseline, shipped_baselines
from speqc.tables import print_table


def show_baselines() -> None:
    """Print every shipped baseline with the sources of its values."""
    for name in shipped_baselines():
        baseline = load_baseline(name)
        click.echo(f"{name}: {baseline.title}")
        values = {key: str(getattr(baseline, key)) for key in WIDTHS}
        values |= {key: " ".join(getattr(baseline, key)) or "none" for key in OPS}
        rows = [(f"  {key}", value, baseline.sources[key]) for key, value in values.items()]
        print_table(("  key", "value", "source"), rows)
        click.echo()
