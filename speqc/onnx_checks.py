"""Are a graph's operators, signatures, types and weights ones that we know? One line if not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx
import onnx.defs
import onnx_ir as ir

from speqc.dialects.onnx_schema import (
    CONTRIB_OPERATORS,
    OLDEST_OPSET,
    operator_schemas,
    qualified_name,
)
from speqc.runtime.counted import counted
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

RECURRENT = frozenset({"CausalConvWithState", "GRU", "LinearAttention", "LSTM", "RNN", "Scan"})
"""Operators that carry a state from token to token."""

NAMES_SHOWN = 3

OLDEST_FORMAT = 3
"""The oldest version of the file format that has operator sets."""


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


def check_format(model: ir.Model) -> None:
    """The version of the file format must be one that the ONNX library knows."""
    if not OLDEST_FORMAT <= model.ir_version <= onnx.IR_VERSION:
        raise SpeqcError(
            f"has IR version {model.ir_version}; versions {OLDEST_FORMAT} to {onnx.IR_VERSION} "
            "are supported (is the onnx package older than the exporter?)"
        )


def check_places(proto: onnx.ModelProto) -> None:
    """Places of external data must be numbers of bytes."""
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key in ("offset", "length") and not entry.value.isdecimal():
                raise SpeqcError(
                    f"tensor '{tensor.name}': the {entry.key} of its external data is "
                    f"'{entry.value}', not a number of bytes"
                )


def check_inputs(graph: ir.Graph) -> None:
    """Every input must be a tensor of a known type and number of dimensions."""
    for value in graph.inputs:
        if value.type is None:
            raise SpeqcError(f"input '{value.name}' has no type")
        if not isinstance(value.type, ir.TensorType):
            kind = type(value.type).__name__.removesuffix("Type").lower()
            raise SpeqcError(f"input '{value.name}' is a {kind}; only tensors can be fed")
        if value.shape is None:
            raise SpeqcError(f"input '{value.name}' has no shape")


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
    if any(_mixes_over_time(node) for node in graph):
        raise SpeqcError(
            "is a state-space or hybrid model: it mixes tokens by more than attention, which is "
            f"not supported yet. Operators: {listed}"
        )
    raise SpeqcError(f"unsupported operators: {listed}")


def _mixes_over_time(node: ir.Node) -> bool:
    """Whether a node is a recurrence, or a convolution in one dimension."""
    if node.op_type != "Conv" or len(node.inputs) < 2 or node.inputs[1] is None:
        return node.op_type in RECURRENT
    kernel = node.inputs[1]
    return kernel.shape is not None and len(kernel.shape) == 3


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
    """Nodes must have the inputs, outputs and attributes that their operator asks for."""
    for node in graph:
        schema = operator_schemas()[f"onnx.{qualified_name(node.domain, node.op_type)}"]
        what = f"node '{node.name}' ({node.op_type})"
        _check_count(what, "input", node.inputs, schema.min_inputs, schema.max_inputs)
        _check_count(what, "output", node.outputs, schema.min_outputs, schema.max_outputs)
        for position, value in enumerate(node.inputs[: schema.min_inputs]):
            if value is None and position not in schema.optional_inputs:
                raise SpeqcError(f"{what}: input {position} ({schema.inputs[position]}) is absent")
        if missing := sorted(schema.required - node.attributes.keys()):
            raise SpeqcError(f"{what} has no attribute '{missing[0]}', which ONNX asks for")
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                raise SpeqcError(
                    f"{what}: attribute '{name}' stands for '{attribute.ref_attr_name}' of a "
                    "function, outside of any"
                )
            kind = attribute.type.name.lower()
            if name not in schema.attributes:
                raise SpeqcError(f"{what} has an attribute '{name}' that ONNX does not know")
            if kind != schema.attributes[name]:
                raise SpeqcError(
                    f"{what}: attribute '{name}' is of kind {kind}, not {schema.attributes[name]}"
                )


def _check_count(what: str, kind: str, values: Sequence, least: int, most: int) -> None:
    if not least <= len(values) <= most:
        raise SpeqcError(f"{what} has {counted(len(values), kind)}, not {least} to {most}")


def check_tensors(graph: ir.Graph) -> None:
    """Tensors must have sizes, and those that the file embeds the values of their shapes."""
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            check_tensor(value.const_value, f"initializer '{name}'")
    for node in graph:
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR:
                # `as_tensor` fails on a type that is none.
                tensor: ir.TensorProtocol = attribute.value
                what = f"node '{node.name}' ({node.op_type}), tensor '{name}'"
                if isinstance(tensor, ir.ExternalTensor):
                    raise SpeqcError(f"{what}: only initializers may lie in another file")
                check_tensor(tensor, what)


def check_tensor(tensor: ir.TensorProtocol, what: str) -> None:
    """One tensor, `what` in words, must have a type, sizes, and the values if it is embedded."""
    shape = list(tensor.shape)
    if any(not isinstance(size, int) or size < 0 for size in shape):
        raise SpeqcError(f"{what} has the shape {shape}; the file is damaged")
    try:
        dtype = tensor.dtype
    except ValueError as error:
        raise SpeqcError(
            f"{what} has a data type that ONNX does not know; the file is damaged"
        ) from error
    if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise SpeqcError(f"{what} holds no numbers but {dtype.name}")
    if isinstance(tensor, ir.TensorProtoTensor) and not _holds_its_values(tensor):
        raise SpeqcError(
            f"{what} does not hold the values of its shape {shape} of {tensor.dtype.name}; "
            "the file is damaged"
        )


def _holds_its_values(tensor: ir.TensorProtoTensor) -> bool:
    proto = tensor.raw
    if tensor.size and not any(field.name.endswith("_data") for field, _ in proto.ListFields()):
        return False
    # Every value takes a byte or, where they are packed, its bits: nothing large is made in vain.
    if tensor.size * min(tensor.dtype.bitwidth, 8) > proto.ByteSize() * 8:
        return False
    try:
        return tensor.numpy().size == tensor.size
    except (AssertionError, LookupError, TypeError, ValueError):
        return False


def check_types(model: ir.Model) -> None:
    """Inputs of a node that ONNX wants of one type must have one; needs a simplified model."""
    version = model.opset_imports[""]
    for node in model.graph:
        if node.domain != "" or not onnx.defs.has(node.op_type):
            continue
        try:
            parameters = onnx.defs.get_schema(node.op_type, version).inputs
        except onnx.defs.SchemaError as error:
            raise SpeqcError(
                f"node '{node.name}': opset {version} has no operator {node.op_type}"
            ) from error
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
