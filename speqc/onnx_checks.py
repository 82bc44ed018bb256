"""Is this graph a decoder-only language model that we can compile? One line if not."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import onnx.defs
import onnx_ir as ir

from speqc.dialects.onnx_schema import (
    CONTRIB_OPERATORS,
    OLDEST_OPSET,
    operator_schemas,
    qualified_name,
)
from speqc.onnx_state import FLOATS, find_kv_pairs, find_token_input
from speqc.onnx_symbols import SEQUENCE
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

CAUSAL_OPERATORS = frozenset(
    {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Trilu", "GroupQueryAttention"}
)
"""Operators that make or imply a causal mask."""

NAMES_SHOWN = 3


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the ONNX libraries from writing what our errors say better."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_cause(error: BaseException) -> str:
    """The first line of the error that all the others came from."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error).splitlines() or [type(error).__name__])[0]


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


def check_decoder(model: ir.Model) -> None:
    """There must be tokens, inputs of known meaning, keys and values in pairs, and causality."""
    graph = model.graph
    if find_token_input(graph) is None:
        raise SpeqcError(
            "is no decoder-only language model: no integer input indexes an embedding table"
        )
    pairs = find_kv_pairs(model)
    caches = {graph.inputs[pair.past_input] for pair in pairs}
    for value in graph.inputs:
        if value.dtype in FLOATS and value not in caches and len(value.shape or ()) >= 3:
            raise SpeqcError(
                f"input '{value.name}' {_type_name(value)} {value.shape} is no cache (its data "
                "reach no output); only tokens, positions, masks and caches can be fed"
            )
    kinds = [pair.kind for pair in pairs]
    if kinds.count("key") != kinds.count("value"):
        raise SpeqcError(
            f"has {kinds.count('key')} caches of keys but {kinds.count('value')} of values"
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


def _has_logits_shape(value: ir.Value) -> bool:
    if value.dtype not in FLOATS or value.shape is None or len(value.shape) != 3:
        return False
    batch, sequence, vocabulary = value.shape
    return batch == 1 and str(sequence) == SEQUENCE and isinstance(vocabulary, int)


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
