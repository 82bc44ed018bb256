"""Settings of drafting, replayed from a recording: the rounds of a run with them, and its time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from speqc.recording import Chain, Recorded
from speqc.report import prompt_calls, round_calls, token_calls
from speqc.runtime.calls import Call
from speqc.runtime.decode import Round
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.schedules import Constant, Schedule


@dataclass(frozen=True, order=True)
class Policy:
    """How a run drafts: most tokens in a round, and the top probability under which it stops."""

    draft_length: int
    exit_threshold: float

    def __str__(self) -> str:
        return f"length {self.draft_length}, threshold {self.exit_threshold:g}"


def policies(lengths: Sequence[int], thresholds: Sequence[float]) -> list[Policy]:
    """Every length with every threshold, in ascending order."""
    return [Policy(*pair) for pair in product(sorted(set(lengths)), sorted(set(thresholds)))]


def rounds_of(recorded: Recorded, policy: Policy) -> list[Round]:
    """The rounds of a greedy run; its length and threshold must lie within the recorded ones."""
    return scheduled_rounds(recorded, Constant(policy.draft_length, policy.exit_threshold))


def scheduled_rounds(recorded: Recorded, schedule: Schedule) -> list[Round]:
    """The rounds of a greedy run with a rule at its beginning, as far as drafts were recorded."""
    rounds: list[Round] = []
    place = 0
    while place + 1 < recorded.emitted:
        room = recorded.wanted - place - 2
        limit = schedule.begin(recorded.prompt_length + place, room)
        drafted, early = _drafted(recorded.chains[place], limit, schedule)
        accepted = min(drafted, recorded.agreed(place))
        schedule.learn(drafted, accepted)
        rounds.append(Round(drafted, accepted, early))
        place += accepted + 1
    return rounds


def _drafted(chain: Chain, limit: int, schedule: Schedule) -> tuple[int, bool]:
    """How many tokens are drafted, and whether the rule stopped before its limit."""
    drafted = chain.probabilities[:limit]
    for place, probability in enumerate(drafted):
        if not schedule.goes_on(probability):
            return place + 1, place + 1 < limit
    return len(drafted), len(drafted) < limit


class RunTimer:
    """Simulated seconds of runs with a program on its target.

    The experts of a mixture are those that the timer assumes; a recording does not have them.
    """

    def __init__(self, timer: ProgramTimer, chunk: int):
        """`chunk` tokens of a prompt go through in a pass."""
        self.timer = timer
        self.chunk = chunk

    def prompt(self, recorded: Recorded) -> float:
        """The passes of the prompt."""
        return self._seconds(prompt_calls(recorded.prompt_length, self.chunk))

    def plain(self, recorded: Recorded) -> float:
        """Autoregressive decoding behind the prompt."""
        return self._seconds(token_calls(recorded.prompt_length, recorded.emitted))

    def speculative(self, recorded: Recorded, rounds: Sequence[Round]) -> float:
        """Speculative decoding behind the prompt."""
        return self._seconds(round_calls(recorded.prompt_length, rounds))

    def cost(self, function: str, rows: int, past: int) -> int:
        """Cycles of a pass."""
        return self.timer.cost(function, rows, past).cycles

    def _seconds(self, calls: Sequence[Call]) -> float:
        return self.timer.target.seconds(1) * sum(self.timer.cost(*call).cycles for call in calls)
