"""What `open_model` refuses, and how it says so."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import HIDDEN, VOCABULARY, Graph, decoder, save

from speqc.onnx_reader import open_model, source_files
from speqc.runtime.errors import SpeqcError

Change = Callable[[onnx.ModelProto], None]


def refusal(path: Path, **options) -> str:
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(SpeqcError) as caught:
        open_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def changed(tmp_path: Path, change: Change, external: bool = False, **options) -> Path:
    """A decoder's file after a change to its protobuf."""
    path = save(decoder(**options), tmp_path, external)
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_decoder_is_opened(tmp_path):
    path = save(decoder(), tmp_path, external=True)
    assert source_files(open_model(path)) == (path, tmp_path / "model.onnx.data")


def test_missing_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.onnx")


def test_folder(tmp_path):
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"once upon a time there was a model", "no ONNX file"),
        (b"\x08\x0a", "holds no graph"),
    ],
)
def test_no_model(tmp_path, content, expected):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert expected in refusal(path)


def test_truncated_file(tmp_path):
    path = save(decoder(), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated" in refusal(path)


def set_location(model: onnx.ModelProto, key: str, value: str) -> None:
    """Change an entry of the external data of the embedding table."""
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    entry = next(entry for entry in table.external_data if entry.key == key)
    entry.value = value


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("location", "gone.data", "'gone.data' is missing"),
        ("location", "/etc/passwd", "outside the model's folder"),
        ("location", "../other.data", "outside the model's folder"),
        ("location", "sub/../../other.data", "outside the model's folder"),
        ("location", ".", "is not a file"),
        ("offset", "1000000", "beyond"),
        ("offset", "-8", "'-8', not a number of bytes"),
        ("length", "8", f"takes {VOCABULARY * HIDDEN * 2}"),
    ],
)
def test_external_data(tmp_path, key, value, expected):
    path = changed(tmp_path, lambda m: set_location(m, key, value), external=True)
    message = refusal(path)
    assert expected in message
    assert "'table'" in message


def test_short_external_file(tmp_path):
    path = save(decoder(), tmp_path, external=True)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-2])
    assert "truncated" in refusal(path)


