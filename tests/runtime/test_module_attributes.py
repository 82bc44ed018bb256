from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser

from speqc.dialects.pe import Pe
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import (
    module_context,
    module_opset,
    module_target,
    target_attribute,
)
from speqc.runtime.target import Target, TargetError


def parse(text: str) -> ModuleOp:
    context = Context()
    for dialect in (Builtin, Pe):
        context.load_dialect(dialect)
    return Parser(context, text).parse_module()


def module_for(target: Target) -> ModuleOp:
    return ModuleOp([], {"pe.target": target_attribute(target)})


@settings(max_examples=50, deadline=None)
@given(
    clock=st.integers(1, 10**11),
    sram=st.integers(1, 2**40),
    energy=st.floats(0, 1e4) | st.integers(0, 10**4),
    text=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).filter(
        str.strip
    ),
)
def test_target_survives_as_text(clock: int, sram: int, energy: float, text: str) -> None:
    target = replace(
        Target(),
        description=text,
        clock_hz=clock,
        activation_sram_bytes=sram,
        dram_energy_picojoules_per_bit=energy,
    )
    assert module_target(parse(str(module_for(target)))) == target


def test_missing_target() -> None:
    with pytest.raises(SpeqcError, match=r"the module has no pe\.target attribute"):
        module_target(ModuleOp([]))
    with pytest.raises(SpeqcError, match=r"the module has no pe\.target attribute"):
        module_target(parse("builtin.module attributes {pe.target = 3 : i64} {}"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clock_hz = 500000000 : i64, ", "", "#pe.target: clock_hz is missing"),
        ("clock_hz", "clock", "#pe.target: unknown key 'clock'; did you mean clock_hz"),
        ("64 : i64", "0 : i64", "array_rows must be an integer from 1 to 65536, got 0"),
        ("64 : i64", '"64"', "array_rows must be an integer from 1 to 65536, got '64'"),
        ("64 : i64", "unit", "array_rows must be an integer from 1 to 65536, got None"),
    ],
)
def test_wrong_target(old: str, new: str, message: str) -> None:
    text = str(module_for(Target()))
    assert old in text
    with pytest.raises(TargetError, match=message):
        module_target(parse(text.replace(old, new, 1)))


def test_context_and_opset() -> None:
    module = parse("builtin.module attributes {speq.context = 128 : i64, onnx.opset = 20 : i64} {}")
    assert (module_context(module), module_opset(module)) == (128, 20)


@pytest.mark.parametrize("value", ["0 : i64", "-5 : i64", '"128"'])
def test_wrong_context(value: str) -> None:
    with pytest.raises(SpeqcError, match=r"no positive speq\.context attribute"):
        module_context(parse(f"builtin.module attributes {{speq.context = {value}}} {{}}"))


def test_missing_numbers() -> None:
    with pytest.raises(SpeqcError, match=r"no positive speq\.context attribute"):
        module_context(ModuleOp([]))
    with pytest.raises(SpeqcError, match=r"no onnx\.opset attribute"):
        module_opset(ModuleOp([]))
