from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func
from xdsl.parser import Parser

from speqc.dialects.pe import Pe
from speqc.dialects.speq import DecodeOp, Speq
from speqc.passes.form_draft_verify import FormDraftVerifyPass
from speqc.runtime.calls import Call
from speqc.runtime.decode import Decoded, DecodeOptions, Round, decode, find_program
from speqc.runtime.errors import SpeqcError
from speqc.runtime.machine import Machine
from speqc.runtime.sampling import SamplingOptions

VOCABULARY = 7
CONTEXT = 64

STEP = """
func.func @full(%tokens: tensor<1x?xi64>) -> tensor<1x?x7xf32> {
  %logits = "test.op"(%tokens) : (tensor<1x?xi64>) -> tensor<1x?x7xf32>
  func.return %logits : tensor<1x?x7xf32>
}
"""

Model = Callable[[Sequence[int]], NDArray[np.float32]]
"""Logits of the token that follows some tokens."""


def parse(text: str) -> ModuleOp:
    context = Context(allow_unregistered=True)
    for dialect in (Builtin, Func, Speq, Pe):
        context.load_dialect(dialect)
    return Parser(context, text).parse_module()


def programs(draft_length: int = 4, exit_threshold: float = 0.0, prompt_chunk: int = 8) -> ModuleOp:
    module = parse(STEP)
    FormDraftVerifyPass(draft_length, exit_threshold, prompt_chunk).apply(Context(), module)
    return module


@dataclass
class Scripted(Machine):
    """A machine whose step functions compute logits from the tokens in its cache, by any rule.

    The full model may only ever see cache entries of its own.
    """

    full: Model
    draft: Model
    program: ModuleOp = field(default_factory=programs)
    context: int = CONTEXT
    vocabulary: int = VOCABULARY
    cache: list[tuple[str, int]] = field(default_factory=list)
    record: list[Call] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.cache)

    def call(
        self,
        function: str,
        tokens: Sequence[int] | NDArray[np.int64],
        chunk: int | None = None,
        *,
        last_chunk: bool = False,
    ) -> NDArray:
        size = chunk or len(tokens)
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            self.record.append(Call(function, len(part), len(self.cache)))
            self.cache += [(function, int(token)) for token in part]
        assert len(self.cache) <= self.context
        if function == "full":
            assert {writer for writer, _ in self.cache} == {"full"}
        model = self.full if function == "full" else self.draft
        first = len(self.cache) - len(tokens)
        known = [token for _, token in self.cache]
        rows = [model(known[: first + row + 1]) for row in range(len(tokens))]
        return np.stack(rows[-1 - (len(rows) - 1) % size :] if last_chunk else rows)

    def truncate(self, length: int) -> None:
        assert length <= len(self.cache)
        del self.cache[length:]

    def reset(self) -> None:
        self.truncate(0)
        self.record.clear()

    def take_calls(self) -> list[Call]:
        calls, self.record = self.record, []
        return calls

    @property
    def routes(self) -> list[tuple[int, ...]]:
        return []


def random_model(seed: int) -> Model:
    """Logits that depend on all tokens so far."""
    return lambda tokens: (
        np.random.default_rng([seed, *tokens]).normal(size=VOCABULARY).astype(np.float32)
    )


def mixture(full: Model, seed: int, agreement: float) -> Model:
    """A draft that sees what `full` sees in a share of all places, and noise elsewhere."""
    noise = random_model(seed + 1)

    def model(tokens: Sequence[int]) -> NDArray[np.float32]:
        agrees = np.random.default_rng([seed, *tokens]).random() < agreement
        return full(tokens) if agrees else noise(tokens)

    return model


def counting(tokens: Sequence[int]) -> NDArray[np.float32]:
    """Says for sure that the next token is the last one plus 1."""
    return 10 * np.eye(VOCABULARY, dtype=np.float32)[(tokens[-1] + 1) % VOCABULARY]


def standing(tokens: Sequence[int]) -> NDArray[np.float32]:
    """Says for sure that the last token comes again."""
    return 10 * np.eye(VOCABULARY, dtype=np.float32)[tokens[-1]]


def wrong_after(token: int) -> Model:
    """Like `counting`, but wrong after one token."""
    return lambda tokens: (standing if tokens[-1] == token else counting)(tokens)


