"""Broken and foreign files, given to `speqc compile`: one line that says what and where.

Nothing else lies in the folder afterwards, and nothing is written to standard output.
"""

import gzip
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Invoke
from onnx import TensorProto, helper, numpy_helper
from onnx_models import HIDDEN, VOCABULARY, Graph, decoder, save

from speqc.safetensors_writer import SafetensorsWriter

Change = Callable[[onnx.ModelProto], None]
Case = tuple[Change, tuple[str, ...]]
"""Damage to a model, and what the line that refuses it must hold."""

VALUE = helper.make_tensor_value_info
OPSET = helper.make_opsetid("", 20)


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refuse(invoke: Invoke, path: Path, *fragments: str, options: tuple = ()) -> None:
    """Compile a file: exit code 2, one line with the path and all fragments, nothing left."""
    before = listing(path.parent)
    out = path.parent / "out.speq"
    result = invoke("compile", path, "-o", out, *options)
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert line.startswith("error: ")
    assert "internal error" not in line
    for fragment in (str(path), *fragments):
        assert fragment in line, line
    assert listing(path.parent) == before


def node(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def replace(model: onnx.ModelProto, name: str, tensor: onnx.TensorProto) -> None:
    tensor.name = name
    initializer(model, name).CopyFrom(tensor)


def opset(version: int) -> Case:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return change, (f"has opset {version}", "versions 14 to", "export anew")


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def ir_version(model: onnx.ModelProto) -> None:
    model.ir_version = 1_000_000


def unknown_operator(model: onnx.ModelProto) -> None:
    node(model, "shares_0").op_type = "Softestmax"


def unknown_domain(model: onnx.ModelProto) -> None:
    node(model, "out_0").domain = "org.example"
    model.opset_import.append(helper.make_opsetid("org.example", 1))


def cycle(model: onnx.ModelProto) -> None:
    node(model, "flat_query_0").input[0] = "residual_0"


def made_twice(model: onnx.ModelProto) -> None:
    node(model, "back_0").output[0] = "mixed_0"


def missing_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(initializer(model, "w_out_0"))


def unknown_input(model: onnx.ModelProto) -> None:
    node(model, "scores").input[0] = "nowhere"


def unknown_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def too_many_inputs(model: onnx.ModelProto) -> None:
    node(model, "out_0").input.append("w_out_0")


def too_many_outputs(model: onnx.ModelProto) -> None:
    node(model, "out_0").output.append("second")


def absent_input(model: onnx.ModelProto) -> None:
    node(model, "out_0").input[1] = ""


def absent_attribute(model: onnx.ModelProto) -> None:
    del node(model, "real").attribute[:]


def unknown_attribute(model: onnx.ModelProto) -> None:
    node(model, "out_0").attribute.append(helper.make_attribute("speed", 3))


def attribute_of_another_kind(model: onnx.ModelProto) -> None:
    node(model, "back_0").attribute[0].CopyFrom(helper.make_attribute("perm", "0213"))


def attribute_of_no_function(model: onnx.ModelProto) -> None:
    (attribute,) = node(model, "real").attribute
    attribute.ClearField("i")
    attribute.ref_attr_name = "kind"


def quantized(model: onnx.ModelProto) -> None:
    """A product of integers, as dynamic quantisers write it."""
    integers = numpy_helper.from_array(np.ones((HIDDEN, VOCABULARY), np.int8))
    replace(model, "head", integers)
    scores = node(model, "scores")
    names = ["steps", "step", "zero_of_steps"]
    made = helper.make_node("DynamicQuantizeLinear", [scores.input[0]], names, "dq")
    scores.op_type = "MatMulInteger"
    scores.input[0] = "steps"
    model.graph.node.insert(len(model.graph.node) - 1, made)


def four_bits(model: onnx.ModelProto) -> None:
    scores = node(model, "scores")
    scores.op_type, scores.domain = "MatMulNBits", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def weights_of(element_type: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        values = np.zeros(HIDDEN * VOCABULARY)
        replace(model, "head", helper.make_tensor("", element_type, [HIDDEN, VOCABULARY], values))

    return change


def strings(model: onnx.ModelProto) -> None:
    replace(model, "at1", helper.make_tensor("", TensorProto.STRING, [1], [b"one"]))


def no_logits(model: onnx.ModelProto) -> None:
    """Hidden states only, as an export of the bare model has them."""
    model.graph.node.remove(node(model, "scores"))
    model.graph.output[0].name = "residual_0"


def two_token_inputs(model: onnx.ModelProto) -> None:
    """Cross attention to what an encoder made, fed as hidden states."""
    shape = ["batch", "encoded", HIDDEN]
    model.graph.input.append(VALUE("encoder_hidden_states", TensorProto.FLOAT16, shape))
    node(model, "flat_key_0").input[0] = "encoder_hidden_states"


def branch(model: onnx.ModelProto) -> None:
    outputs = [VALUE("chosen", TensorProto.FLOAT16, None)]
    body = helper.make_graph(
        [helper.make_node("Identity", ["bias"], ["chosen"])], "branch", [], outputs
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    made = helper.make_node(
        "If", ["condition"], ["choice"], "choose", then_branch=body, else_branch=body
    )
    model.graph.node.insert(list(model.graph.node).index(node(model, "masked_0")), made)
    node(model, "masked_0").input[1] = "choice"


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Identity", ["in"], ["carried"]),
        ],
        "body",
        [
            VALUE("i", TensorProto.INT64, []),
            VALUE("go", TensorProto.BOOL, []),
            VALUE("in", TensorProto.FLOAT16, None),
        ],
        [VALUE("on", TensorProto.BOOL, []), VALUE("carried", TensorProto.FLOAT16, None)],
    )
    made = helper.make_node("Loop", ["at1", "", "residual_0"], ["looped"], "repeat", body=body)
    model.graph.node.insert(len(model.graph.node) - 1, made)
    node(model, "scores").input[0] = "looped"


def state_space(model: onnx.ModelProto) -> None:
    """A state that each step overwrites, with a decay, instead of a cache that grows."""
    shape = ["batch", HIDDEN, 4]
    model.graph.input.append(VALUE("ssm_state", TensorProto.FLOAT16, shape))
    decay = numpy_helper.from_array(np.array(0.9, np.float16), "decay")
    model.graph.initializer.append(decay)
    made = helper.make_node("Mul", ["ssm_state", "decay"], ["new_ssm_state"], "decays")
    model.graph.node.append(made)
    model.graph.output.append(VALUE("new_ssm_state", TensorProto.FLOAT16, shape))


def contradicting_sizes(model: onnx.ModelProto) -> None:
    values = np.zeros((HIDDEN + 1, VOCABULARY), np.float16)
    replace(model, "head", numpy_helper.from_array(values))


def contradicting_sum(model: onnx.ModelProto) -> None:
    """A sum of tensors that don't broadcast."""
    node(model, "residual_0").input[0] = "at5"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(5, np.float16), "at5"))


