"""An ONNX file -> a module of the `onnx` dialect and the store of its tensors.

The module holds one function, `@main`. Its arguments and results carry `onnx.name` and `onnx.dims`
(sizes as numbers or expressions in `sequence` and `past`). Attributes of the module: `onnx.opset`,
`onnx.graph_name`, `onnx.producer`, `onnx.input_names`, `onnx.output_names`, `onnx.kv_pairs` (one
`array<i64: past input, present output>` per cache, by layer, the key before the value), and
`onnx.logits`, the position of the output that holds them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from xdsl.dialects import func
from xdsl.dialects.builtin import (
    ArrayAttr,
    DenseArrayBase,
    DictionaryAttr,
    IntegerAttr,
    ModuleOp,
    NoneType,
    StringAttr,
    TensorType,
    f16,
    f32,
    i64,
)
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue

from speqc.dialects.onnx import (
    LARGEST_CONSTANT,
    ConstantOp,
    InitializerOp,
    NoValueOp,
    node_location,
    operator_class,
)
from speqc.dialects.onnx_schema import qualified_name
from speqc.onnx_checks import check_types
from speqc.onnx_conversions import notes_on_conversions
from speqc.onnx_decoder import drop_other_outputs, find_logits
from speqc.onnx_node_check import check_nodes
from speqc.onnx_reader import open_model, source_files
from speqc.onnx_simplify import simplify
from speqc.onnx_state import find_kv_pairs
from speqc.onnx_types import dense_value, element_type, property_value, tensor_type
from speqc.onnx_weights import choose_types, pure_weights
from speqc.runtime.errors import SpeqcError
from speqc.tensor_store import TensorStore


@dataclass(frozen=True)
class Imported:
    """What an ONNX file became: the module, its tensors, and notes for the user (one line each)."""

    module: ModuleOp
    tensors: TensorStore
    notes: list[str]


def import_model(
    path: str | Path, allow_fp32_to_fp16: bool = False, *, weights: bool = True
) -> Imported:
    """Read, simplify and translate the model at `path`.

    FP32 matrices whose values FP16 holds exactly become FP16 with a `Cast` behind them; other
    weights are an error unless `allow_fp32_to_fp16` rounds them. With `weights` off, tensors that
    IR holds by reference are not read and may be missing; what would depend on their values is
    assumed (see the notes). Raises SpeqcError, naming the file, for a model that can't be used.
    """
    model = open_model(path, weights=weights)
    try:
        simplify(model)
        check_types(model)
        check_nodes(model)
        drop_other_outputs(model)
        types = choose_types(model, allow_fp32_to_fp16, without_weights=not weights)
        store = TensorStore(source_files(model), scanned=weights)
        module = _Importer(model, store, types.demoted).module()
    except SpeqcError as error:
        raise SpeqcError(f"{path}: {error}") from error
    return Imported(module, store, [*types.notes, *notes_on_conversions(model.graph)])


class _Importer:
    """Translates one graph; holds the value map."""

    def __init__(self, model: ir.Model, store: TensorStore, demoted: frozenset[str]):
        self.model = model
        self.store = store
        self.demoted = demoted
        self.block = Block(arg_types=[tensor_type(value) for value in model.graph.inputs])
        self.values: dict[ir.Value, SSAValue] = {}
        self.weights = pure_weights(model.graph)
        self.references: dict[str, Operation] = {}
        self.none: SSAValue | None = None

    def module(self) -> ModuleOp:
        """The module with its attributes."""
        graph = self.model.graph
        pairs = [
            DenseArrayBase.from_list(i64, [pair.past_input, pair.present_output])
            for pair in find_kv_pairs(self.model)
        ]
        attributes: dict[str, Attribute] = {
            "onnx.opset": IntegerAttr(self.model.opset_imports[""], i64),
            "onnx.graph_name": StringAttr(graph.name or ""),
            "onnx.producer": StringAttr(self.model.producer_name or ""),
            "onnx.input_names": _names(graph.inputs),
            "onnx.output_names": _names(graph.outputs),
            "onnx.kv_pairs": ArrayAttr(pairs),
            "onnx.logits": IntegerAttr(find_logits(self.model), i64),
        }
        return ModuleOp([self.function()], attributes)

    def function(self) -> func.FuncOp:
        """`@main`: initializers and constants first, then the nodes in their order."""
        graph = self.model.graph
        for value, argument in zip(graph.inputs, self.block.args, strict=True):
            self.values[value] = argument
            argument.name_hint = _hint(value.name)
        for value in graph.initializers.values():
            self.import_initializer(value)
        for node in graph:
            self.import_node(node)
        results = [self.values[value] for value in graph.outputs]
        self.block.add_op(func.ReturnOp(*results))
        return func.FuncOp(
            "main",
            ([arg.type for arg in self.block.args], [result.type for result in results]),
            Region(self.block),
            arg_attrs=ArrayAttr([_argument_attributes(value) for value in graph.inputs]),
            res_attrs=ArrayAttr([_argument_attributes(value) for value in graph.outputs]),
        )

    def import_initializer(self, value: ir.Value) -> None:
        """Write out a small tensor, refer to a larger one, cast a demoted one back to FP32."""
        tensor = value.const_value
        assert tensor is not None and value.name is not None
        if not value.uses() and not value.is_graph_output():
            return
        shape = tuple(tensor.shape.numpy())
        if tensor.size <= LARGEST_CONSTANT:
            result = self.add(ConstantOp(dense_value(tensor)), [value])
        elif value.name in self.demoted:
            stored = self.reference(value, TensorType(f16, shape), np.dtype(np.float16))
            cast = operator_class("onnx.Cast")(
                [stored.results[0]], [TensorType(f32, shape)], {"to": IntegerAttr(1, i64)}
            )
            result = self.add(cast, [value])
        else:
            result = self.reference(
                value, TensorType(element_type(value.dtype, value.name), shape), None
            )
        self.values[value] = result.results[0]

    def reference(
        self, value: ir.Value, result_type: TensorType, dtype: np.dtype | None
    ) -> Operation:
        """Put a tensor into the store and refer to it; equal ones share one reference.

        A weight that is another one transposed becomes an `onnx.Transpose` of that.
        """
        assert value.name is not None and value.const_value is not None
        stored = self.store.add(value.name, value.const_value, dtype)
        if (shared := self.references.get(stored.name)) is not None:
            return shared
        twin = self.store.transpose_of(stored) if value in self.weights else None
        if twin is not None and twin.name in self.references:
            op = operator_class("onnx.Transpose")(
                [self.references[twin.name].results[0]],
                [result_type],
                {"perm": DenseArrayBase.from_list(i64, [1, 0])},
            )
        else:
            op = InitializerOp(
                stored.name,
                stored.digest,
                result_type,
                stored.exponents,
                stored.zeros,
                parts=stored.parts,
            )
        self.add(op, [value])
        self.references[stored.name] = op
        return op

    def import_node(self, node: ir.Node) -> None:
        """One operator."""
        name = f"onnx.{qualified_name(node.domain, node.op_type)}"
        outputs = list(node.outputs)
        while outputs and _is_absent(outputs[-1]):
            outputs.pop()
        op = operator_class(name)(
            [self.operand(value) for value in _without_trailing_none(node.inputs)],
            [NoneType() if _is_absent(value) else tensor_type(value) for value in outputs],
            {key: property_value(attribute) for key, attribute in node.attributes.items()},
            node_location(node.name),
        )
        self.add(op, outputs)
        self.values.update(zip(outputs, op.results, strict=True))

    def operand(self, value: ir.Value | None) -> SSAValue:
        """The SSA value of an input; absent ones share one `onnx.NoValue`."""
        if value is not None:
            return self.values[value]
        if self.none is None:
            self.none = self.add(NoValueOp(), []).results[0]
        return self.none

    def add(self, op: Operation, values: Sequence[ir.Value]) -> Operation:
        """Append an operation, its results named like the values."""
        self.block.add_op(op)
        for result, value in zip(op.results, values, strict=False):
            result.name_hint = _hint(value.name)
        return op


def _without_trailing_none(values: Sequence[ir.Value | None]) -> Sequence[ir.Value | None]:
    count = max((i + 1 for i, value in enumerate(values) if value is not None), default=0)
    return values[:count]


def _is_absent(value: ir.Value) -> bool:
    """Whether an output is one that the node leaves out (passes give such a one a name)."""
    return value.shape is None and not value.uses() and not value.is_graph_output()


def _names(values: Sequence[ir.Value]) -> ArrayAttr:
    return ArrayAttr([StringAttr(value.name or "") for value in values])


def _argument_attributes(value: ir.Value) -> DictionaryAttr:
    dims = [StringAttr(str(dim)) for dim in value.shape or ()]
    return DictionaryAttr({"onnx.name": StringAttr(value.name or ""), "onnx.dims": ArrayAttr(dims)})


def _hint(name: str | None) -> str | None:
    """An ONNX name as an SSA name, without the number that xDSL would take for its own."""
    hint = re.sub(r"[^A-Za-z0-9_$.-]+", "_", name or "").strip("_")
    hint = re.sub(r"(_\d+)+$", "", hint)
    return None if not hint or hint[0].isdigit() else hint
