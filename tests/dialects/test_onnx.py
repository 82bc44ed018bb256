"""The `onnx` dialect's classes agree with ONNX's registry, and hold their values."""

import io
import subprocess
import sys

import numpy as np
import onnx.defs
import pytest
from xdsl.context import Context
from xdsl.dialects import test
from xdsl.dialects.builtin import (
    Builtin,
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    FloatAttr,
    IntegerAttr,
    NoneType,
    TensorType,
    f16,
    f32,
    i64,
)
from xdsl.parser import Parser
from xdsl.printer import Printer

from speqc.dialects.onnx import (
    ConstantOp,
    InitializerOp,
    NoValueOp,
    Onnx,
    node_location,
    node_name,
    operator_class,
)
from speqc.dialects.onnx_schema import CONTRIB_OPERATORS, OLDEST_OPSET, operator_schemas

SUBGRAPHS = {"If", "Loop", "Scan", "SequenceMap"}


def standard_operators() -> set[str]:
    return {
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if schema.domain == "" and not schema.deprecated
    }


def test_every_standard_operator_has_a_class():
    names = {schema.name for schema in operator_schemas().values() if schema.domain == ""}
    assert standard_operators() - SUBGRAPHS <= names


def test_the_dialect_offers_each_name_once():
    names = [operation.name for operation in Onnx.operations]
    assert len(names) == len(set(names))
    assert {"onnx.MatMul", "onnx.Constant", "onnx.microsoft.GroupQueryAttention"} <= set(names)
    assert "onnx.SimplifiedLayerNormalization" in names
    assert not {f"onnx.{name}" for name in SUBGRAPHS} & set(names)


@pytest.mark.parametrize("version", [OLDEST_OPSET, 17, 20, onnx.defs.onnx_opset_version()])
def test_every_version_of_an_operator_is_admitted(version):
    for name in sorted(standard_operators() - SUBGRAPHS):
        if not onnx.defs.has(name, version):
            continue
        schema = onnx.defs.get_schema(name, version)
        ours = operator_schemas()[f"onnx.{name}"]
        assert ours.min_inputs <= schema.min_input
        assert ours.max_inputs >= schema.max_input
        assert ours.min_outputs <= schema.min_output
        assert ours.max_outputs >= schema.max_output
        wanted = {key for key, a in schema.attributes.items() if a.required}
        assert ours.required <= wanted


def test_attributes_of_older_versions_are_optional():
    # ReduceMean took its axes as an attribute before opset 18, as an input since.
    schema = operator_schemas()["onnx.ReduceMean"]
    assert schema.attributes["axes"] == "ints"
    assert "axes" not in schema.required
    assert schema.max_inputs == 2


def test_the_contrib_table_is_what_onnxruntime_says():
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    if not hasattr(state, "get_all_operator_schema"):
        pytest.skip("this onnxruntime does not tell its operators")
    theirs = {(s.domain, s.name): s for s in state.get_all_operator_schema()}
    for ours in CONTRIB_OPERATORS:
        schema = theirs[ours.domain, ours.name]
        assert ours.min_inputs <= schema.min_input
        assert ours.inputs == tuple(p.name for p in schema.inputs)[: len(ours.inputs)]
        assert set(ours.attributes) <= set(schema.attributes)
        assert ours.required == {k for k, a in schema.attributes.items() if a.required}


def test_accessors_read_operands_and_attributes():
    data = test.TestOp(result_types=[TensorType(f16, [4])]).results[0]
    none, high = NoValueOp().result, test.TestOp(result_types=[TensorType(f16, [])]).results[0]
    clip = operator_class("onnx.Clip")([data, none, high], [data.type])
    assert clip.input("input") is data
    assert clip.input("min") is None
    assert clip.input("max") is high
    short = operator_class("onnx.Clip")([data], [data.type])
    assert short.input("max") is None
    transpose = operator_class("onnx.Transpose")(
        [data], [data.type], {"perm": DenseArrayBase.from_list(i64, [0])}
    )
    assert transpose.integers("perm") == (0,)
    norm = operator_class("onnx.LayerNormalization")(
        [data, data],
        [data.type],
        {"axis": IntegerAttr(-1, i64), "epsilon": FloatAttr(0.5, f32)},
    )
    assert norm.integer("axis", 7) == -1
    assert norm.integer("stash_type", 7) == 7
    assert norm.number("epsilon", 0.0) == 0.5
    assert norm.integers("axis") is None
    norm.verify()


def test_absent_outputs_have_no_type_but_none():
    data = test.TestOp(result_types=[TensorType(f16, [4])]).results[0]
    op = operator_class("onnx.microsoft.SkipSimplifiedLayerNormalization")(
        [data, data, data], [data.type, NoneType(), NoneType(), data.type]
    )
    op.verify()


def test_node_names_are_locations():
    op = NoValueOp()
    assert node_name(op) == ""
    op.location = node_location("/model/layers.0/MatMul")
    assert node_name(op) == "/model/layers.0/MatMul"
    assert node_name(op.clone()) == "/model/layers.0/MatMul"


@pytest.mark.parametrize(
    "values",
    [[np.inf], [-np.inf, 1.0], [np.nan, -0.0], [65504.0, 6e-8], [1 / 3, 0.1], []],
    ids=str,
)
@pytest.mark.parametrize("element_type", [f16, f32], ids=str)
def test_constants_keep_their_bits_in_text(values, element_type):
    dtype = np.float16 if element_type == f16 else np.float32
    elements = np.array(values, dtype).tolist()
    op = ConstantOp(
        DenseIntOrFPElementsAttr.from_list(TensorType(element_type, [len(values)]), elements)
    )
    text = io.StringIO()
    Printer(text).print_op(op)
    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(Onnx)
    parsed = Parser(context, text.getvalue()).parse_operation()
    assert isinstance(parsed, ConstantOp)
    assert parsed.value.data == op.value.data


def test_initializers_take_a_histogram():
    op = InitializerOp("w", "sha256:00", TensorType(f16, [2, 2]), [4] + [0] * 31, 4)
    op.verify()
    assert op.zeros is not None
    assert op.zeros.value.data == 4


def test_importing_the_dialect_does_not_load_onnx():
    code = "import sys, speqc.dialects.onnx; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
