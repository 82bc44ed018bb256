"""Speculative and autoregressive decoding give the same tokens, and the same logits bit for bit."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray
from xdsl.parser import Parser

from speqc.artifact import Artifact, load_artifact
from speqc.program_reader import new_context
from speqc.run import compare
from speqc.runtime import execute
from speqc.runtime.decode import Decoded, DecodeOptions, decode
from speqc.runtime.errors import CheckFailed
from speqc.runtime.machine import Machine
from speqc.runtime.matmul import matmul_full
from speqc.runtime.sampling import Sampler
from speqc.runtime.weights import WeightFile
from speqc.text import encode, load_tokenizer

CODEBOOKS = ("sets", "paper", "naive")

SMOLLM2 = "SPEQC_SMOLLM2"
"""Environment variable with the path of SmolLM2's exported model.onnx."""

TEXT = """In the beginning God created the heaven and the earth.
And the earth was without form, and void; and darkness was upon the face of the deep. And the Spirit
of God moved upon the face of the waters.
And God said, Let there be light: and there was light.
And God saw the light, that it was good: and God divided the light from the darkness.
And God called the light Day, and the darkness he called Night. And the evening and the morning were
the first day.
And God said, Let there be a firmament in the midst of the waters, and let it divide the waters from
the waters.
And God made the firmament, and divided the waters which were under the firmament from the waters
which were above the firmament: and it was so.
And God called the firmament Heaven. And the evening and the morning were the second day.
And God said, Let the waters under the heaven be gathered together unto one place, and let the dry
land appear: and it was so.
And God called the dry land Earth; and the gathering together of the waters called he Seas: and God
saw that it was good.
And God said, Let the earth bring forth grass, the herb yielding seed, and the fruit tree yielding
fruit after his kind, whose seed is in itself, upon the earth: and it was so.
And the earth brought forth grass, and herb yielding seed after his kind, and the tree yielding
fruit, whose seed was in itself, after his kind: and God saw that it was good.
And the evening and the morning were the third day.
And God said, Let there be lights in the firmament of the heaven to divide the day from the night.
"""


class Subject:
    """A compiled model's machine, and the tokens of a text."""

    def __init__(self, artifact: Artifact):
        assert artifact.tokenizer is not None
        self.artifact = artifact
        self.file = WeightFile(artifact.weights)
        self.machine = Machine(artifact.program, self.file)
        self.text = encode(load_tokenizer(artifact.tokenizer), TEXT)
        assert len(self.text) >= 300

    def run(self, mode: str, prompt: Sequence[int], options: DecodeOptions) -> Decoded:
        return decode(self.machine, mode, prompt, options, keep_logits=True)

    def cached(self) -> list[bytes]:
        """The bits of all keys and values that the caches hold."""
        found = []
        for entry in self.machine.caches.values():
            heads, _, width, _ = entry.keys.shape
            rows = entry.keys.transpose(0, 1, 3, 2).reshape(heads, -1, width)
            found.append(rows[:, : entry.length].tobytes())
            found.append(entry.values[:, :, : entry.length].tobytes())
        return found


def is_identical(found: Decoded, expected: Decoded) -> bool:
    """Whether tokens are equal, and logits bit for bit."""
    if found.tokens != expected.tokens or len(found.logits) != len(expected.logits):
        return False
    pairs = zip(found.logits, expected.logits, strict=True)
    return all(ours.tobytes() == plain.tobytes() for ours, plain in pairs)


@pytest.fixture(scope="module")
def subject(embedded: Callable[[str], Path]) -> Callable[[str], Subject]:
    """The embedded model with each code book."""
    return cache(lambda codebook: Subject(load_artifact(embedded(codebook))))


def random_tokens(seed: int, length: int, vocabulary: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, length).tolist()


@given(
    codebook=st.sampled_from(CODEBOOKS),
    seed=st.none() | st.integers(0, 2**32 - 1),
    prompt_length=st.integers(1, 300),
    prompt_chunk=st.integers(1, 64),
    new_tokens=st.integers(1, 60),
    draft_length=st.integers(1, 16),
    exit_threshold=st.floats(0, 1),
)
@settings(max_examples=15, deadline=None)
def test_embedded_model(
    subject: Callable[[str], Subject],
    codebook: str,
    seed: int | None,
    prompt_length: int,
    prompt_chunk: int,
    new_tokens: int,
    draft_length: int,
    exit_threshold: float,
) -> None:
    """With random tokens, or without a seed a real text, for a prompt; in two ways to chunk it."""
    one = subject(codebook)
    prompt = one.text[:prompt_length]
    if seed is not None:
        prompt = random_tokens(seed, prompt_length, one.machine.vocabulary)
    plain = one.run("autoregressive", prompt, DecodeOptions(new_tokens, prompt_chunk=64))
    cached = one.cached()
    options = DecodeOptions(new_tokens, draft_length, exit_threshold, prompt_chunk=prompt_chunk)
    found = one.run("speculative", prompt, options)
    assert len(found.tokens) == new_tokens
    assert is_identical(found, plain)
    # No key or value of the draft is left.
    assert one.cached() == cached
    compare(found, plain)