def test_link_out_of_the_folder(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    path = save(decoder(), folder, external=True)
    data = folder / "model.onnx.data"
    data.rename(outside / "model.onnx.data")
    data.symlink_to(outside / "model.onnx.data")
    assert "link out of the model's folder" in refusal(path)


def test_links_within_the_folder_and_hard_links_are_fine(tmp_path):
    path = save(decoder(), tmp_path, external=True)
    data = tmp_path / "model.onnx.data"
    data.rename(tmp_path / "blob")
    data.symlink_to(tmp_path / "blob")
    os.link(tmp_path / "blob", tmp_path / "same")
    model = open_model(path)
    table = model.graph.initializers["table"].const_value
    assert table is not None
    assert table.numpy().shape == (VOCABULARY, HIDDEN)


def node(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.output[0] == output)


def test_undefined_name(tmp_path, capfd):
    def change(model):
        node(model, "scores").input[1] = "nowhere"

    message = refusal(changed(tmp_path, change))
    assert "node 'node_scores' (MatMul) reads 'nowhere'" in message
    assert capfd.readouterr().err == ""


def test_cycle(tmp_path):
    def change(model):
        node(model, "embedded").input[1] = "residual_0"

    assert "cycle" in refusal(changed(tmp_path, change))


def test_output_that_nothing_makes(tmp_path):
    def change(model):
        model.graph.output[0].name = "nowhere"

    assert "output 'nowhere' is not made" in refusal(changed(tmp_path, change))


def test_name_made_twice(tmp_path):
    def change(model):
        node(model, "back_0").output[0] = "mixed_0"

    assert "is not valid ONNX" in refusal(changed(tmp_path, change))


def test_unsorted_nodes_are_sorted(tmp_path):
    def change(model):
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(reversed(nodes))

    names = [node.op_type for node in open_model(changed(tmp_path, change)).graph]
    assert names.index("Gather") < names.index("Softmax")


@pytest.mark.parametrize("version", [9, 13, 99])
def test_opset(tmp_path, version):
    def change(model):
        model.opset_import[0].version = version

    assert f"has opset {version}; versions 14 to" in refusal(changed(tmp_path, change))


def test_all_unsupported_operators_in_one_line(tmp_path):
    def change(model):
        node(model, "shares_0").op_type = "Shrink"
        node(model, "out_0").op_type = "Bend"
        node(model, "out_0").domain = "org.example"
        for output in ("heads_key_0", "heads_value_0", "heads_query_0", "back_0"):
            node(model, output).op_type = "Det"

    message = refusal(changed(tmp_path, change))
    assert "Shrink (1: 'node_shares_0')" in message
    assert "org.example.Bend (1: 'node_out_0')" in message
    assert "Det (4: 'node_heads_query_0', 'node_heads_key_0', 'node_heads_value_0', ...)" in message


def test_the_list_of_operators_is_a_parameter(tmp_path):
    path = save(decoder(), tmp_path)
    message = refusal(path, supported=("Cast", "Gather"))
    assert "Softmax (1: 'node_shares_0')" in message
    assert "Gather" not in message


def test_subgraphs_are_unsupported(tmp_path):
    def change(model):
        branch = helper.make_graph(
            [helper.make_node("Identity", ["bias"], ["chosen"])],
            "branch",
            [],
            [helper.make_tensor_value_info("chosen", TensorProto.FLOAT16, None)],
        )
        condition = numpy_helper.from_array(np.array(True), "condition")
        model.graph.initializer.append(condition)
        choice = helper.make_node(
            "If", ["condition"], ["choice"], "choose", then_branch=branch, else_branch=branch
        )
        position = list(model.graph.node).index(node(model, "masked_0"))
        model.graph.node.insert(position, choice)
        node(model, "masked_0").input[1] = "choice"

    assert "If (1: 'choose')" in refusal(changed(tmp_path, change))


def test_quantised_operator(tmp_path):
    def change(model):
        scores = node(model, "scores")
        scores.op_type, scores.domain = "MatMulNBits", "com.microsoft"

    message = refusal(changed(tmp_path, change))
    assert "quantised weights" in message
    assert "com.microsoft.MatMulNBits (1: 'node_scores')" in message


@pytest.mark.parametrize(
    ("element_type", "expected"),
    [
        (TensorProto.INT8, "quantised integer weights (INT8 [80, 16])"),
        (TensorProto.INT4, "quantised integer weights (INT4 [80, 16])"),
        (TensorProto.BFLOAT16, "holds BFLOAT16 weights"),
    ],
)
def test_types_of_weights(tmp_path, element_type, expected):
    def change(model):
        tensor = helper.make_tensor(
            "extra", element_type, [VOCABULARY, HIDDEN], np.zeros(VOCABULARY * HIDDEN)
        )
        model.graph.initializer.append(tensor)

    assert expected in refusal(changed(tmp_path, change))


def test_model_without_tokens(tmp_path):
    g = Graph()
    g.node("MatMul", ["pixels", g.weight("w", HIDDEN, VOCABULARY)], "scores")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes,
        "vision",
        [value("pixels", TensorProto.FLOAT16, ["batch", "sequence", HIDDEN])],
        [value("scores", TensorProto.FLOAT16, ["batch", "sequence", VOCABULARY])],
        g.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert "no integer input indexes an embedding table" in refusal(save(model, tmp_path))


def test_encoder(tmp_path):
    def change(model):
        # A mask that only hides padding, as BERT has it.
        node(model, "both").input[0] = "wide"
        model.graph.node.remove(node(model, "allowed"))

    message = refusal(changed(tmp_path, change, caches=False))
    assert "neither caches nor a causal mask" in message


def test_decoder_without_caches_is_opened(tmp_path):
    open_model(save(decoder(caches=False), tmp_path))


def test_unknown_float_input(tmp_path):
    def change(model):
        shape = ["batch", "sequence", HIDDEN]
        model.graph.input.append(
            helper.make_tensor_value_info("pictures", TensorProto.FLOAT16, shape)
        )
        node(model, "out_0").op_type = "Add"
        node(model, "out_0").input[:] = ["flat_0", "pictures"]

    assert "input 'pictures' of shape [batch,sequence,16] is no cache" in refusal(
        changed(tmp_path, change)
    )


def test_cache_of_fixed_length(tmp_path):
    def change(model):
        fed = [value.name for value in model.graph.input]
        concat = next(n for n in model.graph.node if n.op_type == "Concat" and n.input[0] in fed)
        concat.op_type, concat.name = "TensorScatter", "write"
        for opset in model.opset_import:
            opset.version = 24

    message = refusal(changed(tmp_path, change))
    assert "node 'write' (TensorScatter) writes into cache" in message


def test_lonely_cache(tmp_path):
    def change(model):
        del model.graph.output[2]
        node(model, "new_1").input[0] = "heads_value_0"
        del model.graph.input[3]

    assert "1 cache of keys but 0 of values" in refusal(changed(tmp_path, change))
