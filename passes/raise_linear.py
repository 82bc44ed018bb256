"""`raise-linear`: products with matrices of the model file, and look-ups of tokens in them.

A matrix becomes one `speq.weight`, whoever uses it: a table that both embeds tokens and,
transposed, gives logits is one declaration. The imported function, by then one of tokens to logits,
becomes the step function `@full`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from xdsl.context import Context
from xdsl.dialects.builtin import Float16Type, ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.transforms.dead_code_elimination import region_dce

from speqc.dialects.digests import NO_BYTES
from speqc.dialects.onnx import InitializerOp, OnnxOp
from speqc.dialects.speq import EmbeddingOp, MatmulOp, View, ViewOp, ViewType, WeightOp
from speqc.passes.argument_roles import Argument
from speqc.passes.building import Builder, replace_result
from speqc.passes.matching import (
    ANY,
    element_type,
    fail,
    main_function,
    producer,
    shape,
    tensor_type,
)
from speqc.passes.step_samples import (
    erase_arguments,
    step_arguments,
    tokens_argument,
)
from speqc.passes.weight_names import WeightNames
from speqc.runtime.errors import SpeqcError


class _Matrix(NamedTuple):
    """A tensor of the file as a [K, N] matrix; `transposed`: the file holds [N, K]."""

    tensor: InitializerOp
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        first, second = shape(self.tensor.result)
        return (second, first) if self.transposed else (first, second)


def _matrix(value: SSAValue, *, transposed: bool = False) -> _Matrix | None:
    """The matrix of the file behind casts and transpositions."""
    while (op := producer(value, "Transpose", "Cast", "Identity")) is not None:
        assert isinstance(op, OnnxOp)
        if op.name == "onnx.Transpose":
            if op.integers("perm") not in (None, (1, 0)):
                return None
            transposed = not transposed
        value = op.operands[0]
    if not isinstance(value.owner, InitializerOp) or len(shape(value)) != 2:
        return None
    return _Matrix(value.owner, transposed)


@dataclass
class _Weights:
    """Declares each matrix once."""

    function: FuncOp
    tokens: SSAValue
    names: WeightNames = field(default_factory=WeightNames)
    declared: dict[tuple, str] = field(default_factory=dict)

    def symbol(self, user: Operation, matrix: _Matrix) -> str:
        """The symbol of a matrix; `user` is the operation that needs it."""
        tensor = matrix.tensor
        # Without bytes, tensors of two names are two.
        same = tensor.digest if tensor.digest.data != NO_BYTES else (tensor.ref, tensor.part)
        key = (same, matrix.shape, matrix.transposed)
        if key not in self.declared:
            self.declared[key] = self._declare(user, matrix)
        return self.declared[key]

    def _declare(self, user: Operation, matrix: _Matrix) -> str:
        tensor = matrix.tensor
        type = element_type(tensor.result)
        if not isinstance(type, Float16Type):
            raise fail(user, f"the weight '{tensor.ref.data}' is {type}; only f16 is supported")
        part = None if tensor.part is None else tensor.part.value.data
        name = self.names.choose(user, tensor.ref.data, part)
        weight = WeightOp(
            name,
            tensor.ref.data,
            tensor.digest.data,
            matrix.shape,
            transposed=matrix.transposed,
            exponents=tensor.exponents,
            zeros=None if tensor.zeros is None else tensor.zeros.value.data,
            part=part,
        )
        Rewriter.insert_op(weight, InsertPoint.before(self.function))
        return name


def _raise_matmul(op: OnnxOp, weights: _Weights) -> SSAValue | None:
    """`onnx.MatMul` by a matrix of the file -> `speq.matmul`."""
    matrix = _matrix(op.operands[1])
    return None if matrix is None else _product(op, matrix, weights)


def _raise_gemm(op: OnnxOp, weights: _Weights) -> SSAValue | None:
    """`onnx.Gemm` by a matrix of the file -> `speq.matmul`, and an `onnx.Add` for the bias."""
    matrix = _matrix(op.operands[1], transposed=op.integer("transB", 0) == 1)
    if matrix is None or op.integer("transA", 0):
        return None
    bias = op.input("C")
    if op.number("alpha", 1) != 1 or (bias is not None and op.number("beta", 1) != 1):
        raise fail(op, "a product scaled by alpha or beta is not supported")
    product = _product(op, matrix, weights)
    if bias is None:
        return product
    return Builder(op).onnx("Add", [product, bias], op.results[0].type)


def _raise_fused(op: OnnxOp, weights: _Weights) -> SSAValue | None:
    """ONNX Runtime's product by a transposed matrix -> `speq.matmul`."""
    matrix = _matrix(op.operands[1], transposed=op.integer("transB", 0) == 1)
    others = ("transA", "transBatchA", "transBatchB")
    if matrix is None or any(op.integer(name, 0) for name in others):
        return None
    if op.number("alpha", 1) != 1:
        raise fail(op, "a product scaled by alpha is not supported")
    return _product(op, matrix, weights)