LENGTHS, THRESHOLDS, PROMPTS = (1, 2, 4, 8, 16), (0.0, 0.5), (1, 300)


def check_matrix(one: Subject, prompt_length: int, new_tokens: int) -> None:
    """Every draft length with every threshold."""
    prompt = one.text[:prompt_length]
    plain = one.run("autoregressive", prompt, DecodeOptions(new_tokens))
    for draft_length, threshold in product(LENGTHS, THRESHOLDS):
        options = DecodeOptions(new_tokens, draft_length, threshold)
        found = one.run("speculative", prompt, options)
        assert is_identical(found, plain), (draft_length, threshold)


@pytest.mark.parametrize("prompt_length", PROMPTS)
def test_embedded_model_in_all_settings(
    subject: Callable[[str], Subject], prompt_length: int
) -> None:
    check_matrix(subject("sets"), prompt_length, 60)


@pytest.mark.slow
@pytest.mark.parametrize("prompt_length", PROMPTS)
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_embedded_model_in_all_settings_at_length(
    subject: Callable[[str], Subject], codebook: str, prompt_length: int
) -> None:
    check_matrix(subject(codebook), prompt_length, 200)


@pytest.mark.slow
@pytest.mark.parametrize("prompt_length", PROMPTS)
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_smollm2_in_all_settings(
    compiled: Callable[[Path, str], Path], codebook: str, prompt_length: int
) -> None:
    if SMOLLM2 not in os.environ:
        pytest.skip(f"set {SMOLLM2} to the model.onnx that tools/export_smollm2.py writes")
    artifact = load_artifact(compiled(Path(os.environ[SMOLLM2]), codebook))
    check_matrix(Subject(artifact), prompt_length, 200)


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_drafts_are_accepted_and_rejected(subject: Callable[[str], Subject], codebook: str) -> None:
    """A draft that is always right, or always wrong, would make the tests above say nothing."""
    one = subject(codebook)
    options = DecodeOptions(60, draft_length=4, exit_threshold=0.0)
    rounds = one.run("speculative", one.text[:40], options).rounds
    drafted = sum(entry.drafted for entry in rounds)
    assert 0 < sum(entry.accepted for entry in rounds) < drafted


@pytest.fixture
def failing(subject: Callable[[str], Subject]) -> Callable[[], str]:
    """Runs the check where it must fail, and gives what it says."""
    one = subject("sets")
    prompt = one.text[:40]
    plain = one.run("autoregressive", prompt, DecodeOptions(60))

    def run() -> str:
        found = one.run("speculative", prompt, DecodeOptions(60, 4, 0.0))
        assert not is_identical(found, plain)
        with pytest.raises(CheckFailed) as failure:
            compare(found, plain)
        return str(failure.value)

    compare(one.run("speculative", prompt, DecodeOptions(60, 4, 0.0)), plain)
    return run


def test_a_generous_accept_rule_is_caught(
    failing: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def accept_all(
        self: Sampler, drafted: Sequence[int], draft_rows: NDArray, rows: NDArray
    ) -> tuple[list[int], int]:
        return list(drafted), self.sample(rows[-1])[0]

    monkeypatch.setattr(Sampler, "accept", accept_all)
    assert "new token" in failing()


def test_another_order_of_summation_is_caught(
    failing: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of several rows add from the last k to the first, as no PE column does."""

    def backwards(x: NDArray, panels: NDArray, n: int, dtype: DTypeLike) -> NDArray:
        if len(x) == 1:
            return matmul_full(x, panels, n, dtype)
        turned = np.ascontiguousarray(x[:, ::-1]), np.ascontiguousarray(panels[:, ::-1])
        return matmul_full(*turned, n, dtype)

    monkeypatch.setattr(execute, "matmul_full", backwards)
    assert "logits differ" in failing()


@pytest.mark.parametrize("omitted", ["speq.truncate"])
def test_a_program_that_keeps_rejected_tokens_is_caught(
    subject: Callable[[str], Subject], omitted: str
) -> None:
    one = subject("sets")
    lines = (one.artifact.path / "program.mlir").read_text("utf-8").splitlines()
    kept = [line for line in lines if omitted not in line]
    assert len(kept) == len(lines) - 1
    program = Parser(new_context(), "\n".join(kept)).parse_module()
    machine = Machine(program, one.file)
    prompt, options = one.text[:40], DecodeOptions(30, 4, 0.0)
    found = decode(machine, "speculative", prompt, options, keep_logits=True)
    plain = decode(machine, "autoregressive", prompt, options, keep_logits=True)
    with pytest.raises(CheckFailed):
        compare(found, plain)
