"""Which FP32 weights become FP16: losslessly, by the user's leave, or not at all.

Exporters promote FP16 weights to FP32: tensors that are exact in FP16 lose nothing by the way back.
A model that was never FP16 is rounded only if the user asks for it. Vectors and tables that are no
weights (angles of a rotary embedding) stay FP32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from speqc.dialects.onnx import LARGEST_CONSTANT
from speqc.onnx_state import find_token_input
from speqc.runtime.counted import counted
from speqc.runtime.errors import SpeqcError
from speqc.tensor_store import chunks

PRODUCTS = {"MatMul": 1, "Gemm": 1, "FusedMatMul": 1}
"""Operator -> position of its weight."""

PREPARATIONS = frozenset({"Transpose", "Cast", "Identity", "Reshape"})
"""Operators between a weight and the product that reads it."""


@dataclass(frozen=True)
class WeightTypes:
    """Names of the FP32 tensors that are to be FP16, and notes for the user."""

    demoted: frozenset[str]
    notes: list[str]


@dataclass(frozen=True)
class _Loss:
    """How many of a tensor's values FP16 changes, and whether one overflows."""

    name: str
    changed: int
    size: int
    overflows: bool


def choose_types(
    model: ir.Model, allow_rounding: bool, *, without_weights: bool = False
) -> WeightTypes:
    """Look at every FP32 tensor of two or more dimensions that IR holds by reference.

    Without weights, those of products are taken to be exact. Raises SpeqcError if a weight is not
    exact in FP16 and `allow_rounding` is off, or if rounding would overflow.
    """
    weights = product_weights(model.graph)
    exact: list[str] = []
    inexact: list[_Loss] = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        if tensor.size <= LARGEST_CONSTANT:
            continue
        if without_weights:
            if value in weights:
                exact.append(name)
            continue
        loss = _loss(name, tensor)
        if loss.changed == 0:
            exact.append(name)
        elif value in weights:
            inexact.append(loss)
    notes = []
    if exact and without_weights:
        notes.append(f"FP32 weights taken to be exact in FP16: {len(exact)}")
    elif exact:
        notes.append(f"FP32 tensors that are exact in FP16, stored as FP16: {len(exact)}")
    if inexact:
        notes.append(_describe_rounding(inexact, allow_rounding))
    return WeightTypes(frozenset(exact) | {loss.name for loss in inexact}, notes)


def product_weights(graph: ir.Graph) -> set[ir.Value]:
    """Initializers that a product reads as its weight, or that tokens index."""
    tokens = find_token_input(graph)
    return {
        value
        for value in graph.initializers.values()
        if any(_is_weight_use(node, position, tokens) for node, position in _uses(value))
    }


def pure_weights(graph: ir.Graph) -> set[ir.Value]:
    """Initializers that nothing reads but products, as their weight, or look-ups of tokens."""
    tokens = find_token_input(graph)
    return {
        value
        for value in product_weights(graph)
        if all(_is_weight_use(node, position, tokens) for node, position in _uses(value))
    }


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Uses of a tensor, also behind a transposition or conversion."""
    for use in value.uses():
        if use.node.op_type in PREPARATIONS and use.idx == 0:
            yield from _uses(use.node.outputs[0])
        else:
            yield use.node, use.idx


def _is_weight_use(node: ir.Node, position: int, tokens: ir.Value | None) -> bool:
    if node.op_type == "Gather" and position == 0:
        index = node.inputs[1]
        while index is not None and (maker := index.producer()) is not None:
            index = maker.inputs[0] if maker.inputs else None
        return index is tokens
    return PRODUCTS.get(node.op_type) == position


def _loss(name: str, tensor: ir.TensorProtocol) -> _Loss:
    changed, overflows = 0, False
    for chunk in chunks(tensor.numpy()):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rounded = chunk.astype(np.float16).astype(np.float32)
        differ = (rounded != chunk) & ~(np.isnan(rounded) & np.isnan(chunk))
        changed += int(np.count_nonzero(differ))
        overflows |= bool((np.isinf(rounded) & ~np.isinf(chunk)).any())
    return _Loss(name, changed, tensor.size, overflows)


def _describe_rounding(losses: list[_Loss], allow_rounding: bool) -> str:
    """The note on rounded weights; SpeqcError if they may not be rounded."""
    changed, size = sum(loss.changed for loss in losses), sum(loss.size for loss in losses)
    share = (
        f"{changed:,} of {counted(size, 'value')} ({changed / size:.1%}) in "
        f"{counted(len(losses), 'FP32 weight')}"
    )
    for loss in losses:
        if loss.overflows:
            raise SpeqcError(f"weight '{loss.name}' has values beyond the range of FP16")
    if not allow_rounding:
        raise SpeqcError(
            f"FP16 would change {share} (first: '{losses[0].name}'); "
            "export the model in FP16, or round them with --allow-fp32-to-fp16"
        )
    return f"rounded to FP16: {share} changed"
