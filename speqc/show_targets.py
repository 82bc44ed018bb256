"""`speqc targets`: the targets that come with speqc, value by value."""

from dataclasses import asdict

import click

from speqc.tables import print_table
from speqc.target_files import DEFAULT_TARGET, read_target_file, shipped_targets

TITLE = ("name", "description")
"""Fields that stand in the heading."""


def show_targets() -> None:
    """Print every shipped target with the sources of its values."""
    for name in shipped_targets():
        file = read_target_file(name)
        default = " (default)" if name == DEFAULT_TARGET else ""
        click.echo(f"{name}{default}: {file.target.description}")
        values = ((key, value) for key, value in asdict(file.target).items() if key not in TITLE)
        rows = [(f"  {key}", f"{value:,}", file.sources.get(key, "")) for key, value in values]
        print_table(("  key", "value", "source"), rows)
        click.echo()
