"""`speqc compile --draft-views auto`: measure which draft views pay on the target, and choose.

Weights are weighed in groups (`view_groups`). A group's part in the draft's noise is measured
against the full model with this group alone drafted and all else read in full: the noise of other
weights would hide it. Parts are taken to add up to the noise of the whole draft.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
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
from speqc.runtime.view_chooser import Option
from speqc.runtime.weights import WeightFile
from speqc.step_views import with_views
from speqc.view_groups import view_groups, views_text
from speqc.view_weighing import Weighing

AUTO = "auto"
"""The `--draft-views` that asks for this."""

WIDER = (View.WIDE8, View.WIDE12)
"""Views that are weighed."""

FINER = 16**2
"""By how much noise of a view of 12 bits is less than of one of 8: it rounds 16 times finer."""

Views = Mapping[str, View]
"""Of groups by their patterns, or of weights by their names."""

Measure = Callable[[Views], Distance]


@dataclass(frozen=True)
class Choice:
    """Views that were chosen, as `--draft-views` takes them, and what the manifest says of how."""

    text: str
    facts: Mapping[str, Any]


class ViewChooser:
    """Weighs views of a `pe` program whose draft reads all weights as drafts."""

    def __init__(self, program: ModuleOp, places: Mapping[str, str], most_bits: float | None):
        """`places` are those of the weights to weigh (see `weight_places`).

        Raises SpeqcError where there are none, or a draft reads more than `most_bits` bits of a
        weight as it is.
        """
        self._program = program
        self._draft = find_function(program, DRAFT)
        self._weights = {op.sym_name.data: op for op in program.ops if isinstance(op, WeightOp)}
        self._groups = {group.pattern: group for group in view_groups(places)}
        self._most_bits = most_bits
        self._past = min(PAST, module_context(program) // 2)
        if not self._groups:
            raise SpeqcError("--draft-views auto: no weight that products read is split")
        self._values = sum(k * n for k, n in (self._weights[name].shape for name in places))
        self._draft_bits = sum(self._bits(name, View.DRAFT) for name in self._groups)
        if most_bits is not None and self._draft_bits > most_bits * self._values:
            raise SpeqcError(
                f"--max-draft-bits {most_bits:g}: drafts read as they are "
                f"{self._draft_bits / self._values:.4g} bits of a weight, scales included"
            )

    @property
    def measurements(self) -> int:
        """How many `choose` makes."""
        return 2 + 2 * len(self._groups)

    def choose(
        self,
        file: WeightFile,
        text: CalibrationText,
        stop_tokens: frozenset[int],
        advance: Callable[[int], None] = lambda steps: None,
    ) -> Choice:
        """Measure with the weights of a file, and choose; `advance` is told of measurements.

        Raises SpeqcError where the text can't be measured on (see `draft_distance`).
        """
        positions = Positions(self._program, file, text, stop_tokens)

        def measure(views: Views) -> Distance:
            own = self._of_weights(views)
            found = positions.distance(self._step("measured", own), own)
            advance(1)
            return found

        narrow = measure(self._narrow)
        parts = {name: self._parts(name, measure) for name in self._groups}
        weighing = self._weigh(narrow, parts)
        views = self._best(weighing)
        found = measure({**self._narrow, **views})
        rating = self._rate(weighing, views, found)
        if self._most_bits is None and rating.speedup < weighing.rating({}).speedup:
            # Gains that did not add up: what was measured counts.
            views, found, rating = {}, narrow, weighing.rating({})
        bits = weighing.bits_per_weight
        facts = {
            "max_draft_bits": self._most_bits,
            "text": text.source,
            "positions": len(positions),
            "cached_positions": self._past,
            "narrow": _figures(narrow, weighing.rating({}), bits({})),
            "chosen": {"views": self._text(views), **_figures(found, rating, bits(views))},
            "groups": _group_facts(weighing, parts),
            "curve": self._curve_facts(weighing),
        }
        return Choice(self._text(views), facts)

    @property
    def _narrow(self) -> dict[str, View]:
        return dict.fromkeys(self._groups, View.DRAFT)

    def _parts(self, name: str, measure: Measure) -> dict[View, float]:
        """The noise that a group makes in each view, all other weights read in full."""
        others = dict.fromkeys(self._groups, View.FULL)
        draft, wide8 = (measure({**others, name: view}).noise for view in (View.DRAFT, View.WIDE8))
        return {View.DRAFT: draft, View.WIDE8: wide8, View.WIDE12: wide8 / FINER}

    def _weigh(self, narrow: Distance, parts: Mapping[str, Mapping[View, float]]) -> Weighing:
        candidates = [(name, view) for name in self._groups for view in WIDER]
        steps = [
            self._step(f"candidate{number}", self._of_weights({name: view}))
            for number, (name, view) in enumerate(candidates)
        ]
        timer = self._timer(steps)
        model = RoundModel(timer, self._past, narrow.noise, narrow.agreement)
        total = sum(part[View.DRAFT] for part in parts.values())
        scale = narrow.noise / total if total > 0 else 0.0
        options: dict[str, list[Option]] = {name: [] for name in self._groups}
        for (name, view), step in zip(candidates, steps, strict=True):
            gain = scale * (parts[name][View.DRAFT] - parts[name][view])
            cycles = timer.cost(step.sym_name.data, 1, self._past).cycles - model.draft_cycles
            bits = self._bits(name, view) - self._bits(name, View.DRAFT)
            options[name].append(Option(view, gain, max(0, cycles), bits))
        return Weighing(narrow.noise, options, model, self._draft_bits, self._values)

    def _best(self, weighing: Weighing) -> dict[str, View]:
        if self._most_bits is None:
            return weighing.fastest()
        return weighing.nearest(self._most_bits)

    def _rate(self, weighing: Weighing, views: Views, found: Distance) -> Rating:
        """The views by what has been measured of them together."""
        step = self._step("chosen", self._of_weights(views))
        cycles = self._timer([step]).cost("chosen", 1, self._past).cycles
        return weighing.model.rate(found.noise, cycles)

    def _timer(self, steps: list[FuncOp]) -> ProgramTimer:
        """Times the program's steps and further ones."""
        module = self._program.clone()
        for step in steps:
            module.body.block.add_op(step)
        return ProgramTimer(module)

    def _step(self, name: str, views: Views) -> FuncOp:
        target = module_target(self._program)
        return with_views(self._draft, name, views, self._weights, target)

    def _of_weights(self, views: Views) -> dict[str, View]:
        return {own: view for name, view in views.items() for own in self._groups[name].weights}

    def _bits(self, name: str, view: View) -> int:
        return sum(read_bits(self._weights[own], view) for own in self._groups[name].weights)

    def _text(self, views: Views) -> str:
        return views_text(list(self._groups.values()), views)

    def _curve_facts(self, weighing: Weighing) -> list[dict[str, Any]]:
        """The points of the trade-off: what each adds to the views of the one before."""
        found: list[dict[str, Any]] = []
        before: Views = {}
        for point in weighing.curve():
            added = {n: view for n, view in point.views.items() if before.get(n) != view}
            before, rating = point.views, weighing.rating(point.views)
            found.append(
                {
                    "adds": self._text(added),
                    "draft_bits_per_weight": _short(weighing.bits_per_weight(before)),
                    "overlap": _short(1 - sqrt(rating.noise)),
                    "acceptance": _short(rating.acceptance),
                    "draft_length": rating.draft_length,
                    "speedup": _short(rating.speedup),
                }
            )
        return found


def _group_facts(
    weighing: Weighing, parts: Mapping[str, Mapping[View, float]]
) -> list[dict[str, Any]]:
    """For each group the overlap where it alone is drafted, and cycles that wider views cost."""
    return [
        {
            "weights": name,
            "overlap": {str(view): _short(1 - sqrt(part)) for view, part in parts[name].items()},
            "cycles": {str(option.view): int(option.cycles) for option in options},
        }
        for name, options in weighing.options.items()
    ]


def _figures(found: Distance, rating: Rating, bits: float) -> dict[str, Any]:
    """What is measured of a draft, and what it simulates to."""
    return {
        "kl": _short(found.kl),
        "agreement": _short(found.agreement),
        "overlap": _short(found.overlap),
        "draft_bits_per_weight": _short(bits),
        "draft_length": rating.draft_length,
        "speedup": _short(rating.speedup),
    }


def _short(number: float) -> float:
    """Six digits: more than any of the figures is worth."""
    return float(f"{number:.6g}")
