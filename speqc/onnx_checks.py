"""Are a graph's operators, signatures, types and weights ones that we know? One line if not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import onnx.defs
import onnx_ir as ir

from speqc.dialects.onnx_schema import (
    CONTRIB_OPERATORS,
    OLDEST_OPSET,
    operator_schemas,
    qualified_name,
)
from speqc.runtime.errors import SpeqcError

FRONT_END_OPERATORS = frozenset(
    {"Constant", "ConstantOfShape", "Identity", "Shape", "Size"}
    | {"MatMul", "Gemm", "Attention", "RotaryEmbedding", "TensorScatter"}
    | {schema.name for schema in CONTRIB_OPERATORS if schema.domain == ""}
)
"""Operators of the default domain that simplification removes or that passes raise."""

CONTRIB_DOMAIN = "com.microsoft"
CONTRIB_NAMES = frozenset(s.name for s in CONTRIB_OPERATORS if s.domain == CONTRIB_DOMAIN)

QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "MatMulNBits", "MatMulInteger", "BlockQuantized")
"""Parts of the names of operators on quantised weights."""

NAMES_SHOWN = 3


def check_opset(model: ir.Model) -> None:
    """The default operator set must be one that the dialect and the ONNX library know."""
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if version is None:
        raise SpeqcError("imports no default operator set")
    if not OLDEST_OPSET <= version <= newest:
        raise SpeqcError(
            f"has opset {version}; versions {OLDEST_OPSET} to {newest} are supported (export anew)"
        )
    model.opset_imports[""] = version


def check_operators(graph: ir.Graph, supported: Collection[str] | None = None) -> None:
    """Every operator must be known; all that aren't are named at once."""
    allowed = _supported() if supported is None else {*supported, *FRONT_END_OPERATORS}
    unknown: dict[str, list[str]] = {}
    for node in graph:
        default = node.domain in ("", "ai.onnx")
        known = allowed if default else CONTRIB_NAMES if node.domain == CONTRIB_DOMAIN else ()
        if node.op_type not in known:
            name = node.op_type if default else f"{node.domain}.{node.op_type}"
            unknown.setdefault(name, []).append(node.name or "unnamed")
    if not unknown:
        return
    quantized = [name for name in unknown if any(part in name for part in QUANTIZED)]
    listed = "; ".join(f"{name} ({_some(nodes)})" for name, nodes in sorted(unknown.items()))
    if quantized:
        raise SpeqcError(f"holds quantised weights; export it in FP16. Operators: {listed}")
    raise SpeqcError(f"unsupported operators: {listed}")


def _supported() -> set[str]:
    from speqc.runtime.vector_ops import VECTOR_OPS

    return {*VECTOR_OPS, *FRONT_END_OPERATORS}


def _some(nodes: list[str]) -> str:
    """How many nodes there are, and the first names."""
    names = ", ".join(f"'{name}'" for name in nodes[:NAMES_SHOWN])
    return f"{len(nodes)}: {names}{', ...' if len(nodes) > NAMES_SHOWN else ''}"


def check_weights(graph: ir.Graph) -> None:
    """Weights must be FP16 or FP32."""
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or len(tensor.shape) < 2 or tensor.size < 1024:
            continue
        if tensor.dtype.is_integer() and tensor.dtype.bitwidth <= 8:
            raise SpeqcError(
                f"initializer '{name}' holds quantised integer weights ({tensor.dtype.name} "
                f"{list(tensor.shape.numpy())}); export the model in FP16"
            )
        if tensor.dtype.is_floating_point() and tensor.dtype not in (
            ir.DataType.FLOAT16,
            ir.DataType.FLOAT,
        ):
            raise SpeqcError(
                f"initializer '{name}' holds {tensor.dtype.name} weights; export the model in FP16"
            )


def check_signatures(graph: ir.Graph) -> None:
    """Nodes must have as many inputs as their operator takes, and attributes that it knows."""
    for node in graph:
        schema = operator_schemas()[f"onnx.{qualified_name(node.domain, node.op_type)}"]
        what = f"node '{node.name}' ({node.op_type})"
        if not schema.min_inputs <= len(node.inputs) <= schema.max_inputs:
            raise SpeqcError(
                f"{what} has {len(node.inputs)} inputs, not {schema.min_inputs} to "
                f"{schema.max_inputs}"
            )
        for name, attribute in node.attributes.items():
            kind = attribute.type.name.lower()
            if name not in schema.attributes:
                raise SpeqcError(f"{what} has an attribute '{name}' that ONNX does not know")
            if kind != schema.attributes[name]:
                raise SpeqcError(
                    f"{what}: attribute '{name}' is of kind {kind}, not {schema.attributes[name]}"
                )


def check_types(model: ir.Model) -> None:
    """Inputs of a node that ONNX wants of one type must have one; needs a simplified model."""
    version = model.opset_imports[""]
    for node in model.graph:
        if node.domain != "" or not onnx.defs.has(node.op_type):
            continue
        parameters = onnx.defs.get_schema(node.op_type, version).inputs
        first: dict[str, ir.Value] = {}
        for value, parameter in zip(node.inputs, _repeat_last(parameters), strict=False):
            if value is None or parameter.type_str.startswith("tensor"):
                continue
            other = first.setdefault(parameter.type_str, value)
            if other.dtype != value.dtype and parameter.is_homogeneous:
                raise SpeqcError(
                    f"node '{node.name}' ({node.op_type}) mixes types, which ONNX forbids: "
                    f"'{other.name}' is {_type_name(other)}, '{value.name}' {_type_name(value)} "
                    "(for such exports attn_implementation='eager' helps)"
                )


def _repeat_last(parameters: Iterable) -> Iterator:
    """The parameters, the last again and again (a variadic one stands last)."""
    last = None
    for last in parameters:
        yield last
    while last is not None:
        yield last


def _type_name(value: ir.Value) -> str:
    return "unknown" if value.dtype is None else value.dtype.name
