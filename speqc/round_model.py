"""What a draft's divergence says of speculative decoding: acceptance, tokens of a round, speedup."""

from dataclasses import dataclass
from math import sqrt

from speqc.dialects.speq import DRAFT, FULL
from speqc.runtime.program_timing import ProgramTimer

LONGEST = 16
"""Tokens of a round at most."""

PAST = 256
"""Positions in the caches when passes are timed, or half the context if that is less."""


@dataclass(frozen=True)
class Rating:
    """A draft on the target, with the draft length that suits it best.

    Attributes:
        acceptance: chance that a drafted token is accepted, if those before it are.
        draft_length: tokens drafted in a round.
        tokens: emitted in a round on average, the full model's own included.
        cycles: of a round.
        speedup: over plain decoding.
    """

    acceptance: float
    draft_length: int
    tokens: float
    cycles: float
    speedup: float


class RoundModel:
    """Rates drafts by their divergence and the cycles of their steps.

    A draft of small noise misses where the full model's best tokens are nearly level, so that the
    share that it misses grows as the noise, whose square the divergence is: with its square root,
    from what has been measured of one draft.
    """

    def __init__(self, timer: ProgramTimer, past: int, kl: float, agreement: float):
        """`kl` and `agreement` are those of one draft, measured on the same positions."""
        self._miss = (1 - agreement) / sqrt(kl) if kl > 0 else 0.0
        self.draft_cycles = timer.cost(DRAFT, 1, past).cycles
        self.plain_cycles = timer.cost(FULL, 1, past).cycles
        self.verify_cycles = [
            timer.cost(FULL, 1 + drafted, past).cycles for drafted in range(1, LONGEST + 1)
        ]

    def acceptance(self, kl: float) -> float:
        """The chance that a drafted token is accepted."""
        return max(0.0, 1 - self._miss * sqrt(max(kl, 0.0)))

    def rate(self, kl: float, draft_cycles: float) -> Rating:
        """A draft of this divergence, whose steps take so many cycles, at its best length."""
        lengths = range(1, LONGEST + 1)
        return max(
            (self.at(length, kl, draft_cycles) for length in lengths),
            key=lambda rating: rating.speedup,
        )

    def at(self, length: int, kl: float, draft_cycles: float) -> Rating:
        """The same with a given draft length."""
        acceptance = self.acceptance(kl)
        tokens = sum(acceptance**place for place in range(length + 1))
        cycles = length * draft_cycles + self.verify_cycles[length - 1]
        return Rating(acceptance, length, tokens, cycles, tokens * self.plain_cycles / cycles)
