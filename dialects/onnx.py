"""The `onnx` dialect: a decoder as its ONNX file has it, one operation per operator.

The classes of the operators are generated from `onnx_schema.operator_schemas()` when the dialect is
first loaded, so that importing this module costs nothing. Operators that hold subgraphs (`If`,
`Loop`, `Scan`) are left out.

An operator prints as

    %y = onnx.Softmax %x {axis = -1 : i64} : (tensor<1x?x64xf16>) -> tensor<1x?x64xf16>

An absent optional input is the result of `onnx.NoValue`, an absent output has type `none`.
ONNX attributes are properties: `i64` and `f32` scalars, strings, `array<i64: ...>`,
`array<f32: ...>`, and dense tensors. Weights stand in IR by reference only: `onnx.initializer` has
a name, a digest and a type; `onnx.Constant` holds at most 64 elements.

The name of the ONNX node is the operation's location, `loc("/model/layers.0/MatMul")`; it is
printed with `--print-debuginfo`, parsed again, and read by `node_name`. xDSL's rewriter gives a new
operation no location: a rewrite should give it that of the operation it replaces. Of operations
with one location the last makes the node's outputs; one that makes another output says which,
`loc("/model/norm"("3"))`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from xdsl.dialects.builtin import (
    ArrayAttr,
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    FloatAttr,
    IntegerAttr,
    LocationAttr,
    NameLoc,
    NoneAttr,
    NoneType,
    StringAttr,
    TensorType,
    UnknownLoc,
    f16,
    f32,
    i64,
)
from xdsl.ir import Attribute, Dialect, Operation, SSAValue
from xdsl.irdl import (
    AttrConstraint,
    BaseAttr,
    IRDLOperation,
    MessageConstraint,
    ParsePropInAttrDict,
    irdl_op_definition,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import ConstantLike, Pure
from xdsl.utils.exceptions import VerifyException

from speqc.dialects.digests import NO_BYTES, digest_error
from speqc.dialects.onnx_schema import UNLIMITED, OperatorSchema, operator_schemas

LARGEST_CONSTANT = 64
"""The most elements that `onnx.Constant` may hold; larger tensors are `onnx.initializer`."""

EXPONENTS = 32
"""Number of bins of an `exponents` histogram: the values of FP16's exponent field."""


