"""A file becomes a module and a store that say the same as the file."""

import hashlib
import io
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto, helper, numpy_helper
from onnx_models import HIDDEN, VOCABULARY, corpus_model, decoder, save
from xdsl.context import Context
from xdsl.dialects import func
from xdsl.dialects.builtin import ArrayAttr, Builtin, DenseArrayBase, IntegerAttr, StringAttr
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.printer import Printer

from speqc.dialects.onnx import ConstantOp, InitializerOp, NoValueOp, Onnx, OnnxOp, node_name
from speqc.onnx_import import Imported, import_model
from speqc.runtime.errors import SpeqcError
from speqc.tensor_store import CHUNK, TensorStore, file_digests


def operations(imported: Imported, name: str) -> list[Operation]:
    return [op for op in imported.module.walk() if op.name == name]


def initializers(imported: Imported) -> dict[str, InitializerOp]:
    return {op.ref.data: op for op in imported.module.walk() if isinstance(op, InitializerOp)}


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def print_module(imported: Imported) -> str:
    text = io.StringIO()
    Printer(text, print_debuginfo=True).print_op(imported.module)
    return text.getvalue()


def assert_text_round_trips(imported: Imported) -> None:
    context = Context()
    for dialect in (Builtin, func.Func, Onnx):
        context.load_dialect(dialect)
    text = print_module(imported)
    module = Parser(context, text).parse_module()
    module.verify()
    assert module.is_structurally_equivalent(imported.module)
    printed = io.StringIO()
    Printer(printed, print_debuginfo=True).print_op(module)
    assert printed.getvalue() == text


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Imported:
    """A decoder of two layers with external data."""
    return import_model(save(decoder(layers=2), tmp_path_factory.mktemp("model"), external=True))


def test_the_module_verifies_and_survives_printing(imported):
    imported.module.verify()
    assert_text_round_trips(imported)
    assert imported.notes == []


def test_the_module_says_what_its_arguments_are(imported):
    attributes = imported.module.attributes
    assert attributes["onnx.opset"] == IntegerAttr(20, 64)
    assert attributes["onnx.graph_name"] == StringAttr("tiny")
    names = attributes["onnx.input_names"]
    assert isinstance(names, ArrayAttr)
    assert list(names)[:3] == [StringAttr("tokens"), StringAttr("mask"), StringAttr("state_0")]
    pairs = attributes["onnx.kv_pairs"]
    assert isinstance(pairs, ArrayAttr)
    assert [pair.get_values() for pair in pairs if isinstance(pair, DenseArrayBase)] == [
        (2, 1),
        (3, 2),
        (4, 3),
        (5, 4),
    ]
    assert attributes["onnx.logits"] == IntegerAttr(0, 64)
    main = next(op for op in imported.module.ops if isinstance(op, func.FuncOp))
    assert main.sym_name.data == "main"
    assert main.arg_attrs is not None
    dims = [list(argument.data["onnx.dims"]) for argument in main.arg_attrs]
    assert dims[1] == [StringAttr("1"), StringAttr("past + sequence")]
    assert dims[2] == [StringAttr(text) for text in ("1", "2", "past", "4")]
    assert str(main.function_type.outputs.data[0]) == f"tensor<1x?x{VOCABULARY}xf16>"


def test_every_operator_knows_its_node(imported):
    names = {node_name(op) for op in imported.module.walk() if isinstance(op, OnnxOp)}
    assert {"node_scores", "node_shares_0", "node_new_3"} <= names
    assert "" not in names


def test_weights_are_references_and_small_tensors_are_written_out(imported):
    for op in imported.module.walk():
        if isinstance(op, ConstantOp):
            assert len(op.value) <= 64
    assert set(initializers(imported)) == set(imported.tensors)
    assert {"table", "head", "w_query_1"} <= set(imported.tensors)


