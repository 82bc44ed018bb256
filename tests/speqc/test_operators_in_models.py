"""Models whose graph has operators of the vector unit before the head, or quantised weights."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_models import HEAD_SIZE, HIDDEN, KV_HEADS, VOCABULARY, Graph, decoder, quantized

from speqc.artifact import load_artifact
from speqc.compile import CompileOptions, compile_model
from speqc.runtime.machine import Machine
from speqc.runtime.weights import WeightFile
from speqc.target_files import load_target

TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, VOCABULARY, 9)]


def activations(g: Graph, x: str) -> str:
    slope = g.constant("slope", np.linspace(-0.5, 0.5, HIDDEN).astype(np.float16))
    a = g.node("LeakyRelu", [x], "leaky", alpha=0.2)
    b = g.node("Elu", [g.node("PRelu", [x, slope], "parametric")], "elu")
    c = g.node("Mish", [g.node("HardSwish", [x], "hard")], "mish")
    d = g.node("Softsign", [g.node("Selu", [x], "selu")], "softsign")
    return g.node("Mean", [g.node("Sum", [a, b], "sum"), c, d], "mean")


def lengths(g: Graph, x: str) -> str:
    last = g.integers("last", [-1])
    length = g.node("ReduceL2", [g.node("LpNormalization", [x], "unit"), last], "norm")
    small = g.node("ReduceLogSumExp", [x, last], "log_sum", keepdims=1)
    total = g.node("Add", [length, g.node("ReduceL1", [x, last], "magnitudes")], "scale")
    scaled = g.node("Div", [x, total], "scaled")
    return g.node("Sub", [scaled, small], "shifted")


def products(g: Graph, x: str) -> str:
    squares = g.node(
        "Einsum", [x, g.weight("square", HIDDEN, HIDDEN)], "turned", equation="bmd,de->bme"
    )
    gate = g.node("Einsum", [squares, x], "gate", equation="bmd,bmd->bm")
    wide = g.node("Unsqueeze", [gate, g.integers("back", [-1])], "gates")
    return g.node("Mul", [wide, squares], "gated")


def places(g: Graph, x: str) -> str:
    first = g.node("Mul", [g.node("Hardmax", [x], "hot"), x], "largest")
    pads, axes = g.integers("pads", [2, -2]), g.integers("along", [-1])
    moved = g.node("Pad", [first, pads, "", axes], "moved")
    return g.node("Add", [moved, x], "joined")


def eight_bits(g: Graph, x: str) -> str:
    scale = g.constant("grid", np.array(0.01, np.float16))
    zero = g.constant("middle", np.array(100, np.uint8))
    steps = g.node("QuantizeLinear", [x, scale, zero], "steps")
    return g.node("DequantizeLinear", [steps, scale, zero], "again")


MODELS = {
    "activations": lambda: decoder(last=activations, opset=22),
    "lengths": lambda: decoder(last=lengths),
    "products": lambda: decoder(last=products),
    "places": lambda: decoder(last=places),
    "eight bits": lambda: decoder(last=eight_bits, opset=21),
    "quantised weights": lambda: quantized(decoder(opset=21)),
}


def onnxruntime_logits(model: Path) -> np.ndarray:
    """Its logits [tokens, vocabulary] as FP64."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    empty = np.zeros((1, KV_HEADS, 0, HEAD_SIZE), np.float16)
    feed = {"tokens": np.array([TOKENS]), "mask": np.ones((1, len(TOKENS)), np.int64)}
    feed |= {"state_0": empty, "state_1": empty}
    return np.asarray(session.run(["scores"], feed)[0])[0].astype(np.float64)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_onnxruntime(name: str, tmp_path: Path) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "model.speq"
    proto = MODELS[name]()
    proto.ir_version = 10
    onnx.save(proto, model)
    compile_model(model, out, CompileOptions(load_target("speq-64x64"), context=64))
    artifact = load_artifact(out)
    machine = Machine(artifact.program, WeightFile(artifact.weights))
    logits, expected = machine.call("full", TOKENS), onnxruntime_logits(model)
    difference = np.abs(logits.astype(np.float64) - expected).max()
    assert difference <= 0.01 * np.abs(expected).max()
    machine.reset()
    rows = [machine.call("full", [token])[0] for token in TOKENS]
    assert np.array_equal(np.array(rows).view(np.uint16), logits.view(np.uint16))