def hesitant_after(token: int) -> Model:
    """Like `counting`, but with a probability of 1/3 after one token."""

    def model(tokens: Sequence[int]) -> NDArray[np.float32]:
        row = counting(tokens)
        if tokens[-1] == token:
            row[[(token + 2) % VOCABULARY, (token + 3) % VOCABULARY]] = row.max() - 1e-6
        return row

    return model


def calls_of(prompt: int, chunk: int, rounds: Sequence[Round]) -> list[Call]:
    """The passes that a speculative run must take, from the contract's words."""
    calls = [Call("full", min(chunk, prompt - start), start) for start in range(0, prompt, chunk)]
    past = prompt
    for entry in rounds:
        calls += [Call("draft", 1, past + drafted) for drafted in range(entry.drafted)]
        calls += [Call("full", entry.drafted + 1, past)]
        # The last token and the accepted ones stay in the cache.
        past += 1 + entry.accepted
    return calls


def run(machine: Machine, mode: str, prompt: Sequence[int], **options: object) -> Decoded:
    return decode(machine, mode, prompt, DecodeOptions(**options), keep_logits=True)  # type: ignore[arg-type]


def bits(decoded: Decoded) -> list[bytes]:
    return [row.tobytes() for row in decoded.logits]


@given(
    seed=st.integers(0, 1000),
    agreement=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20),
    new_tokens=st.integers(1, CONTEXT - 20),
    draft_length=st.integers(1, 9),
    exit_threshold=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    prompt_chunk=st.none() | st.integers(1, 21),
)
@settings(max_examples=60, deadline=None)
def test_speculative_equals_autoregressive(
    seed: int,
    agreement: float,
    prompt: list[int],
    new_tokens: int,
    draft_length: int,
    exit_threshold: float,
    prompt_chunk: int | None,
) -> None:
    full = random_model(seed)
    machine = Scripted(full, mixture(full, seed, agreement))
    options = {"new_tokens": new_tokens, "prompt_chunk": prompt_chunk}
    plain = run(machine, "autoregressive", prompt, **options)
    found = run(
        machine,
        "speculative",
        prompt,
        **options,
        draft_length=draft_length,
        exit_threshold=exit_threshold,
    )
    assert found.tokens == plain.tokens
    assert len(found.tokens) == new_tokens
    assert bits(found) == bits(plain)
    assert found.calls == calls_of(len(prompt), prompt_chunk or 8, found.rounds)
    # The prompt gives one token, each round its accepted ones and one more.
    assert 1 + sum(entry.accepted + 1 for entry in found.rounds) == new_tokens
    assert all(entry.accepted <= entry.drafted <= draft_length for entry in found.rounds)


def test_autoregressive_calls() -> None:
    found = run(Scripted(counting, standing), "autoregressive", [3, 4, 5], new_tokens=4)
    assert found.tokens == [6, 0, 1, 2]
    assert found.rounds == []
    assert found.calls == [Call("full", 3, 0), *(Call("full", 1, past) for past in (3, 4, 5))]


def test_draft_mode_decodes_with_the_draft() -> None:
    found = run(Scripted(counting, standing), "draft", [3, 4, 5], new_tokens=4)
    # The prompt goes through the full model.
    assert found.tokens == [6, 6, 6, 6]
    assert found.calls == [Call("full", 3, 0), *(Call("draft", 1, past) for past in (3, 4, 5))]


def test_agreeing_draft_is_accepted_whole() -> None:
    found = run(Scripted(counting, counting), "speculative", [0], new_tokens=12, draft_length=4)
    assert found.tokens == [(1 + place) % VOCABULARY for place in range(12)]
    # 1 token of the prompt, two rounds of 5, and one token that needs no draft.
    assert found.rounds == [Round(4, 4, False), Round(4, 4, False), Round(0, 0, False)]


def test_disagreeing_draft_is_rejected() -> None:
    found = run(Scripted(counting, standing), "speculative", [0], new_tokens=4, draft_length=2)
    assert found.tokens == [1, 2, 3, 4]
    assert found.rounds == [Round(2, 0, False), Round(1, 0, False), Round(0, 0, False)]


