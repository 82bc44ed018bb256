"""Weights behind DequantizeLinear and Cast become the numbers that the graph makes of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import HIDDEN, VOCABULARY, decoder, save

from speqc.onnx_conversions import ConvertedTensor
from speqc.onnx_import import import_model
from speqc.onnx_reader import open_model
from speqc.runtime.errors import SpeqcError

BLOCK = 8
Form = Callable[[np.ndarray], tuple[list[onnx.TensorProto], dict[str, int]]]


def tensors(kind: int, integers: np.ndarray, scale: np.ndarray, zero: np.ndarray | None):
    """The inputs of DequantizeLinear."""
    found = [
        helper.make_tensor("q", kind, integers.shape, integers.ravel()),
        numpy_helper.from_array(scale, "scale"),
    ]
    if zero is not None:
        found.append(helper.make_tensor("zero", kind, zero.shape, zero.ravel()))
    return found


def steps(weight: np.ndarray, scale: np.ndarray, least: int, most: int) -> np.ndarray:
    return np.clip(np.rint(weight.astype(np.float64) / scale), least, most).astype(np.int64)


def per_tensor(weight: np.ndarray):
    scale = np.array(0.01, np.float16)
    return tensors(TensorProto.INT8, steps(weight, scale, -128, 127), scale, None), {}


def per_column(weight: np.ndarray):
    scale = (np.abs(weight).max(0) / 100).astype(np.float16)
    zero = np.full(scale.shape, 130)
    integers = steps(weight, scale, -100, 100) + zero
    return tensors(TensorProto.UINT8, integers, scale, zero), {"axis": 1}


def per_row(weight: np.ndarray):
    scale = (np.abs(weight).max(1) / 100).astype(np.float16)
    return tensors(TensorProto.INT8, steps(weight, scale[:, None], -100, 100), scale, None), {
        "axis": 0
    }


def blocks_of_rows(weight: np.ndarray):
    scale = np.full((weight.shape[0] // BLOCK, weight.shape[1]), 0.1, np.float16)
    scale += np.arange(scale.size).reshape(scale.shape).astype(np.float16) / 1000
    zero = np.full(scale.shape, 7)
    integers = steps(weight, scale.repeat(BLOCK, 0), -7, 8) + 7
    options = {"axis": 0, "block_size": BLOCK}
    return tensors(TensorProto.UINT4, integers, scale, zero), options


def blocks_of_columns(weight: np.ndarray):
    scale = np.full((weight.shape[0], weight.shape[1] // BLOCK), 0.09, np.float16)
    integers = steps(weight, scale.repeat(BLOCK, 1), -8, 7)
    return tensors(TensorProto.INT4, integers, scale, None), {"axis": -1, "block_size": BLOCK}


FORMS = (per_tensor, per_column, per_row, blocks_of_rows, blocks_of_columns)


def quantized(form: Form, name: str = "head", weight: np.ndarray | None = None):
    """A decoder whose weight `name` is dequantised, and the file's own numbers of it."""
    model = decoder(opset=21)
    model.ir_version = 10
    old = next(one for one in model.graph.initializer if one.name == name)
    parts, options = form(numpy_helper.to_array(old) if weight is None else weight)
    for part in parts:
        part.name = f"{name}_{part.name}"
    model.graph.initializer.remove(old)
    model.graph.initializer.extend(parts)
    names = [part.name for part in parts]
    node = helper.make_node("DequantizeLinear", names, [name], f"{name}_dq", **options)
    model.graph.node.insert(0, node)
    graph = helper.make_graph(
        [node], "g", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)], parts
    )
    alone = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (expected,) = onnx.reference.ReferenceEvaluator(alone).run(None, {})
    return model, np.asarray(expected)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_dequantised_weights_are_those_of_the_graph(form: Form, external: bool, tmp_path: Path):
    model, expected = quantized(form)
    imported = import_model(save(model, tmp_path, external))
    stored = imported.tensors["head"]
    assert stored.dtype == np.float16
    assert stored.read().tobytes() == expected.tobytes()
    assert stored.read_columns(3, 9).tobytes() == np.ascontiguousarray(expected[:, 3:9]).tobytes()
    assert "head_q" not in imported.tensors
    (note,) = [note for note in imported.notes if "DequantizeLinear" in note]
    assert note.endswith(": 1")


