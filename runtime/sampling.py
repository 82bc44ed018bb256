"""Choosing tokens: greedily, or by sampling that keeps the full model's distribution."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speqc.runtime.errors import SpeqcError
from speqc.runtime.norms import argmax_rows, softmax, top_probability


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen; temperature 0 is greedy.

    `top_k` = 0 and `top_p` = 1 keep the whole vocabulary. Raises SpeqcError for values out of
    range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise SpeqcError(f"temperature must be finite and at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise SpeqcError(f"top-k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise SpeqcError(f"top-p must lie in (0, 1], got {self.top_p}")
        if self.seed < 0:
            raise SpeqcError(f"seed must be at least 0, got {self.seed}")


class Sampler:
    """Draws tokens from rows of logits; one seed gives one sequence of draws."""

    def __init__(self, options: SamplingOptions):
        self.options = options
        self._random = np.random.default_rng(options.seed)

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is taken."""
        return self.options.temperature == 0

    def sample(self, row: NDArray) -> tuple[int, float]:
        """The next token after a row of logits [V], and the model's top probability."""
        if self.greedy:
            return int(argmax_rows(row[None])[0]), float(top_probability(row))
        probabilities = self.distribution(row)
        token = self._draw(probabilities)
        return token, float(probabilities.max())

    def accept(
        self, drafted: Sequence[int], draft_rows: NDArray, rows: NDArray
    ) -> tuple[list[int], int]:
        """The accepted prefix of `drafted`, and one token of the full model's own.

        `draft_rows` [n, V] are the logits that the n drafted tokens were chosen from, `rows`
        [n + 1, V] the full model's at the same places and the next. Greedy: a token is accepted
        where it is the full model's choice. Sampled: with probability min(1, p / q), and after a
        rejection the next token comes from max(p - q, 0) (Leviathan et al., arXiv 2211.17192,
        algorithm 1).
        """
        if self.greedy:
            return _accept_greedy(drafted, argmax_rows(rows))
        for place, token in enumerate(drafted):
            p = self.distribution(rows[place])
            q = self.distribution(draft_rows[place])
            if self._random.random() * q[token] >= p[token]:
                return list(drafted[:place]), self._draw_residual(p, q)
        return list(drafted), self._draw(self.distribution(rows[-1]))

    def distribution(self, row: NDArray) -> NDArray[np.float64]:
        """The distribution float64[V] after temperature, top-k and top-p, in this order.

        Top-p keeps the most probable tokens of those that top-k left, until they have `top_p` of
        these tokens' probability together; of equal logits the lower index comes first.
        """
        # Differences to the largest logit come first: a tiny temperature overflows nothing then.
        with np.errstate(over="ignore", invalid="ignore"):
            behind = row.astype(np.float64) - np.float64(row.max())
            scaled = (behind / self.options.temperature).astype(np.float32)
        p = softmax(scaled[None])[0].astype(np.float64)
        order = np.argsort(-p, kind="stable")
        if self.options.top_k:
            p[order[self.options.top_k :]] = 0
        if self.options.top_p < 1:
            ranked = p[order]
            before = np.cumsum(ranked) - ranked
            keep = np.count_nonzero(before < self.options.top_p * ranked.sum())
            p[order[max(keep, 1) :]] = 0
        return p / p.sum()

    def _draw(self, p: NDArray[np.float64]) -> int:
        cumulated = np.cumsum(p)
        place = np.searchsorted(cumulated, self._random.random() * cumulated[-1], side="right")
        return int(min(place, np.flatnonzero(p)[-1]))

    def _draw_residual(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> int:
        residual = np.maximum(p - q, 0)
        return self._draw(residual if residual.any() else p)


def _accept_greedy(drafted: Sequence[int], chosen: NDArray) -> tuple[list[int], int]:
    agreed = 0
    while agreed < len(drafted) and drafted[agreed] == chosen[agreed]:
        agreed += 1
    return list(drafted[:agreed]), int(chosen[agreed])
