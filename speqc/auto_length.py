"""`--draft-length auto`: the draft length, and exit threshold, that promise the most.

What was measured says how many tokens a round drafts and emits on average; the timing model, what
its passes take behind the run's mean number of positions. Rounds as they were measured, and plain
passes, then have a rate of tokens each: their quotient is the speedup to expect.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from speqc.artifact import Artifact
from speqc.diagnostics import note
from speqc.dialects.speq import CONSTANT, DRAFT, FULL
from speqc.policies import Policy
from speqc.recorded_model import FIELD, check_recorded
from speqc.replay import Replay
from speqc.runtime.decode import DecodeOptions, Round
from speqc.runtime.errors import SpeqcError
from speqc.runtime.program_timing import ProgramTimer
from speqc.steady_state import round_cost

LONGEST = 64
"""The longest drafts that are tried where nothing is measured."""


@dataclass(frozen=True)
class Measured:
    """How the rounds of a setting went: counts over all of them."""

    policy: Policy
    rounds: int
    drafted: int
    accepted: int

    def speedup(self, timer: ProgramTimer, past: int) -> float:
        """How many times faster than plain passes, behind `past` positions."""
        drafted = self.drafted / self.rounds
        rows, part = divmod(1 + drafted, 1)
        # A mean of rounds lies between those of whole numbers of rows.
        below, above = (timer.cost(FULL, int(rows) + more, past).cycles for more in (0, 1))
        verify = below + part * (above - below)
        total = drafted * timer.cost(DRAFT, 1, past).cycles + verify
        return timer.cost(FULL, 1, past).cycles * (1 + self.accepted / self.rounds) / total


@dataclass(frozen=True)
class Evaluated:
    """The settings that `speqc eval` measured, and what its report says of the model."""

    settings: Sequence[Measured]
    prompts: int
    model: object


def chosen_options(
    artifact: Artifact, timer: ProgramTimer, prompt_length: int, options: DecodeOptions, path: Path
) -> tuple[DecodeOptions, float]:
    """Options with the fastest of the settings that `speqc eval` measured, and its speedup.

    The note on standard error says what is expected. Only settings of the options' threshold count,
    if they have one. Raises SpeqcError where the file at `path` is no report, or another model's.
    """
    found = with_threshold(read_evaluation(path), options.exit_threshold, path)
    check_recorded(path, found.model, artifact.path, artifact.manifest)
    policy, speedup = fastest(found.settings, timer, mean_past(prompt_length, options.new_tokens))
    note(
        f"auto: {policy}; expected speedup {speedup:.2f}x after the prompt (from {path}, prompts: "
        f"{found.prompts})"
    )
    chosen = replace(
        options,
        draft_schedule=CONSTANT,
        draft_length=policy.draft_length,
        exit_threshold=policy.exit_threshold,
    )
    return chosen, speedup


def mean_past(prompt_length: int, new_tokens: int, *, fixed_context: bool = False) -> int:
    """Positions that passes behind a prompt find on average."""
    return prompt_length if fixed_context else prompt_length + new_tokens // 2


def fastest(settings: Iterable[Measured], timer: ProgramTimer, past: int) -> tuple[Policy, float]:
    """The setting with the highest expected speedup, and that; of equal ones the first."""
    speedups = {entry.policy: entry.speedup(timer, past) for entry in settings}
    best = max(speedups, key=lambda policy: speedups[policy])
    return best, speedups[best]


def read_evaluation(path: Path) -> Evaluated:
    """What a report of `speqc eval --json` says of each setting that drafted anything.

    Raises SpeqcError where the file is no such report.
    """
    try:
        report = json.loads(path.read_text("utf-8"))
        settings = [_measured(entry) for entry in report["settings"]]
        found = Evaluated(settings, _count(report["prompts"]), report.get(FIELD))
    except KeyError as error:
        raise SpeqcError(
            f"{path}: not a report of 'speqc eval --json': no field {error}"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SpeqcError(f"{path}: not a report of 'speqc eval --json': {error}") from error
    if not any(entry.drafted for entry in found.settings):
        raise SpeqcError(f"{path}: nothing was drafted: measure more new tokens")
    return found


def _measured(entry: Any) -> Measured:
    length, threshold = _count(entry["draft_length"]), float(entry["exit_threshold"])
    counts = [_count(entry[name]) for name in ("full_passes", "drafted", "accepted")]
    rounds, drafted, accepted = counts
    if not (length and rounds and accepted <= drafted and 0 <= threshold <= 1):
        raise ValueError(f"no setting: {entry}")
    return Measured(Policy(length, threshold), rounds, drafted, accepted)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a count, got {value!r}")
    return value


def with_threshold(found: Evaluated, threshold: float | None, path: Path) -> Evaluated:
    """The settings of one threshold, or all; raises SpeqcError where none was measured."""
    if threshold is None:
        return found
    kept = [entry for entry in found.settings if entry.policy.exit_threshold == threshold]
    if not kept:
        known = sorted({entry.policy.exit_threshold for entry in found.settings})
        raise SpeqcError(
            f"{path}: has no settings of threshold {threshold:g}, only of "
            f"{', '.join(f'{value:g}' for value in known)}"
        )
    return replace(found, settings=kept)


def length_for_acceptance(timer: ProgramTimer, past: int, acceptance: float, most: int) -> int:
    """The best draft length, up to `most`, if tokens are accepted independently: closed form."""
    plain = timer.cost(FULL, 1, past).cycles
    lengths = range(1, max(1, min(most, LONGEST)) + 1)
    return max(lengths, key=lambda n: round_cost(timer, past, n).speedup(plain, acceptance))


def length_for_run(timer: ProgramTimer, past: int, run: Replay, path: Path) -> int:
    """The best draft length up to a recorded run's longest, with its own exits and acceptance.

    Raises SpeqcError where the run drafted nothing.
    """
    rounds = [entry for entry in run.rounds if entry.drafted]
    if not rounds:
        raise SpeqcError(f"{path}: drafted no token: --draft-length auto has no acceptance to use")
    longest = max(entry.drafted for entry in rounds)
    cut = (
        Measured(
            Policy(length, 0.0),
            len(rounds),
            sum(min(entry.drafted, length) for entry in rounds),
            sum(min(entry.accepted, length) for entry in rounds),
        )
        for length in range(1, longest + 1)
    )
    return fastest(cut, timer, past)[0].draft_length


def shortened(run: Replay, length: int) -> Replay:
    """A run whose rounds are a recorded one's with drafts cut to `length`, again where they end.

    The experts recorded of its passes belong to others, and are left out.
    """
    rounds: list[Round] = []
    emitted = 1
    recorded = cycle(run.rounds)
    while emitted < run.new_tokens:
        entry = next(recorded)
        limit = min(length, run.new_tokens - emitted - 1)
        drafted = min(entry.drafted, limit)
        rounds.append(
            Round(drafted, min(entry.accepted, drafted), entry.early_exit and drafted < limit)
        )
        emitted += rounds[-1].accepted + 1
    kept = {name: texts for name, texts in run.experts.items() if name != "passes"}
    return replace(run, rounds=rounds, experts=kept)
