"""How many tokens a round drafts: rules that see the draft's probabilities and the rounds so far.

What a rule sees is the same in every repetition of a run, so its rounds are, too. Tokens and logits
do not depend on the rule (`docs/numerics.md`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from speqc.dialects.speq import CONSTANT, COST, DRAFT, FULL, HEURISTIC

PassCost = Callable[[str, int, int], float]
"""What a pass costs: of a step function, over so many rows, behind so many positions."""

LONGEST = 32
"""Tokens that the rule by cost drafts in a round at most, if nothing else is asked for."""

GROWTH, DECLINE = 2, 1
"""Tokens by which the heuristic rule lengthens and shortens drafts."""

BINS = 10
"""Ranges of a drafted token's probability whose acceptance is counted apart."""

SCALE_TRUST, BIN_TRUST = 2.0, 8.0
"""Weights of what is guessed beside what is counted: in rejections over all ranges, and in drafted
tokens of one range."""

MEAN_GUESS, MEAN_TRUST = 0.8, 4.0
"""The acceptance of a token of which nothing is known, and in drafted tokens the guess's weight."""


class Schedule(ABC):
    """A rule over the rounds of one run."""

    def __init__(self, threshold: float):
        """A drafted token of a lower probability than `threshold` ends its round's drafting."""
        self.threshold = threshold
        self.limit = 0

    def begin(self, past: int, room: int) -> int:
        """Begin a round behind `past` positions: how many tokens it may draft, `room` at most."""
        self.limit = min(self.length(), room)
        return self.limit

    @abstractmethod
    def length(self) -> int:
        """Tokens that the next round may draft."""

    def goes_on(self, probability: float) -> bool:
        """Whether to draft another token after one whose top probability is known."""
        return probability >= self.threshold

    def learn(self, drafted: int, accepted: int) -> None:
        """Take note of how many of a round's tokens were accepted."""
        del drafted, accepted


class Constant(Schedule):
    """The same length in all rounds."""

    def __init__(self, length: int, threshold: float):
        super().__init__(threshold)
        self._length = length

    def length(self) -> int:
        """The constant."""
        return self._length


class Heuristic(Constant):
    """Two more tokens after a round whose drafts were all accepted, else one fewer, at least one.

    The rule of Hugging Face Transformers, `num_assistant_tokens_schedule="heuristic"`.
    """

    def learn(self, drafted: int, accepted: int) -> None:
        """Lengthen or shorten the next round's drafts."""
        if accepted == drafted:
            self._length += GROWTH
        else:
            self._length = max(1, self._length - DECLINE)


class Cost(Schedule):
    """Draft on as long as another token is expected to bring more than its time.

    Another token is emitted if all drafts before it are accepted, and it is, too. Its time, a draft
    step and a further row to verify, would bring `rate` tokens for each unit of cost elsewhere. For
    known acceptances, and passes that do not get cheaper, this rule with the best rate is the best
    there is: gains fall with every token, so looking one token ahead is enough.

    Acceptances are estimated from the rounds so far by the draft's top probability (see
    `Calibration`), that of a token not drafted yet over all of them. A round drafts one token at
    least, to learn from.
    """

    def __init__(self, longest: int, threshold: float, cost: PassCost):
        """Drafts are no longer than `longest`."""
        super().__init__(threshold)
        self.longest = longest
        self.cost = cost
        self.calibration = Calibration()
        self._emitted, self._spent = 0, 0.0
        self._past = 0
        self._probabilities: list[float] = []
        self._chance = 1.0

    def begin(self, past: int, room: int) -> int:
        """Begin a round (see `Schedule`)."""
        self._past, self._probabilities, self._chance = past, [], 1.0
        return super().begin(past, room)

    def length(self) -> int:
        """The most that a round may draft."""
        return self.longest

    def goes_on(self, probability: float) -> bool:
        """Whether another token is worth its cost."""
        self._probabilities.append(probability)
        self._chance *= self.calibration.acceptance(probability)
        if len(self._probabilities) >= self.limit or not super().goes_on(probability):
            return False
        gain = self._chance * self.calibration.mean
        return gain > self.rate() * self._cost_of_another()

    def rate(self) -> float:
        """Tokens for each unit of cost: in the rounds so far, before them in a plain pass."""
        if not self._emitted:
            return 1 / self.cost(FULL, 1, self._past)
        return self._emitted / self._spent

    def _cost_of_another(self) -> float:
        drafted = len(self._probabilities)
        longer, as_is = (self.cost(FULL, drafted + more, self._past) for more in (2, 1))
        return self.cost(DRAFT, 1, self._past + drafted) + longer - as_is

    def learn(self, drafted: int, accepted: int) -> None:
        """Count what was accepted, and what the round took."""
        known = self._probabilities[: min(drafted, accepted + 1)]
        for place, probability in enumerate(known):
            self.calibration.count(probability, place < accepted)
        self._emitted += accepted + 1
        drafts = sum(self.cost(DRAFT, 1, self._past + place) for place in range(drafted))
        self._spent += drafts + self.cost(FULL, 1 + drafted, self._past)


class Calibration:
    """How often drafted tokens are accepted, by their probability, if all before them are.

    The first guess is the root of the probability: a draft with the same weights, rounded, agrees
    more often than it is sure. What a run shows then moves all guesses alike, by its rejections
    over the guessed ones, and each of `BINS` ranges of probabilities by its own.
    """

    def __init__(self) -> None:
        self._seen = [0] * BINS
        self._rejected = [0] * BINS
        self._guessed = 0.0

    def count(self, probability: float, accepted: bool) -> None:
        """Add a drafted token."""
        place = _bin(probability)
        self._seen[place] += 1
        self._rejected[place] += not accepted
        self._guessed += _guess(probability)

    def acceptance(self, probability: float) -> float:
        """The estimate for a token of that probability."""
        place = _bin(probability)
        scale = (sum(self._rejected) + SCALE_TRUST) / (self._guessed + SCALE_TRUST)
        guess = min(1.0, scale * _guess((place + 0.5) / BINS))
        rejected = self._rejected[place] + BIN_TRUST * guess
        return 1 - rejected / (self._seen[place] + BIN_TRUST)

    @property
    def mean(self) -> float:
        """The estimate for a token whose probability is not known."""
        rejected = sum(self._rejected) + MEAN_TRUST * (1 - MEAN_GUESS)
        return 1 - rejected / (sum(self._seen) + MEAN_TRUST)


def _bin(probability: float) -> int:
    return min(int(probability * BINS), BINS - 1)


def _guess(probability: float) -> float:
    """The share of tokens of that probability that are rejected, before any is known."""
    return 1 - math.sqrt(probability)


@dataclass(frozen=True)
class Drafting:
    """A rule by its name, with its draft length and exit threshold.

    The length is that of each round (`constant`), of the first one (`heuristic`), or the most
    (`cost`).
    """

    schedule: str
    length: int
    threshold: float

    def start(self, cost: PassCost) -> Schedule:
        """The rule at the beginning of a run."""
        if self.schedule == COST:
            return Cost(self.length, self.threshold, cost)
        rule = {CONSTANT: Constant, HEURISTIC: Heuristic}[self.schedule]
        return rule(self.length, self.threshold)
