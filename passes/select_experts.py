"""`select-experts`: products with matrices picked from a stack, as a choice among products.

An exporter may write a mixture of experts as a tensor of all experts' matrices [E, N, K], of which
each token picks some by index, and a batch of products with those. Here that becomes a product
with each of the E matrices, and for each row the choice of the one that the index names, exact bit
for bit. `raise-experts` then sees which rows of a product are chosen.

Rows are [M, k], k matrices for each token. An exporter may have made them one dimension of M k;
from the products on they stand apart again, as [1, M, k, ...].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from xdsl.context import Context
from xdsl.dialects.builtin import (
    DenseIntOrFPElementsAttr,
    Float16Type,
    Float32Type,
    IntegerAttr,
    ModuleOp,
    TensorType,
    i1,
    i64,
)
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.onnx import ConstantOp, InitializerOp, OnnxOp, operator_class
from speqc.passes.building import Builder
from speqc.passes.matching import (
    ANY,
    RENAMINGS,
    element_type,
    main_function,
    producer,
    shape,
    tensor_type,
)
from speqc.passes.probe import operator, opset_of
from speqc.passes.row_check import ROWS_FROM_SIZES
from speqc.passes.row_rules import dynamic_axis, rows_of_result
from speqc.runtime.vector_elementwise import ELEMENTWISE

SWAP = (0, 2, 1)
"""The permutation that transposes each matrix of a stack."""


@dataclass(frozen=True)
class _Picked:
    """The matrix operand of a batched product.

    `index` names matrices of `stack`, in the order of the rows; the others' `vectors` are
    multiplied from the left by matrices [K, N], or where `transposed` by those of [N, K].
    """

    stack: InitializerOp
    index: SSAValue
    vectors: SSAValue
    transposed: bool

    @property
    def sizes(self) -> tuple[int, int]:
        """(K, N)."""
        first, second = shape(self.stack.result)[1:]
        return (second, first) if self.transposed else (first, second)


def _picked(op: Operation) -> _Picked | None:
    """What a product does, if one of its operands is picked from a stack by what TopK gave."""
    for place in (0, 1):
        found = _stack(op.operands[place])
        vectors = op.operands[1 - place]
        if found is None or len(shape(vectors)) < 3 or shape(vectors)[-2:][1 - place] != 1:
            continue
        stack, index, swapped = found
        # A matrix on the left is [N, K], and its vectors are columns.
        return _Picked(stack, index, vectors, swapped != (place == 0))
    return None


def _stack(value: SSAValue) -> tuple[InitializerOp, SSAValue, bool] | None:
    """(stack, index, whether its matrices are transposed) behind a picked matrix."""
    value, swapped = _behind_swaps(value, swapped=False)
    gather = producer(value, "Gather", "GatherND")
    if not isinstance(gather, OnnxOp):
        return None
    data, index = gather.operands
    if gather.name == "onnx.Gather" and gather.integer("axis", 0) != 0:
        return None
    if gather.name == "onnx.GatherND" and (
        gather.integer("batch_dims", 0) or shape(index)[-1] != 1
    ):
        return None
    data, swapped = _behind_swaps(data, swapped=swapped)
    if not isinstance(data.owner, InitializerOp) or not data.owner.is_stack:
        return None
    # Indices that count from the back are legal in ONNX, but top-k gives none.
    source = _source(index, *RENAMINGS, "Cast")
    if producer(source, "TopK", "ArgMax") is None:
        return None
    return data.owner, index, swapped


def _behind_swaps(value: SSAValue, *, swapped: bool) -> tuple[SSAValue, bool]:
    while (op := producer(value, "Transpose", "Cast", "Identity")) is not None:
        assert isinstance(op, OnnxOp)
        if op.name == "onnx.Transpose":
            if op.integers("perm") != SWAP:
                break
            swapped = not swapped
        value = op.operands[0]
    return value, swapped


def _source(value: SSAValue, *operators: str) -> SSAValue:
    """The value before some operators."""
    while (op := producer(value, *operators)) is not None:
        value = op.operands[0]
    return value


def places(function: FuncOp, opset: int) -> Mapping[SSAValue, int]:
    """How many places of a value's dynamic dimension belong to a token, where that is known."""
    found: dict[SSAValue, int] = {
        value: 1 for value in function.args if dynamic_axis(value) is not None
    }
    for op in function.body.block.ops:
        dynamic = [value for value in op.operands if dynamic_axis(value) is not None]
        if not dynamic and op.name in ROWS_FROM_SIZES:
            # `verify-speq` refuses other sizes than the number of tokens.
            found.update((value, 1) for value in op.results if dynamic_axis(value) is not None)
        if not dynamic or not all(value in found for value in dynamic):
            continue
        each = rows_of_result(op, found, opset)
        if each is not None:
            found.update((value, each) for value in op.results if dynamic_axis(value) is not None)
    return found


