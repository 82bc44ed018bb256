"""Tiny decoders as ONNX files, written node by node as exporters write them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, HIDDEN, HEADS, KV_HEADS, HEAD_SIZE = 80, 16, 4, 2, 4
WIDTH, KV_WIDTH = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE

CORPUS = Path(os.environ.get("SPEQC_CORPUS", Path(__file__).parents[3] / "shared" / "onnx"), "onnx")
"""Files of real exporters; tests that need them skip where they are not."""


def corpus_model(name: str) -> Path:
    """The path of one of the corpus's files, or a skip."""
    path = CORPUS / name
    if not path.exists():
        pytest.skip(f"no corpus at {CORPUS.parent} (set SPEQC_CORPUS)")
    return path


class Graph:
    """Collects nodes, named after what they make."""

    def __init__(self, element_type: int = TensorProto.FLOAT16, seed: int = 0):
        self.element_type = element_type
        self.array_type = helper.tensor_dtype_to_np_dtype(element_type)
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: list[str], output: str, **attributes) -> str:
        """Append a node of one output; returns the output's name."""
        name = f"node_{output}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        """Append an initializer."""
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, name: str, values: list[int] | int) -> str:
        """Append an initializer of 64-bit integers."""
        return self.constant(name, np.array(values, np.int64))

    def weight(self, name: str, *shape: int) -> str:
        """Append a random matrix, rounded to FP16 whatever its type."""
        values = self.random.normal(0, 0.3, shape).astype(np.float16)
        return self.constant(name, values.astype(self.array_type))


def decoder(
    layers: int = 1,
    element_type: int = TensorProto.FLOAT16,
    opset: int = 20,
    batch: str | int = "batch",
    sequence: str | int = "sequence",
    caches: bool = True,
    last: Callable[[Graph, str], str] | None = None,
) -> onnx.ModelProto:
    """A decoder of `layers` attention layers with grouped queries, without norms and positions.

    Shapes are computed as exporters do it: Shape, Gather, Unsqueeze, Concat, Reshape. The names of
    caches say nothing: keys and values can be told by data flow only. `last` adds nodes before the
    head.
    """
    g = Graph(element_type)
    for name, value in (("zero", 0), ("one", 1)):
        g.integers(name, value)
    for name, values in (("at0", [0]), ("at1", [1]), ("at2", [2]), ("rest", [-1])):
        g.integers(name, values)
    length = g.node("Shape", ["tokens"], "length", start=1, end=2)
    fed = g.node("Squeeze", [length], "fed")
    if caches:
        past = g.node("Shape", ["state_0"], "past", start=2, end=3)
        total = g.node("Add", [past, length], "total")
    else:
        total = length
    hidden = g.node("Gather", [g.weight("table", VOCABULARY, HIDDEN), "tokens"], "embedded")
    mask = _causal_mask(g, fed, total, caches)
    outputs = []
    for layer in range(layers):
        hidden = _attention(g, layer, hidden, length, total, mask, caches)
        outputs += [f"new_{2 * layer}", f"new_{2 * layer + 1}"] if caches else []
    if last is not None:
        hidden = last(g, hidden)
    g.node("MatMul", [hidden, g.weight("head", HIDDEN, VOCABULARY)], "scores")
    return _model(g, layers, opset, batch, sequence, caches, outputs)


def _causal_mask(g: Graph, fed: str, total: str, caches: bool) -> str:
    """Position of a key <= position of a query, and the key is no padding: 0, else -inf."""
    g.constant("filler", np.array(-np.inf, g.array_type))
    g.constant("nought", np.array(0, g.array_type))
    g.integers("first_two", [0, 1])
    count = g.node("Squeeze", [total], "count")
    queries = g.node("Range", ["zero", fed, "one"], "queries")
    if caches:
        scalar = g.node("Squeeze", ["past"], "past_scalar")
        queries = g.node("Add", [queries, scalar], "query_positions")
    column = g.node("Unsqueeze", [queries, "at1"], "column")
    keys = g.node("Range", ["zero", count, "one"], "keys")
    allowed = g.node("LessOrEqual", [keys, column], "allowed")
    real = g.node("Cast", ["mask"], "real", to=TensorProto.BOOL)
    wide = g.node("Unsqueeze", [real, "first_two_"], "wide")
    g.integers("first_two_", [1, 2])
    both = g.node("And", [allowed, wide], "both")
    return g.node("Where", [both, "nought", "filler"], "bias")


def _attention(
    g: Graph, layer: int, hidden: str, length: str, total: str, mask: str, caches: bool
) -> str:
    """One attention layer with its residual."""

    def name(what: str) -> str:
        return f"{what}_{layer}"

    batch = g.node("Shape", [hidden], name("batch"), start=0, end=1)
    heads = {}
    for what, count in (("query", HEADS), ("key", KV_HEADS), ("value", KV_HEADS)):
        weight = g.weight(name(f"w_{what}"), HIDDEN, count * HEAD_SIZE)
        flat = g.node("MatMul", [hidden, weight], name(f"flat_{what}"))
        size = g.integers(name(f"size_{what}"), [HEAD_SIZE])
        shape = g.node("Concat", [batch, length, "rest", size], name(f"to_{what}"), axis=0)
        split = g.node("Reshape", [flat, shape], name(f"split_{what}"))
        heads[what] = g.node("Transpose", [split], name(f"heads_{what}"), perm=[0, 2, 1, 3])
    for position, what in enumerate(("key", "value")):
        if caches:
            joined = [f"state_{2 * layer + position}", heads[what]]
            heads[what] = g.node("Concat", joined, f"new_{2 * layer + position}", axis=-2)
        heads[what] = _repeat(g, heads[what], name(what), batch, total)
    turned = g.node("Transpose", [heads["key"]], name("turned"), perm=[0, 1, 3, 2])
    products = g.node("MatMul", [heads["query"], turned], name("products"))
    masked = g.node("Add", [products, mask], name("masked"))
    shares = g.node("Softmax", [masked], name("shares"), axis=-1)
    mixed = g.node("MatMul", [shares, heads["value"]], name("mixed"))
    back = g.node("Transpose", [mixed], name("back"), perm=[0, 2, 1, 3])
    shape = g.node("Concat", [batch, length, "rest"], name("to_flat"), axis=0)
    flat = g.node("Reshape", [back, shape], name("flat"))
    out = g.node("MatMul", [flat, g.weight(name("w_out"), WIDTH, HIDDEN)], name("out"))
    return g.node("Add", [hidden, out], name("residual"))


def _repeat(g: Graph, heads: str, name: str, batch: str, total: str) -> str:
    """Repeat each head of keys or values for its group of queries, as TorchScript writes it."""
    for what, values in (
        ("kv_heads", [KV_HEADS]),
        ("group", [HEADS // KV_HEADS]),
        ("width", [HEAD_SIZE]),
        ("all", [HEADS]),
        ("minus", [-1] * 5),
        ("five", [5]),
    ):
        g.integers(f"{name}_{what}", values)
    sizes = [batch, f"{name}_kv_heads", f"{name}_group", total, f"{name}_width"]
    wanted = g.node("Concat", sizes, f"{name}_wanted", axis=0)
    ones = g.node(
        "ConstantOfShape",
        [f"{name}_five"],
        f"{name}_ones",
        value=numpy_helper.from_array(np.array([1], np.int64)),
    )
    keep = g.node("Equal", [wanted, f"{name}_minus"], f"{name}_keep")
    shape = g.node("Where", [keep, ones, wanted], f"{name}_shape")
    wide = g.node("Unsqueeze", [heads, "at2"], f"{name}_unsqueezed")
    repeated = g.node("Expand", [wide, shape], f"{name}_expanded")
    sizes = [batch, f"{name}_all", total, f"{name}_width"]
    flat = g.node("Concat", sizes, f"{name}_flat", axis=0)
    return g.node("Reshape", [repeated, flat], f"{name}_repeated")


def _model(
    g: Graph,
    layers: int,
    opset: int,
    batch: str | int,
    sequence: str | int,
    caches: bool,
    outputs: list[str],
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    masked = "total" if caches else sequence
    inputs = [
        value("tokens", TensorProto.INT64, [batch, sequence]),
        value("mask", TensorProto.INT64, [batch, masked]),
    ]
    if caches:
        shape = [batch, KV_HEADS, "past", HEAD_SIZE]
        inputs += [value(f"state_{i}", g.element_type, shape) for i in range(2 * layers)]
    results = [value("scores", g.element_type, [batch, sequence, VOCABULARY])]
    results += [
        value(name, g.element_type, [batch, KV_HEADS, "past + sequence", HEAD_SIZE])
        for name in outputs
    ]
    graph = helper.make_graph(g.nodes, "tiny", inputs, results, g.initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="tests", ir_version=9
    )


def fused_decoder() -> onnx.ModelProto:
    """A decoder of one layer in operators of ONNX Runtime, with rotary embedding and SwiGLU."""
    g = Graph()
    g.constant("gain", g.random.uniform(0.5, 1.5, HIDDEN).astype(g.array_type))
    angles = np.outer(np.arange(32), 1 / 100.0 ** np.arange(HEAD_SIZE // 2))
    g.constant("cosines", np.cos(angles).astype(g.array_type))
    g.constant("sines", np.sin(angles).astype(g.array_type))
    count = g.node("ReduceSum", ["mask", g.integers("at1", [1])], "count", keepdims=0)
    before = g.node("Sub", [count, "at1"], "before")
    last = g.node("Cast", [before], "last", to=TensorProto.INT32)
    sizes = g.node("Shape", ["mask"], "sizes")
    total = g.node("Gather", [sizes, g.integers("one", 1)], "total", axis=0)
    length = g.node("Cast", [total], "length", to=TensorProto.INT32)
    hidden = g.node("Gather", [g.weight("table", VOCABULARY, HIDDEN), "tokens"], "embedded")
    plain = g.node("SimplifiedLayerNormalization", [hidden, "gain"], "plain", epsilon=1e-6)
    fused = g.weight("w_fused", HIDDEN, WIDTH + 2 * KV_WIDTH)
    fused = g.node("MatMul", [plain, fused], "fused")
    states = ["state_0", "state_1"]
    attention = helper.make_node(
        "GroupQueryAttention",
        [fused, "", "", *states, last, length, "cosines", "sines"],
        ["mixed", "new_0", "new_1"],
        name="node_mixed",
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=1,
    )
    g.nodes.append(attention)
    out = g.node("MatMul", ["mixed", g.weight("w_out", WIDTH, HIDDEN)], "out")
    skip = helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [hidden, out, "gain"],
        ["normal", "", "", "residual"],
        name="node_normal",
        domain="com.microsoft",
        epsilon=1e-6,
    )
    g.nodes.append(skip)
    gate = g.node("MatMul", ["normal", g.weight("w_gate", HIDDEN, 2 * HIDDEN)], "gate")
    open_gate = g.node("Sigmoid", [gate], "open_gate")
    swish = g.node("Mul", [gate, open_gate], "swish")
    up = g.node("MatMul", ["normal", g.weight("w_up", HIDDEN, 2 * HIDDEN)], "up")
    product = g.node("Mul", [swish, up], "product")
    down = g.node("MatMul", [product, g.weight("w_down", 2 * HIDDEN, HIDDEN)], "down")
    final = g.node("Add", ["residual", down], "final")
    g.node("MatMul", [final, g.weight("head", HIDDEN, VOCABULARY)], "scores")
    model = _model(g, 1, 20, "batch", "sequence", True, ["new_0", "new_1"])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def save(model: onnx.ModelProto, folder: Path, external: bool = False) -> Path:
    """Write a model to `folder`/model.onnx, its data to model.onnx.data if `external`."""
    path = folder / "model.onnx"
    if external:
        onnx.save_model(
            model,
            path,
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=64,
        )
    else:
        onnx.save_model(model, path)
    return path


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """All matrices as 8-bit integers with a scale for each column."""
    for old in [one for one in model.graph.initializer if len(one.dims) == 2]:
        weight = numpy_helper.to_array(old)
        scale = (np.abs(weight).max(0) / 127).astype(np.float16)
        integers = np.rint(weight.astype(np.float32) / scale.astype(np.float32)).astype(np.int8)
        names = [f"{old.name}_q", f"{old.name}_scale"]
        node = helper.make_node("DequantizeLinear", names, [old.name], f"{old.name}_dq", axis=1)
        model.graph.initializer.remove(old)
        model.graph.initializer.append(numpy_helper.from_array(integers, names[0]))
        model.graph.initializer.append(numpy_helper.from_array(scale, names[1]))
        model.graph.node.insert(0, node)
    return model
