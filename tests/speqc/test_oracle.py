import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from speqc.artifact import load_artifact
from speqc.oracle import (
    RELATIVE_TOLERANCE,
    OnnxRuntimeDecoder,
    first_difference,
    first_real_difference,
)
from speqc.runtime.decode import DecodeOptions, decode
from speqc.runtime.machine import Machine
from speqc.runtime.weights import WeightFile
from speqc.text import encode, load_tokenizer

NEW_TOKENS = 100

VERSES = (
    "In the beginning God",
    "And it came to pass",
    "The LORD is my shepherd",
    "Blessed are they",
    "And Jesus answered and said unto them,",
    "Now these are the names of the sons of",
    "Thou shalt not",
    "And David said unto",
    "Wherefore I say unto you,",
    "For the wages of sin",
)

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short story about a fox.",
    "Explain how rain forms.",
    "Write a Python function that adds two numbers.",
    "Who was Ada Lovelace?",
    "List five fruits.",
    "Translate 'good morning' into Spanish.",
    "What is 17 times 23?",
    "Give me advice for a job interview.",
)


class Subject:
    """Our machine, the oracle on the same model, and prompts as tokens."""

    def __init__(self, model: Path, compiled: Path, prompts: Sequence[str]):
        artifact = load_artifact(compiled)
        assert artifact.tokenizer is not None
        tokenizer = load_tokenizer(artifact.tokenizer)
        self.machine = Machine(artifact.program, WeightFile(artifact.weights))
        self.oracle = OnnxRuntimeDecoder(model)
        self.prompts = [encode(tokenizer, text) for text in prompts]

    def logits(self, step: str, prompt: Sequence[int], text: Sequence[int]) -> NDArray:
        """The machine's logits behind each token of a given text."""
        self.machine.reset()
        return self.machine.call(step, [*prompt, *text[:-1]], 64)[len(prompt) - 1 :]


@pytest.fixture(scope="module")
def kjv_subject(embedded_model: Path, embedded: Callable[[str], Path]) -> Subject:
    return Subject(embedded_model, embedded("sets"), VERSES)


@pytest.fixture(scope="module")
def smollm2_subject(compiled: Callable[[Path, str], Path]) -> Subject:
    if "SPEQC_SMOLLM2" not in os.environ:
        pytest.skip("SPEQC_SMOLLM2 names no exported model.onnx (tools/export_smollm2.py)")
    model = Path(os.environ["SPEQC_SMOLLM2"])
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return Subject(model, compiled(model, "sets"), [chat.format(text) for text in QUESTIONS])


def check_greedy(subject: Subject, prompt: Sequence[int]) -> None:
    """The same tokens, or a near tie, which is printed with its margin; logits within tolerance.

    The logits are those that both give for the oracle's text.
    """
    expected, logits = subject.oracle.greedy(prompt, NEW_TOKENS)
    tokens = decode(subject.machine, "speculative", prompt, DecodeOptions(NEW_TOKENS)).tokens
    assert first_real_difference(tokens, expected, logits) is None
    print(first_difference(tokens, expected, logits) or "all tokens are equal")
    assert distance(subject.logits("full", prompt, expected), logits) < RELATIVE_TOLERANCE


def distance(found: NDArray, expected: NDArray) -> float:
    """The largest difference of logits, as a part of the largest logit of its row."""
    difference = np.abs(found.astype(np.float32) - expected).max(axis=1)
    return float((difference / np.abs(expected).max(axis=1)).max())


@pytest.mark.parametrize("place", range(len(VERSES)))
def test_greedy_tokens_of_the_embedded_model(kjv_subject: Subject, place: int) -> None:
    check_greedy(kjv_subject, kjv_subject.prompts[place])


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(QUESTIONS)))
def test_greedy_tokens_of_smollm2(smollm2_subject: Subject, place: int) -> None:
    check_greedy(smollm2_subject, smollm2_subject.prompts[place])


