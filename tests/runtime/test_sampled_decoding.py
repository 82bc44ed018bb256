"""Sampled speculative decoding, the whole loop of rounds, follows the full model's distribution."""

from collections.abc import Callable
from math import erfc, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp

from speqc.artifact import load_artifact
from speqc.runtime.decode import Decoded, DecodeOptions, decode
from speqc.runtime.sampling import Sampler, SamplingOptions

TOKENS = 20_000

RANDOM = np.random.default_rng(3)
FULL, DRAFT = RANDOM.normal(size=(2, 4, 4)).astype(np.float32)
"""For each of four tokens the logits of the next one: a text is a Markov chain."""


class Chain:
    """Stands for a machine whose models look at the last token alone."""

    context, vocabulary = 10**9, 4

    def __init__(self, program: ModuleOp):
        self.program = program
        self.length = 0
        self.routes: list[Any] = []

    def call(
        self, function: str, tokens: Any, chunk: int | None = None, *, last_chunk: bool = False
    ) -> NDArray:
        self.length += len(tokens)
        return (DRAFT if function == "draft" else FULL)[np.asarray(tokens)]

    def truncate(self, length: int) -> None:
        assert length <= self.length
        self.length = length

    def reset(self) -> None:
        self.length = 0

    def take_calls(self) -> list[Any]:
        return []


class Remembering(Sampler):
    """Computes the distribution of a row once."""

    known: dict[tuple[SamplingOptions, bytes], NDArray[np.float64]] = {}

    def distribution(self, row: NDArray) -> NDArray[np.float64]:
        key = self.options, row.tobytes()
        if key not in self.known:
            self.known[key] = super().distribution(row)
        return self.known[key]


class Greedier(Remembering):
    """Wrong: it takes the draft's distribution for the full model's where it accepts."""

    def accept(self, drafted: Any, draft_rows: Any, rows: NDArray) -> tuple[list[int], int]:
        return super().accept(drafted, draft_rows, np.concatenate([draft_rows, rows[-1:]]))


@pytest.fixture(scope="module")
def chain(embedded: Callable[[str], Path]) -> Chain:
    return Chain(load_artifact(embedded("sets")).program)


class Timer:
    """Stands for a timer of passes: a full one takes three times as long as a draft step."""

    def cost(self, function: str, rows: int, past: int) -> Any:
        del rows, past
        return SimpleNamespace(cycles=1 if function == "draft" else 3)


def run(chain: Chain, options: SamplingOptions, schedule: str | None = None) -> Decoded:
    """A long text; behind half of the tokens the draft is too unsure to go on."""
    sampler = Sampler(options)
    threshold = float(np.median([sampler.distribution(row).max() for row in DRAFT]))
    asked = DecodeOptions(
        TOKENS,
        draft_length=3,
        exit_threshold=None if schedule == "cost" else threshold,
        sampling=options,
        draft_schedule=schedule,
    )
    return decode(chain, "speculative", [0], asked, timer=Timer())  # type: ignore[arg-type]


def largest_deviation(tokens: list[int], options: SamplingOptions) -> float:
    """Of all pairs of tokens, how far their number is from the expected, in standard errors."""
    counts = np.zeros((4, 4))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    sampler = Sampler(options)
    expected = np.stack([sampler.distribution(row) for row in FULL])
    if counts[expected == 0].any():
        return float("inf")
    visits = counts.sum(1, keepdims=True)
    errors = np.sqrt(visits * expected * (1 - expected))
    possible = errors > 0
    return float((np.abs(counts - visits * expected)[possible] / errors[possible]).max())


SETTINGS = [
    SamplingOptions(1.0, seed=1),
    SamplingOptions(1.0, top_k=3, seed=3),
    SamplingOptions(1.2, top_p=0.8, seed=4),
]

LIMIT = 4.0
"""Sixteen sound pairs exceed it once in a thousand runs; the seeds are fixed."""


def test_the_limit() -> None:
    assert 16 * erfc(LIMIT / sqrt(2)) == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_rounds_keep_the_full_distribution(
    chain: Chain, options: SamplingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speqc.runtime.decode.Sampler", Remembering)
    decoded = run(chain, options)
    assert len(decoded.tokens) == TOKENS
    assert {entry.accepted for entry in decoded.rounds} == {0, 1, 2, 3}
    assert any(entry.early_exit for entry in decoded.rounds)
    assert largest_deviation(decoded.tokens, options) < LIMIT


@pytest.mark.parametrize("schedule", ["heuristic", "cost"])
def test_lengths_that_follow_the_rounds_keep_it_too(
    chain: Chain, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speqc.runtime.decode.Sampler", Remembering)
    decoded = run(chain, SETTINGS[0], schedule)
    assert len({entry.drafted for entry in decoded.rounds}) > 1
    assert largest_deviation(decoded.tokens, SETTINGS[0]) < LIMIT


@pytest.mark.parametrize("options", SETTINGS[:1], ids=str)
def test_a_wrong_sampler_is_noticed(
    chain: Chain, options: SamplingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speqc.runtime.decode.Sampler", Greedier)
    assert largest_deviation(run(chain, options).tokens, options) > 2 * LIMIT
