"""What recordings say: agreement, acceptance, and the simulated speedup of every setting.

Every figure is a quotient of two sums over prompts. Its standard error is that of a bootstrap over
prompts (1,000 draws with replacement), since tokens of one text are not independent of each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speqc.policies import Policy, RunTimer, rounds_of, scheduled_rounds
from speqc.recording import Recorded
from speqc.report import Fields
from speqc.runtime.decode import Round
from speqc.runtime.schedules import Drafting

DRAWS = 1000
"""Samples of the bootstrap."""

Sums = NDArray[np.float64]
"""A number for each prompt."""

Quotient = tuple[Sums, Sums]
"""A figure: what is summed above, and what below."""


class Bootstrap:
    """Quotients of sums over prompts, and their standard errors."""

    def __init__(self, prompts: int, seed: int):
        random = np.random.default_rng(seed)
        self._weights = random.multinomial(prompts, np.full(prompts, 1 / prompts), DRAWS)

    def ratio(self, above: Sums, below: Sums, prompts: NDArray[np.bool_] | None = None) -> Fields:
        """`value` and `stderr` of sum(above) / sum(below), over all or some prompts.

        Null stands for 0 / 0 and for numbers that are not finite. There is no standard
        error of a single prompt.
        """
        chosen = np.ones(len(above), bool) if prompts is None else prompts
        top, bottom = np.where(chosen, above, 0), np.where(chosen, below, 0)
        if not bottom.sum():
            return {"value": None, "stderr": None}
        tops, bottoms = self._weights @ top, self._weights @ bottom
        drawn = tops[bottoms > 0] / bottoms[bottoms > 0]
        stderr = float(drawn.std()) if np.count_nonzero(bottom) > 1 else None
        return {"value": _finite(top.sum() / bottom.sum()), "stderr": _finite(stderr)}

    def difference(self, of: Quotient, other: Quotient) -> Fields:
        """`value` and `stderr` of one quotient less another, both drawn from the same prompts."""
        (top, bottom), (other_top, other_bottom) = of, other
        if not (bottom.sum() and other_bottom.sum()):
            return {"value": None, "stderr": None}
        bottoms, other_bottoms = self._weights @ bottom, self._weights @ other_bottom
        both = (bottoms > 0) & (other_bottoms > 0)
        drawn = (self._weights @ top)[both] / bottoms[both]
        drawn = drawn - (self._weights @ other_top)[both] / other_bottoms[both]
        value = top.sum() / bottom.sum() - other_top.sum() / other_bottom.sum()
        stderr = float(drawn.std()) if np.count_nonzero(bottom) > 1 else None
        return {"value": _finite(value), "stderr": _finite(stderr)}


def _finite(number: float | None) -> float | None:
    return None if number is None or not np.isfinite(number) else float(number)


@dataclass(frozen=True)
class PolicyRuns:
    """The runs of all prompts with one setting: for each prompt what it counts and takes."""

    policy: Policy
    rounds: Sums
    drafted: Sums
    accepted: Sums
    early_exits: Sums
    seconds: Sums


class Evaluation:
    """The figures of a list of recordings.

    Attributes:
        runs: for each setting the runs that it gives.
        schedules: the same for rules that change the length from round to round, by name.
        prompt_seconds, plain_seconds: simulated time of the prompts' passes, and of autoregressive
            decoding behind them.
    """

    def __init__(
        self,
        recordings: Sequence[Recorded],
        sets: Sequence[str],
        settings: Sequence[Policy],
        timer: RunTimer,
        seed: int,
        advance: Callable[[int], None] = lambda steps: None,
        schedules: Sequence[Drafting] = (),
    ):
        """`sets` names the set of each recording; `advance` is told of settings timed.

        `schedules` are replayed as far as drafts were recorded.
        """
        self.recordings = recordings
        self.sets = np.array(sets)
        self.seed = seed
        self.bootstrap = Bootstrap(len(recordings), seed)
        self.prompt_seconds = np.array([timer.prompt(entry) for entry in recordings])
        self.plain_seconds = np.array([timer.plain(entry) for entry in recordings])
        self.runs: list[PolicyRuns] = []
        for policy in settings:
            runs = [rounds_of(entry, policy) for entry in recordings]
            self.runs.append(self._runs(policy, runs, timer))
            advance(1)
        self.schedules: dict[str, PolicyRuns] = {}
        for rule in schedules:
            runs = [scheduled_rounds(entry, rule.start(timer.cost)) for entry in recordings]
            policy = Policy(rule.length, rule.threshold)
            self.schedules[rule.schedule] = self._runs(policy, runs, timer)

    def _runs(self, policy: Policy, runs: Sequence[Sequence[Round]], timer: RunTimer) -> PolicyRuns:
        rows = []
        for entry, rounds in zip(self.recordings, runs, strict=True):
            rows.append(
                (
                    len(rounds),
                    sum(one.drafted for one in rounds),
                    sum(one.accepted for one in rounds),
                    sum(one.early_exit for one in rounds),
                    timer.speculative(entry, rounds),
                )
            )
        return PolicyRuns(policy, *np.array(rows, np.float64).T)

    def fields(self) -> Fields:
        """All figures, as `speqc eval --json` has them (see `docs/evaluation.md`)."""
        best = self.best()
        names = list(dict.fromkeys(self.sets.tolist()))
        return {
            "positions": sum(len(entry.chains) for entry in self.recordings),
            **self.draft_fields(),
            "acceptance_per_position": self.per_position(),
            "best": self.setting_fields(best),
            "held_out": self.held_out(),
            "sets": {name: self._set_fields(name, best) for name in names},
            "settings": [self.setting_fields(runs) for runs in self.runs],
            "schedules": {name: self.setting_fields(runs) for name, runs in self.schedules.items()},
        }

    def draft_fields(self, prompts: NDArray[np.bool_] | None = None) -> Fields:
        """How near the draft is: figures of the first drafted token at each position."""
        figures = self._draft_figures()
        return {name: self.bootstrap.ratio(*of, prompts) for name, of in figures.items()}

    def _draft_figures(self) -> dict[str, Quotient]:
        counts = self._each(lambda entry: len(entry.chains))
        sums = {
            "agreement": self._each(_agreeing),
            "overlap": self._each(lambda entry: sum(entry.overlap)),
            "kl": self._each(lambda entry: sum(entry.kl)),
        }
        return {name: (above, counts) for name, above in sums.items()}

    def figures(self) -> dict[str, Quotient]:
        """What drafts of a model are compared by, the speeds with the best setting of each.

        `held_out_speedup` is that of `held_out`, and not there where that has none.
        """
        best, held_out = self.best(), self._held_out_runs()
        before, plain = self.prompt_seconds, self.plain_seconds
        tokens = self._each(lambda entry: entry.emitted - 1)
        found = {
            **self._draft_figures(),
            "mean_acceptance_length": (best.accepted + best.rounds, best.rounds),
            "speedup": (before + plain, before + best.seconds),
            "seconds_per_token": (best.seconds, tokens),
        }
        if held_out is not None:
            on_first, on_second, first = held_out
            seconds = np.where(first, on_first.seconds, on_second.seconds)
            found["held_out_speedup"] = before + plain, before + seconds
        return found

    def per_position(self) -> list[Fields]:
        """For each drafted position the share accepted, of the chains that reach it."""
        longest = max((len(c.tokens) for e in self.recordings for c in e.chains), default=0)
        found = []
        for place in range(longest):
            reached, accepted = np.array([_reached(e, place) for e in self.recordings]).T
            found.append(self.bootstrap.ratio(accepted, reached) | {"reached": int(reached.sum())})
        return found

    def best(self, prompts: NDArray[np.bool_] | None = None) -> PolicyRuns:
        """The runs of the setting that takes the least time, over all or some prompts."""
        chosen = np.ones(len(self.sets), bool) if prompts is None else prompts
        return min(self.runs, key=lambda runs: float(runs.seconds[chosen].sum()))

    def setting_fields(self, runs: PolicyRuns, prompts: NDArray[np.bool_] | None = None) -> Fields:
        """What one setting gives, over all or some prompts."""
        tokens = self._each(lambda entry: entry.emitted - 1)
        ratio = self.bootstrap.ratio
        return {
            "draft_length": runs.policy.draft_length,
            "exit_threshold": runs.policy.exit_threshold,
            "drafted": int(_sum(runs.drafted, prompts)),
            "accepted": int(_sum(runs.accepted, prompts)),
            "full_passes": int(_sum(runs.rounds, prompts)),
            "early_exits": int(_sum(runs.early_exits, prompts)),
            "acceptance_rate": ratio(runs.accepted, runs.drafted, prompts),
            "mean_acceptance_length": ratio(runs.accepted + runs.rounds, runs.rounds, prompts),
            "full_passes_per_token": ratio(runs.rounds, tokens, prompts),
            **self._speedups(runs.seconds, prompts),
        }

    def _speedups(self, seconds: Sums, prompts: NDArray[np.bool_] | None = None) -> Fields:
        before, plain = self.prompt_seconds, self.plain_seconds
        return {
            "speedup": self.bootstrap.ratio(before + plain, before + seconds, prompts),
            "decode_speedup": self.bootstrap.ratio(plain, seconds, prompts),
        }

    def held_out(self) -> Fields | None:
        """Each half of the prompts with the setting that is best on the other; None of one prompt.

        The halves are drawn by the seed, of each set alike.
        """
        runs = self._held_out_runs()
        if runs is None:
            return None
        on_first, on_second, first = runs
        seconds = np.where(first, on_first.seconds, on_second.seconds)
        return {
            **self._speedups(seconds),
            "halves": [
                self.setting_fields(on_first, first) | {"prompts": int(first.sum())},
                self.setting_fields(on_second, ~first) | {"prompts": int((~first).sum())},
            ],
        }

    def _held_out_runs(self) -> tuple[PolicyRuns, PolicyRuns, NDArray[np.bool_]] | None:
        """The runs for the first half of the prompts, those for the second, and which are first."""
        first = self.halves()
        if first.all() or not first.any():
            return None
        return self.best(~first), self.best(first), first

    def halves(self) -> NDArray[np.bool_]:
        """Which prompts are in the first half."""
        random = np.random.default_rng(self.seed)
        first = np.zeros(len(self.sets), bool)
        ends = 0
        for name in dict.fromkeys(self.sets.tolist()):
            members = random.permutation(np.flatnonzero(self.sets == name))
            # Where a set is odd, the halves take turns with the one prompt more.
            first[members[ends % 2 :: 2]] = True
            ends += len(members)
        return first

    def _set_fields(self, name: str, best: PolicyRuns) -> Fields:
        prompts = self.sets == name
        ratio = self.bootstrap.ratio
        return {
            "prompts": int(prompts.sum()),
            **self.draft_fields(prompts),
            "mean_acceptance_length": ratio(best.accepted + best.rounds, best.rounds, prompts),
            **self._speedups(best.seconds, prompts),
        }

    def _each(self, count: Callable[[Recorded], float]) -> Sums:
        return np.array([count(entry) for entry in self.recordings], np.float64)


def _agreeing(entry: Recorded) -> int:
    return sum(entry.agreed(place) > 0 for place in range(len(entry.chains)))


def _reached(entry: Recorded, place: int) -> tuple[int, int]:
    """Chains that reach a drafted position, and those of them that agree up to it."""
    starts = [i for i, chain in enumerate(entry.chains) if len(chain.tokens) > place]
    return len(starts), sum(entry.agreed(start) > place for start in starts)


def _sum(numbers: Sums, prompts: NDArray[np.bool_] | None) -> float:
    return float(numbers.sum() if prompts is None else numbers[prompts].sum())