def test_logits_of_the_embedded_model(kjv_subject: Subject) -> None:
    """Tokens by chance, in passes of several lengths."""
    machine, oracle = kjv_subject.machine, kjv_subject.oracle
    tokens = np.random.default_rng(3).integers(0, machine.vocabulary, 120).tolist()
    machine.reset()
    oracle.reset()
    for first, last in ((0, 50), (50, 51), (51, 60), (60, 120)):
        ours = machine.call("full", tokens[first:last])
        assert distance(ours, oracle.call(tokens[first:last])) < RELATIVE_TOLERANCE


def test_most_prompts_agree(kjv_subject: Subject) -> None:
    """Near ties are the exception: else the comparison of tokens would say little."""
    equal = 0
    for prompt in kjv_subject.prompts:
        tokens = decode(kjv_subject.machine, "autoregressive", prompt, DecodeOptions(10)).tokens
        equal += tokens == kjv_subject.oracle.greedy(prompt, 10)[0]
    assert equal >= 7


def test_the_draft_fails_the_comparison(kjv_subject: Subject) -> None:
    """A model that differs as much as the draft does is told apart."""
    failures, distances = 0, []
    for prompt in kjv_subject.prompts[:5]:
        expected, logits = kjv_subject.oracle.greedy(prompt, 20)
        tokens = decode(kjv_subject.machine, "draft", prompt, DecodeOptions(20)).tokens
        failures += first_real_difference(tokens, expected, logits) is not None
        distances.append(distance(kjv_subject.logits("draft", prompt, expected), logits))
    assert failures > 0
    assert min(distances) > RELATIVE_TOLERANCE


def test_the_oracle_keeps_its_cache(kjv_subject: Subject) -> None:
    """Token by token it gives the logits that it gives in one pass, up to its own rounding."""
    oracle = kjv_subject.oracle
    tokens = [5, 60, 700, 8, 90]
    oracle.reset()
    at_once = oracle.call(tokens)
    oracle.reset()
    assert oracle.length == 0
    one_by_one = np.concatenate([oracle.call([token]) for token in tokens])
    assert oracle.length == 5
    assert distance(one_by_one, at_once) < RELATIVE_TOLERANCE
    oracle.reset()
    assert distance(oracle.call(tokens[1:]), at_once[1:]) > RELATIVE_TOLERANCE


LOGITS = np.array([[0.0, 10.0, 9.95, 9.0], [0.0, 1.0, -20.0, 0.85], [5.0, 0.0, 0.0, 0.0]])
"""Tolerances: 0.1, 0.2 (a large negative logit counts as well) and 0.05; the best are 1, 1, 0."""


@pytest.mark.parametrize(
    ("tokens", "place", "margin", "is_real"),
    [
        ([1, 1, 0], None, 0, False),
        ([2, 1, 0], 0, 0.05, False),
        ([3, 1, 0], 0, 1.0, True),
        ([1, 3, 0], 1, 0.15, False),
        ([1, 0, 0], 1, 1.0, True),
        # Behind a near tie the texts are different ones: nothing is compared.
        ([2, 2, 3], 0, 0.05, False),
        ([1, 1, 1], 2, 5.0, True),
    ],
)
def test_first_difference(
    tokens: list[int], place: int | None, margin: float, is_real: bool
) -> None:
    found = first_difference(tokens, [1, 1, 0], LOGITS)
    if place is None:
        assert found is None
    else:
        assert found is not None
        assert (found.place, found.is_near_tie) == (place, not is_real)
        assert found.margin == pytest.approx(margin)
    assert (first_real_difference(tokens, [1, 1, 0], LOGITS) is not None) == is_real


def test_difference_in_words() -> None:
    assert first_real_difference([1, 0, 0], [1, 1, 0], LOGITS) == (
        "token 1 is 0, the oracle's is 1 by a margin of 1.0000 (tolerance 0.2000)"
    )


def test_undefined_logits_are_no_tie() -> None:
    logits = np.array([[np.nan, np.nan]])
    assert first_real_difference([1], [0], logits) is not None


def test_texts_of_unlike_length() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        first_difference([1], [1, 1], LOGITS)
