import re
from pathlib import Path

import click
import pytest

from speqc.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"

COMMANDS = {
    f"{name} {inner}".strip(): command
    for name, found in main.commands.items()
    for inner, command in getattr(found, "commands", {"": found}).items()
}
"""All commands by name, those of a group as "group command"."""


def options(name: str) -> str:
    """What `speqc NAME --help` says of options on a terminal of the usual width."""
    above = click.Context(main, info_name="speqc", **main.context_settings)
    command = COMMANDS[name]
    text = command.get_help(click.Context(command, parent=above, info_name=name))
    return text.partition("Options:\n")[2] + "\n"


def test_options_stand_in_the_docs_as_help_prints_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command's but those of opt, which are xDSL's, and of lists, which have none."""
    monkeypatch.setenv("COLUMNS", "80")
    page = PAGE.read_text("utf-8")
    headings = [line for line in page.splitlines() if line.startswith("## speqc ")]
    order = re.findall(r"speqc ((?:bench )?\w+)", " ".join(headings))
    assert sorted(order) == sorted(COMMANDS)
    without = ("opt", "targets", "bench baselines")
    printed = [options(name) for name in order if name not in without]
    assert re.findall(r"^```\n(.*?)^```$", page, re.M | re.S) == printed