@dataclass
class _Rows:
    """Values of M k rows, and what holds the same elements as [1, M, k, width]."""

    places: Mapping[SSAValue, int]
    apart: dict[SSAValue, SSAValue] = field(default_factory=dict)

    def each(self, value: SSAValue, behind: int) -> int | None:
        """Rows for each token of a value with `behind` dimensions behind its rows."""
        sizes = shape(value)[: len(shape(value)) - behind]
        axis = dynamic_axis(value)
        if axis is None or value not in self.places or axis >= len(sizes):
            return None
        return self.places[value] * prod(sizes[axis + 1 :]) if prod(sizes[:axis]) == 1 else None

    def select(self, op: OnnxOp) -> bool:
        """Replace a product with picked matrices; whether there was one."""
        picked = _picked(op)
        if picked is None:
            return False
        result = op.results[0]
        each, (k, n) = self.each(result, 2), picked.sizes
        given = self.each(picked.vectors, 2)
        if each is None or given not in (each, 1):
            return False
        builder = Builder(op)
        input = self.view(picked.vectors, given, k, builder)
        if given != each:
            sizes = (1, ANY, each, k)
            repeat = builder.integers([1, 1, each, 1])
            input = builder.onnx("Expand", [input, repeat], tensor_type(element_type(input), sizes))
        index = self.view(_source(picked.index, *RENAMINGS, "Cast"), each, 1, builder)
        type = tensor_type(element_type(result), (1, ANY, each, n))
        chosen = _zero(builder, result)
        for part in range(shape(picked.stack.result)[0]):
            stored = picked.stack.matrix(part)
            matrix = builder.add(stored)
            assert matrix is not None
            if picked.transposed:
                matrix = builder.transpose(matrix, (1, 0))
            matrix = builder.cast(matrix, element_type(result))
            product = builder.onnx("MatMul", [input, matrix], type)
            name = builder.integers([part])
            mask = builder.onnx("Equal", [index, name], tensor_type(i1, shape(index)))
            chosen = builder.onnx("Where", [mask, product, chosen], type)
        self.apart[result] = chosen
        return True

    def view(self, value: SSAValue, each: int, width: int, builder: Builder) -> SSAValue:
        """A value of rows as [1, M, each, width]."""
        if value in self.apart:
            return self.apart[value]
        before = _source(value, *RENAMINGS)
        if before in self.apart and prod(shape(self.apart[before])[2:]) == each * width:
            before = self.apart[before]
        return builder.reshape(before, (1, ANY, each, width))

    def follow(self, op: Operation) -> None:
        """Have an operation work on rows that stand apart, if one of its operands has them."""
        if not any(value in self.apart for value in op.operands):
            return
        if isinstance(op, OnnxOp) and (
            self._renaming(op) or self._elementwise(op) or self._split(op)
        ):
            return
        builder = Builder(op)
        for place, value in enumerate(op.operands):
            if value in self.apart:
                op.operands[place] = builder.reshape(self.apart[value], shape(value))

    def _width(self, value: SSAValue) -> int | None:
        """Elements of a row, if a value is rows [M k, ...] as they stand in `apart`."""
        sizes = shape(value)
        if dynamic_axis(value) != 0 or value not in self.places:
            return None
        return prod(sizes[1:]) if sum(size != 1 for size in sizes[1:]) <= 1 else None

    def _renaming(self, op: OnnxOp) -> bool:
        if operator(op) not in RENAMINGS:
            return False
        rows, result = self.apart[op.operands[0]], op.results[0]
        each, width = shape(rows)[2:]
        if self.places.get(result) == each and self._width(result) == width:
            self.apart[result] = rows
        else:
            result.replace_all_uses_with(Builder(op).reshape(rows, shape(result)))
        return True

    def _elementwise(self, op: OnnxOp) -> bool:
        if operator(op) not in (*ELEMENTWISE, "Cast") or self._width(op.results[0]) is None:
            return False
        each = self.places[op.results[0]]
        rank = len(shape(op.results[0]))
        widths: list[int] = []
        for value in op.operands:
            if value not in self.places:
                if prod(shape(value)) != 1:
                    return False
                widths.append(0)
            elif (width := self._width(value)) is None or len(shape(value)) != rank:
                return False
            else:
                widths.append(width)
        if any(self.places[v] != each for v in op.operands if v in self.places):
            return False
        builder = Builder(op)
        operands = [
            self.view(value, each, width, builder) if width else value
            for value, width in zip(op.operands, widths, strict=True)
        ]
        self._rebuild(op, operands, each, builder)
        return True

    def _split(self, op: OnnxOp) -> bool:
        """A split of each row: of [M k, width] along the last dimension."""
        if operator(op) != "Split" or op.operands[0] not in self.apart:
            return False
        value = op.operands[0]
        if len(shape(value)) != 2 or op.integer("axis", 0) not in (1, -1):
            return False
        operands = [self.apart[value], *op.operands[1:]]
        self._rebuild(op, operands, self.places[value], Builder(op))
        return True

    def _rebuild(self, op: OnnxOp, operands: list[SSAValue], each: int, builder: Builder) -> None:
        """The operation on other operands, along their last dimension if along any."""
        sizes = [(1, ANY, each, prod(shape(result)[1:])) for result in op.results]
        properties = dict(op.properties)
        if "axis" in properties:
            properties["axis"] = IntegerAttr(-1, i64)
        types = [
            tensor_type(element_type(result), size)
            for result, size in zip(op.results, sizes, strict=True)
        ]
        new = operator_class(op.name)(operands, types, properties)
        builder.add(new)
        for old, result in zip(op.results, new.results, strict=True):
            result.name_hint = old.name_hint
            self.apart[old] = result


def _zero(builder: Builder, like: SSAValue) -> SSAValue:
    """Zero, of the element type of `like`."""
    type = element_type(like)
    assert isinstance(type, Float16Type | Float32Type)
    op = ConstantOp(DenseIntOrFPElementsAttr.from_list(TensorType(type, []), [0.0]))
    builder.add(op)
    return op.output


@dataclass(frozen=True)
class SelectExpertsPass(ModulePass):
    """Turn products with matrices picked from a stack into a choice among products."""

    name = "select-experts"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite all such products of the imported function."""
        function = main_function(op)
        if function is None or not any(_is_product(inner) for inner in function.walk()):
            return
        rows = _Rows(places(function, opset_of(op)))
        for inner in list(function.body.block.ops):
            if isinstance(inner, ReturnOp) or not (_is_product(inner) and _select(rows, inner)):
                rows.follow(inner)
        region_dce(op.body)


def _is_product(op: Operation) -> bool:
    return op.name == "onnx.MatMul" and _picked(op) is not None


def _select(rows: _Rows, op: Operation) -> bool:
    assert isinstance(op, OnnxOp)
    return rows.select(op)
