"""The ONNX graph of a Llama-like decoder, as exporters for opset 24 write it.

RMSNormalization, RotaryEmbedding and Attention with a KV cache, in FP16. The graph needs sizes
alone: where the tensors' values are, if they are anywhere, is the task of a `TensorSource`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper

from speqc.decoder_shape import DecoderShape
from speqc.dialects.onnx import LARGEST_CONSTANT


class TensorSource(Protocol):
    """Makes the initializers of a graph, in the order in which the graph first needs them."""

    def matrix(self, name: str, rows: int, columns: int) -> TensorProto:
        """An FP16 weight."""
        ...

    def copy_transposed(self, name: str, matrix: TensorProto) -> TensorProto:
        """The transpose of a weight that `matrix` has made."""
        ...

    def scale(self, name: str, size: int) -> TensorProto:
        """The FP16 scale of a norm."""
        ...

    def angles(self, name: str, function: np.ufunc, shape: DecoderShape) -> TensorProto:
        """An FP16 table [context, head_size / 2] of a function of the rotary angles."""
        ...


class AbsentTensors:
    """A source without values: tensors refer to a file that is not there.

    Only those that IR writes out, which no real model's are, have some: ones.
    """

    LOCATION = "absent.data"

    def matrix(self, name: str, rows: int, columns: int) -> TensorProto:
        """A reference of the shape [rows, columns]."""
        return self.absent(name, (rows, columns))

    def copy_transposed(self, name: str, matrix: TensorProto) -> TensorProto:
        """A reference of the transposed shape."""
        return self.absent(name, matrix.dims[::-1])

    def scale(self, name: str, size: int) -> TensorProto:
        """A reference of the shape [size]."""
        return self.absent(name, (size,))

    def angles(self, name: str, function: np.ufunc, shape: DecoderShape) -> TensorProto:
        """A reference of the shape [context, head_size / 2]."""
        return self.absent(name, (shape.context, shape.head_size // 2))

    def absent(self, name: str, shape: Sequence[int]) -> TensorProto:
        """A reference, or ones."""
        if prod(shape) <= LARGEST_CONSTANT:
            return onnx.numpy_helper.from_array(np.ones(shape, np.float16), name)
        return external_tensor(name, shape, self.LOCATION, 0)


def external_tensor(name: str, shape: Sequence[int], location: str, offset: int) -> TensorProto:
    """An FP16 tensor whose bytes start at `offset` of a file beside the graph's."""
    tensor = TensorProto(
        name=name, data_type=TensorProto.FLOAT16, dims=shape, data_location="EXTERNAL"
    )
    place = {"location": location, "offset": offset, "length": 2 * prod(shape)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def angle_table(function: np.ufunc, shape: DecoderShape) -> np.ndarray:
    """The values of `TensorSource.angles`, float16[context, head_size / 2]."""
    width = shape.head_size
    frequencies = shape.rope_theta ** -(np.arange(0, width, 2) / width)
    return function(np.arange(shape.context)[:, None] * frequencies).astype(np.float16)


def decoder_model(shape: DecoderShape, source: TensorSource) -> onnx.ModelProto:
    """The model: tokens, mask, positions and caches in; logits and caches out."""
    graph = _Graph(shape, source)
    graph.build()
    inputs, outputs = _signature(shape)
    return helper.make_model(
        helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.tensors),
        producer_name="speqc",
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=11,
    )


