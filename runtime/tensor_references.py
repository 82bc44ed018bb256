"""The tensors that a `pe` program refers to, and whether their bytes are anywhere."""

from collections.abc import Iterator

from xdsl.dialects.builtin import ModuleOp

from speqc.dialects.digests import NO_BYTES
from speqc.dialects.pe import LoadConstantOp, LookupOp
from speqc.dialects.speq import WeightOp
from speqc.runtime.errors import SpeqcError

Reference = WeightOp | LoadConstantOp | LookupOp


def constants(program: ModuleOp) -> Iterator[LoadConstantOp | LookupOp]:
    """The operations that read a constant of the artifact."""
    for op in program.walk():
        if isinstance(op, LoadConstantOp | LookupOp):
            yield op


def has_bytes(program: ModuleOp) -> bool:
    """Whether the tensors of a program have bytes; raises SpeqcError where some alone have."""
    kept: dict[bool, str] = {}
    for op in (*program.ops, *constants(program)):
        if isinstance(op, Reference):
            kept[op.digest.data != NO_BYTES] = op.source.data
    if len(kept) > 1:
        raise SpeqcError(
            f"tensor {kept[False]!r} has no bytes while {kept[True]!r} has: in a program either "
            "all have or none"
        )
    return False not in kept
