"""Form the draft step and the host programs that decode with it."""

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Block, BlockArgument, Operation, Region, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from speqc.dialects.speq import (
    AUTOREGRESSIVE,
    CONSTANT,
    DRAFT,
    DRAFT_ONLY,
    FULL,
    SPECULATIVE,
    TOKEN,
    TOKENS,
    AcceptOp,
    CallOp,
    DecodeOp,
    DraftOp,
    EmitOp,
    RepeatOp,
    SampleOp,
    TruncateOp,
    VerifyOp,
    View,
    ViewOp,
    ViewType,
    WeightOp,
    YieldOp,
)
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import recompute_reason


@dataclass(frozen=True)
class FormDraftVerifyPass(ModulePass):
    """Clone the step @full into @draft, which reads draft views, and add the decode programs.

    The programs are @speculative, @autoregressive and @draft_only. A weight that is neither
    split nor has a copy is read in full by the draft too. Prompts go through in chunks of
    `prompt_chunk` tokens; in a module with a history all at once.
    """

    name = "form-draft-verify"

    draft_length: int = 8
    exit_threshold: float = 0.3
    prompt_chunk: int = 64
    draft_schedule: str = CONSTANT

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite the module in place; raises SpeqcError where it has no step @full."""
        full = find_function(op, FULL)
        if any(isinstance(other, DecodeOp) for other in op.ops):
            raise SpeqcError("form-draft-verify: the module already has decode programs")
        draft = _draft_step(op, full)
        logits = full.function_type.outputs.data[0]
        assert isinstance(logits, TensorType)
        # Each chunk would compute all tokens before it again.
        chunk = self.prompt_chunk if recompute_reason(op) is None else None
        programs = DecodePrograms(logits, chunk)
        Rewriter.insert_op(
            [
                draft,
                programs.speculative(self.draft_length, self.exit_threshold, self._schedule()),
                programs.one_by_one(AUTOREGRESSIVE, FULL),
                programs.one_by_one(DRAFT_ONLY, DRAFT),
            ],
            InsertPoint.after(full),
        )

    def _schedule(self) -> str | None:
        """What the program says of the schedule; nothing where it is the constant one."""
        return None if self.draft_schedule == CONSTANT else self.draft_schedule


def find_function(module: ModuleOp, name: str) -> FuncOp:
    """The function of that name; SpeqcError where there is none."""
    for op in module.ops:
        if isinstance(op, FuncOp) and op.sym_name.data == name:
            return op
    raise SpeqcError(f"the module has no function @{name}")


def _draft_step(module: ModuleOp, full: FuncOp) -> FuncOp:
    narrow = {op.sym_name.data for op in module.ops if isinstance(op, WeightOp) and op.has_draft}
    draft = full.clone()
    draft.sym_name = StringAttr(DRAFT)
    for op in list(draft.walk()):
        if isinstance(op, ViewOp) and op.weight.string_value() in narrow:
            assert isinstance(op.result.type, ViewType)
            rows, columns = op.result.type.shape
            Rewriter.replace_value_with_new_type(op.result, ViewType(rows, columns, View.DRAFT))
    return draft


class DecodePrograms:
    """Builds decode programs for steps with one type of logits.

    Prompts go through in chunks of `prompt_chunk` tokens, with None at once.
    """

    def __init__(self, logits: TensorType, prompt_chunk: int | None):
        self.logits = logits
        self.token_logits = TensorType(
            logits.element_type, [*logits.get_shape()[:-2], 1, logits.get_shape()[-1]]
        )
        self.prompt_chunk = prompt_chunk

    def speculative(
        self, draft_length: int, exit_threshold: float, draft_schedule: str | None = None
    ) -> DecodeOp:
        """Draft, verify, accept, truncate, in rounds."""
        first, prefill = self._prefill()
        last, round_block = _block_with(TOKEN, "last")
        draft = DraftOp(last, self._draft_region(), self.logits)
        verify = VerifyOp(last, draft.drafted, self._verify_region(), self.logits)
        accept = AcceptOp(draft.drafted, draft.logits, verify.logits)
        _named(draft, "drafted", "draft_logits")
        _named(verify, "full_logits")
        _named(accept, "accepted", "next")
        round_block.add_ops(
            [
                draft,
                verify,
                accept,
                TruncateOp(accept.accepted),
                EmitOp(accept.accepted, accept.next),
                YieldOp(accept.next),
            ]
        )
        prefill.add_op(RepeatOp(first, Region(round_block)))
        return DecodeOp(
            SPECULATIVE,
            Region(prefill),
            draft_length=draft_length,
            exit_threshold=exit_threshold,
            draft_schedule=draft_schedule,
        )

    def one_by_one(self, name: str, step: str) -> DecodeOp:
        """One pass of `step` for each token after the prompt."""
        first, prefill = self._prefill()
        last, body = _block_with(TOKEN, "last")
        call = self._call(step, last)
        sample = _sample(call.logits, "next")
        body.add_ops([call, sample, EmitOp(sample.token), YieldOp(sample.token)])
        prefill.add_op(RepeatOp(first, Region(body)))
        return DecodeOp(name, Region(prefill))

    def _prefill(self) -> tuple[SSAValue, Block]:
        prompt, block = _block_with(TOKENS, "prompt")
        call = CallOp(FULL, prompt, self.logits, chunk=self.prompt_chunk)
        _named(call, "logits")
        sample = _sample(call.logits, "first")
        block.add_ops([call, sample, EmitOp(sample.token)])
        return sample.token, block

    def _call(self, step: str, token: SSAValue) -> CallOp:
        call = CallOp(step, token, self.token_logits)
        _named(call, "logits")
        return call

    def _draft_region(self) -> Region:
        token, block = _block_with(TOKEN, "token")
        call = self._call(DRAFT, token)
        sample = _sample(call.logits, "next")
        block.add_ops([call, sample, YieldOp(sample.token, sample.probability, call.logits)])
        return Region(block)

    def _verify_region(self) -> Region:
        tokens, block = _block_with(TOKENS, "tokens")
        call = CallOp(FULL, tokens, self.logits)
        _named(call, "logits")
        block.add_ops([call, YieldOp(call.logits)])
        return Region(block)


def _block_with(type: TensorType, name: str) -> tuple[BlockArgument, Block]:
    block = Block(arg_types=[type])
    block.args[0].name_hint = name
    return block.args[0], block


def _named(op: Operation, *names: str) -> None:
    for result, name in zip(op.results, names, strict=True):
        result.name_hint = name


def _sample(logits: SSAValue, token: str) -> SampleOp:
    sample = SampleOp(logits)
    _named(sample, token, "probability")
    return sample
