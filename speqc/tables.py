"""Tables for a reader, on a terminal or in a pipe."""

import sys
from collections.abc import Iterable, Sequence

import click


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, stderr: bool = False
) -> None:
    """Show a table: ruled on a terminal, else plain columns that nothing cuts off."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    table = Table(*columns, box=SIMPLE_HEAD if terminal else None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(stderr=stderr, width=None if terminal else 10_000, markup=False)
    # Where the output is closed early, the console itself would exit with code 1.
    with console.capture() as shown:
        console.print(table)
    click.echo(shown.get(), nl=False, err=stderr)