def test_prefix_is_accepted_up_to_the_first_difference() -> None:
    machine = Scripted(counting, wrong_after(3))
    found = run(machine, "speculative", [0], new_tokens=20, draft_length=4)
    assert found.tokens == [(1 + place) % VOCABULARY for place in range(20)]
    # The prompt gives 1; drafted are 2 3 3 3, and the model says 4 after 2 3.
    assert found.rounds[0] == Round(4, 2, False)
    # From 4 on, 5 6 0 1 are right, and the model adds 2; then 3 is right and 3 3 3 are wrong.
    assert found.rounds[1:3] == [Round(4, 4, False), Round(4, 1, False)]


def test_early_exit_still_proposes_its_token() -> None:
    machine = Scripted(counting, hesitant_after(2))
    found = run(machine, "speculative", [0], new_tokens=9, draft_length=4, exit_threshold=0.5)
    # The prompt gives 1; the draft is sure of 2, unsure of 3 (and right), and stops.
    assert found.rounds == [Round(2, 2, True), Round(4, 4, False)]
    assert found.tokens == [1, 2, 3, 4, 5, 6, 0, 1, 2]


def test_stopping_at_the_full_length_is_no_early_exit() -> None:
    machine = Scripted(counting, hesitant_after(2))
    found = run(machine, "speculative", [0], new_tokens=9, draft_length=2, exit_threshold=0.5)
    assert found.rounds[0] == Round(2, 2, False)


@pytest.mark.parametrize(("threshold", "first"), [(0.0, 4), (1.0, 1), (0.33, 4), (0.34, 2)])
def test_exit_threshold(threshold: float, first: int) -> None:
    # `hesitant_after` gives its token 1/3: only larger thresholds stop there. At 1 all stop.
    machine = Scripted(counting, hesitant_after(2))
    found = run(machine, "speculative", [0], new_tokens=9, draft_length=4, exit_threshold=threshold)
    assert found.rounds[0].drafted == first


def test_program_has_defaults_for_what_a_run_leaves_open() -> None:
    machine = Scripted(counting, hesitant_after(2), programs(3, 0.5, 2))
    found = run(machine, "speculative", [0, 0, 0], new_tokens=9)
    assert found.calls[:2] == [Call("full", 2, 0), Call("full", 1, 2)]
    assert found.rounds == [Round(2, 2, True), Round(3, 3, False), Round(0, 0, False)]


@pytest.mark.parametrize("mode", ["speculative", "autoregressive"])
@pytest.mark.parametrize(("stop", "expected"), [(4, [1, 2, 3, 4]), (1, [1])])
def test_stop_token_ends_the_text(mode: str, stop: int, expected: list[int]) -> None:
    machine = Scripted(counting, counting)
    found = run(machine, mode, [0], new_tokens=30, stop_tokens=frozenset([stop, 6]))
    assert found.tokens == expected
    assert len(found.logits) == len(expected)


@pytest.mark.parametrize("new_tokens", range(1, 8))
def test_new_tokens_are_never_exceeded(new_tokens: int) -> None:
    found = run(Scripted(counting, counting), "speculative", [0], new_tokens=new_tokens)
    assert len(found.tokens) == len(found.logits) == new_tokens
    # With w tokens wanted, w - 1 drafted ones and the model's own are enough.
    assert all(entry.drafted <= new_tokens - 2 for entry in found.rounds if new_tokens > 1)
    assert (found.rounds == []) == (new_tokens == 1)


def test_tokens_are_handed_out_in_batches() -> None:
    batches: list[list[int]] = []
    machine = Scripted(counting, wrong_after(3))
    found = decode(machine, "speculative", [0], DecodeOptions(8), batches.append)
    assert [token for batch in batches for token in batch] == found.tokens
    assert [len(batch) for batch in batches] == [1, 3, 4]
    assert found.logits == []


def test_whole_context_is_usable() -> None:
    for draft_length in (1, 16):
        machine = Scripted(counting, counting)
        prompt = [0] * (CONTEXT - 10)
        found = run(machine, "speculative", prompt, new_tokens=10, draft_length=draft_length)
        assert len(found.tokens) == 10
        # The last token is never fed back.
        assert machine.length == CONTEXT - 1


