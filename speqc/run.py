"""`speqc run`: continue a prompt on the machine, stream the text, check it, and report."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
from tokenizers import Tokenizer

from speqc.artifact import Artifact, load_artifact
from speqc.auto_length import chosen_options
from speqc.check import check_options, compare
from speqc.diagnostics import note, progress
from speqc.kernel_clock import compilation_seconds, watch_compilation
from speqc.recorded_model import FIELD, model_fields
from speqc.report import Fields, check_json_destination, print_report, run_fields, write_json
from speqc.runtime.counted import counted
from speqc.runtime.decode import (
    Decoded,
    DecodeOptions,
    check_prompt,
    decode,
    drafting,
    find_program,
)
from speqc.runtime.errors import SpeqcError
from speqc.runtime.machine import Machine
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.weights import WeightFile
from speqc.text import TextStream, encode, encode_chat, load_tokenizer
from speqc.trace import TracedRun, TraceOptions, write_trace

WARM_PROMPT, WARM_TOKENS = 4, 3
"""Tokens of the prompt, and tokens decoded, that a session begins with before it times any."""

BASELINE = "autoregressive"
"""The mode that every other one is compared with."""


@dataclass(frozen=True)
class Prompt:
    """What a user wants continued: a text, plain or as a chat, or token ids "1,2,3"."""

    text: str | None = None
    token_ids: str | None = None
    chat: bool = False


@dataclass(frozen=True)
class Result:
    """What a run gave: the machine's record, the text if there is a tokenizer, and the report."""

    decoded: Decoded
    text: str | None
    fields: Fields


def run(
    path: Path,
    prompt: Prompt,
    mode: str,
    options: DecodeOptions,
    *,
    stop: bool,
    check: bool,
    json_to: str | None,
    trace: TraceOptions | None = None,
    measured: Path | None = None,
) -> None:
    """Run an artifact and report.

    `options` without stop tokens: with `stop`, those of the artifact are used. Draft length and
    threshold are chosen by what `speqc eval` reported at `measured`, if that is given.

    Raises:
        SpeqcError: bad artifact or prompt, or a report that could not be written.
        CheckFailed: `check` found a token or logit that differs from autoregressive decoding.
    """
    check_json_destination(json_to)
    if trace is not None:
        trace.check()
    session = Session(load_artifact(path))
    if stop:
        options = replace(options, stop_tokens=session.artifact.eos_token_ids)
    if check:
        check_options(mode, options)
    tokens = session.tokens(prompt)
    expected: Fields = {}
    if measured is not None:
        check_prompt(session.machine, tokens, options.new_tokens)
        options, speedup = chosen_options(
            session.artifact, session.timer, len(tokens), options, measured
        )
        expected = {"expected_decode_speedup": speedup}
    result = session.run(tokens, mode, options, echo=json_to != "-", keep_logits=check)
    if json_to is not None:
        write_json(result.fields | expected, json_to)
    if trace is not None:
        decoded = result.decoded
        write_trace(trace, session.timer, TracedRun(len(tokens), decoded.calls, decoded.rounds))
    print_report(result.fields, mode, stderr=True)
    if check:
        session.check(tokens, options, result.decoded)


