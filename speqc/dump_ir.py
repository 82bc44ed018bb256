"""IR as text for readers: one module, or a folder with the module after each pass."""

import json
from io import StringIO
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp
from xdsl.printer import Printer

from speqc.runtime.errors import SpeqcError
from speqc.text_files import folder_problem

NO_LOCATION = " loc(unknown)"
"""What is printed behind an operation that came from no node."""


def print_module(module: ModuleOp) -> str:
    """The text of a module, with the names of the ONNX nodes as locations."""
    stream = StringIO()
    Printer(stream, print_debuginfo=True).print_op(module)
    # Operations that came from no node say nothing by saying so.
    return stream.getvalue().replace(NO_LOCATION, "") + "\n"


TIMINGS = "timings.json"
"""File of a dump that lists all passes."""


class IrDump:
    """Writes `NN-pass-name.mlir` for each pass that changed something, and `timings.json`."""

    def __init__(self, folder: Path):
        """Make the folder where need be; raises SpeqcError where it can't be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise SpeqcError(f"--dump-ir: {folder} is a file: give a folder") from None
        except OSError as error:
            raise SpeqcError(f"--dump-ir: {folder}: {error.strerror or error}") from error
        if problem := folder_problem(folder / TIMINGS):
            raise SpeqcError(f"--dump-ir: {folder}: {problem}")
        self._folder = folder
        self._text = ""
        self._number = 0
        self._timings: list[dict[str, str | float | bool]] = []
        self._written: list[Path] = []

    def restart(self) -> None:
        """Begin anew, without the files that were written."""
        for file in self._written:
            file.unlink(missing_ok=True)
        self._text, self._number = "", 0
        self._timings, self._written = [], []

    def after(self, name: str, module: ModuleOp, seconds: float) -> None:
        """Take the module as the stage or pass `name` left it, after so many seconds of work."""
        text = print_module(module)
        changed = text != self._text
        if changed:
            self._text = text
            file = self._folder / f"{self._number:02d}-{name}.mlir"
            file.write_text(text, encoding="utf-8")
            self._written.append(file)
        self._number += 1
        self._timings.append({"pass": name, "seconds": round(seconds, 6), "changed": changed})
        timings = json.dumps(self._timings, indent=2)
        (self._folder / TIMINGS).write_text(timings + "\n", encoding="utf-8")
