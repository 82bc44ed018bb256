"""The pass pipeline for the HTML report: IR dumps, what each pass changed, what it left."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speqc.dump_ir import TIMINGS
from speqc.runtime.errors import SpeqcError

OPERATION = re.compile(r"^\s*(?:%[^=]*= )?\"?(\w+)\.\w+", re.M)
"""The dialect of an operation at the start of a line."""

NUMBER = re.compile(r"(%[A-Za-z_$.-]*?[\w$.-]*?)_\d+\b")
"""A value's name with the number that tells it from others of that name: any pass moves those."""


@dataclass(frozen=True)
class PassEntry:
    """One pass of a pipeline.

    Attributes:
        number: in the pipeline; 0 is the import.
        name, seconds: what ran, and for how long; None where that is not known.
        text: the IR after it, None where the pass changed nothing.
        changes: (i1, i2, j1, j2): lines i1..i2 before became j1..j2 after.
        dialects: how many operations of each dialect there are after it.
    """

    number: int
    name: str
    seconds: float | None
    text: str | None
    changes: Sequence[tuple[int, int, int, int]]
    dialects: dict[str, int]

    @property
    def removed(self) -> int:
        """Lines that were there before and are not after."""
        return sum(change[1] - change[0] for change in self.changes)

    @property
    def added(self) -> int:
        """Lines that are there only after."""
        return sum(change[3] - change[2] for change in self.changes)


def program_only(text: str) -> list[PassEntry]:
    """What is known of the pipeline without a dump: its result."""
    return [PassEntry(0, "program", None, text, (), _dialects(text))]


def read_dump(folder: Path, program: str) -> list[PassEntry]:
    """The passes that `compile --dump-ir` left in a folder.

    Raises SpeqcError where it is no such folder, or the last IR is not `program`.
    """
    entries: list[PassEntry] = []
    before: str | None = None
    for number, entry in enumerate(_timings(folder)):
        try:
            name, seconds, changed = entry["pass"], float(entry["seconds"]), entry["changed"]
        except (KeyError, TypeError, ValueError) as error:
            raise SpeqcError(f"{folder / TIMINGS}: not what --dump-ir writes: {error!r}") from error
        if not changed:
            entries.append(PassEntry(number, name, seconds, None, (), {}))
            continue
        text = _read(folder / f"{number:02d}-{name}.mlir")
        changes = () if before is None else differences(before, text)
        entries.append(PassEntry(number, name, seconds, text, changes, _dialects(text)))
        before = text
    if before != program:
        raise SpeqcError(
            f"{folder}: the last IR is not this artifact's program: compile with --dump-ir anew"
        )
    return entries


def _timings(folder: Path) -> list[dict[str, Any]]:
    path = folder / TIMINGS
    try:
        entries = json.loads(_read(path))
    except ValueError as error:
        raise SpeqcError(f"{path}: not what --dump-ir writes: {error}") from error
    if not isinstance(entries, list):
        raise SpeqcError(f"{path}: not what --dump-ir writes: expected a list of passes")
    return entries


def _read(path: Path) -> str:
    if not path.is_file():
        raise SpeqcError(f"{path}: there is no such file: give a folder of 'compile --dump-ir'")
    return path.read_text("utf-8")


def differences(before: str, after: str) -> list[tuple[int, int, int, int]]:
    """Line ranges that differ: before[i1:i2] became after[j1:j2].

    Numbers at the ends of values' names are not compared, as one new value moves all later ones.
    """
    lines = [[NUMBER.sub(r"\1", line) for line in text.splitlines()] for text in (before, after)]
    matcher = difflib.SequenceMatcher(None, *lines, autojunk=False)
    return [(i1, i2, j1, j2) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal"]


def _dialects(text: str) -> dict[str, int]:
    return dict(Counter(OPERATION.findall(text)).most_common())