def test_the_store_gives_what_the_file_holds(imported):
    proto = decoder(layers=2)
    for name, stored in imported.tensors.items():
        array = numpy_helper.to_array(tensor(proto, name))
        np.testing.assert_array_equal(stored.read(), array, strict=True)
        assert stored.digest == "sha256:" + hashlib.sha256(array.tobytes()).hexdigest()
        assert initializers(imported)[name].digest.data == stored.digest
        np.testing.assert_array_equal(stored.read_columns(3, 7), array[:, 3:7], strict=True)
        np.testing.assert_array_equal(imported.tensors.read(name), array)
        np.testing.assert_array_equal(
            imported.tensors.read_columns(name, 0, 2), array[:, :2], strict=True
        )


def test_file_digests_are_those_of_the_files(tmp_path):
    path = save(decoder(), tmp_path, external=True)
    expected = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.iterdir()}
    assert file_digests(import_model(path).tensors.files) == expected
    assert len(expected) == 2


def test_external_and_embedded_data_give_the_same_module(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    embedded = import_model(save(decoder(), tmp_path / "a"))
    external = import_model(save(decoder(), tmp_path / "b", external=True))
    assert print_module(embedded) == print_module(external)


def test_tied_weights_are_stored_once(tmp_path):
    proto = decoder()
    head = numpy_helper.to_array(tensor(proto, "head"))
    proto.graph.initializer.append(numpy_helper.from_array(head, "again"))
    node = helper.make_node("MatMul", ["residual_0", "again"], ["also"], "also")
    total = helper.make_node("Add", ["first", "also"], ["scores"], "both")
    proto.graph.node[-1].output[0] = "first"
    proto.graph.node.extend((node, total))
    imported = import_model(save(proto, tmp_path, external=True))
    assert "again" not in imported.tensors
    assert len(list(initializers(imported)["head"].result.uses)) == 2


def test_absent_inputs_and_outputs(tmp_path):
    proto = decoder()
    position = next(i for i, node in enumerate(proto.graph.node) if node.output[0] == "out_0")
    high = numpy_helper.from_array(np.array(2, np.float16), "high")
    gain = numpy_helper.from_array(np.ones(HIDDEN, np.float16), "gain")
    proto.graph.initializer.extend((high, gain))
    clip = helper.make_node("Clip", ["flat_0", "", "high"], ["clipped"], "clip")
    skip = helper.make_node(
        "SkipSimplifiedLayerNormalization",
        ["clipped", "embedded", "gain"],
        ["normed", "", "", "sum"],
        "skip",
        domain="com.microsoft",
    )
    proto.graph.node.insert(position, skip)
    proto.graph.node.insert(position, clip)
    proto.graph.node[position + 2].input[0] = "normed"
    last = proto.graph.node[position + 3]
    last.input[0] = "sum"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    imported = import_model(save(proto, tmp_path))
    imported.module.verify()
    [op] = operations(imported, "onnx.Clip")
    assert isinstance(op.operands[1].owner, NoValueOp)
    [op] = operations(imported, "onnx.microsoft.SkipSimplifiedLayerNormalization")
    assert [str(type_) for type_ in op.result_types] == [
        "tensor<1x?x16xf16>",
        "none",
        "none",
        "tensor<1x?x16xf16>",
    ]


# FP32 weights


def fp32_decoder(head: np.ndarray | None = None) -> onnx.ModelProto:
    """A decoder in FP32 whose weights are exact in FP16, but perhaps for the head."""
    proto = decoder(element_type=TensorProto.FLOAT)
    if head is not None:
        tensor(proto, "head").CopyFrom(numpy_helper.from_array(head, "head"))
    return proto


@pytest.mark.parametrize("caches", [True, False])
def test_other_outputs_are_dropped(tmp_path, caches):
    model = decoder(caches=caches)
    names = [output.name for output in model.graph.output]
    model.graph.output.insert(
        0, helper.make_tensor_value_info("embedded", TensorProto.FLOAT16, ["batch", "s", HIDDEN])
    )
    module = import_model(save(model, tmp_path)).module
    assert [name.data for name in module.attributes["onnx.output_names"]] == names
    assert module.attributes["onnx.logits"].value.data == 0


def test_exact_fp32_weights_become_fp16(tmp_path):
    imported = import_model(save(fp32_decoder(), tmp_path, external=True))
    assert imported.notes == [
        f"FP32 tensors that are exact in FP16, stored as FP16: {len(imported.tensors)}"
    ]
    for name, op in initializers(imported).items():
        assert str(op.result.type.element_type) == "f16"
        [use] = op.result.uses
        assert use.operation.name == "onnx.Cast"
        array = numpy_helper.to_array(tensor(fp32_decoder(), name))
        np.testing.assert_array_equal(
            imported.tensors.read(name), array.astype(np.float16), strict=True
        )
        np.testing.assert_array_equal(
            imported.tensors.read_columns(name, 1, 5),
            array[:, 1:5].astype(np.float16),
            strict=True,
        )
        digest = hashlib.sha256(array.astype(np.float16).tobytes()).hexdigest()
        assert imported.tensors[name].digest == f"sha256:{digest}"
        assert sum(imported.tensors[name].exponents or ()) == array.size
    for cast in operations(imported, "onnx.Cast"):
        if isinstance(cast.operands[0].owner, InitializerOp):
            assert cast.properties["to"] == IntegerAttr(TensorProto.FLOAT, 64)
            assert str(cast.result_types[0]).endswith("xf32>")


def inexact_head(changed: int) -> np.ndarray:
    """Ones, of which `changed` are off by less than FP16 can say."""
    head = np.ones((HIDDEN, VOCABULARY), np.float32)
    head.ravel()[:changed] += np.float32(2**-20)
    return head


def test_inexact_fp32_weights_are_refused(tmp_path):
    path = save(fp32_decoder(inexact_head(320)), tmp_path)
    with pytest.raises(SpeqcError) as caught:
        import_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: FP16 would change 320 of 1,280 values (25.0%) in 1 FP32")
    assert "'head'" in message
    assert "--allow-fp32-to-fp16" in message


def test_inexact_fp32_weights_are_rounded_on_request(tmp_path):
    imported = import_model(save(fp32_decoder(inexact_head(320)), tmp_path), True)
    assert imported.notes[1:] == [
        "rounded to FP16: 320 of 1,280 values (25.0%) in 1 FP32 weight changed"
    ]
    assert (imported.tensors.read("head") == np.float16(1)).all()
    assert imported.tensors["head"].exponents == (0,) * 15 + (1280,) + (0,) * 16


def test_overflow_is_never_rounded(tmp_path):
    head = inexact_head(0)
    head[3, 3] = 70000
    path = save(fp32_decoder(head), tmp_path)
    with pytest.raises(SpeqcError, match="'head' has values beyond the range of FP16"):
        import_model(path, True)


def test_tables_that_are_no_weights_stay_fp32(tmp_path):
    proto = fp32_decoder()
    table = np.sin(np.arange(32 * HIDDEN, dtype=np.float32)).reshape(32, HIDDEN)
    proto.graph.initializer.append(numpy_helper.from_array(table, "angles"))
    position = next(i for i, node in enumerate(proto.graph.node) if node.output[0] == "out_0")
    # Rows by position, as a learned or a rotary table is read; not by token.
    gather = helper.make_node("Gather", ["angles", "query_positions"], ["rows"], "rows")
    add = helper.make_node("Add", ["flat_0", "rows"], ["turned_flat"], "add")
    proto.graph.node.insert(position, add)
    proto.graph.node.insert(position, gather)
    proto.graph.node[position + 2].input[0] = "turned_flat"
    imported = import_model(save(proto, tmp_path))
    assert imported.tensors["angles"].dtype == np.float32
    assert imported.tensors["angles"].exponents is None
    np.testing.assert_array_equal(imported.tensors.read("angles"), table, strict=True)


# The store


@given(npst.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_exponents_and_zeros_are_counted(bits):
    values = bits.view(np.float16)
    stored = TensorStore().add("w", ir.tensor(values))
    # An independent reading of the format: frexp gives x = m * 2**e with 0.5 <= m < 1.
    finite = values[np.isfinite(values)].astype(np.float64)
    exponents = np.frexp(finite)[1]
    normal = (finite != 0) & (exponents >= -13)
    expected = [int(np.count_nonzero(~normal))]
    expected += [int(np.count_nonzero(normal & (exponents == e - 14))) for e in range(1, 31)]
    expected += [values.size - finite.size]
    assert stored.exponents == tuple(expected)
    assert stored.zeros == np.count_nonzero(finite == 0)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, ml_dtypes.bfloat16])
