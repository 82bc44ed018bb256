"""`speqc simulate`: the time that decoding takes, without computing a value.

Time depends on how many tokens are drafted and accepted, never on which. An assumed acceptance
gives an expectation, computed exactly: with tokens accepted independently with probability A, a
round that drafts d of them accepts j < d with probability A^j (1 - A) and all of them with A^d. How
likely a round begins behind so many tokens follows from the first token on.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from xdsl.dialects.builtin import ModuleOp

from speqc.artifact import load_artifact
from speqc.auto_length import length_for_acceptance, length_for_run, mean_past, shortened
from speqc.compile import DEFAULT_CODEBOOK, CompileOptions
from speqc.compile_shape import compile_shape
from speqc.diagnostics import note
from speqc.dialects.speq import CallOp
from speqc.expected_rounds import mean_counts, round_chances
from speqc.expert_report import choices, expert_fields, with_choices
from speqc.op_report import pass_fields, print_passes
from speqc.passes.split_weights import BSFP
from speqc.phases import expected_passes, passes_of
from speqc.recorded_model import check_recorded
from speqc.replay import Replay, read_replay
from speqc.report import (
    Fields,
    check_json_destination,
    passes_fields,
    print_report,
    prompt_calls,
    run_fields,
    speedup_fields,
    time_calls,
    timing_fields,
    token_calls,
    write_json,
)
from speqc.retarget import retarget
from speqc.runtime.calls import Call
from speqc.runtime.counted import counted
from speqc.runtime.decode import Round, find_program
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import module_context
from speqc.runtime.program_timing import ProgramTimer
from speqc.shape_files import is_shape, load_shape
from speqc.target_files import DEFAULT_TARGET, load_target
from speqc.trace import TracedRun, TraceOptions, write_trace

SEED = 0
"""Of the course of rounds that a trace shows of an expectation."""


class Recorded(NamedTuple):
    """Where a recorded run lies, and what it says of its model."""

    path: Path
    model: object


@dataclass(frozen=True)
class Source:
    """What to time: an artifact's path, or a shape (see `shape_files`) and how to compile it.

    `target` stands instead of the artifact's own, or of the default one.
    """

    name: str
    target: str | None = None
    codebook: str | None = None
    group_size: int | None = None
    levels: str | None = None
    draft_format: str | None = None

    def program(self, recorded: Recorded | None = None) -> ModuleOp:
        """The `pe` program, which must be of the model of a run that was recorded.

        Raises SpeqcError where there is none, it is another model's, or options do not apply.
        """
        path = Path(self.name)
        if not path.is_dir() and is_shape(self.name):
            if recorded is not None:
                note(f"the rounds of {recorded.path} are those of the model it was recorded with")
            return self._compiled()
        artifact = load_artifact(path)
        program = artifact.program
        if recorded is not None:
            check_recorded(recorded.path, recorded.model, path, artifact.manifest)
        if any((self.codebook, self.group_size, self.levels, self.draft_format)):
            raise SpeqcError(
                f"{path}: is compiled already: --codebook, --levels, --group-size and "
                "--draft-format are for shapes"
            )
        return program if self.target is None else _on_target(program, self.target)

    def _compiled(self) -> ModuleOp:
        shape = load_shape(self.name)
        machine = load_target(self.target or DEFAULT_TARGET)
        if self.codebook is not None and self.draft_format not in (None, BSFP):
            raise SpeqcError(
                f"--draft-format {self.draft_format} reads a copy and splits no weight: leave out "
                "--codebook"
            )
        options = CompileOptions(
            machine,
            self.codebook or DEFAULT_CODEBOOK,
            self.group_size,
            levels=self.levels,
            draft_format=self.draft_format or BSFP,
        )
        start = time.perf_counter()
        program = compile_shape(shape, options)
        note(f"compiled the shape {self.name} in {time.perf_counter() - start:.1f} s")
        return program


def simulate(
    source: Source,
    prompt_length: int | None,
    new_tokens: int | None,
    *,
    acceptance: float | None,
    replay: Path | None,
    draft_length: int | None,
    json_to: str | None,
    fixed_context: bool = False,
    trace: TraceOptions | None = None,
    by_op: bool = False,
    auto: bool = False,
) -> None:
    """Time an artifact or shape and report on standard output.

    Without `acceptance` and `replay`, plain decoding is timed. Without `replay` both lengths are
    needed; beside it a `prompt_length` moves its rounds to another place in the context. With
    `fixed_context` every pass after the prompt is timed behind as many positions as the prompt has.
    `by_op` adds the first pass of each phase, operation by operation. With `auto` the draft length
    is the best for the acceptance, or for the recorded rounds, which are cut to it.

    Raises SpeqcError where artifact, replay or target is bad, or the context is too short.
    """
    check_json_destination(json_to)
    if trace is not None:
        trace.check()
    recorded = None if replay is None else read_replay(replay, prompt_length)
    if replay is not None and recorded is not None:
        program, run = source.program(Recorded(replay, recorded.model)), recorded
        length = None
        if auto:
            past = mean_past(run.prompt_length, run.new_tokens, fixed_context=fixed_context)
            length = length_for_run(_timer(program, run, fixed_context), past, run, replay)
            run = shortened(run, length)
        mode, fields = _replayed(program, run, new_tokens, fixed_context)
        if length is not None:
            fields["draft_length"] = length
    else:
        assert prompt_length is not None and new_tokens is not None
        program = source.program()
        run = Replay("autoregressive", prompt_length, new_tokens, (), None)
        if acceptance is None:
            mode, fields = _replayed(program, run, None, fixed_context)
        else:
            mode = "speculative"
            length = draft_length or (
                _auto_length(program, run, acceptance, fixed_context)
                if auto
                else _program_draft_length(program)
            )
            fields = expected_fields(program, run, acceptance, length, fixed_context)
            run = drawn_run(run, acceptance, length)
    if auto:
        note(
            f"auto: draft length {fields['draft_length']}; expected speedup "
            f"{fields['decode_speedup']:.2f}x after the prompt"
        )
    if by_op:
        fields["passes"] = _first_passes(program, run, fixed_context)
    if json_to is not None:
        write_json(fields, json_to)
    if trace is not None:
        timer = _timer(program, run, fixed_context)
        _write_trace(trace, program, timer, run, drawn=acceptance is not None)
    if json_to != "-":
        print_report(fields, mode, stderr=False)
        print_passes(fields.get("passes", ()))


def _auto_length(program: ModuleOp, run: Replay, acceptance: float, fixed_context: bool) -> int:
    check_lengths(program, run, fixed_context)
    past = mean_past(run.prompt_length, run.new_tokens, fixed_context=fixed_context)
    timer = _timer(program, run, fixed_context)
    return length_for_acceptance(timer, past, acceptance, run.new_tokens - 2)


def _first_passes(program: ModuleOp, run: Replay, fixed_context: bool) -> list[Fields]:
    timer = _timer(program, run, fixed_context)
    calls = run_calls(program, run, timer)
    return pass_fields(timer, passes_of(calls, run.prompt_length, verifies=bool(run.rounds)))


def _timer(program: ModuleOp, run: Replay, fixed_context: bool) -> ProgramTimer:
    return ProgramTimer(program, run.prompt_length if fixed_context else None)


def _write_trace(
    trace: TraceOptions, program: ModuleOp, timer: ProgramTimer, run: Replay, *, drawn: bool
) -> None:
    if drawn:
        note(
            f"the trace shows one course of rounds, drawn with seed {SEED}; the report is the mean"
        )
    calls = run_calls(program, run, timer)
    write_trace(trace, timer, TracedRun(run.prompt_length, calls, run.rounds))


def drawn_run(run: Replay, acceptance: float, draft_length: int) -> Replay:
    """One course that the rounds of a run can take, drawn at random with `SEED`."""
    random = Random(SEED)
    rounds: list[Round] = []
    emitted = 1
    while emitted < run.new_tokens:
        drafted = min(draft_length, run.new_tokens - emitted - 1)
        accepted = 0
        while accepted < drafted and random.random() < acceptance:
            accepted += 1
        rounds.append(Round(drafted, accepted, False))
        emitted += accepted + 1
    return replace(run, mode="speculative", rounds=rounds)


def _on_target(program: ModuleOp, name: str) -> ModuleOp:
    target = load_target(name)
    moved = retarget(program, target)
    note(f"timed on {target.name}: tiles are laid out anew, the order of operations is as compiled")
    return moved


def _program_draft_length(program: ModuleOp) -> int:
    length = find_program(program, "speculative").draft_length
    if length is None:
        raise SpeqcError("the program names no draft length: give --draft-length")
    return length.value.data


def program_chunk(program: ModuleOp) -> int:
    """Tokens of the prompt that the program feeds at a time; its context where it has no chunks."""
    for op in find_program(program, "speculative").walk():
        if isinstance(op, CallOp) and op.chunk is not None:
            return op.chunk.value.data
    return module_context(program)


def check_lengths(program: ModuleOp, run: Replay, fixed_context: bool = False) -> None:
    """Raise SpeqcError where a run has no tokens or does not fit the program's context.

    With a fixed context the prompt alone has to fit.
    """
    if run.prompt_length < 1 or run.new_tokens < 1:
        raise SpeqcError("prompt length and new tokens must be at least 1")
    context = module_context(program)
    if fixed_context and run.prompt_length > context:
        raise SpeqcError(
            f"a prompt of {counted(run.prompt_length, 'token')} does not fit the context of "
            f"{context:,}"
        )
    if not fixed_context and run.prompt_length + run.new_tokens > context:
        raise SpeqcError(
            f"a prompt of {counted(run.prompt_length, 'token')} and {run.new_tokens:,} new ones do "
            f"not fit the context of {context:,}: compile with a larger --context"
        )


def run_calls(program: ModuleOp, run: Replay, timer: ProgramTimer) -> list[Call]:
    """The passes of a run, with the experts that its recording names."""
    calls = run.calls(run.prompt_chunk or program_chunk(program))
    prompt = [call for call in calls if call.past < run.prompt_length]
    return [
        *with_choices(prompt, run.experts.get("prompt", ()), timer),
        *with_choices(calls[len(prompt) :], run.experts.get("passes", ()), timer),
    ]


def _replayed(
    program: ModuleOp, run: Replay, new_tokens: int | None, fixed_context: bool
) -> tuple[str, Fields]:
    if new_tokens not in (None, run.new_tokens):
        raise SpeqcError(
            f"the replayed run has {counted(run.new_tokens, 'new token')}, not {new_tokens:,}"
        )
    check_lengths(program, run, fixed_context)
    timer = _timer(program, run, fixed_context)
    calls = run_calls(program, run, timer)
    routes = choices(run.experts.get("plain", ()), timer)
    return run.mode, {
        "mode": run.mode,
        "fixed_context": fixed_context,
        **run_fields(timer, run.prompt_length, run.new_tokens, calls, run.rounds, routes),
    }


def expected_fields(
    program: ModuleOp,
    run: Replay,
    acceptance: float,
    draft_length: int,
    fixed_context: bool = False,
) -> Fields:
    """What speculative decoding takes on average (see the module's text), beside plain decoding."""
    check_lengths(program, run, fixed_context)
    timer = _timer(program, run, fixed_context)
    prompt = prompt_calls(run.prompt_length, program_chunk(program))
    plain = prompt + token_calls(run.prompt_length, run.new_tokens)
    chances = round_chances(run.new_tokens, acceptance, draft_length)
    passes = {
        **passes_of(prompt, run.prompt_length, verifies=True),
        **expected_passes(run.prompt_length, chances),
    }
    time_calls(timer, [*plain, *(call for weighted in passes.values() for call in weighted)])
    baseline = timing_fields(timer, plain, run.prompt_length, run.new_tokens)
    rounds, drafted, accepted = mean_counts(chances, acceptance)
    fields: Fields = {
        "mode": "speculative",
        "fixed_context": fixed_context,
        "assumed_acceptance": acceptance,
        "draft_length": draft_length,
        "prompt_tokens": run.prompt_length,
        "new_tokens": run.new_tokens,
        "drafted": drafted,
        "accepted": accepted,
        "acceptance_rate": accepted / drafted if drafted else 0.0,
        "mean_acceptance_length": accepted / rounds + 1 if rounds else 1.0,
        "acceptance_per_position": [acceptance ** (place + 1) for place in range(draft_length)],
        "full_passes": rounds,
        "full_passes_per_token": rounds / (run.new_tokens - 1) if run.new_tokens > 1 else 0.0,
        **expert_fields(timer, plain, (), ()),
        "target": timer.target.name,
        "simulated": passes_fields(timer, passes, run.new_tokens),
        "baseline": {"simulated": baseline},
    }
    return fields | speedup_fields(fields)
