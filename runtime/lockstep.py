"""Many sequences in one pass: products for all their rows at once, attention for each by itself.

A row's result depends on no other row (contract 1 of `docs/numerics.md`), so that every sequence
gets the bits that it gets alone; a weight is read once for all of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from speqc.dialects.speq import FULL
from speqc.runtime.attention import KVCache
from speqc.runtime.execute import Observer, Part, Step
from speqc.runtime.machine import Machine


class Branch:
    """One sequence: the `tokens` fed so far, with their keys and values in caches of its own."""

    def __init__(self, caches: Mapping[str, KVCache], tokens: NDArray[np.int64]):
        self.caches = caches
        self.tokens = tokens

    @property
    def length(self) -> int:
        """Positions behind which the next token stands."""
        return len(self.tokens)

    def fork(self, length: int | None = None, room: int = 0) -> "Branch":
        """A sequence that shares the first `length` positions (None: all), by a copy of them.

        There is storage for `room` more at once; more than that is found when it is needed. Raises
        ValueError where there are fewer positions.
        """
        kept = self.length if length is None else length
        self._check(kept)
        caches = {name: cache.fork(kept, room) for name, cache in self.caches.items()}
        return Branch(caches, self.tokens[:kept])

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on; raises ValueError where there are fewer."""
        self._check(length)
        for cache in self.caches.values():
            cache.truncate(length)
        self.tokens = self.tokens[:length]

    def _check(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"a branch of {self.length} positions has no first {length}")


class Lockstep:
    """Runs the step functions of a machine's program over several sequences at a time.

    The machine's own caches and its record of passes are not touched.
    """

    def __init__(self, machine: Machine):
        self.machine = machine

    def branch(self) -> Branch:
        """An empty sequence."""
        return Branch(self.machine.empty_caches(), np.zeros(0, np.int64))

    def call(
        self,
        function: str,
        branches: Sequence[Branch],
        tokens: Sequence[Sequence[int]],
        observe: Observer | None = None,
    ) -> list[NDArray]:
        """Run `tokens[i]` behind `branches[i]`, all in one pass: logits [len(tokens[i]), V] each.

        `observe` sees each operation, on the rows of all branches one after another. A program that
        recomputes its prefix runs over one branch after another, over all its positions each time.

        Raises SpeqcError where the program has no such function or a context is full, ValueError
        where a branch has no tokens or comes twice.
        """
        if not all(len(rows) for rows in tokens) or not branches:
            raise ValueError("expected branches, and tokens for each")
        if len({id(branch) for branch in branches}) < len(branches):
            raise ValueError("a branch comes twice in one pass")
        fed = [np.asarray(rows, np.int64) for rows in tokens]
        for branch, rows in zip(branches, fed, strict=True):
            self.machine.check_room(branch.length, len(rows))
        step = self.machine.step(function)
        run = self._recompute if self.machine.recomputes else self._extend
        logits = run(step, branches, fed, observe)
        for branch, rows in zip(branches, fed, strict=True):
            branch.tokens = np.concatenate([branch.tokens, rows])
        return logits

    def _extend(
        self,
        step: Step,
        branches: Sequence[Branch],
        fed: Sequence[NDArray[np.int64]],
        observe: Observer | None,
    ) -> list[NDArray]:
        counts = [len(rows) for rows in fed]
        parts = [
            Part(count, branch.length, branch.caches)
            for count, branch in zip(counts, branches, strict=True)
        ]
        logits = step.run(np.concatenate(fed), parts, observe)
        return np.split(logits, np.cumsum(counts)[:-1])

    def _recompute(
        self,
        step: Step,
        branches: Sequence[Branch],
        fed: Sequence[NDArray[np.int64]],
        observe: Observer | None,
    ) -> list[NDArray]:
        """The same of a program without caches, whose rows meet those of their own prefix."""
        return [
            step.run_behind(branch.tokens, rows, observe)
            for branch, rows in zip(branches, fed, strict=True)
        ]

    def prefill(
        self,
        branches: Sequence[Branch],
        prompts: Sequence[Sequence[int]],
        chunk: int = 64,
        observe: Observer | None = None,
    ) -> list[NDArray]:
        """Feed each branch a prompt through the full model: the logits [V] behind its last token.

        At most `chunk` tokens of each go through in a pass; the shorter ones end in earlier passes.
        """
        last: list[NDArray] = [np.empty(0)] * len(branches)
        for start in range(0, max(map(len, prompts), default=0), chunk):
            still = [place for place, prompt in enumerate(prompts) if len(prompt) > start]
            rows = [prompts[place][start : start + chunk] for place in still]
            found = self.call(FULL, [branches[place] for place in still], rows, observe)
            for place, logits in zip(still, found, strict=True):
                # A copy, so that not all rows of the pass stay in memory.
                last[place] = logits[-1].copy()
        return last
