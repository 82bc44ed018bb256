"""What draft and full model say at each position of a text: enough to replay any greedy drafting.

The full model continues each prompt greedily. From each position of the continuation the draft then
drafts alone, behind the full model's cache, as a round of `speqc run` that began there would. The
tokens of a round depend on nothing else, so a recording gives the rounds of a run with any draft
length up to the recorded one, and any exit threshold from the recorded one up. All prompts go
through the machine in lock-step, and so do all positions that are drafted from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from speqc.dialects.speq import DRAFT, FULL
from speqc.runtime.lockstep import Branch, Lockstep
from speqc.runtime.machine import Machine
from speqc.runtime.sampling import Sampler, SamplingOptions

PROMPTS = 32
"""Prompts that are continued in lock-step, at most."""

LOGIT_BYTES = 2**29
"""Memory for the full model's logits of the prompts that are continued in lock-step."""

DRAFTS = 64
"""Positions that are drafted from in lock-step."""


@dataclass(frozen=True)
class RecordOptions:
    """How much is recorded.

    `new_tokens` of each prompt, fewer where the model emits one of `stop_tokens`; at most
    `draft_length` drafted tokens from each position, fewer where the draft's top probability falls
    under `exit_threshold`.
    """

    new_tokens: int
    draft_length: int
    exit_threshold: float
    stop_tokens: frozenset[int] = frozenset()


@dataclass
class Chain:
    """Tokens drafted one after another, and the draft's top probability for each."""

    tokens: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)

    def agreed(self, expected: Sequence[int]) -> int:
        """How many of the first tokens are those expected."""
        agreed = 0
        for ours, theirs in zip(self.tokens, expected, strict=False):
            if ours != theirs:
                break
            agreed += 1
        return agreed


@dataclass
class Recorded:
    """The recording of one prompt.

    Attributes:
        prompt_length: tokens of the prompt.
        wanted: new tokens that were asked for.
        tokens: the full model's greedy continuation; as many behind its end as drafts may reach.
        emitted: tokens of the continuation that a run emits.
        chains: what is drafted behind token i, for each i from 0 to emitted - 2.
        overlap: for each chain the sum over the vocabulary of min(p, q), of the full model's and
            the draft's distribution of the first drafted token.
        kl: their Kullback-Leibler divergence, sum of p ln(p / q), in nats.
    """

    prompt_length: int
    wanted: int
    tokens: list[int] = field(default_factory=list)
    emitted: int = 0
    chains: list[Chain] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)

    def agreed(self, place: int) -> int:
        """How many tokens of the chain behind token `place` are the full model's."""
        return self.chains[place].agreed(self.tokens[place + 1 :])


def record(
    machine: Machine,
    prompts: Sequence[Sequence[int]],
    options: RecordOptions,
    advance: Callable[[int], None] = lambda steps: None,
) -> list[Recorded]:
    """Record prompts; `advance` is told of new tokens and of positions drafted from.

    Each must fit the context with the new tokens (see `decode.check_prompt`). Raises SpeqcError
    where the program has no draft.
    """
    lockstep = Lockstep(machine)
    machine.step(DRAFT)
    found: list[Recorded] = []
    size = _group_size(machine, options)
    for start in range(0, len(prompts), size):
        chosen = prompts[start : start + size]
        group = [_Text(prompt, options, lockstep.branch()) for prompt in chosen]
        _continue(lockstep, group, options, advance)
        _draft(lockstep, group, options, advance)
        found += [text.recorded for text in group]
    return found