@pytest.mark.parametrize("form", FORMS)
def test_large_tensors_are_converted_in_pieces(form: Form, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("speqc.onnx_conversions.CHUNK", 3 * VOCABULARY)
    model, expected = quantized(form)
    stored = import_model(save(model, tmp_path)).tensors["head"]
    assert stored.read().tobytes() == expected.tobytes()


def test_tables_and_layers_are_converted_too(tmp_path: Path):
    for name in ("table", "w_key_0"):
        model, expected = quantized(per_row, name)
        assert import_model(save(model, tmp_path)).tensors[name].read().tobytes() == (
            expected.tobytes()
        )


def head_by_cast(model: onnx.ModelProto, values: np.ndarray) -> None:
    old = next(one for one in model.graph.initializer if one.name == "head")
    model.graph.initializer.remove(old)
    model.graph.initializer.append(numpy_helper.from_array(values, "broad"))
    node = helper.make_node("Cast", ["broad"], ["head"], "narrow", to=TensorProto.FLOAT16)
    model.graph.node.insert(0, node)


def test_a_cast_that_rounds_is_the_models_own(tmp_path: Path):
    """No leave to round is asked for: the file says what is computed."""
    values = np.random.default_rng(1).normal(0, 0.3, (HIDDEN, VOCABULARY)).astype(np.float32)
    model = decoder()
    head_by_cast(model, values)
    stored = import_model(save(model, tmp_path)).tensors["head"]
    assert stored.read().tobytes() == values.astype(np.float16).tobytes()


def test_a_conversion_of_a_conversion(tmp_path: Path):
    model, _ = quantized(per_tensor)
    parts = {one.name: one for one in model.graph.initializer}
    scale = np.array(0.0123, np.float32)
    parts["head_scale"].CopyFrom(numpy_helper.from_array(scale, "head_scale"))
    model.graph.node[0].output[0] = "broad"
    node = helper.make_node("Cast", ["broad"], ["head"], "narrow", to=TensorProto.FLOAT16)
    model.graph.node.insert(1, node)
    stored = import_model(save(model, tmp_path)).tensors["head"]
    exact = numpy_helper.to_array(parts["head_q"]).astype(np.float32) * scale
    assert stored.read().tobytes() == exact.astype(np.float16).tobytes()


def test_single_scales_are_rounded_by_leave_only(tmp_path: Path):
    model, _ = quantized(per_tensor)
    scale = next(one for one in model.graph.initializer if one.name == "head_scale")
    scale.CopyFrom(numpy_helper.from_array(np.array(0.0123, np.float32), "head_scale"))
    node = helper.make_node("Cast", ["half"], ["residual32"], to=TensorProto.FLOAT)
    product = next(node for node in model.graph.node if "head" in node.input)
    node.input[0] = product.input[0]
    product.input[0] = "residual32"
    model.graph.node.insert(len(model.graph.node) - 1, node)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    path = save(model, tmp_path)
    with pytest.raises(SpeqcError, match=r"FP16 would change .* --allow-fp32-to-fp16"):
        import_model(path)
    assert import_model(path, allow_fp32_to_fp16=True).tensors["head"].dtype == np.float16


@pytest.mark.parametrize(
    "options", [{"axis": 5}, {"axis": 0}, {"block_size": 3, "axis": 1}, {"block_size": -8}]
)
def test_parameters_that_do_not_fit_are_refused(options: dict[str, int], tmp_path: Path):
    model, _ = quantized(per_column)
    del model.graph.node[0].attribute[:]
    for name, value in options.items():
        model.graph.node[0].attribute.append(helper.make_attribute(name, value))
    with pytest.raises(SpeqcError, match="'head_q' holds quantised integer weights"):
        open_model(save(model, tmp_path))


def test_nothing_is_converted_before_it_is_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("speqc.onnx_conversions._whole", lambda *_: pytest.fail("was read"))
    model, _ = quantized(per_column)
    opened = open_model(save(model, tmp_path))
    assert isinstance(opened.graph.initializers["head"].const_value, ConvertedTensor)
