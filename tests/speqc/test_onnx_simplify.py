"""Simplification leaves the model's bits alone and its shapes known."""

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_models import HIDDEN, VOCABULARY, corpus_model, decoder, save

from speqc.onnx_checks import check_types
from speqc.onnx_decoder import find_logits
from speqc.onnx_reader import open_model
from speqc.onnx_simplify import LARGEST_FOLDED_INPUT, simplify
from speqc.onnx_state import KvPair, find_kv_pairs, find_token_input
from speqc.onnx_symbols import PAST, SEQUENCE, TOTAL, Affine, affine, is_ours, same
from speqc.runtime.errors import SpeqcError

SIZES = [(0, 5), (7, 1), (3, 4)]
"""Positions in the caches and tokens fed: a prompt, a step, a chunk."""


def session(model: bytes | str) -> ort.InferenceSession:
    """A session that computes just what the file says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_reuse = False
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed(model: ir.Model, past: int, sequence: int) -> dict[str, np.ndarray]:
    """Inputs of a simplified model."""
    random = np.random.default_rng(past)
    inputs = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        bindings = {PAST: past, SEQUENCE: sequence}
        dims = [ir.SymbolicDim(str(dim)).evaluate(bindings) for dim in value.shape]
        shape = [int(str(dim)) for dim in dims]
        if "mask" in str(value.name):
            array = np.ones(shape)
        elif "position" in str(value.name):
            array = past + np.arange(sequence)[None]
        elif value.dtype.is_floating_point():
            array = random.normal(0, 0.5, shape)
        else:
            array = random.integers(3, VOCABULARY - 1, shape)
        inputs[str(value.name)] = array.astype(value.dtype.numpy())
    return inputs


def assert_computes_the_same(path: Path, sizes: list[tuple[int, int]]) -> ir.Model:
    """The simplified model gives bitwise what the file gives, for every pair of sizes."""
    model = simplify(open_model(path))
    ours = session(ir.serde.serialize_model(model).SerializeToString())
    theirs = session(str(path))
    for past, sequence in sizes:
        inputs = feed(model, past, sequence)
        for a, b in zip(theirs.run(None, inputs), ours.run(None, inputs), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
    return model


def dynamic_operands(model: ir.Model) -> list[str]:
    """Nodes that are told a shape or bounds by something computed."""
    return [
        f"{node.op_type} {node.name}"
        for node in model.graph
        if node.op_type in ("Reshape", "Expand", "Slice")
        and any(value is not None and value.const_value is None for value in node.inputs[1:])
    ]


def assert_shapes_are_known(model: ir.Model) -> None:
    for node in model.graph:
        for output in node.outputs:
            if output.name:
                assert output.dtype is not None, output.name
                assert output.shape is not None, output.name
                assert all(is_ours(dim) for dim in output.shape), (output.name, output.shape)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_decoder_computes_the_same_without_shape_arithmetic(tmp_path, layers):
    model = assert_computes_the_same(save(decoder(layers), tmp_path), SIZES)
    assert dynamic_operands(model) == []
    assert_shapes_are_known(model)
    operators = {node.op_type for node in model.graph}
    assert not operators & {"ConstantOfShape", "Equal", "Constant"}


def test_a_decoder_without_caches(tmp_path):
    model = assert_computes_the_same(save(decoder(caches=False), tmp_path), [(0, 1), (0, 6)])
    assert dynamic_operands(model) == []
    assert [str(value.shape) for value in model.graph.inputs] == ["[1,sequence]"] * 2


CORPUS = [
    "llama/torch-kv/model.onnx",
    "llama/optimum/model.onnx",
    "llama/optimum-conv16/model.onnx",
    "llama/torchscript-kv/model.onnx",
    "llama/hf/decode.onnx",
    "llama/hf/prefill.onnx",
    "llama/genai-cuda/model.onnx",
    "llama/mobius-std/model.onnx",
    "gemma2/torch-kv/model.onnx",
    "gpt2/torchscript-kv-eager/model.onnx",
    "gpt_neox/mobius-std/model.onnx",
    "bloom/torch-kv/model.onnx",
    "mistral/optimum/model.onnx",
    "phi3/torch-kv/model.onnx",
    "qwen3/genai-dml/model.onnx",
]
"""One file of each exporter, and of each family with something peculiar."""


@pytest.mark.parametrize("name", CORPUS)
def test_real_exports(name):
    model = assert_computes_the_same(corpus_model(name), [(0, 5), (3, 4)])
    assert_shapes_are_known(model)
    find_logits(model)
    # What is left computes masks: an Expand of its indices or of its rows, a Slice of positions.
    assert len(dynamic_operands(model)) <= 1


def test_wrong_declared_shapes_are_ignored(tmp_path):
    proto = decoder()
    for name in ("products_0", "flat_0", "embedded"):
        proto.graph.value_info.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 1])
        )
    model = simplify(open_model(save(proto, tmp_path)))
    shapes = {o.name: str(o.shape) for node in model.graph for o in node.outputs}
    assert shapes["products_0"] == f"[1,4,{SEQUENCE},{TOTAL}]"
    assert shapes["embedded"] == f"[1,{SEQUENCE},{HIDDEN}]"


def test_every_size_is_past_or_sequence(tmp_path):
    model = simplify(open_model(save(decoder(), tmp_path)))
    assert [str(value.shape) for value in model.graph.inputs] == [
        f"[1,{SEQUENCE}]",
        f"[1,{TOTAL}]",
        f"[1,2,{PAST},4]",
        f"[1,2,{PAST},4]",
    ]


def test_numbers_as_symbols(tmp_path):
    proto = decoder()
    for value in proto.graph.input[2:]:
        value.type.tensor_type.shape.dim[1].dim_param = "2"
        value.type.tensor_type.shape.dim[3].dim_param = "4"
    model = simplify(open_model(save(proto, tmp_path)))
    assert str(model.graph.inputs[2].shape) == f"[1,2,{PAST},4]"


def test_fixed_sizes_are_refused(tmp_path):
    with pytest.raises(SpeqcError, match="'tokens': the sequence length is fixed to 7"):
        simplify(open_model(save(decoder(sequence=7), tmp_path)))
    with pytest.raises(SpeqcError, match="'tokens': the batch is fixed to 3"):
        simplify(open_model(save(decoder(batch=3), tmp_path)))


def test_a_batch_of_one_is_fine(tmp_path):
    assert_computes_the_same(save(decoder(batch=1), tmp_path), SIZES)


def test_fixed_bounds_on_a_dynamic_axis_are_refused(tmp_path):
    proto = decoder()
    for name, value in (("first", [0]), ("eighth", [8]), ("second_axis", [1])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    bounds = ["mask", "first", "eighth", "second_axis"]
    position = next(i for i, node in enumerate(proto.graph.node) if node.output[0] == "real")
    proto.graph.node.insert(position, helper.make_node("Slice", bounds, ["cut"], "cutter"))
    proto.graph.node[position + 1].input[0] = "cut"
    with pytest.raises(SpeqcError, match=r"node 'cutter' \(Slice\): positions 0 to 8"):
        simplify(open_model(save(proto, tmp_path)))


def test_weights_are_not_folded(tmp_path):
    proto = decoder()
    rows = LARGEST_FOLDED_INPUT // HIDDEN + 1
    table = next(t for t in proto.graph.initializer if t.name == "table")
    large = np.ones((HIDDEN, rows), np.float16)
    table.CopyFrom(numpy_helper.from_array(large, "table"))
    gather = next(i for i, node in enumerate(proto.graph.node) if node.output[0] == "embedded")
    turn = helper.make_node("Transpose", ["table"], ["turned_table"], "turn", perm=[1, 0])
    proto.graph.node.insert(gather, turn)
    proto.graph.node[gather + 1].input[0] = "turned_table"
    model = simplify(open_model(save(proto, tmp_path, external=True)))
    tensor = model.graph.initializers["table"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert "turn" in {node.name for node in model.graph}


def kv_pairs(path: Path) -> list[KvPair]:
    """The pairs, which must be the same before and after simplification."""
    model = open_model(path)
    before = find_kv_pairs(model)
    assert find_kv_pairs(simplify(model)) == before
    return before


def test_caches_are_paired_by_data_flow(tmp_path):
    proto = decoder(layers=2)
    # Inputs and outputs in an order and with names that say nothing.
    inputs = list(proto.graph.input)
    del proto.graph.input[:]
    proto.graph.input.extend(inputs[position] for position in (4, 0, 3, 5, 1, 2))
    outputs = list(proto.graph.output)
    del proto.graph.output[:]
    proto.graph.output.extend(outputs[position] for position in (2, 4, 0, 1, 3))
    path = save(proto, tmp_path)
    model = open_model(path)
    assert find_token_input(model.graph) is model.graph.inputs[1]
    assert kv_pairs(path) == [
        KvPair(past_input=5, present_output=3, layer=0, kind="key"),
        KvPair(past_input=2, present_output=0, layer=0, kind="value"),
        KvPair(past_input=0, present_output=4, layer=1, kind="key"),
        KvPair(past_input=3, present_output=1, layer=1, kind="value"),
    ]


@pytest.mark.parametrize("name", [n for n in CORPUS if "prefill" not in n])
def test_pairs_of_real_exports_agree_with_their_names(name):
    path = corpus_model(name)
    graph = open_model(path).graph
    pairs = kv_pairs(path)
    assert pairs
    for pair in pairs:
        for text in (graph.inputs[pair.past_input].name, graph.outputs[pair.present_output].name):
            assert pair.kind in str(text)
            assert f".{pair.layer}." in str(text)


def test_mixed_types_are_refused(tmp_path):
    proto = decoder()
    cast = helper.make_node("Cast", ["flat_0"], ["flat32"], "promote", to=TensorProto.FLOAT)
    position = next(i for i, node in enumerate(proto.graph.node) if node.output[0] == "out_0")
    proto.graph.node.insert(position, cast)
    proto.graph.node[position + 1].input[0] = "flat32"
    model = simplify(open_model(save(proto, tmp_path)))
    with pytest.raises(SpeqcError, match=r"node 'node_out_0' \(MatMul\) mixes types"):
        check_types(model)


def test_logits_are_the_product_over_the_vocabulary(tmp_path):
    model = simplify(open_model(save(decoder(), tmp_path)))
    assert find_logits(model) == 0
    hidden = decoder()
    del hidden.graph.output[0]
    hidden.graph.output.append(helper.make_tensor_value_info("embedded", TensorProto.FLOAT16, None))
    with pytest.raises(SpeqcError, match="no output has logits"):
        find_logits(simplify(open_model(save(hidden, tmp_path))))


forms = st.builds(Affine, *[st.integers(-40, 40)] * 3)


@given(forms, forms)
def test_affine_forms_count(a, b):
    for past, sequence in itertools.product((0, 1, 9), (1, 2, 30)):
        x = a.constant + a.past * past + a.sequence * sequence
        y = b.constant + b.past * past + b.sequence * sequence
        assert (a - b).plus(b) == a
        if (a - b).never_negative:
            assert x >= y
        if (a - b).always_negative:
            assert x < y


@settings(max_examples=20, deadline=None)
@given(forms)
def test_affine_forms_are_read_back(form):
    dim = form.dim()
    assert affine(dim) == form
    assert same(dim, form.dim())


@pytest.mark.parametrize("text", ["past * sequence", "floor(past/2)", "batch + 1", "Max(past, 3)"])
def test_other_expressions_are_no_affine_forms(text):
    assert affine(ir.SymbolicDim(text)) is None