class OnnxOp(IRDLOperation, ABC):
    """Base of all generated operations: any operands and results that `schema()` admits."""

    inputs = var_operand_def()
    outputs = var_result_def()

    traits = traits_def(Pure())

    def __init__(
        self,
        inputs: Sequence[SSAValue],
        result_types: Sequence[Attribute],
        properties: dict[str, Attribute] | None = None,
        location: LocationAttr | None = None,
    ):
        super().__init__(
            operands=[inputs], result_types=[result_types], properties=properties or {}
        )
        self.location = location or UnknownLoc()

    @classmethod
    def schema(cls) -> OperatorSchema:
        """What ONNX says of this operator."""
        return operator_schemas()[cls.name]

    def input(self, name: str) -> SSAValue | None:
        """The input that ONNX's documentation calls `name`, or None if it is absent."""
        position = self.schema().inputs.index(name)
        if position >= len(self.operands) or isinstance(self.operands[position].type, NoneType):
            return None
        return self.operands[position]

    def integer(self, name: str, default: int) -> int:
        """The value of the integer attribute `name`, or `default` if it is absent."""
        attribute = self.properties.get(name)
        return attribute.value.data if isinstance(attribute, IntegerAttr) else default

    def integers(self, name: str) -> tuple[int, ...] | None:
        """The values of the integer-list attribute `name`, or None if it is absent."""
        attribute = self.properties.get(name)
        if not isinstance(attribute, DenseArrayBase):
            return None
        return tuple(int(value) for value in attribute.get_values())

    def number(self, name: str, default: float) -> float:
        """The value of the float attribute `name`, or `default` if it is absent."""
        attribute = self.properties.get(name)
        return attribute.value.data if isinstance(attribute, FloatAttr) else default

    def verify_(self) -> None:
        """Check counts of operands and results, empty inputs, and attribute names."""
        schema = self.schema()
        self._check_count("operand", len(self.operands), schema.min_inputs, schema.max_inputs)
        self._check_count("result", len(self.results), schema.min_outputs, schema.max_outputs)
        for position, operand in enumerate(self.operands):
            if isinstance(operand.type, NoneType) and position not in schema.optional_inputs:
                parameter = schema.inputs[min(position, len(schema.inputs) - 1)]
                raise VerifyException(f"{self.name}: operand {position} ({parameter}) is absent")
        for name in self.attributes:
            if "." not in name:
                known = ", ".join(schema.attributes) or "none"
                raise VerifyException(
                    f"{self.name}: attribute '{name}' is unknown (known: {known})"
                )

    def _check_count(self, what: str, count: int, least: int, most: int) -> None:
        if least <= count <= most:
            return
        if most >= UNLIMITED:
            expected = f"at least {least}"
        else:
            expected = str(least) if least == most else f"{least} to {most}"
        raise VerifyException(f"{self.name}: expected {expected} {what}s, got {count}")

    def print(self, printer: Printer) -> None:
        """Print operands, attributes and types, without parentheses round the operands."""
        if self.operands:
            printer.print_string(" ")
            printer.print_list(self.operands, printer.print_operand)
        printer.print_op_attributes(self.properties | self.attributes)
        printer.print_string(" : ")
        printer.print_function_type(self.operand_types, self.result_types)

    @classmethod
    def parse(cls, parser: Parser) -> OnnxOp:
        """Parse what `print` prints."""
        operands = parser.parse_optional_undelimited_comma_separated_list(
            parser.parse_optional_unresolved_operand, parser.parse_unresolved_operand
        )
        attributes = parser.parse_optional_attr_dict()
        parser.parse_punctuation(":")
        position = parser.pos
        types = parser.parse_function_type()
        known = cls.schema().attributes
        return cls.create(
            operands=parser.resolve_operands(operands or (), types.inputs.data, position),
            result_types=types.outputs.data,
            properties={name: value for name, value in attributes.items() if name in known},
            attributes={name: value for name, value in attributes.items() if name not in known},
        )


MatrixFacts = tuple[str, Sequence[int], int]
"""Digest, histogram of exponents, and number of zeros of an FP16 matrix."""


@irdl_op_definition
class NoValueOp(IRDLOperation):
    """Stands for an optional input that the node leaves empty."""

    name = "onnx.NoValue"

    result = result_def(NoneType)

    traits = traits_def(Pure())
    assembly_format = "attr-dict"

    def __init__(self):
        super().__init__(result_types=[NoneType()])


