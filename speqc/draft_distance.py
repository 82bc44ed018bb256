"""How far a draft is from its full model, on text of the model's own: a few hundred positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp

from speqc.calibration_text import CalibrationText
from speqc.dialects.speq import FULL, View
from speqc.recording import compare_rows
from speqc.runtime.bsfp import for_each
from speqc.runtime.lockstep import Branch, Lockstep
from speqc.runtime.machine import Machine
from speqc.runtime.self_text import AT_ONCE, write_text
from speqc.runtime.weights import Weight, WeightFile

TEXTS = 32
"""Texts that are measured on, at most."""

POSITIONS = 8
"""Positions at the end of each text."""

PREFIX = 48
"""Tokens in front of them, at most, in text that is read."""

AHEAD = 32
"""Tokens that are drawn behind a prompt before positions are measured: text that was calibrated on
began with the same prompts, and its draft flatters positions right behind them."""

SEED = 1
"""Of these draws: text that was calibrated on has another."""

BLOCK = 4
"""Positions that are drafted one behind the other, as in a round that has accepted all so far."""


@dataclass(frozen=True)
class Distance:
    """Figures of a draft over all positions.

    Attributes:
        kl: mean divergence of its distribution from the full model's, in nats.
        agreement: share of positions where both have the same likeliest token.
        overlap: mean of sum min(p, q) over the vocabulary.
    """

    kl: float
    agreement: float
    overlap: float

    @property
    def noise(self) -> float:
        """The square of the overlap that it lacks: of independent errors these squares add up."""
        return (1 - self.overlap) ** 2


@dataclass
class _Text:
    """The full model's caches behind a text, its last tokens, and the logits behind each."""

    branch: Branch
    tokens: list[int]
    rows: list[NDArray]


class Positions:
    """Positions to compare drafts at, all with the full model's caches and logits."""

    def __init__(
        self,
        program: ModuleOp,
        file: WeightFile,
        text: CalibrationText,
        stop_tokens: frozenset[int],
    ):
        """Run the full model over the text, or have it continue prompts, at last greedily."""
        self._file = file
        self._machine = Machine(program, file)
        self._lockstep = Lockstep(self._machine)
        texts = _spread(text.texts if text.written else _pieces(text.texts))
        if not text.written:
            found = self._read(texts)
        else:
            found = self._write(texts, text.length, stop_tokens)
        self._blocks = [block for text in found for block in self._cut(text)]

    def __len__(self) -> int:
        return sum(len(block.tokens) for block in self._blocks)

    def distance(self, step: FuncOp, views: Mapping[str, View]) -> Distance:
        """Run a step from every position, and compare it with the full model.

        `views` are those that it reads; all but the full ones are decoded for this alone, so that
        memory does not grow with what has been measured.
        """
        machine = self._machine
        own = {
            name: Weight(machine.weights[name].declaration, self._file)
            for name, view in views.items()
            if view != View.FULL
        }
        machine.add_step(step, {**machine.weights, **own})
        branches = [block.branch for block in self._blocks]
        lengths = [branch.length for branch in branches]
        tokens = [block.tokens for block in self._blocks]
        logits = self._lockstep.call(step.sym_name.data, branches, tokens)
        for branch, length in zip(branches, lengths, strict=True):
            branch.truncate(length)
        return self._compare([row for rows in logits for row in rows])

    def _compare(self, rows: list[NDArray]) -> Distance:
        full = [row for block in self._blocks for row in block.rows]
        found = np.zeros((len(full), 3))

        def compare(place: int) -> None:
            overlap, kl = compare_rows(full[place], rows[place])
            found[place] = kl, full[place].argmax() == rows[place].argmax(), overlap

        for_each(range(len(full)), compare)
        return Distance(*found.mean(0).tolist())

    def _read(self, texts: Sequence[Sequence[int]]) -> list[_Text]:
        ends = [list(text[-POSITIONS:]) for text in texts]
        branches = [self._lockstep.branch() for _ in texts]
        self._lockstep.prefill(branches, [text[:-POSITIONS] for text in texts])
        rows = self._lockstep.call(FULL, branches, ends)
        return [
            _Text(branch, end, [*own])
            for branch, end, own in zip(branches, ends, rows, strict=True)
        ]

    def _write(
        self, prompts: Sequence[Sequence[int]], length: int, stop_tokens: frozenset[int]
    ) -> list[_Text]:
        longest = max(2, length - POSITIONS)
        prompts = [prompt[: longest - 1] for prompt in prompts]
        tokens = AT_ONCE * (AHEAD + sum(map(len, prompts)) // len(prompts))
        prompts = _spread(
            write_text(self._lockstep, prompts, tokens, longest, seed=SEED, stop_tokens=stop_tokens)
        )
        found = [_Text(self._lockstep.branch(), [], []) for _ in prompts]
        heads = [prompt[:-1] for prompt in prompts]
        self._lockstep.prefill([text.branch for text in found], heads)
        running, last = found, [prompt[-1] for prompt in prompts]
        for _ in range(POSITIONS):
            logits = self._lockstep.call(FULL, [t.branch for t in running], [[t] for t in last])
            for text, token, row in zip(running, last, logits, strict=True):
                text.tokens.append(token)
                text.rows.append(row[-1].copy())
            last = [int(text.rows[-1].argmax()) for text in running]
            going = [place for place, token in enumerate(last) if token not in stop_tokens]
            running, last = [running[i] for i in going], [last[i] for i in going]
            if not running:
                break
        return found

    def _cut(self, text: _Text) -> list[_Text]:
        """Its positions in blocks, each behind caches of its own."""
        count = len(text.tokens)
        start = text.branch.length - count
        size = count if self._machine.recomputes else BLOCK
        return [
            _Text(
                text.branch.fork(start + place, size),
                text.tokens[place : place + size],
                text.rows[place : place + size],
            )
            for place in range(0, count, size)
        ]


def _pieces(texts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The texts in pieces of the length that is read."""
    size = PREFIX + POSITIONS
    pieces = [text[i : i + size] for text in texts for i in range(0, len(text), size)]
    whole = [piece for piece in pieces if len(piece) == size]
    return whole or pieces


def _spread(texts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """At most so many of the texts, evenly spread."""
    places = np.linspace(0, len(texts) - 1, min(TEXTS, len(texts))).round().astype(int)
    return [texts[place] for place in places.tolist()]
