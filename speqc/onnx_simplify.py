"""An exporter's graph -> a graph with known shapes, without shape arithmetic.

The declared shapes of inner values are not trusted (some exporters write wrong ones): they are
dropped and inferred anew, with the batch bound to 1 and every size an expression in the symbols
`sequence` (tokens fed) and `past` (positions in the caches). Weights are never folded or copied.
"""

from __future__ import annotations

import math
from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx_shape_inference import infer_symbolic_shapes
from onnxscript.optimizer import fold_constants

from speqc.onnx_inference import extend_inference
from speqc.onnx_masks import compute_masks
from speqc.onnx_missing import MissingTensor, is_without_weights
from speqc.onnx_quiet import first_cause, quiet
from speqc.onnx_scatter import join_scattered
from speqc.onnx_shapes import (
    check_expanded,
    expand_constants_of_shape,
    forget_unknown_shapes,
    remove_shape_arithmetic,
)
from speqc.onnx_state import ATTENTION_PORTS, FLOATS, find_kv_pairs, find_token_input
from speqc.onnx_symbols import PAST, SEQUENCE, TOTAL, Dim
from speqc.runtime.errors import SpeqcError

LARGEST_FOLDED_INPUT = 16 * 1024
"""Elements above which a tensor is a weight: a node that reads it is not folded."""

LARGEST_FOLDED = 64 * 1024
"""Elements above which a tensor is left to be computed."""

MAX_ROUNDS = 12


def simplify(model: ir.Model) -> ir.Model:
    """Infer shapes and fold until nothing changes; changes `model` in place and returns it.

    The model has no functions any more (`open_model` inlines them).

    Raises SpeqcError if the batch or the sequence length is fixed to something that a decoder that
    grows token by token can't use, or if a node's shape can't be inferred from its inputs.
    """
    extend_inference()
    common.RemoveUnusedNodesPass()(model)
    expand_constants_of_shape(model.graph)
    _forget_shapes(model.graph)
    _bind_inputs(model)
    for node in model.graph:
        node.metadata_props.clear()
    before: Counter[str] | None = None
    for _ in range(MAX_ROUNDS):
        try:
            with quiet():
                _round(model)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise SpeqcError(f"shapes can't be inferred: {first_cause(error)}") from error
        if (counts := Counter(node.op_type for node in model.graph)) == before:
            break
        before = counts
    check_expanded(model.graph)
    join_scattered(model.graph)
    compute_masks(model.graph)
    common.RemoveUnusedNodesPass()(model)
    return model


def _round(model: ir.Model) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    forget_unknown_shapes(model.graph)
    infer_symbolic_shapes(model, warn_on_missing=False, adopt_declared_symbols=False)
    _bind_head_sizes(model)
    remove_shape_arithmetic(model.graph)
    fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=LARGEST_FOLDED_INPUT,
        output_size_limit=LARGEST_FOLDED,
        should_fold=_may_fold,
    )
    common.CommonSubexpressionEliminationPass()(model)
    if not is_without_weights(model):
        common.DeduplicateInitializersPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _may_fold(node: ir.Node) -> bool | None:
    """Whether to fold a node of constant inputs: never one that reads or makes something large."""
    for value in node.inputs:
        tensor = None if value is None else value.const_value
        if isinstance(tensor, MissingTensor):
            return False
        if tensor is not None and tensor.size > LARGEST_FOLDED_INPUT:
            return False
    for output in node.outputs:
        shape = output.shape
        if shape is not None and shape.is_static() and math.prod(shape.numpy()) > LARGEST_FOLDED:
            return False
    return None


def _forget_shapes(graph: ir.Graph) -> None:
    """Drop shapes of inner values and outputs, and types of inner values."""
    for node in graph:
        for output in node.outputs:
            output.shape = None
            if not output.is_graph_output():
                output.type = None


def _bind_inputs(model: ir.Model) -> None:
    """Give every input a shape in the symbols `sequence` and `past`, the batch being 1."""
    graph = model.graph
    tokens = find_token_input(graph)
    if tokens is None or tokens.shape is None or len(tokens.shape) != 2:
        raise SpeqcError(f"graph '{graph.name}': no integer input [batch, sequence] of tokens")
    if isinstance(tokens.shape[1], int):
        raise SpeqcError(
            f"input '{tokens.name}': the sequence length is fixed to {tokens.shape[1]}; "
            "export with a dynamic sequence length"
        )
    caches = {graph.inputs[pair.past_input] for pair in find_kv_pairs(model)}
    fed = str(tokens.shape[1])
    for value in graph.inputs:
        if value.shape is None or len(value.shape) == 0:
            continue
        if value in caches:
            dims = _cache_dims(value)
        else:
            dims = [_plain_dim(dim, fed, bool(caches)) for dim in value.shape]
        if len(dims) > 1:
            dims[0] = _batch(value, dims[0])
        value.shape = ir.Shape(dims)


def _batch(value: ir.Value, dim: Dim) -> int:
    if isinstance(dim, int) and dim != 1 and value.shape is not None and value.shape[0] == dim:
        raise SpeqcError(f"input '{value.name}': the batch is fixed to {dim}; export with batch 1")
    return 1


def _cache_dims(value: ir.Value) -> list[Dim]:
    """A cache is [batch, heads, past, size] with whatever is dynamic besides batch and past."""
    assert value.shape is not None
    dims: list[Dim] = [_number(dim) for dim in value.shape]
    dynamic = [i for i, dim in enumerate(dims) if i > 0 and not isinstance(dim, int)]
    if dynamic:
        dims[2 if 2 in dynamic else dynamic[0]] = ir.SymbolicDim(PAST)
    return dims


def _plain_dim(dim: Dim, fed: str, has_caches: bool) -> Dim:
    """A dimension of tokens, positions or a mask: as long as the tokens, or as all positions."""
    if isinstance(dim := _number(dim), int):
        return dim
    return ir.SymbolicDim(SEQUENCE if dim.value == fed or not has_caches else TOTAL)


def _number(dim: Dim) -> Dim:
    """Some exporters write a known size as a symbol, like "64"."""
    return int(str(dim)) if str(dim).isdecimal() else dim


def _bind_head_sizes(model: ir.Model) -> None:
    """Compute symbolic head sizes of caches from the operators that read or extend them."""
    for value in model.graph.inputs:
        if value.dtype not in FLOATS or value.shape is None or len(value.shape) != 4:
            continue
        if isinstance(value.shape[3], int):
            continue
        for use in value.uses():
            if (size := _head_size(use.node)) is not None:
                value.shape = ir.Shape([*value.shape[:3], size])


def _head_size(node: ir.Node) -> int | None:
    """The head size that an operator on a cache implies by its other operands."""
    if node.op_type == "Concat":
        widths = (value.shape[-1] for value in node.inputs if value and value.shape is not None)
        return next((width for width in widths if isinstance(width, int)), None)
    if (node.domain, node.op_type) not in ATTENTION_PORTS or node.inputs[0] is None:
        return None
    shape = node.inputs[0].shape
    if shape is None or not isinstance(width := shape[-1], int):
        return None
    if len(shape) == 4:
        return width
    heads = node.attributes.get_int("num_heads", 0) or node.attributes.get_int("q_num_heads", 0)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        heads += 2 * node.attributes.get_int("kv_num_heads", heads)
    return width // heads if heads else None
