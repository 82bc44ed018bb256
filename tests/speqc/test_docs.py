import re
from pathlib import Path

import click
import pytest

from speqc.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def options(name: str) -> str:
    """What `speqc NAME --help` says of options on a terminal of the usual width."""
    above = click.Context(main, info_name="speqc", **main.context_settings)
    command = main.commands[name]
    text = command.get_help(click.Context(command, parent=above, info_name=name))
    return text.partition("Options:\n")[2] + "\n"


def test_options_stand_in_the_docs_as_help_prints_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command's but those of opt, which are xDSL's, and of targets, which has none."""
    monkeypatch.setenv("COLUMNS", "80")
    page = PAGE.read_text("utf-8")
    headings = [line for line in page.splitlines() if line.startswith("## speqc ")]
    order = re.findall(r"speqc (\w+)", " ".join(headings))
    assert sorted(order) == sorted(main.commands)
    printed = [options(name) for name in order if name not in ("opt", "targets")]
    assert re.findall(r"^```\n(.*?)^```$", page, re.M | re.S) == printed
