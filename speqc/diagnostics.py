"""What a user hears on standard error: notes, progress, and one line for each kind of failure."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from speqc.runtime.errors import CheckFailed, SpeqcError
from speqc.termination import Terminated, raise_terminated

CHECK_FAILED, BAD_INPUT, INTERRUPTED, OUTPUT_CLOSED = 1, 2, 130, 141
"""Exit codes beside 0. The last two are the shells' conventions for Ctrl-C and a closed pipe."""

SIGNALLED = 128
"""What the exit code is above the number of a signal that ended a command, as for shells."""

DEBUG_VARIABLE = "SPEQC_DEBUG"
"""The environment variable that asks for tracebacks."""


class ReportingGroup(click.Group):
    """A group of commands that turns their errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that the user named."""
        try:
            with raise_terminated():
                return self._invoke(ctx)
        except Terminated as error:
            # Nobody may read it: a terminal that is closed sends such a signal, too.
            with suppress(OSError):
                report("terminated")
            ctx.exit(SIGNALLED + error.number)

    def _invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except click.UsageError as error:
            command = (error.ctx or ctx).command_path
            message = one_line(error.format_message()).rstrip(".")
            end = "" if message.endswith(("?", "?)")) else "."
            report(f"error: {message}{end} See '{command} --help'.")
            ctx.exit(BAD_INPUT)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            _drop_unread_output()
            ctx.exit(OUTPUT_CLOSED)
        except (KeyboardInterrupt, click.Abort):
            report("interrupted")
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE):
                traceback.print_exc()
            report(describe(error))
            ctx.exit(CHECK_FAILED if isinstance(error, CheckFailed) else BAD_INPUT)


def _drop_unread_output() -> None:
    """Have nothing that is still buffered fail again at the exit, as nobody reads it any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def describe(error: Exception) -> str:
    """The line that a user sees for an error: what, where, and what to do."""
    match error:
        case CheckFailed():
            return f"check failed: {one_line(error)}"
        case SpeqcError():
            return f"error: {one_line(error)}"
        case OSError(strerror=str(reason), filename=str() | Path() as file):
            return f"error: {file}: {reason}"
        case OSError():
            return f"error: {one_line(error)}"
        case MemoryError():
            return f"error: not enough memory: {one_line(error)}"
        case _:
            return (
                f"error: internal error, {type(error).__name__}: {one_line(error)}; please report "
                f"it with the command and what it prints with {DEBUG_VARIABLE}=1 set"
            )


def one_line(error: Exception | str, limit: int = 2000) -> str:
    """The message of an error without line breaks, cut off at `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]} ..."


def report(line: str) -> None:
    """Write a line to standard error."""
    click.echo(line, err=True)


def note(text: str) -> None:
    """Tell the user something that is no error."""
    report(f"note: {text}")


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if that is a terminal.

    Yields a function that is told how many of the `total` steps have been taken since the last
    call; it may be called from several threads.
    """
    if not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


def recompute_note(reason: str) -> str:
    """What a user reads of a model whose attention is not recognised, for the `reason` given."""
    return f"no caches: each step recomputes its whole prefix, because of {reason}"