def test_run_starts_from_an_empty_machine() -> None:
    machine = Scripted(counting, counting)
    first = run(machine, "speculative", [0, 1], new_tokens=5)
    second = run(machine, "speculative", [0, 1], new_tokens=5)
    assert (second.tokens, second.calls) == (first.tokens, first.calls)


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "message"),
    [
        ([], 1, "the prompt is empty"),
        ([0, 7], 1, r"token id 7 \(place 1 of the prompt\) is out of range.* the ids 0 to 6"),
        ([-1], 1, r"token id -1 \(place 0 of the prompt\)"),
        ([0] * 60, 5, "60 tokens and 5 new ones do not fit the context of 64"),
    ],
)
def test_bad_prompts(prompt: list[int], new_tokens: int, message: str) -> None:
    machine = Scripted(counting, counting)
    with pytest.raises(SpeqcError, match=message):
        run(machine, "speculative", prompt, new_tokens=new_tokens)
    assert machine.record == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new_tokens": 0}, "new tokens must be at least 1, got 0"),
        ({"draft_length": 0}, "draft length must be at least 1, got 0"),
        ({"exit_threshold": 1.1}, r"exit threshold must lie in \[0, 1\], got 1.1"),
        ({"exit_threshold": float("nan")}, r"exit threshold must lie in \[0, 1\], got nan"),
        ({"prompt_chunk": 0}, "prompt chunk must be at least 1, got 0"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(SpeqcError, match=message):
        replace(DecodeOptions(1), **options)


def test_mode_without_program() -> None:
    with pytest.raises(SpeqcError, match=r"the program has no speq\.decode @speculative"):
        find_program(ModuleOp([]), "speculative")


def test_foreign_operation_in_a_decode_program() -> None:
    module = parse("""
      speq.decode @autoregressive {
      ^bb0(%prompt: tensor<1x?xi64>):
        %p = pe.positions %prompt : tensor<1x?xi64>
      }
    """)
    with pytest.raises(SpeqcError, match=r"pe\.positions has no place in a decode program"):
        run(Scripted(counting, counting, module), "autoregressive", [0], new_tokens=1)


def test_structure_drives_the_run() -> None:
    """A program that verifies with the draft step emits what the draft says."""
    module = programs()
    text = str(module)
    changed = text.replace("speq.call @full(%tokens", "speq.call @draft(%tokens")
    assert changed != text
    machine = Scripted(counting, standing, parse(changed))
    found = run(machine, "speculative", [0], new_tokens=6, draft_length=2)
    assert found.tokens == [1, 1, 1, 1, 1, 1]
    assert [call.function for call in found.calls] == ["full", *["draft"] * 5]


def test_sampling_repeats_with_a_seed() -> None:
    full = random_model(3)
    machine = Scripted(full, mixture(full, 4, 0.5))

    def tokens(seed: int, mode: str = "speculative") -> list[int]:
        options = SamplingOptions(temperature=1.0, seed=seed)
        return run(machine, mode, [1, 2], new_tokens=30, sampling=options).tokens

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert tokens(1, "autoregressive") == tokens(1, "autoregressive")


def test_sampling_keeps_the_models_distribution() -> None:
    """The second token, drafted by another model, has the full model's distribution.

    With a tolerance of five standard deviations of each token's count.
    """
    full, draft = random_model(5), random_model(6)
    machine = Scripted(full, draft)
    draws = 1000
    counts = np.zeros((VOCABULARY, VOCABULARY))
    for seed in range(draws):
        options = SamplingOptions(temperature=1.0, seed=seed)
        first, second, _ = run(
            machine, "speculative", [1], new_tokens=3, draft_length=1, sampling=options
        ).tokens
        counts[first, second] += 1

    def distribution(tokens: list[int]) -> NDArray[np.float64]:
        powers = np.exp(full(tokens).astype(np.float64))
        return powers / powers.sum()

    rows = [distribution([1])[a] * distribution([1, a]) for a in range(VOCABULARY)]
    expected = draws * np.array(rows)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 1)


def test_draft_program_is_found_by_mode() -> None:
    names = {mode: find_program(programs(), mode) for mode in ("speculative", "draft")}
    assert all(isinstance(program, DecodeOp) for program in names.values())
    assert names["draft"].sym_name.data == "draft_only"
