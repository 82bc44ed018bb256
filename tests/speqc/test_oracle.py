import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from speqc.artifact import load_artifact
from speqc.oracle import RELATIVE_TOLERANCE, OnnxRuntimeDecoder, first_real_difference
from speqc.runtime.decode import DecodeOptions, decode
from speqc.runtime.machine import Machine
from speqc.runtime.weights import WeightFile

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


def machine_of(path: Path) -> Machine:
    artifact = load_artifact(path)
    return Machine(artifact.program, WeightFile(artifact.weights))


def check_greedy(machine: Machine, oracle: OnnxRuntimeDecoder, prompts: list[list[int]]) -> None:
    """Tokens equal the oracle's up to a near tie, for every prompt."""
    for prompt in prompts:
        tokens = decode(machine, "speculative", prompt, DecodeOptions(NEW_TOKENS)).tokens
        expected, logits = oracle.greedy(prompt, NEW_TOKENS)
        assert first_real_difference(tokens, expected, logits) is None, prompt


def test_greedy_tokens_of_the_embedded_model(
    embedded: Callable[[str], Path], embedded_model: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(embedded_model.parent / "tokenizer.json"))
    prompts = [tokenizer.encode(verse).ids for verse in VERSES]
    check_greedy(machine_of(embedded("sets")), OnnxRuntimeDecoder(embedded_model), prompts)


def test_logits_of_the_embedded_model(
    embedded: Callable[[str], Path], embedded_model: Path
) -> None:
    tokens = np.random.default_rng(3).integers(0, 2048, 120).tolist()
    machine, oracle = machine_of(embedded("sets")), OnnxRuntimeDecoder(embedded_model)
    for first, last in ((0, 50), (50, 51), (51, 60), (60, 120)):
        ours = machine.call("full", tokens[first:last]).astype(np.float32)
        theirs = oracle.call(tokens[first:last])
        assert np.abs(ours - theirs).max() <= RELATIVE_TOLERANCE * np.abs(theirs).max()


@pytest.mark.slow
def test_greedy_tokens_of_smollm2(tmp_path: Path) -> None:
    from speqc.compile import CompileOptions, compile_model
    from speqc.target_files import load_target

    if "SPEQC_SMOLLM2" not in os.environ:
        pytest.skip("SPEQC_SMOLLM2 names no exported model.onnx (tools/export_smollm2.py)")
    model = Path(os.environ["SPEQC_SMOLLM2"])
    tokenizer = Tokenizer.from_file(str(model.parent / "tokenizer.json"))
    prompts = [
        tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
        for question in QUESTIONS
    ]
    artifact = tmp_path / "smollm2.speq"
    compile_model(model, artifact, CompileOptions(load_target("speq-64x64")))
    check_greedy(machine_of(artifact), OnnxRuntimeDecoder(model), prompts)


def test_a_real_difference_is_named() -> None:
    logits = np.array([[0.0, 10.0, 9.0], [5.0, 0.0, 4.99]], np.float32)
    assert first_real_difference([1, 0], [1, 0], logits) is None
    # Within a hundredth of the largest logit: a near tie, after which the texts may part.
    assert first_real_difference([1, 2], [1, 0], logits) is None
    message = first_real_difference([2, 0], [1, 0], logits)
    assert message is not None and "token 0 is 2, the oracle's is 1" in message
