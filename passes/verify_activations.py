"""Legality of the places that a step's activations have in the activation SRAM."""

from xdsl.dialects.builtin import IntegerAttr
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation

from speqc.passes.activation_buffers import Buffer, step_buffers
from speqc.runtime.activations import OFFSET, ROW_BYTES, is_pairs
from speqc.runtime.errors import SpeqcError


def check_activations(function: FuncOp) -> None:
    """Check that no activation overwrites another that is still needed.

    Raises:
        SpeqcError: an activation has no place, or one before the first byte or over another, a
            result of the step or what has elements for pairs of tokens has a place, or the step's
            bytes for a row are not those it needs.
    """
    buffers = step_buffers(function)
    for buffer in buffers.returned:
        for owner in buffer.owners:
            if OFFSET in owner.properties:
                raise _error(function, owner, f"gives a result of the step and has an {OFFSET}")
    for op in function.body.block.ops:
        if OFFSET in op.properties and any(map(is_pairs, op.results)):
            raise _error(function, op, f"gives elements for pairs of tokens and has an {OFFSET}")
    for buffer, needed in buffers.with_needed():
        buffer.offset = _offset(function, buffer)
        for other in needed:
            if buffer.offset < other.end and other.offset < buffer.end:
                raise _error(
                    function,
                    buffer.owners[0],
                    f"bytes {buffer.offset} to {buffer.end} of its row overlap those of "
                    f"{other.owners[0].name} at {other.offset} to {other.end}, still needed",
                )
    bytes, peak = function.attributes.get(ROW_BYTES), buffers.peak()
    if not isinstance(bytes, IntegerAttr) or bytes.value.data != peak:
        found = bytes.value.data if isinstance(bytes, IntegerAttr) else "none"
        raise _error(function, None, f"its activations need {ROW_BYTES} = {peak}, got {found}")


def _offset(function: FuncOp, buffer: Buffer) -> int:
    """The one offset, not negative, that all who own a buffer name."""
    found = [owner.properties.get(OFFSET) for owner in buffer.owners]
    first = found[0]
    if not isinstance(first, IntegerAttr) or first.value.data < 0:
        raise _error(function, buffer.owners[0], f"has no {OFFSET} of 0 or more")
    for owner, offset in zip(buffer.owners, found, strict=True):
        if offset != first:
            raise _error(function, owner, f"its {OFFSET} is not that of the operand it renames")
    return first.value.data


def _error(function: FuncOp, op: Operation | None, message: str) -> SpeqcError:
    where = f"@{function.sym_name.data}"
    return SpeqcError(f"verify-pe: {where}{f', {op.name}' if op else ''}: {message}")
