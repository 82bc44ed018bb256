"""Compiling with `--draft-views auto`: what is kept of the lowering until weights stand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xdsl.dialects.builtin import ModuleOp

from speqc.artifact import ChosenProgram
from speqc.auto_views import ViewChooser
from speqc.calibration_text import CalibrationText
from speqc.dump_ir import IrDump
from speqc.passes.choose_views import split_places
from speqc.runtime.weights import WeightFile

Relower = Callable[[ModuleOp, str, IrDump | None], None]
"""Runs the passes from `choose-views` on, with these views, on a module."""


class AutoViews:
    """Chooses the views of a model's draft, and lowers the model once more with them.

    Attributes:
        facts: what the manifest says of the choice; None before there is one.
    """

    def __init__(self, relower: Relower, most_bits: float | None, stop_tokens: frozenset[int]):
        self.facts: Mapping[str, Any] | None = None
        self._relower = relower
        self._most_bits = most_bits
        self._stop_tokens = stop_tokens
        self._raised = ModuleOp([])
        self._dump: IrDump | None = None
        self._chooser: ViewChooser | None = None
        self._text: CalibrationText | None = None

    def keep(self, raised: ModuleOp, dump: IrDump | None) -> None:
        """Keep a copy of a module as it stands where views may still be chosen."""
        self._raised, self._dump = raised.clone(), dump

    def prepare(self, program: ModuleOp, text: CalibrationText) -> int:
        """Take the `pe` program that the kept module became: how many measurements there will be.

        Raises SpeqcError where there is nothing to choose, or too few bits to choose from.
        """
        self._chooser = ViewChooser(program, split_places(self._raised), self._most_bits)
        self._text = text
        return self._chooser.measurements

    def choose(self, weights: Path, advance: Callable[[int], None]) -> ChosenProgram:
        """Measure with the weights of a file, and lower the model with what is chosen."""
        assert self._chooser is not None and self._text is not None
        file = WeightFile(weights)
        choice = self._chooser.choose(file, self._text, self._stop_tokens, advance)
        self._relower(self._raised, choice.text, self._dump)
        self.facts = choice.facts
        return ChosenProgram(self._raised, {"draft_views": choice.text or None}, choice.facts)
