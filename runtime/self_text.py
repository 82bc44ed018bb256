"""Text that a model writes itself, drawn at a temperature of 0.7; many sequences at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from speqc.dialects.speq import FULL
from speqc.runtime.execute import Observer
from speqc.runtime.lockstep import Branch, Lockstep
from speqc.runtime.norms import softmax

AT_ONCE = 32
"""Sequences that are written together."""

TEMPERATURE = 0.7
"""What text is drawn at: between the model's own distribution and the greedy text of most use."""


@dataclass
class _Writing:
    """A sequence in the making: all its tokens, and those that the model has still to read."""

    tokens: list[int]
    branch: Branch
    random: np.random.Generator
    unread: list[int] = field(default_factory=list)


def write_text(
    lockstep: Lockstep,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    length: int,
    *,
    seed: int = 0,
    stop_tokens: frozenset[int] = frozenset(),
    observe: Observer | None = None,
    before_pass: Callable[[Sequence[int]], None] | None = None,
    after_pass: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue the prompts, over and over, until the model has read `tokens` tokens, about.

    Returns what the model has read. A sequence ends before a stop token or at `length` tokens, its
    prompt included; then the next prompt has its turn. The last pass is whole, so that a few tokens
    more may be read, and as many prompts are begun at first as `tokens` allow, one at least. Tokens
    are drawn from the whole vocabulary at `TEMPERATURE`. Each sequence has random numbers of its
    own, so that its text depends on `seed`, its number and the model alone. `observe` sees every
    operation; `before_pass` which rows of a pass are a text's first ones, and `after_pass` how many
    rows it had.

    Prompts must not be empty, and shorter than `length`.
    """
    waiting = _sequences(lockstep, prompts, seed)
    running: list[_Writing] = []
    while len(running) < AT_ONCE and sum(len(writing.tokens) for writing in running) < tokens:
        running.append(next(waiting))
    finished: list[list[int]] = []
    read = 0
    while running:
        rows = [writing.unread for writing in running]
        if before_pass is not None:
            before_pass(_first_rows(running))
        logits = lockstep.call(FULL, [writing.branch for writing in running], rows, observe)
        count = sum(map(len, rows))
        read += count
        if after_pass is not None:
            after_pass(count)
        still = []
        for writing, found in zip(running, logits, strict=True):
            token = _draw(found[-1], writing.random)
            writing.tokens.append(token)
            writing.unread = [token]
            if token in stop_tokens or len(writing.tokens) > length or read >= tokens:
                finished.append(writing.tokens[:-1])
            else:
                still.append(writing)
        while read < tokens and len(still) < AT_ONCE:
            still.append(next(waiting))
        running = still
    return finished


def _first_rows(running: Sequence[_Writing]) -> list[int]:
    """Which rows of a pass over the unread tokens are the first ones of their texts."""
    ends = accumulate((len(writing.unread) for writing in running), initial=0)
    return [row for row, writing in zip(ends, running, strict=False) if writing.branch.length == 0]


def _sequences(
    lockstep: Lockstep, prompts: Sequence[Sequence[int]], seed: int
) -> Iterator[_Writing]:
    number = 0
    while True:
        prompt = list(prompts[number % len(prompts)])
        random = np.random.default_rng((seed, number))
        yield _Writing(prompt, lockstep.branch(), random, list(prompt))
        number += 1


def _draw(row: NDArray, random: np.random.Generator) -> int:
    """A token drawn from a row of logits [V]."""
    cooled = row[None].astype(np.float32) / np.float32(TEMPERATURE)
    cumulated = np.cumsum(softmax(cooled)[0], dtype=np.float64)
    place = np.searchsorted(cumulated, random.random() * cumulated[-1], side="right")
    return int(min(place, len(cumulated) - 1))