def wrong_axis(model: onnx.ModelProto) -> None:
    node(model, "shares_0").attribute[0].i = 7


def mixed_types(model: onnx.ModelProto) -> None:
    replace(model, "head", numpy_helper.from_array(np.zeros((HIDDEN, VOCABULARY), np.float32)))


def no_elements(model: onnx.ModelProto) -> None:
    replace(model, "head", numpy_helper.from_array(np.zeros((HIDDEN, 0), np.float16)))


def extra_bytes(model: onnx.ModelProto) -> None:
    initializer(model, "head").raw_data += b"\0\0"


def too_few_bytes(model: onnx.ModelProto) -> None:
    head = initializer(model, "head")
    head.raw_data = head.raw_data[:-2]


def negative_size(model: onnx.ModelProto) -> None:
    initializer(model, "head").dims[0] = -HIDDEN


def sizes_without_data(model: onnx.ModelProto) -> None:
    """A small file that would take four terabytes."""
    head = initializer(model, "head")
    head.ClearField("raw_data")
    head.dims[:] = [1 << 20, 1 << 21]


def sequence_input(model: onnx.ModelProto) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.INT64, ["batch", "sequence"])
    model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(kind))


def optional_input(model: onnx.ModelProto) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT16, ["batch", 2, "past", 4])
    model.graph.input[2].type.CopyFrom(helper.make_optional_type_proto(kind))


def untyped_input(model: onnx.ModelProto) -> None:
    model.graph.input[1].ClearField("type")


def fixed_sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def endless_function(model: onnx.ModelProto) -> None:
    call_in_function(model, [helper.make_node("F", ["a", "b"], ["c"], domain="f")])