def _product(op: OnnxOp, matrix: _Matrix, weights: _Weights) -> SSAValue:
    """op's first operand, as [1, M, K] whatever its rank, times a weight, in the shape of op's.

    Some rows for each token, as [1, M, 2, K], stay apart from the tokens.
    """
    builder, result = Builder(op), op.results[0]
    rows, columns = matrix.shape
    input = op.operands[0]
    if len(shape(input)) != 3 and not (len(shape(input)) == 4 and shape(input)[:2] == (1, ANY)):
        input = builder.reshape(input, (1, ANY, rows))
    view = ViewOp(weights.symbol(op, matrix), ViewType(rows, columns, View.FULL))
    type = tensor_type(element_type(result), (*shape(input)[:-1], columns))
    product = MatmulOp(input, view.result, type)
    view.result.name_hint = product.result.name_hint = result.name_hint
    builder.add(view)
    builder.add(product)
    return builder.reshape(product.result, shape(result))


def _carried(indices: SSAValue) -> SSAValue:
    """The indices before casts, and reshapes to the shape that they have."""
    while (op := producer(indices, "Cast", "Identity", "Reshape")) is not None:
        if shape(op.operands[0]) != shape(indices):
            break
        indices = op.operands[0]
    return indices


def _raise_gather(op: OnnxOp, weights: _Weights) -> SSAValue | None:
    """`onnx.Gather` of rows by token -> `speq.embedding`."""
    table, indices = op.operands
    indices = _carried(indices)
    # The table's rows are the columns of the matrix that would give logits.
    matrix = _matrix(table, transposed=True)
    if matrix is None or indices is not weights.tokens or op.integer("axis", 0) != 0:
        return None
    exact = tensor_type(Float16Type(), shape(op.results[0]))
    embedding = EmbeddingOp(weights.symbol(op, matrix), indices, exact)
    builder = Builder(op)
    builder.add(embedding)
    return builder.cast(embedding.result, element_type(op.results[0]))


RULES = {
    "onnx.MatMul": _raise_matmul,
    "onnx.Gemm": _raise_gemm,
    "onnx.microsoft.FusedMatMul": _raise_fused,
    "onnx.Gather": _raise_gather,
}


def _check_fed(arguments: Sequence[Argument], tokens: SSAValue) -> None:
    """Raise SpeqcError if a step that came from a file needs anything but tokens."""
    for argument in arguments:
        if argument.value is not tokens:
            raise SpeqcError(
                f"input '{argument.name}' [{', '.join(argument.dims)}] is neither tokens, "
                "positions, a mask nor a cache by what the graph does with it, and its name does "
                "not tell: speqc does not know what to feed"
            )


def _name_step(module: ModuleOp, function: FuncOp) -> None:
    """Make the imported function the step function `@full`."""
    function.properties["sym_name"] = StringAttr("full")
    for name in ("arg_attrs", "res_attrs"):
        function.properties.pop(name, None)
    for name in ("onnx.input_names", "onnx.output_names", "onnx.kv_pairs"):
        module.attributes.pop(name, None)


@dataclass(frozen=True)
class RaiseLinearPass(ModulePass):
    """Raise products with matrices of the file to `speq.matmul`, look-ups to `speq.embedding`."""

    name = "raise-linear"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Raise all products and look-ups, then rename the function to `@full`.

        Raises:
            SpeqcError: a weight is not FP16, or a product has a form that is not supported.
        """
        function = main_function(op)
        if function is None:
            return
        arguments = step_arguments(op, function)
        tokens = tokens_argument(arguments)
        weights = _Weights(function, tokens)
        for candidate in list(function.body.block.ops):
            rule = RULES.get(candidate.name)
            if rule is None:
                continue
            assert isinstance(candidate, OnnxOp)
            result = rule(candidate, weights)
            if result is not None:
                replace_result(candidate, result)
        region_dce(op.body)
        unused = [a.value for a in arguments if a.value is not tokens and not a.value.uses]
        erase_arguments(op, function, unused)
        if function.arg_attrs is not None:
            _check_fed(step_arguments(op, function), tokens)
        _name_step(op, function)
