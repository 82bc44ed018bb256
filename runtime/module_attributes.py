"""What a module says of the machine it is for: the target, and the caches' capacity."""

from dataclasses import asdict

from xdsl.dialects.builtin import (
    BytesAttr,
    DictionaryAttr,
    FloatAttr,
    IntegerAttr,
    ModuleOp,
    StringAttr,
    f64,
    i64,
)
from xdsl.ir import Attribute

from speqc.dialects.pe import TargetAttr
from speqc.dialects.speq import HistoryOp
from speqc.runtime.errors import SpeqcError
from speqc.runtime.target import Target, from_mapping

TARGET_NAME = "pe.target"
"""The module attribute that holds the target."""

CONTEXT_NAME = "speq.context"
"""The module attribute with the number of positions that the caches can hold."""

PROVED_NAME = "speq.proved_positions"
"""The module attribute with the number of positions up to which what was sampled holds."""

OPSET_NAME = "onnx.opset"
"""The module attribute with the version of the ONNX operators."""


def target_attribute(target: Target) -> TargetAttr:
    """The attribute with every field of a target."""
    return TargetAttr(
        DictionaryAttr({name: _attribute(value) for name, value in asdict(target).items()})
    )


def module_target(module: ModuleOp) -> Target:
    """The target that a module names.

    Raises SpeqcError where the module has none, TargetError where a field is wrong.
    """
    attribute = module.attributes.get(TARGET_NAME)
    if not isinstance(attribute, TargetAttr):
        raise SpeqcError(f"the module has no {TARGET_NAME} attribute: no target to map to")
    fields = {name: _value(value) for name, value in attribute.fields.data.items()}
    return from_mapping(fields, f"#{TARGET_NAME}")


def module_context(module: ModuleOp) -> int:
    """The number of positions that a module's caches can hold; SpeqcError where it is missing."""
    context = module.attributes.get(CONTEXT_NAME)
    if not isinstance(context, IntegerAttr) or context.value.data < 1:
        raise SpeqcError(f"the module has no positive {CONTEXT_NAME} attribute")
    return context.value.data


def proved_positions(module: ModuleOp) -> int | None:
    """Up to how many positions a module computes what the file does; None where nothing says so.

    Masks, positions and tables are evaluated for steps up to there, and not behind.
    """
    proved = module.attributes.get(PROVED_NAME)
    return proved.value.data if isinstance(proved, IntegerAttr) else None


def recompute_reason(module: ModuleOp) -> str | None:
    """Why each step of a module recomputes its prefix; None where it has caches instead."""
    return next((op.reason.data for op in module.ops if isinstance(op, HistoryOp)), None)


def limit_proved(module: ModuleOp, positions: int) -> None:
    """Note that something of a module was evaluated up to so many positions only."""
    known = proved_positions(module)
    least = positions if known is None else min(known, positions)
    module.attributes[PROVED_NAME] = IntegerAttr(least, i64)


def module_opset(module: ModuleOp) -> int:
    """The ONNX version of a module's operators; SpeqcError where it is missing."""
    opset = module.attributes.get(OPSET_NAME)
    if not isinstance(opset, IntegerAttr):
        raise SpeqcError(f"the module has no {OPSET_NAME} attribute")
    return opset.value.data


def _attribute(value: str | int | float) -> Attribute:
    match value:
        case str():
            return StringAttr(value)
        case int():
            return IntegerAttr(value, i64)
        case float():
            return FloatAttr(value, f64)


def _value(attribute: Attribute) -> object:
    match attribute:
        case StringAttr():
            return attribute.data
        case BytesAttr():
            # What xDSL reads of a text that it printed with escapes for letters beyond ASCII.
            return attribute.data.decode("utf-8", "replace")
        case IntegerAttr() | FloatAttr():
            return attribute.value.data
        case _:
            return None
