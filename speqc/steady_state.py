"""Speculative decoding in the steady state: rounds without end behind a context of one length.

A round drafts L tokens one by one and verifies them in one full pass. With tokens accepted
independently with probability A it emits the sum of A^j for j from 0 to L tokens on average.
"""

from typing import NamedTuple

from speqc.dialects.speq import DRAFT, FULL
from speqc.runtime.program_timing import ProgramTimer


class RoundCost(NamedTuple):
    """What the passes of a round cost, in cycles or any other unit of time.

    Attributes:
        length: tokens drafted.
        draft: one drafted token.
        verify: the pass over 1 + `length` rows.
    """

    length: int
    draft: float
    verify: float

    @property
    def total(self) -> float:
        """All passes of the round."""
        return self.length * self.draft + self.verify

    def speedup(self, plain: float, acceptance: float) -> float:
        """How many times faster than a pass of cost `plain` for each token."""
        return plain * tokens_of_round(self.length, acceptance) / self.total


def round_cost(timer: ProgramTimer, context: int, length: int) -> RoundCost:
    """The cycles of a round behind `context` cached positions."""
    draft = timer.cost(DRAFT, 1, context).cycles
    return RoundCost(length, draft, timer.cost(FULL, 1 + length, context).cycles)


def tokens_of_round(length: int, acceptance: float) -> float:
    """Tokens that a round of `length` drafted tokens emits on average."""
    return sum(acceptance**place for place in range(length + 1))
