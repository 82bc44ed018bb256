"""Is this graph a decoder-only language model? One line if not; and where its logits are."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from speqc.onnx_state import FLOATS, find_kv_pairs, find_token_input, second_token_input
from speqc.onnx_symbols import SEQUENCE
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError

CAUSAL_OPERATORS = frozenset(
    {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Trilu", "GroupQueryAttention"}
)
"""Operators that make or imply a causal mask."""


def check_decoder(model: ir.Model) -> None:
    """There must be tokens, inputs of known meaning, keys and values in pairs, and causality."""
    graph = model.graph
    if find_token_input(graph) is None:
        raise SpeqcError(
            "is no decoder-only language model: no integer input indexes an embedding table"
        )
    if (second := second_token_input(graph)) is not None:
        raise SpeqcError(
            f"input '{second.name}' picks rows of the table of tokens, too: only decoders of one "
            "sequence can be compiled, no encoder with a decoder"
        )
    pairs = find_kv_pairs(model)
    caches = {graph.inputs[pair.past_input] for pair in pairs}
    for value in graph.inputs:
        if value.dtype in FLOATS and value not in caches and len(value.shape or ()) >= 3:
            raise SpeqcError(
                f"input '{value.name}' of shape {value.shape} is no cache (its data "
                "reach no output); only tokens, positions, integer masks and caches can be fed"
            )
    for node in graph:
        if node.op_type == "TensorScatter" and node.inputs[0] in caches:
            raise SpeqcError(
                f"node '{node.name}' (TensorScatter) writes into cache '{node.inputs[0].name}' of "
                "fixed length; export the model with caches that grow (mobius: no --static-cache)"
            )
    kinds = [pair.kind for pair in pairs]
    if None in kinds:
        name = graph.inputs[pairs[kinds.index(None)].past_input].name
        raise SpeqcError(
            f"cache '{name}' holds keys or values, but neither a product with queries or "
            "probabilities that reads it nor its name says which"
        )
    if kinds.count("key") != kinds.count("value"):
        raise SpeqcError(
            f"has {counted(kinds.count('key'), 'cache')} of keys but {kinds.count('value')} of "
            "values"
        )
    if not pairs and not any(_is_causal(node) for node in graph):
        raise SpeqcError("has neither caches nor a causal mask: is it an encoder, like BERT?")


def _is_causal(node: ir.Node) -> bool:
    return (
        node.op_type in CAUSAL_OPERATORS
        or node.attributes.get_int("is_causal", 0) == 1
        or node.attributes.get_int("unidirectional", 0) == 1
        or any(_is_triangle(value) for value in node.inputs)
    )


def _is_triangle(value: ir.Value | None) -> bool:
    """Whether a value is a square matrix of truth values, as older exporters keep a mask."""
    if value is None or value.const_value is None:
        return False
    shape = value.const_value.shape
    flags = (ir.DataType.BOOL, ir.DataType.UINT8)
    return len(shape) >= 2 and shape[-1] == shape[-2] != 1 and value.const_value.dtype in flags


def find_logits(model: ir.Model) -> int:
    """The position of the output [1, sequence, vocabulary]; needs a simplified model.

    Of several such outputs it is the widest. Raises SpeqcError if no output has that shape and
    comes from a matrix product.
    """
    taken = {pair.present_output for pair in find_kv_pairs(model)}
    candidates = [
        position
        for position, value in enumerate(model.graph.outputs)
        if position not in taken and _has_logits_shape(value) and _is_product(value)
    ]
    if not candidates:
        shapes = ", ".join(
            f"'{value.name}' {value.shape}"
            for position, value in enumerate(model.graph.outputs)
            if position not in taken
        )
        raise SpeqcError(
            "is no language model: no output has logits [1, sequence, vocabulary] "
            f"(outputs: {shapes})"
        )
    return max(candidates, key=lambda position: _width(model.graph.outputs[position]))


def drop_other_outputs(model: ir.Model) -> None:
    """Keep logits and caches; needs a simplified model.

    Some exporters also give hidden states, or the keys and values of a prompt without taking such.
    """
    outputs = model.graph.outputs
    kept = {find_logits(model), *(pair.present_output for pair in find_kv_pairs(model))}
    for position in reversed(range(len(outputs))):
        if position not in kept:
            del outputs[position]
    common.RemoveUnusedNodesPass()(model)


def _has_logits_shape(value: ir.Value) -> bool:
    if value.dtype not in FLOATS or value.shape is None or len(value.shape) != 3:
        return False
    batch, sequence, vocabulary = value.shape
    is_known = isinstance(vocabulary, int) and vocabulary > 0
    return batch == 1 and str(sequence) == SEQUENCE and is_known


def _width(value: ir.Value) -> int:
    assert value.shape is not None
    return int(str(value.shape[-1]))


def _is_product(value: ir.Value | None) -> bool:
    """Whether a value is a matrix product, perhaps scaled, capped or converted afterwards."""
    through = {"Cast", "Add", "Mul", "Div", "Tanh", "Reshape", "Transpose", "Identity", "Unsqueeze"}
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul"):
            return True
        if node.op_type not in through:
            return False
        value = next((v for v in node.inputs if v is not None and v.const_value is None), None)
    return False
