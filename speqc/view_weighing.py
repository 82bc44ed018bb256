"""The best of all sets of draft views, by what each view gains and costs alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from speqc.dialects.speq import View
from speqc.round_model import Rating, RoundModel
from speqc.runtime.view_chooser import (
    Option,
    Point,
    Round,
    best_point,
    most_gain_within,
    trade_off,
)


@dataclass(frozen=True)
class Weighing:
    """Views of weights, or groups of them, and a draft that reads none wider.

    Attributes:
        noise: of that draft (see `round_model`).
        options: for each weight its wider views; `gain` is by how much the noise falls.
        model: rates drafts.
        draft_bits: that a step of that draft reads of all weights; `weights` is their number.
    """

    noise: float
    options: Mapping[str, Sequence[Option]]
    model: RoundModel
    draft_bits: int
    weights: int

    def rating(self, views: Mapping[str, View]) -> Rating:
        """A set of views, as far as gains and cycles add up."""
        chosen = self._chosen(views)
        noise = max(0.0, self.noise - sum(option.gain for option in chosen))
        return self.model.rate(noise, self.model.draft_cycles + sum(o.cycles for o in chosen))

    def bits_per_weight(self, views: Mapping[str, View]) -> float:
        """Mean bits of a weight that a draft step reads."""
        return (self.draft_bits + sum(o.bits for o in self._chosen(views))) / self.weights

    def _chosen(self, views: Mapping[str, View]) -> list[Option]:
        return [
            option
            for name, own in self.options.items()
            for option in own
            if views.get(name) == option.view
        ]

    def curve(self) -> list[Point]:
        """From no wider view to all that gain: each adds what gains most for its cycles."""
        narrow = self.rating({})
        length, cycles = narrow.draft_length, self.model.draft_cycles
        # What the draft would emit more in a round of this length if it were the full model.
        ideal = self.model.at(length, 0.0, cycles).tokens - narrow.tokens
        worth = ideal / self.noise if self.noise > 0 else 0.0
        base = Round(
            narrow.tokens,
            length,
            cycles,
            self.model.verify_cycles[length - 1],
            self.model.plain_cycles,
            self.draft_bits,
            self.weights,
        )
        in_tokens = {
            name: [replace(option, gain=option.gain * worth) for option in own]
            for name, own in self.options.items()
        }
        return [self._rated(point) for point in trade_off(base, in_tokens)]

    def _rated(self, point: Point) -> Point:
        """The point with the draft length that suits it, and gains of tokens that do not add up."""
        rating = self.rating(point.views)
        return replace(point, tokens=rating.tokens, cycles=rating.cycles, speedup=rating.speedup)

    def fastest(self) -> dict[str, View]:
        """The set of the highest speedup on the curve."""
        return dict(best_point(self.curve()).views)

    def nearest(self, most_bits: float) -> dict[str, View]:
        """The set of the least noise within so many bits of a weight on average."""
        return most_gain_within(self.options, most_bits * self.weights - self.draft_bits)
