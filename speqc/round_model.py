"""What a draft's noise says of decoding with it: acceptance, tokens of a round, speedup."""

from dataclasses import dataclass
from math import sqrt

from speqc.dialects.speq import DRAFT, FULL
from speqc.runtime.program_timing import ProgramTimer
from speqc.steady_state import RoundCost, tokens_of_round

LONGEST = 16
"""Tokens of a round at most."""

PAST = 256
"""Positions in the caches when passes are timed, or half the context if that is less."""


@dataclass(frozen=True)
class Rating:
    """A draft on the target, with the draft length that suits it best.

    Attributes:
        noise: the square of the overlap with the full model that it lacks (see `Distance`).
        acceptance: chance that a drafted token is accepted, if those before it are.
        draft_length: tokens drafted in a round.
        tokens: emitted in a round on average, the full model's own included.
        cycles: of a round.
        speedup: over plain decoding.
    """

    noise: float
    acceptance: float
    draft_length: int
    tokens: float
    cycles: float
    speedup: float


class RoundModel:
    """Rates drafts by their noise and the cycles of their steps.

    The share of tokens that a draft misses is taken to grow as the overlap that it lacks, from what
    has been measured of one draft.
    """

    def __init__(self, timer: ProgramTimer, past: int, noise: float, agreement: float):
        """`noise` and `agreement` are those of one draft, measured on the same positions.

        Passes are timed behind `past` positions. `draft_cycles` are those of the program's own
        draft, `plain_cycles` those of a token of plain decoding.
        """
        self._miss = (1 - agreement) / sqrt(noise) if noise > 0 else 0.0
        self.draft_cycles = timer.cost(DRAFT, 1, past).cycles
        self.plain_cycles = timer.cost(FULL, 1, past).cycles
        self.verify_cycles = [
            timer.cost(FULL, 1 + drafted, past).cycles for drafted in range(1, LONGEST + 1)
        ]

    def acceptance(self, noise: float) -> float:
        """The chance that a drafted token is accepted."""
        return max(0.0, 1 - self._miss * sqrt(noise))

    def rate(self, noise: float, draft_cycles: float) -> Rating:
        """A draft of this noise, whose steps take so many cycles, at its best length."""
        lengths = range(1, LONGEST + 1)
        return max(
            (self.at(length, noise, draft_cycles) for length in lengths),
            key=lambda rating: rating.speedup,
        )

    def at(self, length: int, noise: float, draft_cycles: float) -> Rating:
        """The same with a given draft length."""
        acceptance = self.acceptance(noise)
        cost = RoundCost(length, draft_cycles, self.verify_cycles[length - 1])
        tokens = tokens_of_round(length, acceptance)
        speedup = cost.speedup(self.plain_cycles, acceptance)
        return Rating(noise, acceptance, length, tokens, cost.total, speedup)