@irdl_op_definition
class InitializerOp(IRDLOperation):
    """A tensor of the model by reference: its bytes lie in the tensor store under `ref`.

    `digest` is the SHA-256 of the tensor's little-endian bytes in row-major order, or "none" for a
    tensor of which nothing but its type is known. FP16 matrices with bytes also carry `exponents`,
    how many values have each value of FP16's exponent field (32 bins), and `zeros`, how many
    values are zero of either sign.

    A stack of matrices, FP16 of three dimensions, has in `parts` the same three facts of each of
    them; `part` says that the result is one matrix of the stack `ref`.
    """

    name = "onnx.initializer"

    ref = prop_def(StringAttr)
    digest = prop_def(StringAttr)
    exponents = opt_prop_def(DenseArrayBase.constr(i64))
    zeros = opt_prop_def(IntegerAttr.constr(i64))
    part = opt_prop_def(IntegerAttr.constr(i64))
    parts = opt_prop_def(ArrayAttr)
    result = result_def(TensorType)

    traits = traits_def(Pure())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "$ref `,` $digest attr-dict `:` type($result)"

    def __init__(
        self,
        ref: str,
        digest: str,
        result_type: TensorType,
        exponents: Sequence[int] | None = None,
        zeros: int | None = None,
        *,
        parts: Sequence[MatrixFacts] = (),
        part: int | None = None,
    ):
        facts = [
            ArrayAttr([fact for fact in _matrix_properties(*part).values() if fact is not None])
            for part in parts
        ]
        properties: dict[str, Attribute | None] = {
            "ref": StringAttr(ref),
            **_matrix_properties(digest, exponents, zeros),
            "part": None if part is None else IntegerAttr(part, i64),
            "parts": ArrayAttr(facts) if parts else None,
        }
        super().__init__(result_types=[result_type], properties=properties)

    def verify_(self) -> None:
        """Check the digest's form and the histogram's length and total."""
        error = digest_error(self.digest.data, self.exponents, self.zeros, self.parts)
        if error is not None:
            raise VerifyException(error)
        if self.exponents is None:
            return
        if len(self.exponents) != EXPONENTS:
            raise VerifyException(
                f"exponents must have {EXPONENTS} bins, got {len(self.exponents)}"
            )
        size, total = self.result.type.element_count(), sum(self.exponents.get_values())
        if total != size:
            raise VerifyException(f"exponents count {total} values, the tensor has {size}")
        if self.parts is not None and len(self.parts) != self.result.type.get_shape()[0]:
            raise VerifyException(
                f"parts tell of {len(self.parts)} matrices, the tensor has type {self.result.type}"
            )

    @property
    def is_stack(self) -> bool:
        """Whether this is a stack of matrices that `matrix` can pick from."""
        if self.digest.data != NO_BYTES:
            return self.parts is not None
        return self.result.type.element_type == f16 and self.result.type.get_num_dims() == 3

    def matrix(self, part: int) -> InitializerOp:
        """One matrix of a stack, as a reference of its own."""
        sizes = self.result.type.get_shape()[1:]
        type = TensorType(self.result.type.element_type, sizes)
        op = InitializerOp(self.ref.data, NO_BYTES, type, part=part)
        if self.digest.data == NO_BYTES:
            return op
        assert self.parts is not None
        facts = self.parts.data[part]
        assert isinstance(facts, ArrayAttr)
        digest, exponents, zeros = facts
        op.properties.update(digest=digest, exponents=exponents, zeros=zeros)
        return op


def _matrix_properties(
    digest: str, exponents: Sequence[int] | None, zeros: int | None
) -> dict[str, Attribute | None]:
    return {
        "digest": StringAttr(digest),
        "exponents": None if exponents is None else DenseArrayBase.from_list(i64, exponents),
        "zeros": None if zeros is None else IntegerAttr(zeros, i64),
    }


@irdl_op_definition
class ConstantOp(IRDLOperation):
    """A tensor of at most 64 elements, as `onnx.Constant dense<[0, 1]> : tensor<2xi64>`."""

    name = "onnx.Constant"

    value = prop_def(DenseIntOrFPElementsAttr)
    output = result_def(TensorType)

    traits = traits_def(Pure(), ConstantLike())

    def __init__(self, value: DenseIntOrFPElementsAttr):
        super().__init__(result_types=[value.type], properties={"value": value})

    def verify_(self) -> None:
        """Check the type and the number of elements."""
        if self.output.type != self.value.type:
            raise VerifyException(f"value has type {self.value.type}, result {self.output.type}")
        if len(self.value) > LARGEST_CONSTANT:
            raise VerifyException(
                f"value has {len(self.value)} elements, at most {LARGEST_CONSTANT} may be written"
            )

    def print(self, printer: Printer) -> None:
        """Print the value, which names the type of the result.

        Infinities and NaN are printed as the tensor's bytes: xDSL prints a single one as a
        hexadecimal number and then reads that as an integer.
        """
        printer.print_string(" ")
        if np.isfinite(self.value.get_values()).all():
            printer.print_attribute(self.value)
        else:
            printer.print_string(f'dense<"0x{self.value.data.data.hex().upper()}"> : ')
            printer.print_attribute(self.value.type)
        printer.print_op_attributes(self.attributes)

    @classmethod
    def parse(cls, parser: Parser) -> ConstantOp:
        """Parse what `print` prints."""
        value = parser.parse_attribute()
        if not isinstance(value, DenseIntOrFPElementsAttr):
            parser.raise_error("expected a dense value")
        op = cls(value)
        op.attributes.update(parser.parse_optional_attr_dict())
        return op


