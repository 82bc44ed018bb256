"""The host side of a program: walks its `speq.decode` structure and drives the machine."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, Region, SSAValue

from speqc.dialects import speq
from speqc.runtime.calls import Call
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.runtime.machine import Machine
from speqc.runtime.program_timing import ProgramTimer
from speqc.runtime.routing import Chosen
from speqc.runtime.sampling import Sampler, SamplingOptions
from speqc.runtime.schedules import LONGEST, Drafting, Schedule

MODES = {
    "speculative": speq.SPECULATIVE,
    "autoregressive": speq.AUTOREGRESSIVE,
    "draft": speq.DRAFT_ONLY,
}
"""For each mode of decoding the program that does it."""


@dataclass(frozen=True)
class DecodeOptions:
    """What a run asks for; None leaves the program's own value.

    `stop_tokens` end the text once emitted. `prompt_chunk` tokens of the prompt go through the
    machine at a time.
    """

    new_tokens: int
    draft_length: int | None = None
    exit_threshold: float | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    prompt_chunk: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    draft_schedule: str | None = None

    def __post_init__(self):
        if self.new_tokens < 1:
            raise SpeqcError(f"new tokens must be at least 1, got {self.new_tokens}")
        if self.draft_length is not None and self.draft_length < 1:
            raise SpeqcError(f"draft length must be at least 1, got {self.draft_length}")
        if self.exit_threshold is not None and not 0 <= self.exit_threshold <= 1:
            raise SpeqcError(f"exit threshold must lie in [0, 1], got {self.exit_threshold}")
        if self.prompt_chunk is not None and self.prompt_chunk < 1:
            raise SpeqcError(f"prompt chunk must be at least 1, got {self.prompt_chunk}")
        if self.draft_schedule not in (None, *speq.SCHEDULES):
            raise SpeqcError(
                f"draft schedule must be one of {', '.join(speq.SCHEDULES)}, got "
                f"{self.draft_schedule}"
            )


@dataclass(frozen=True)
class Round:
    """One round of drafting and verifying: token counts, and whether drafting stopped early."""

    drafted: int
    accepted: int
    early_exit: bool


@dataclass
class Decoded:
    """What a run gave: tokens, rounds, machine calls, and the full logits behind each token.

    `routes` has the experts that the full model chose for each position that it was fed.

    `logits` has one row [V] for each token where they were kept, else it is empty.
    """

    tokens: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    routes: list[Chosen] = field(default_factory=list)
    logits: list[NDArray] = field(default_factory=list)


def decode(
    machine: Machine,
    mode: str,
    prompt: Sequence[int],
    options: DecodeOptions,
    on_tokens: Callable[[list[int]], None] | None = None,
    keep_logits: bool = False,
    timer: ProgramTimer | None = None,
) -> Decoded:
    """Continue `prompt` from an empty cache with the program for `mode`.

    `on_tokens` is handed each batch of new tokens. `timer` times passes of the machine's program,
    for the schedule that asks for it; one is made where it is needed. Raises SpeqcError where the
    prompt is empty, holds a token id that the model has not, or does not fit the context with the
    new tokens.
    """
    check_prompt(machine, prompt, options.new_tokens)
    machine.reset()
    program = find_program(machine.program, mode)
    host = _Host(machine, program, options, on_tokens, keep_logits, timer)
    return host.run(np.asarray(prompt, np.int64)[None])


def check_prompt(machine: Machine, prompt: Sequence[int], new_tokens: int) -> None:
    """Raise SpeqcError unless the machine can continue `prompt` by `new_tokens` tokens."""
    if not prompt:
        raise SpeqcError("the prompt is empty: give at least one token")
    for place, token in enumerate(prompt):
        if not 0 <= token < machine.vocabulary:
            raise SpeqcError(
                f"token id {token} (place {place} of the prompt) is out of range: "
                f"the model has the ids 0 to {machine.vocabulary - 1}"
            )
    if len(prompt) + new_tokens > machine.context:
        raise SpeqcError(
            f"a prompt of {counted(len(prompt), 'token')} and {new_tokens:,} new ones do not fit "
            f"the context of {machine.context:,}"
        )


def find_program(module: ModuleOp, mode: str) -> speq.DecodeOp:
    """The decode program for a mode; SpeqcError where the module has none."""
    for op in module.ops:
        if isinstance(op, speq.DecodeOp) and op.sym_name.data == MODES[mode]:
            return op
    raise SpeqcError(f"the program has no speq.decode @{MODES[mode]}")


def drafting(program: speq.DecodeOp, options: DecodeOptions) -> Drafting:
    """The rule of drafting of a speculative run: the program's own, where the options leave it.

    The rule by cost, asked for by the run alone, ends drafts itself: the program's length and
    threshold, which are for another rule, do not bind it.
    """
    assert program.draft_length is not None and program.exit_threshold is not None
    own = speq.CONSTANT if program.draft_schedule is None else program.draft_schedule.data
    schedule = options.draft_schedule or own
    length, threshold = program.draft_length.value.data, program.exit_threshold.value.data
    if schedule == speq.COST != own:
        length, threshold = LONGEST, 0.0
    if options.exit_threshold is not None:
        threshold = options.exit_threshold
    return Drafting(schedule, options.draft_length or length, threshold)


class _Enough(Exception):
    """Enough tokens are out: leaves the walk from any depth."""


class _Host:
    """One walk over a decode program."""

    def __init__(
        self,
        machine: Machine,
        program: speq.DecodeOp,
        options: DecodeOptions,
        on_tokens: Callable[[list[int]], None] | None,
        keep_logits: bool,
        timer: ProgramTimer | None,
    ):
        self.machine = machine
        self.program = program
        self.options = options
        self.on_tokens = on_tokens
        self.keep_logits = keep_logits
        self.sampler = Sampler(options.sampling)
        self.values: dict[SSAValue, Any] = {}
        self.result = Decoded()
        self.drafting = False
        self.round_start = 0
        self.timer = timer
        self.schedule: Schedule | None = None

    def run(self, prompt: NDArray[np.int64]) -> Decoded:
        """Run the program to its end."""
        with suppress(_Enough):
            self._enter(self.program.body, prompt)
        self.result.calls = self.machine.take_calls()
        self.result.routes = self.machine.routes
        del self.result.logits[len(self.result.tokens) :]
        return self.result

    def _enter(self, region: Region, *arguments: Any) -> list[Any]:
        """Run a region's block; gives what it yields."""
        block: Block = region.block
        self.values.update(zip(block.args, arguments, strict=True))
        for op in block.ops:
            if isinstance(op, speq.YieldOp):
                return [self.values[value] for value in op.values]
            self._step(op)
        return []

    def _step(self, op: Operation) -> None:
        match op:
            case speq.CallOp():
                self._call(op)
            case speq.SampleOp():
                self._sample(op)
            case speq.EmitOp():
                self._emit([token for value in op.tokens for token in self.values[value][0]])
            case speq.RepeatOp():
                token = self.values[op.first]
                while True:
                    (token,) = self._enter(op.body, token)
            case speq.DraftOp():
                self._draft(op)
            case speq.VerifyOp():
                self._verify(op)
            case speq.AcceptOp():
                self._accept(op)
            case speq.TruncateOp():
                self.machine.truncate(self.round_start + 1 + self.values[op.accepted].shape[1])
            case _:
                raise SpeqcError(f"{op.name} has no place in a decode program")

    def _call(self, op: speq.CallOp) -> None:
        chunk = None
        if op.tokens in self.program.body.block.args:
            own = None if op.chunk is None else op.chunk.value.data
            chunk = self.options.prompt_chunk or own
        tokens = self.values[op.tokens][0]
        # Sampling reads the last row alone: a long prompt's logits need not all be kept.
        last = all(isinstance(use.operation, speq.SampleOp) for use in op.logits.uses)
        self.values[op.logits] = self.machine.call(
            op.callee.string_value(), tokens, chunk, last_chunk=last
        )

    def _sample(self, op: speq.SampleOp) -> None:
        row = self.values[op.logits][-1]
        token, self.values[op.probability] = self.sampler.sample(row)
        self.values[op.token] = np.array([[token]])
        if not self.drafting:
            self._keep(row[None])

    def _keep(self, rows: NDArray) -> None:
        if self.keep_logits:
            self.result.logits.extend(rows)

    def _emit(self, tokens: list[int]) -> None:
        tokens = [int(token) for token in tokens][: self._wanted()]
        stops = [place for place, token in enumerate(tokens) if token in self.options.stop_tokens]
        if stops:
            tokens = tokens[: stops[0] + 1]
        self.result.tokens.extend(tokens)
        if self.on_tokens is not None:
            self.on_tokens(tokens)
        if stops or not self._wanted():
            raise _Enough

    def _wanted(self) -> int:
        return self.options.new_tokens - len(self.result.tokens)

    def _draft(self, op: speq.DraftOp) -> None:
        if self.schedule is None:
            self.schedule = drafting(self.program, self.options).start(self._cost)
        self.round_start = self.machine.length
        limit = self.schedule.begin(self.round_start, self._wanted() - 1)
        token, tokens, rows, stopped = self.values[op.last], [], [], False
        self.drafting = True
        while len(tokens) < limit and not stopped:
            token, probability, logits = self._enter(op.body, token)
            tokens.append(int(token[0, 0]))
            rows.append(logits[-1])
            stopped = not self.schedule.goes_on(probability)
        self.drafting = False
        self.values[op.drafted] = np.array([tokens], np.int64)
        self.values[op.logits] = rows
        self.result.rounds.append(Round(len(tokens), 0, stopped and len(tokens) < limit))

    def _cost(self, function: str, rows: int, past: int) -> float:
        """Simulated cycles of a pass."""
        if self.timer is None:
            self.timer = ProgramTimer(self.machine.program)
        return self.timer.cost(function, rows, past).cycles

    def _verify(self, op: speq.VerifyOp) -> None:
        self.machine.truncate(self.round_start)
        tokens = np.concatenate([self.values[op.last], self.values[op.drafted]], axis=1)
        (self.values[op.logits],) = self._enter(op.body, tokens)

    def _accept(self, op: speq.AcceptOp) -> None:
        drafted = self.values[op.drafted][0].tolist()
        rows = self.values[op.logits]
        accepted, token = self.sampler.accept(drafted, self.values[op.draft_logits], rows)
        self._keep(rows[: len(accepted) + 1])
        self.values[op.accepted] = np.array([accepted], np.int64)
        self.values[op.next] = np.array([[token]])
        last = self.result.rounds[-1]
        self.result.rounds[-1] = Round(last.drafted, len(accepted), last.early_exit)
        assert self.schedule is not None
        self.schedule.learn(last.drafted, len(accepted))