def test_other_types_have_a_digest_only(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    stored = TensorStore().add("t", ir.tensor(array))
    assert (stored.exponents, stored.zeros) == (None, None)
    assert stored.digest == "sha256:" + hashlib.sha256(array.tobytes()).hexdigest()


def test_long_tensors_are_scanned_in_chunks():
    array = (np.arange(CHUNK + 5) % 999).astype(np.float16).reshape(1, -1)
    stored = TensorStore().add("t", ir.tensor(array))
    assert stored.digest == "sha256:" + hashlib.sha256(array.tobytes()).hexdigest()
    assert sum(stored.exponents or ()) == array.size


def test_columns_are_those_of_matrices():
    stored = TensorStore().add("t", ir.tensor(np.zeros(4, np.float16)))
    with pytest.raises(ValueError, match="'t' has 1 dimensions, not 2"):
        stored.read_columns(0, 1)


def test_data_at_odd_offsets_are_read_aligned(tmp_path):
    path = save(decoder(), tmp_path, external=True)
    model = onnx.load(path, load_external_data=False)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(b"\0" + data.read_bytes())
    for proto in model.graph.initializer:
        for entry in proto.external_data:
            if entry.key == "offset":
                entry.value = str(int(entry.value) + 1)
    path.write_bytes(model.SerializeToString())
    table = import_model(path).tensors.read("table")
    assert table.flags.aligned
    np.testing.assert_array_equal(table, numpy_helper.to_array(tensor(decoder(), "table")))


# Real files


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("llama/torch-kv/model.onnx", []),
        ("llama/genai-cuda/model.onnx", []),
        ("llama/mobius-std/model.onnx", []),
        # Exporters promote the output projections (Llama) or most weights (Gemma) to FP32.
        ("llama/optimum/model.onnx", ["FP32 tensors that are exact in FP16, stored as FP16: 2"]),
        ("gemma2/optimum/model.onnx", ["FP32 tensors that are exact in FP16, stored as FP16: 12"]),
    ],
)
def test_real_exports(name, notes):
    imported = import_model(corpus_model(name))
    imported.module.verify()
    assert imported.notes == notes
    assert_text_round_trips(imported)
    for stored in imported.tensors.values():
        assert hashlib.sha256(stored.read().tobytes()).hexdigest() == stored.digest[7:]