_CONSTRAINTS: dict[str, tuple[AttrConstraint, str]] = {
    "int": (IntegerAttr.constr(i64), "an integer of type i64"),
    "float": (FloatAttr.constr(f32), "a number of type f32"),
    "string": (BaseAttr(StringAttr), "a string"),
    "ints": (DenseArrayBase.constr(i64), "array<i64: ...>"),
    "floats": (DenseArrayBase.constr(f32), "array<f32: ...>"),
    "strings": (ArrayAttr.constr(BaseAttr(StringAttr)), "an array of strings"),
    "tensor": (BaseAttr(DenseIntOrFPElementsAttr), "a dense tensor"),
}
"""For each kind of ONNX attribute the property it becomes, and what to say if it is another."""


def _make_class(schema: OperatorSchema) -> type[OnnxOp]:
    """The operation class of one operator."""
    members: dict[str, object] = {
        "__module__": __name__,
        "__doc__": f"ONNX operator `{schema.name}` of domain `{schema.domain or 'ai.onnx'}`.",
        "name": schema.op_name,
    }
    for attribute, kind in schema.attributes.items():
        define = prop_def if attribute in schema.required else opt_prop_def
        constraint, expected = _CONSTRAINTS[kind]
        message = f"{schema.op_name}: attribute '{attribute}' must be {expected}"
        members[f"{attribute}_property"] = define(
            MessageConstraint(constraint, message), prop_name=attribute
        )
    return irdl_op_definition(type(f"{schema.name}Op", (OnnxOp,), members))


@cache
def _operator_classes() -> dict[str, type[OnnxOp]]:
    handmade = {ConstantOp.name}
    return {
        name: _make_class(schema)
        for name, schema in operator_schemas().items()
        if name not in handmade
    }


def operator_class(name: str) -> type[OnnxOp]:
    """The class of the operation `name` ("onnx.MatMul"); KeyError if the dialect has none."""
    return _operator_classes()[name]


def node_name(op: Operation) -> str:
    """The name of the ONNX node an operation came from, or "" if its location holds none."""
    return op.location.desc.data if isinstance(op.location, NameLoc) else ""


def node_location(name: str | None) -> LocationAttr:
    """The location of an operation that came from the node `name`."""
    return NameLoc(StringAttr(name), NoneAttr()) if name else UnknownLoc()


def output_location(location: LocationAttr, output: int) -> LocationAttr:
    """The location of an operation that alone makes one output of a node, `loc("norm"("3"))`."""
    if not isinstance(location, NameLoc):
        return location
    return NameLoc(location.desc, NameLoc(StringAttr(str(output)), NoneAttr()))


def node_output(op: Operation) -> int | None:
    """Which output of its node an operation makes, where its location says so."""
    if not isinstance(op.location, NameLoc) or not isinstance(op.location.location, NameLoc):
        return None
    output = op.location.location.desc.data
    return int(output) if output.isdecimal() else None


class _OnnxDialect(Dialect):
    """Makes the operators' classes when somebody first asks for them."""

    @property
    def operations(self) -> Iterator[type[Operation]]:
        yield from super().operations
        yield from _operator_classes().values()


Onnx = _OnnxDialect("onnx", [NoValueOp, InitializerOp, ConstantOp], [])
