"""The commands `speqc bench ...`. As in `speqc.cli`, nothing heavy is imported before one runs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

DEFAULT_TARGET = "speq-64x64"
MODELS = "llama-2-7b,llama-2-13b,llama-3.1-8b"
CONTEXTS = "256,1024,2048,4096"
DRAFT_LENGTHS = "1,2,3,4,6,8,12,16,24,32"
ACCEPTANCES = "0.8,0.9,0.95,0.976"
LONGEST_DRAFT = 256


class CommaList(click.ParamType):
    """Values of one kind between commas, each once."""

    name = "list"

    def __init__(self, what: str, read: Callable[[str], Any], is_valid: Callable[[Any], bool]):
        self.what, self.read, self.is_valid = what, read, is_valid

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The values of a text, without those that came before."""
        if isinstance(value, tuple):
            return value
        return tuple(
            dict.fromkeys(self._item(part.strip(), param, ctx) for part in value.split(","))
        )

    def _item(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            item = self.read(text)
        except ValueError:
            item = None
        if item is None or not self.is_valid(item):
            self.fail(f"{text!r} is not {self.what}.", param, ctx)
        return item


NAMES = CommaList("the name of a shape", str, bool)
POSITIVE = CommaList("a whole number from 1", int, lambda number: number >= 1)
LENGTHS = CommaList(
    f"a whole number from 1 to {LONGEST_DRAFT}", int, lambda number: 1 <= number <= LONGEST_DRAFT
)
SHARES = CommaList(
    "a number from 0 to 1", float, lambda number: math.isfinite(number) and 0 <= number <= 1
)


@click.group(no_args_is_help=False)
def bench() -> None:
    """Tables of simulated speed."""


@bench.command("paper")
@click.option(
    "--models",
    type=NAMES,
    default=MODELS,
    show_default=True,
    metavar="A,B",
    help="Shapes by name, or paths of .toml files.",
)
@click.option(
    "--contexts",
    type=POSITIVE,
    default=CONTEXTS,
    show_default=True,
    metavar="N,M",
    help="Cached positions behind which steps are timed.",
)
@click.option(
    "--draft-lengths",
    type=LENGTHS,
    default=DRAFT_LENGTHS,
    show_default=True,
    metavar="N,M",
    help="Tokens drafted in a round.",
)
@click.option(
    "--acceptances",
    type=SHARES,
    default=ACCEPTANCES,
    show_default=True,
    metavar="P,Q",
    help="Probabilities that a drafted token is accepted.",
)
@click.option(
    "--target",
    default=DEFAULT_TARGET,
    show_default=True,
    help="Target by name (see 'speqc targets'), or the path of a .toml file.",
)
@click.option(
    "--codebook", type=click.Choice(["sets", "paper", "naive"]), default="paper", show_default=True
)
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    help="Weights along K that share a scale; default: 64 (sets), 128 (paper, naive).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="paper-comparison",
    show_default=True,
    metavar="FOLDER",
    help="CSV, JSON, Markdown and PNG go here.",
)
def paper_command(**chosen: Any) -> None:
    """Set drafting beside FP16, 8-bit, 4-bit, OliVe and Tender, and the SPEQ paper's figures.

    Every step is one of a program compiled from a model's shape, timed on the same target.
    """
    from speqc.paper_bench import PaperOptions, bench_paper

    bench_paper(PaperOptions(**chosen))


@bench.command("baselines")
def baselines_command() -> None:
    """List the baselines: how they store and run a model, and where that is published."""
    from speqc.show_baselines import show_baselines

    show_baselines()
