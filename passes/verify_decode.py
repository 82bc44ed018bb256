"""Legality of decode programs: they are those that are known to be lossless."""

from itertools import zip_longest

from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, Operation

from speqc.dialects.speq import (
    AUTOREGRESSIVE,
    DRAFT,
    DRAFT_ONLY,
    FULL,
    PROGRAMS,
    SPECULATIVE,
    CallOp,
    DecodeOp,
)
from speqc.passes.form_draft_verify import DecodePrograms, find_function
from speqc.passes.verify_speq import check_signature
from speqc.runtime.errors import SpeqcError


def check_programs(module: ModuleOp) -> None:
    """Check the step functions' types, and that each decode program is what its name says.

    Draft length, threshold, schedule and chunk are free; operations, their order and what feeds
    them are those of form-draft-verify.

    Raises:
        SpeqcError: a function or program is missing or another; the line names the first operation
            that is not the expected one.
    """
    full, draft = find_function(module, FULL), find_function(module, DRAFT)
    check_signature(full)
    if draft.function_type != full.function_type:
        raise SpeqcError(
            f"verify-pe: @{DRAFT} has type {draft.function_type}, @{FULL} {full.function_type}"
        )
    programs = {op.sym_name.data: op for op in module.ops if isinstance(op, DecodeOp)}
    for name in PROGRAMS:
        if name not in programs:
            raise SpeqcError(f"verify-pe: the module has no speq.decode @{name}")
    for name, program in programs.items():
        if name not in PROGRAMS:
            raise SpeqcError(f"verify-pe: speq.decode @{name} is none of {', '.join(PROGRAMS)}")
        expected = _expected(program, full)
        if not program.is_structurally_equivalent(expected):
            raise SpeqcError(f"verify-pe: @{name}: {_difference(expected, program)}")


def _expected(program: DecodeOp, full: FuncOp) -> DecodeOp:
    """The program of that name with the lengths, threshold and schedule that `program` has."""
    logits = full.function_type.outputs.data[0]
    assert isinstance(logits, TensorType)
    prefill = program.body.block.first_op
    chunk = prefill.chunk if isinstance(prefill, CallOp) else None
    programs = DecodePrograms(logits, None if chunk is None else chunk.value.data)
    name = program.sym_name.data
    if name == SPECULATIVE:
        for field in ("draft_length", "exit_threshold"):
            if field not in program.properties:
                raise SpeqcError(f"verify-pe: @{name} has no {field}")
        assert program.draft_length is not None and program.exit_threshold is not None
        return programs.speculative(
            program.draft_length.value.data,
            program.exit_threshold.value.data,
            None if program.draft_schedule is None else program.draft_schedule.data,
        )
    return programs.one_by_one(name, {AUTOREGRESSIVE: FULL, DRAFT_ONLY: DRAFT}[name])


def _difference(expected: DecodeOp, program: DecodeOp) -> str:
    """Where a program first differs from the expected one."""
    for ours, theirs in zip_longest(expected.walk(), program.walk()):
        if theirs is None:
            return f"{ours.name} is missing"
        if ours is None:
            return f"{theirs.name} does not belong there"
        if ours.name != theirs.name:
            return f"expected {ours.name}, got {theirs.name}"
        for key in ours.properties | theirs.properties:
            wanted, got = ours.properties.get(key), theirs.properties.get(key)
            if wanted != got:
                return f"{ours.name}: {key} must be {_text(wanted)}, got {_text(got)}"
        if (wanted := _types(ours)) != (got := _types(theirs)):
            return f"{ours.name}: types must be {wanted}, got {got}"
    return "its operations do not feed each other as they must"


def _types(op: Operation) -> str:
    """Types of operands, results and arguments of regions."""
    values = [*op.operands, *op.results, *(arg for r in op.regions for arg in r.block.args)]
    return ", ".join(str(value.type) for value in values)


def _text(attribute: Attribute | None) -> str:
    return "absent" if attribute is None else str(attribute)
