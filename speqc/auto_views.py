"""`speqc compile --draft-views auto`: measure which draft views pay on the target, and choose.

Weights are weighed in groups (`view_groups`). A group's share of the draft's divergence is measured
against the full model with this group alone drafted and all else read in full: noise of other
weights would hide it. Shares are taken to add up to the divergence of the whole draft.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp

from speqc.calibration_text import CalibrationText
from speqc.dialects.speq import DRAFT, View, WeightOp
from speqc.draft_bits import read_bits
from speqc.draft_distance import Distance, Positions
from speqc.passes.form_draft_verify import find_function
from speqc.round_model import PAST, Rating, RoundModel
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import module_context, module_target
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.view_chooser import (
    Option,
    Point,
    Round,
    best_point,
    most_gain_within,
    trade_off,
)
from speqc.runtime.weights import WeightFile
from speqc.step_views import with_views
from speqc.view_groups import ViewGroup, view_groups, views_text

AUTO = "auto"
"""The `--draft-views` that asks for this."""

WIDER = (View.WIDE8, View.WIDE12)
"""Views that are weighed."""

CUT_BY = 16**2
"""How much less a view of 12 bits diverges than one of 8: its rounding is 4 bits finer."""

_MEASURED = "measured"
"""The name of steps that are made to be measured."""


@dataclass(frozen=True)
class Choice:
    """Views that were chosen: as `--draft-views` takes them, and how they were found."""

    text: str
    facts: Mapping[str, Any]


class ViewChooser:
    """Weighs views of a `pe` program whose draft reads all weights as drafts."""

    def __init__(self, program: ModuleOp, places: Mapping[str, str], most_bits: float | None):
        """`places` are those of the weights to weigh (see `weight_places`).

        Raises SpeqcError where a draft reads more than `most_bits` bits of a weight as it is.
        """
        self._program = program
        self._target = module_target(program)
        self._step = find_function(program, DRAFT)
        self._weights = {op.sym_name.data: op for op in program.ops if isinstance(op, WeightOp)}
        self._groups = view_groups(places)
        self._most_bits = most_bits
        self._past = min(PAST, module_context(program) // 2)
        self._bits = sum(read_bits(self._weights[name], View.DRAFT) for name in places)
        self._values = sum(_values(self._weights[name]) for name in places)
        if not self._groups:
            raise SpeqcError("--draft-views auto: no weight of a product is split into planes")
        if most_bits is not None and self._bits > most_bits * self._values:
            raise SpeqcError(
                f"--max-draft-bits {most_bits:g}: drafts read {self._bits / self._values:.3g} bits "
                "of a weight as they are, scales included"
            )

    def steps(self) -> int:
        """Measurements that `choose` makes."""
        return 2 + 2 * len(self._groups)

    def choose(
        self,
        file: WeightFile,
        text: CalibrationText,
        stop_tokens: frozenset[int],
        advance: Callable[[int], None] = lambda steps: None,
    ) -> Choice:
        """Measure with the weights of a file, and choose; `advance` is told of measurements."""
        positions = Positions(self._program, file, text, stop_tokens)

        def measure(views: Mapping[str, View]) -> Distance:
            found = positions.distance(self._with(_MEASURED, views), views)
            advance(1)
            return found

        narrow = measure(dict.fromkeys(self._all(), View.DRAFT))
        shares = [self._share(group, measure) for group in self._groups]
        return _Weighing(self, narrow, shares).choice(measure, len(positions), text.source)