@dataclass
class _Graph:
    """Collects nodes and initializers."""

    shape: DecoderShape
    source: TensorSource
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)

    def build(self) -> None:
        """All nodes."""
        shape = self.shape
        table = self.source.matrix("embedding.weight", shape.vocabulary, shape.hidden)
        x = self.add("Gather", "embedding", [self.tensor(table), "input_ids"])
        tables = [
            self.rotary_rows(name, function)
            for name, function in (("cos", np.cos), ("sin", np.sin))
        ]
        mask = self.mask()
        for layer in range(shape.layers):
            x = self.layer(layer, x, tables, mask)
        x = self.norm(x, "final_norm")
        if shape.head == "own":
            self.product(x, "logits", shape.hidden, shape.vocabulary)
        elif shape.head == "tied":
            head = self.add("Transpose", "head", [table.name], perm=[1, 0])
            self.add("MatMul", "logits", [x, head])
        else:
            head = self.tensor(self.source.copy_transposed("head", table))
            self.add("MatMul", "logits", [x, head])

    def layer(self, layer: int, x: str, tables: Sequence[str], mask: str) -> str:
        """Attention and feed-forward network, each behind a norm and added to x."""
        shape = self.shape
        x = self.add("Add", f"{layer}.attended", [x, self.attention(layer, x, tables, mask)])
        normed = self.norm(x, f"{layer}.network_norm")
        gate = self.product(normed, f"{layer}.gate", shape.hidden, shape.intermediate)
        up = self.product(normed, f"{layer}.up", shape.hidden, shape.intermediate)
        sigmoid = self.add("Sigmoid", f"{layer}.sigmoid", [gate])
        active = self.add("Mul", f"{layer}.active", [gate, sigmoid])
        inner = self.add("Mul", f"{layer}.inner", [active, up])
        down = self.product(inner, f"{layer}.down", shape.intermediate, shape.hidden)
        return self.add("Add", f"{layer}.result", [x, down])

    def attention(self, layer: int, x: str, tables: Sequence[str], mask: str) -> str:
        """Attention of one layer, its norm and its projections."""
        shape = self.shape
        width, kv_width = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        normed = self.norm(x, f"{layer}.attention_norm")
        query = self.product(normed, f"{layer}.query", shape.hidden, width)
        key = self.product(normed, f"{layer}.key", shape.hidden, kv_width)
        value = self.product(normed, f"{layer}.value", shape.hidden, kv_width)
        heads: dict[str, Any] = {"q_num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
        turned = [
            self.add("RotaryEmbedding", f"{name}.rotary", [name, *tables], num_heads=count)
            for name, count in zip((query, key), heads.values(), strict=True)
        ]
        name = f"{layer}.attention"
        past = [f"past.{layer}.key", f"past.{layer}.value"]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        self.nodes.append(
            helper.make_node(
                "Attention",
                [*turned, value, mask, *past],
                [name, *present],
                name,
                is_causal=1,
                scale=shape.head_size**-0.5,
                **heads,
            )
        )
        return self.product(name, f"{layer}.output", width, shape.hidden)

    def rotary_rows(self, name: str, function: np.ufunc) -> str:
        """Cosines or sines of the positions' angles [1, M, head_size / 2]."""
        table = self.tensor(self.source.angles(f"{name}.table", function, self.shape))
        return self.add("Gather", f"rotary.{name}", [table, "position_ids"])

    def mask(self) -> str:
        """The attention mask [1, T] as booleans [1, 1, M, T]."""
        mask = self.add("Cast", "mask.bool", ["attention_mask"], to=TensorProto.BOOL)
        one = self.tensor(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
        mask = self.add("Unsqueeze", "mask.row", [mask, one])
        tokens = self.add("Shape", "tokens.shape", ["input_ids"])
        total = self.add("Shape", "total.shape", ["attention_mask"], start=1)
        shape = self.add("Concat", "mask.shape", [tokens, total], axis=0)
        mask = self.add("Expand", "mask.rows", [mask, shape])
        return self.add("Unsqueeze", "mask", [mask, one])

    def product(self, x: str, name: str, k: int, n: int) -> str:
        """x times a weight [k, n] of its own."""
        weight = self.tensor(self.source.matrix(f"{name}.weight", k, n))
        return self.add("MatMul", name, [x, weight])

    def norm(self, x: str, name: str) -> str:
        """An RMS norm over the hidden size."""
        scale = self.tensor(self.source.scale(f"{name}.weight", self.shape.hidden))
        epsilon = self.shape.epsilon
        return self.add("RMSNormalization", name, [x, scale], axis=-1, epsilon=epsilon)

    def add(self, operator: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node with one output, called like the node."""
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def tensor(self, tensor: TensorProto) -> str:
        """An initializer; gives its name."""
        self.tensors.append(tensor)
        return tensor.name


def _signature(
    shape: DecoderShape,
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs of the graph."""
    integers, half = TensorProto.INT64, TensorProto.FLOAT16
    batch, new, total = "batch", "sequence", "past + sequence"
    inputs = [
        helper.make_tensor_value_info("input_ids", integers, [batch, new]),
        helper.make_tensor_value_info("attention_mask", integers, [batch, total]),
        helper.make_tensor_value_info("position_ids", integers, [batch, new]),
    ]
    outputs = [helper.make_tensor_value_info("logits", half, [batch, new, shape.vocabulary])]
    for layer in range(shape.layers):
        for kind in ("key", "value"):
            sizes = [batch, shape.kv_heads, "past", shape.head_size]
            inputs.append(helper.make_tensor_value_info(f"past.{layer}.{kind}", half, sizes))
            sizes = [batch, shape.kv_heads, total, shape.head_size]
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{kind}", half, sizes))
    return inputs, outputs