@pytest.mark.slow
def test_the_corpus_is_refused_nowhere():
    folder = corpus_model("llama").parent
    for path in sorted(folder.glob("*/*/*.onnx")):
        import_model(path).module.verify()


@pytest.mark.parametrize(
    ("output", "change", "expected"),
    [
        ("shares_0", {"axes": 1}, "has an attribute 'axes' that ONNX does not know"),
        ("shares_0", {"axis": 1.0}, "attribute 'axis' is of kind float, not int"),
    ],
)
def test_wrong_attributes(tmp_path, output, change, expected):
    proto = decoder()
    node = next(node for node in proto.graph.node if node.output[0] == output)
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(key, value) for key, value in change.items())
    with pytest.raises(SpeqcError, match=rf"node 'node_{output}' \(Softmax\) ?.*{expected}"):
        import_model(save(proto, tmp_path))


def test_wrong_number_of_inputs(tmp_path):
    proto = decoder()
    node = next(node for node in proto.graph.node if node.output[0] == "out_0")
    node.input.append("flat_0")
    with pytest.raises(SpeqcError, match=r"node 'node_out_0' \(MatMul\) has 3 inputs, not 2 to 2"):
        import_model(save(proto, tmp_path))


def test_errors_name_the_file(tmp_path: Path):
    path = save(decoder(sequence=7), tmp_path)
    with pytest.raises(SpeqcError, match=f"^{path}: input 'tokens'"):
        import_model(path)