def _group_size(machine: Machine, options: RecordOptions) -> int:
    row = machine.vocabulary * np.dtype(np.float32).itemsize
    return max(1, min(PROMPTS, LOGIT_BYTES // (row * options.new_tokens)))


class _Text:
    """A prompt while it is recorded: its caches, and the full model's logits of each new token."""

    def __init__(self, prompt: Sequence[int], options: RecordOptions, branch: Branch):
        self.prompt = prompt
        self.options = options
        self.branch = branch
        self.recorded = Recorded(len(prompt), options.new_tokens)
        self.rows: list[NDArray] = []
        self.end: int | None = None

    def take(self, row: NDArray, token: int) -> None:
        """Add the next token of the full model, and the logits that it was chosen from."""
        tokens = self.recorded.tokens
        tokens.append(token)
        if self.end is None:
            self.rows.append(row.copy())
            if token in self.options.stop_tokens or len(tokens) == self.options.new_tokens:
                self.end = self.recorded.emitted = len(tokens)

    @property
    def done(self) -> bool:
        """Whether all tokens are known that a draft can be compared with."""
        # The last round of a run may draft from the last token but one.
        count = len(self.recorded.tokens)
        if self.end is None:
            return False
        reached = max(self.end, self.end - 1 + self.options.draft_length)
        return count >= min(self.options.new_tokens, reached)


def _continue(
    lockstep: Lockstep, group: list[_Text], options: RecordOptions, advance: Callable[[int], None]
) -> None:
    """Have the full model continue the prompts; each keeps its caches."""
    sampler = Sampler(SamplingOptions())
    rows = lockstep.prefill([text.branch for text in group], [text.prompt for text in group])
    active = group
    while True:
        for text, row in zip(active, rows, strict=True):
            text.take(row, sampler.sample(row)[0])
        advance(len(active))
        active = [text for text in active if not text.done]
        if not active:
            break
        last = [[text.recorded.tokens[-1]] for text in active]
        rows = [logits[-1] for logits in lockstep.call(FULL, [t.branch for t in active], last)]
    advance(sum(options.new_tokens - len(text.recorded.tokens) for text in group))


class _Draft:
    """A chain while it is drafted."""

    def __init__(self, text: _Text, place: int):
        recorded = text.recorded
        self.text = text
        self.place = place
        self.chain = Chain()
        self.last = recorded.tokens[place]
        self.branch = text.branch.fork(recorded.prompt_length + place, self.limit)

    @property
    def limit(self) -> int:
        """Tokens that a run drafts here at most; one where it drafts none, to compare it."""
        left = self.text.recorded.wanted - self.place - 2
        return max(1, min(self.text.options.draft_length, left))

    def take(self, row: NDArray, sampler: Sampler) -> bool:
        """Add the token of a row of logits; gives whether the chain goes on."""
        if not self.chain.tokens:
            self._compare(row)
        self.last, probability = sampler.sample(row)
        self.chain.tokens.append(self.last)
        self.chain.probabilities.append(probability)
        stopped = probability < self.text.options.exit_threshold
        return not stopped and len(self.chain.tokens) < self.limit

    def _compare(self, row: NDArray) -> None:
        recorded = self.text.recorded
        full = self.text.rows[self.place + 1]
        recorded.overlap[self.place], recorded.kl[self.place] = compare_rows(full, row)


def _draft(
    lockstep: Lockstep, group: list[_Text], options: RecordOptions, advance: Callable[[int], None]
) -> None:
    """Draft from every position of the continuations."""
    sampler = Sampler(SamplingOptions())
    waiting = _drafts(group)
    active: list[_Draft] = []
    while True:
        active += islice(waiting, DRAFTS - len(active))
        if not active:
            break
        branches, last = [draft.branch for draft in active], [[draft.last] for draft in active]
        rows = lockstep.call(DRAFT, branches, last)
        pairs = zip(active, rows, strict=True)
        going = [draft for draft, row in pairs if draft.take(row[-1], sampler)]
        advance(len(active) - len(going))
        active = going
    advance(sum(options.new_tokens - len(text.recorded.chains) for text in group))


def _drafts(group: Sequence[_Text]) -> Iterator[_Draft]:
    for text in group:
        count = max(0, text.recorded.emitted - 1)
        text.recorded.overlap = [0.0] * count
        text.recorded.kl = [0.0] * count
        for place in range(count):
            draft = _Draft(text, place)
            text.recorded.chains.append(draft.chain)
            yield draft


def compare_rows(full: NDArray, draft: NDArray) -> tuple[float, float]:
    """Overlap and divergence (see `Recorded`) of the softmax of two rows of logits [V]."""
    p, log_p = _softmax(full)
    q, log_q = _softmax(draft)
    possible = p > 0
    with np.errstate(invalid="ignore"):
        kl = float((p[possible] * (log_p[possible] - log_q[possible])).sum())
    return float(np.minimum(p, q).sum()), max(kl, 0.0)


def _softmax(row: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities, and their logarithms."""
    behind = row.astype(np.float64) - np.float64(row.max())
    powers = np.exp(behind)
    total = powers.sum()
    return powers / total, behind - np.log(total)