class Session:
    """A loaded artifact with its machine and tokenizer."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        watch_compilation()
        self._cold = True
        self.machine = Machine(artifact.program, WeightFile(artifact.weights))
        self.timer = ProgramTimer(artifact.program)
        self.tokenizer: Tokenizer | None = None
        if artifact.tokenizer is not None:
            self.tokenizer = load_tokenizer(artifact.tokenizer)

    def tokens(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt; raises SpeqcError where they can't be made."""
        if prompt.token_ids is not None:
            return parse_token_ids(prompt.token_ids)
        assert prompt.text is not None
        if self.tokenizer is None:
            raise SpeqcError(
                f"{self.artifact.path}: has no tokenizer: give --token-ids, or compile the model "
                "with --tokenizer FILE"
            )
        if not prompt.chat:
            return encode(self.tokenizer, prompt.text)
        template = self.artifact.chat_template
        if template is None:
            raise SpeqcError(
                f"{self.artifact.path}: the model has no chat template: leave out --chat"
            )
        return encode_chat(self.tokenizer, template, self.artifact.special_tokens, prompt.text)

    def run(
        self,
        prompt: Sequence[int],
        mode: str,
        options: DecodeOptions,
        *,
        echo: bool,
        keep_logits: bool = False,
    ) -> Result:
        """Decode, writing the text to standard output as it comes where `echo` is set.

        Raises SpeqcError where the machine can't take the prompt.
        """
        check_prompt(self.machine, prompt, options.new_tokens)
        self._warm(prompt, mode, options)
        sink = _Sink(self.tokenizer, prompt, echo)
        start, compiling = time.perf_counter(), compilation_seconds()
        with sink.showing(mode, options.new_tokens):
            decoded = decode(
                self.machine, mode, prompt, options, sink.take, keep_logits, self.timer
            )
        wall = time.perf_counter() - start - (compilation_seconds() - compiling)
        fields = {
            "mode": mode,
            FIELD: model_fields(self.artifact.manifest),
            "token_ids": decoded.tokens,
            **({} if sink.text is None else {"text": sink.text}),
            "prompt_chunk": options.prompt_chunk,
            **self._drafting_fields(mode, options),
            **run_fields(
                self.timer,
                len(prompt),
                len(decoded.tokens),
                decoded.calls,
                decoded.rounds,
                decoded.routes[len(prompt) :],
            ),
            "wall_seconds": wall,
        }
        return Result(decoded, sink.text, fields)

    def _drafting_fields(self, mode: str, options: DecodeOptions) -> Fields:
        if mode != "speculative":
            return {}
        rule = drafting(find_program(self.artifact.program, mode), options)
        return {
            "draft_schedule": rule.schedule,
            "draft_length": rule.length,
            "exit_threshold": rule.threshold,
        }

    def _warm(self, prompt: Sequence[int], mode: str, options: DecodeOptions) -> None:
        """Have the kernels loaded, or compiled, by a few tokens before any are timed."""
        if self._cold:
            tokens = min(options.new_tokens, WARM_TOKENS)
            few = replace(options, new_tokens=tokens, stop_tokens=frozenset())
            decode(self.machine, mode, prompt[:WARM_PROMPT], few, timer=self.timer)
            self._cold = False

    def check(self, prompt: Sequence[int], options: DecodeOptions, decoded: Decoded) -> None:
        """Raise CheckFailed unless autoregressive decoding gives the same tokens and logit bits."""
        options = replace(options, prompt_chunk=None)
        with progress("checking", options.new_tokens) as advance:
            plain = decode(
                self.machine,
                BASELINE,
                prompt,
                options,
                on_tokens=lambda tokens: advance(len(tokens)),
                keep_logits=True,
            )
        compare(decoded, plain)
        note(
            f"checked: {counted(len(plain.tokens), 'greedy token')} and all their logits equal "
            "those of autoregressive decoding bit for bit"
        )


def parse_token_ids(text: str) -> list[int]:
    """The numbers of "1,2,3"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SpeqcError(
            f"--token-ids: expected numbers with commas between, such as 1,2,3, got {text!r}"
        ) from None


class _Sink:
    """Takes new tokens: to text, to standard output, and to the progress bar."""

    def __init__(self, tokenizer: Tokenizer | None, prompt: Sequence[int], echo: bool):
        self._stream = None if tokenizer is None else TextStream(tokenizer, prompt)
        self._echo = echo
        self._parts: list[str] = []
        self._tokens: list[int] = []
        self._advance = lambda steps: None

    @property
    def text(self) -> str | None:
        """The text so far; None without a tokenizer."""
        return None if self._stream is None else "".join(self._parts)

    @contextmanager
    def showing(self, mode: str, total: int) -> Iterator[None]:
        """Show progress where the text itself does not, and end the text."""
        if self._echo and sys.stdout.isatty():
            yield
        else:
            with progress(mode, total) as self._advance:
                yield
        if self._stream is None:
            self._write(",".join(map(str, self._tokens)))
        else:
            self._write(self._stream.flush())
        self._write_line_end()

    def take(self, tokens: list[int]) -> None:
        """Show more tokens."""
        self._tokens += tokens
        self._advance(len(tokens))
        if self._stream is not None:
            self._write(self._stream.push(tokens))

    def _write(self, text: str) -> None:
        self._parts.append(text)
        if self._echo and text:
            click.echo(text, nl=False)

    def _write_line_end(self) -> None:
        if self._echo:
            click.echo()