def laughing_functions(model: onnx.ModelProto) -> None:
    """Forty functions that call the next one twice: a trillion nodes."""
    for level in range(40):
        name = f"F{level + 1}" if level < 39 else "Add"
        domain = "f" if level < 39 else ""
        body = [
            helper.make_node(name, ["a", "b"], ["t"], domain=domain),
            helper.make_node(name, ["t", "b"], ["c"], domain=domain),
        ]
        model.functions.append(
            helper.make_function("f", f"F{level}", ["a", "b"], ["c"], body, [OPSET])
        )
    call(model, "F0")


def call_with_too_much(model: onnx.ModelProto) -> None:
    call_in_function(model, [helper.make_node("Add", ["a", "b"], ["c"])])
    node(model, "residual_0").input.append("embedded")


def call_in_function(model: onnx.ModelProto, body: list[onnx.NodeProto]) -> None:
    model.functions.append(helper.make_function("f", "F", ["a", "b"], ["c"], body, [OPSET]))
    call(model, "F")


def call(model: onnx.ModelProto, function: str) -> None:
    model.opset_import.append(helper.make_opsetid("f", 1))
    residual = node(model, "residual_0")
    residual.op_type, residual.domain = function, "f"


DAMAGE: dict[str, Case] = {
    "old opset": opset(9),
    "new opset": opset(99),
    "negative opset": opset(-1),
    "no opset": (no_opset, ("imports no default operator set",)),
    "ir version": (ir_version, ("IR version 1000000", "versions 3 to")),
    "unknown operator": (unknown_operator, ("Softestmax", "'node_shares_0'")),
    "unknown domain": (unknown_domain, ("org.example.MatMul", "'node_out_0'")),
    "cycle": (cycle, ("has a cycle", "'node_")),
    "made twice": (made_twice, ("'mixed_0'",)),
    "missing initializer": (missing_initializer, ("'node_out_0' (MatMul)", "'w_out_0'")),
    "unknown input": (unknown_input, ("'node_scores' (MatMul)", "'nowhere'")),
    "unknown output": (unknown_output, ("'nowhere' is not made",)),
    "too many inputs": (too_many_inputs, ("'node_out_0' (MatMul)", "3 inputs, not 2")),
    "too many outputs": (too_many_outputs, ("'node_out_0' (MatMul)", "2 outputs, not 1")),
    "absent input": (absent_input, ("'node_out_0' (MatMul)", "input 1 (B) is absent")),
    "absent attribute": (absent_attribute, ("'node_real' (Cast)", "no attribute 'to'")),
    "unknown attribute": (unknown_attribute, ("'node_out_0'", "'speed'", "does not know")),
    "attribute kind": (attribute_of_another_kind, ("'perm'", "of kind string, not ints")),
    "attribute reference": (attribute_of_no_function, ("'node_real'", "'to'", "'kind'")),
    "quantised": (quantized, ("quantised weights", "'dq'", "export it in FP16")),
    "four bits": (four_bits, ("quantised weights", "MatMulNBits", "export it in FP16")),
    "int4": (weights_of(TensorProto.INT4), ("'head'", "INT4", "export the model in FP16")),
    "bfloat16": (weights_of(TensorProto.BFLOAT16), ("'head'", "BFLOAT16", "in FP16")),
    "float64": (weights_of(TensorProto.DOUBLE), ("'head'", "DOUBLE", "in FP16")),
    "complex": (weights_of(TensorProto.COMPLEX64), ("'head'", "COMPLEX64")),
    "strings": (strings, ("'at1'", "STRING")),
    "no logits": (no_logits, ("no output has logits", "'residual_0'")),
    "encoder states": (two_token_inputs, ("'encoder_hidden_states'", "is no cache")),
    "If": (branch, ("If (1: 'choose')",)),
    "Loop": (loop, ("Loop (1: 'repeat')",)),
    "state space": (state_space, ("'ssm_state'", "is no cache")),
    "matrix sizes": (contradicting_sizes, ("'node_scores'", "MatMul")),
    "sum sizes": (contradicting_sum, ("'node_residual_0'", "Add")),
    "axis": (wrong_axis, ("'node_shares_0'", "Softmax", "axis")),
    "mixed types": (mixed_types, ("'node_scores' (MatMul) mixes types",)),
    "no elements": (no_elements, ("no output has logits", "'scores' [1,sequence,0]")),
    "extra bytes": (extra_bytes, ("'head'", "[16, 80] of FLOAT16")),
    "too few bytes": (too_few_bytes, ("'head'", "[16, 80] of FLOAT16")),
    "negative size": (negative_size, ("'head'", "[-16, 80]")),
    "no data": (sizes_without_data, ("'head'", "[1048576, 2097152]")),
    "sequence": (sequence_input, ("input 'tokens'", "sequence")),
    "optional": (optional_input, ("input 'state_0'", "optional")),
    "untyped": (untyped_input, ("input 'mask'", "no type")),
    "fixed sequence": (fixed_sequence, ("'tokens'", "fixed to 16", "dynamic")),
    "fixed batch": (fixed_batch, ("'tokens'", "batch is fixed to 4")),
    "endless function": (endless_function, ("function 'f.F' calls itself",)),
    "laughing functions": (laughing_functions, ("expand to 1,099,511,6", "nodes")),
    "call": (call_with_too_much, ("'node_residual_0'", "'f.F'", "3 inputs")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_decoder(invoke, tmp_path, name, capfd):
    change, fragments = DAMAGE[name]
    path = save(decoder(), tmp_path)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    refuse(invoke, path, *fragments)
    assert capfd.readouterr() == ("", "")


def sparse(path: Path) -> None:
    """A terabyte that takes no place on the disk."""
    os.truncate(path, 1 << 40)


def external(change: Callable[[Path], None], *fragments: str) -> tuple:
    return change, fragments


def point(key: str, value: str) -> Callable[[Path], None]:
    """Change an entry of the embedding table's external data."""

    def change(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        entries = initializer(model, "table").external_data
        entry = next((entry for entry in entries if entry.key == key), None)
        if entry is None:
            entries.add(key=key, value=value)
        else:
            entry.value = value
        path.write_bytes(model.SerializeToString())

    return change


def resize(*dims: int) -> Callable[[Path], None]:
    """Give the embedding table other dimensions, with the length to match."""

    def change(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        table = initializer(model, "table")
        table.dims[:] = dims
        length = next(entry for entry in table.external_data if entry.key == "length")
        length.value = str(int(np.prod([*dims, 2])))
        path.write_bytes(model.SerializeToString())

    return change


def data(path: Path) -> Path:
    return path.with_name("model.onnx.data")


def without_data(path: Path) -> None:
    data(path).unlink()


def truncated_data(path: Path) -> None:
    data(path).write_bytes(data(path).read_bytes()[:-2])


def folder_as_data(path: Path) -> None:
    data(path).unlink()
    data(path).mkdir()


def link_outside(path: Path) -> None:
    outside = path.parents[1] / "outside.data"
    data(path).rename(outside)
    data(path).symlink_to(outside)


def link_to_itself(path: Path) -> None:
    data(path).unlink()
    data(path).symlink_to(data(path))


def pipe_as_data(path: Path) -> None:
    data(path).unlink()
    os.mkfifo(data(path))


def bomb(path: Path) -> None:
    """A table of a terabyte of zeros in a sparse file, one of which the file has the size."""
    resize(1 << 34, 32)(path)
    point("offset", "0")(path)
    os.truncate(data(path), (1 << 40) - 2)


OUTSIDE = "outside the model's folder"

EXTERNAL: dict[str, tuple] = {
    "missing": external(without_data, "'model.onnx.data' is missing", "put it beside"),
    "truncated": external(truncated_data, "truncated"),
    "offset beyond the end": external(point("offset", "1000000"), "'table'", "beyond"),
    "negative offset": external(point("offset", "-8"), "'table'", "-8"),
    "offset that is no number": external(point("offset", "eight"), "'table'", "'eight'"),
    "negative length": external(point("length", "-2560"), "'table'", "-2560"),
    "wrong length": external(point("length", "8"), "'table'", "8 bytes", "[80, 16]"),
    "negative size": external(resize(-80, -16), "'table'", "[-80, -16]"),
    "absolute path": external(point("location", "/etc/passwd"), "'table'", OUTSIDE),
    "parent": external(point("location", "../model.onnx.data"), "'table'", OUTSIDE),
    "hidden parent": external(point("location", "a/../../b"), "'table'", OUTSIDE),
    "windows path": external(point("location", "..\\b"), "'table'", "is missing"),
    "no location": external(point("location", ""), "'table'", "no location"),
    "null byte": external(point("location", "a\0b"), "'table'"),
    "long name": external(point("location", "x" * 5000), "'table'"),
    "folder": external(folder_as_data, "'model.onnx.data' is not a file"),
    "link outside": external(link_outside, "link out of the model's folder"),
    "link to itself": external(link_to_itself, "'model.onnx.data'"),
    "pipe": external(pipe_as_data, "'model.onnx.data' is not a file"),
    "bomb": external(bomb, "'table'", "beyond"),
}


@pytest.mark.parametrize("name", EXTERNAL)
def test_external_data(invoke, tmp_path, name):
    change, fragments = EXTERNAL[name]
    folder = tmp_path / "model"
    folder.mkdir()
    path = save(decoder(), folder, external=True)
    change(path)
    refuse(invoke, path, *fragments)


def graph_model(
    g: Graph, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(g.nodes, "foreign", inputs, outputs, g.initializers)
    return helper.make_model(graph, opset_imports=[OPSET], ir_version=9)


def bert() -> onnx.ModelProto:
    """The decoder with a mask that only hides padding."""
    model = decoder(caches=False)
    node(model, "both").input[0] = "wide"
    model.graph.node.remove(node(model, "allowed"))
    return model


def vision() -> onnx.ModelProto:
    g = Graph()
    g.node("Conv", ["pixels", g.weight("kernels", 8, 3, 3, 3)], "features")
    g.node("GlobalAveragePool", ["features"], "pooled")
    g.node("Flatten", ["pooled"], "flat")
    g.node("MatMul", ["flat", g.weight("head", 8, 10)], "classes")
    half = TensorProto.FLOAT16
    return graph_model(
        g, [VALUE("pixels", half, ["batch", 3, 32, 32])], [VALUE("classes", half, ["batch", 10])]
    )


def hybrid() -> onnx.ModelProto:
    """The decoder with a convolution over its tokens."""
    model = decoder()
    kernels = numpy_helper.from_array(np.ones((HIDDEN, 1, 3), np.float16), "kernels")
    model.graph.initializer.append(kernels)
    model.graph.node.append(helper.make_node("Conv", ["embedded", "kernels"], ["over"], "over"))
    return model


def nothing() -> onnx.ModelProto:
    return graph_model(Graph(), [], [])


def encoder_decoder() -> onnx.ModelProto:
    """Two inputs of tokens: the decoder attends to what is computed of the other one."""
    model = decoder(caches=False)
    shape = ["batch", "source"]
    model.graph.input.append(VALUE("source_tokens", TensorProto.INT64, shape))
    model.graph.node.insert(
        0, helper.make_node("Gather", ["table", "source_tokens"], ["encoded"], "source")
    )
    node(model, "flat_key_0").input[0] = "encoded"
    node(model, "flat_value_0").input[0] = "encoded"
    return model


FOREIGN: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "encoder": (bert, ("neither caches nor a causal mask", "BERT")),
    "vision": (vision, ("Conv", "'node_features'")),
    "hybrid": (hybrid, ("state-space or hybrid model", "Conv (1: 'over')")),
    "no nodes": (nothing, ("holds no graph",)),
    "encoder and decoder": (encoder_decoder, ("'source_tokens'",)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_models(invoke, tmp_path, name):
    build, fragments = FOREIGN[name]
    refuse(invoke, save(build(), tmp_path), *fragments)


def write_safetensors(path: Path) -> None:
    with SafetensorsWriter(path, []):
        pass


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("# A model\n" * 100), "no ONNX file"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "no ONNX file"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"model")), "no ONNX file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"weight": [1.0]})), "no ONNX file"),
    "safetensors": (write_safetensors, "no ONNX file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "pipe": (os.mkfifo, "is not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
    "link to itself": (lambda path: path.symlink_to(path), "no such file"),
    "missing": (lambda path: None, "no such file"),
    "LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_models(invoke, tmp_path, name):
    make, fragment = FILES[name]
    path = tmp_path / "model.onnx"
    make(path)
    refuse(invoke, path, fragment)


def test_an_artifact_is_no_model(invoke, kjv):
    before = listing(kjv)
    result = invoke("compile", kjv)
    assert result.exit_code == 2
    assert "is a speqc artifact, compiled already" in result.stderr
    assert listing(kjv) == before


@pytest.mark.parametrize("rest", [0, 1, 100, 5_000_000])
def test_a_truncated_real_model(invoke, model, tmp_path, rest):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes()[:rest])
    refuse(invoke, path, "is")


def test_bytes_of_a_real_model_inverted(invoke, model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(255 - byte for byte in model.read_bytes()[:100_000]))
    refuse(invoke, path, "no ONNX file")


def test_the_command_itself(tmp_path):
    """The whole process: no traceback, no more lines, nothing from libraries at its exit."""
    path = save(decoder(), tmp_path)
    broken = onnx.load(path)
    cycle(broken)
    path.write_bytes(broken.SerializeToString())
    command = [sys.executable, "-P", "-m", "speqc", "compile", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert list(tmp_path.iterdir()) == [path]


# Rare but good files.


def compiles(invoke: Invoke, path: Path) -> None:
    result = invoke("compile", path, "-o", path.with_suffix(".speq"))
    assert result.exit_code == 0, result.stderr
    assert path.with_suffix(".speq").is_dir()


def test_data_in_a_folder_below(invoke, tmp_path):
    path = save(decoder(), tmp_path, external=True)
    (tmp_path / "below").mkdir()
    data(path).rename(tmp_path / "below" / "model.onnx.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "below/model.onnx.data"
    path.write_bytes(model.SerializeToString())
    compiles(invoke, path)


def test_models_linked_as_a_whole(invoke, tmp_path):
    """As download caches keep them: a folder of links to blobs with other names."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    path = save(decoder(), blobs)
    (folder / "model.onnx").symlink_to(path)
    compiles(invoke, folder / "model.onnx")


def test_initializers_among_the_inputs(invoke, tmp_path):
    """As files of IR version 3 list them."""
    model = decoder()
    head = initializer(model, "head")
    model.graph.input.append(VALUE("head", head.data_type, list(head.dims)))
    compiles(invoke, save(model, tmp_path))


def test_values_outside_of_raw_data(invoke, tmp_path):
    """Weights as lists of numbers, as the oldest exporters write them."""
    model = decoder()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        values = array.view(np.uint16) if array.dtype == np.float16 else array
        name = tensor.name
        tensor.CopyFrom(TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims))
        field = tensor.int32_data if array.dtype == np.float16 else tensor.int64_data
        field.extend(values.ravel().tolist())
    compiles(invoke, save(model, tmp_path))


def test_strange_names(invoke, tmp_path):
    model = decoder()
    for made in model.graph.node:
        made.name = "a\nb%é\"'"
    compiles(invoke, save(model, tmp_path))


# Where the artifact can't be written.


@pytest.fixture
def never_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that must not begin."""

    def work(*_: object) -> None:
        raise AssertionError("the model is read before the output is checked")

    monkeypatch.setattr("speqc.compile.import_model", work)


def expect(result, *fragments: str) -> None:
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    for fragment in fragments:
        assert fragment in line


@pytest.mark.usefixtures("never_reached")
def test_output_that_is_a_file(invoke, tmp_path):
    path, out = save(decoder(), tmp_path), tmp_path / "notes.txt"
    out.write_text("mine")
    expect(invoke("compile", path, "-o", out), f"error: {out}: ", "is no speqc artifact")
    assert out.read_text() == "mine"


@pytest.mark.usefixtures("never_reached")
def test_output_in_a_folder_that_is_not_there(invoke, tmp_path):
    path, out = save(decoder(), tmp_path), tmp_path / "no" / "out.speq"
    expect(invoke("compile", path, "-o", out), f"error: {out}: ", f"{out.parent} does not exist")


@pytest.mark.usefixtures("never_reached")
def test_output_in_a_folder_without_permission(invoke, tmp_path, monkeypatch):
    path, folder = save(decoder(), tmp_path), tmp_path / "closed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):  # The superuser may write everywhere.
        monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != folder)
    out = folder / "out.speq"
    expect(
        invoke("compile", path, "-o", out), f"error: {out}: ", f"permission to write to {folder}"
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device"), 2, "error: {out}: No space left on device"),
        (MemoryError(), 2, "error: not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_left_half_written(invoke, tmp_path, monkeypatch, error, code, line, exists):
    """An older artifact in the same place stays as it was."""
    path, out = save(decoder(), tmp_path), tmp_path / "out.speq"
    if exists:
        assert invoke("compile", path, "-o", out).exit_code == 0
    before = {file: file.stat() for file in listing(tmp_path)}

    written = []

    def write(self, name, part, first=0):
        written.append(name)
        if len(written) > 2:
            raise error

    monkeypatch.setattr(SafetensorsWriter, "write", write)
    result = invoke("compile", path, "-o", out)
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1].startswith(line.format(out=out))
    assert {file: file.stat() for file in listing(tmp_path)} == before
