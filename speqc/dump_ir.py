"""IR as text for readers: one module, or a folder with the module after each pass."""

import json
from io import StringIO
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp
from xdsl.printer import Printer


def print_module(module: ModuleOp) -> str:
    """The text of a module, with the names of the ONNX nodes as locations."""
    stream = StringIO()
    Printer(stream, print_debuginfo=True).print_op(module)
    # Operations that came from no node say nothing by saying so.
    return stream.getvalue().replace(" loc(unknown)", "") + "\n"


TIMINGS = "timings.json"
"""File of a dump that lists all passes."""


class IrDump:
    """Writes `NN-pass-name.mlir` for each pass that changed something, and `timings.json`."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._text = ""
        self._number = 0
        self._timings: list[dict[str, str | float | bool]] = []

    def after(self, name: str, module: ModuleOp, seconds: float) -> None:
        """Take the module as the stage or pass `name` left it, after so many seconds of work."""
        text = print_module(module)
        changed = text != self._text
        if changed:
            self._text = text
            (self._folder / f"{self._number:02d}-{name}.mlir").write_text(text, encoding="utf-8")
        self._number += 1
        self._timings.append({"pass": name, "seconds": round(seconds, 6), "changed": changed})
        timings = json.dumps(self._timings, indent=2)
        (self._folder / TIMINGS).write_text(timings + "\n", encoding="utf-8")
