"""The `speq` dialect: a decoder LLM with bit-shared weights, and how it is decoded.

A module at this level holds

* declarations: `speq.weight` (a matrix of FP16 weights by reference, one 4-bit draft field and one
  12-bit rest field per weight), and `speq.cache` (the keys and values of one attention layer) or
  `speq.history` (the tokens so far, of a model whose steps recompute their prefix),
* step functions (`func.func`): one pass of the model over M new tokens, where every dynamic
  dimension (`?`) is M; with a history, over all tokens so far, where it is their number,
* `speq.decode`: the host program that drives the step functions (prefill, draft, verify, accept,
  truncate).

Weights never stand in the text: a declaration holds a name, a digest and a shape.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from enum import auto
from typing import ClassVar

from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    I64,
    AnyFloat,
    DenseArrayBase,
    FlatSymbolRefAttrConstr,
    Float16Type,
    Float32Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    StringAttr,
    SymbolNameConstraint,
    SymbolRefAttr,
    TensorType,
    UnitAttr,
    f32,
    f64,
    i1,
    i64,
)
from xdsl.dialects.utils import EnumAttribute
from xdsl.ir import (
    Attribute,
    Dialect,
    ParametrizedAttribute,
    Region,
    SpacedOpaqueSyntaxAttribute,
    SSAValue,
    TypeAttribute,
)
from xdsl.irdl import (
    IRDLOperation,
    ParsePropInAttrDict,
    VarConstraint,
    base,
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.traits import HasParent, IsTerminator, NoTerminator, Pure, SymbolOpInterface
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.str_enum import StrEnum

from speqc.dialects.digests import digest_error

FULL, DRAFT = "full", "draft"
"""Names of the two step functions."""

SPECULATIVE, AUTOREGRESSIVE, DRAFT_ONLY = "speculative", "autoregressive", "draft_only"
PROGRAMS = (SPECULATIVE, AUTOREGRESSIVE, DRAFT_ONLY)
"""Names of the decode programs that a finished module has."""

CONSTANT, HEURISTIC, COST = "constant", "heuristic", "cost"
SCHEDULES = (CONSTANT, HEURISTIC, COST)
"""Rules that say how many tokens a round drafts."""

EXPERTS = "speq.experts"
"""The attribute of a step function with a mixture of experts: for each router, in program order,
`array<i64: experts, chosen by a token>`. Each expert has a predicate of its own."""

CODEBOOKS = ("sets", "paper", "naive")
"""Code books that a split weight may name."""

LEVELS = ("free", "m2", "m1", "fp4", "pow2")
"""Sets of draft levels that the code book `sets` has tables for."""

COPIES: Mapping[str, int | None] = {"int4": None, "mxfp4": 32, "nvfp4": 16}
"""Formats of separate 4-bit copies: how many weights share a scale, None where any number may."""

COPY_SHIFTS = range(-15, 8)
"""Shifts of `nvfp4` copies: those under which all scales of groups are FP16 numbers."""

FLOAT = base(Float16Type) | base(Float32Type)
"""Element types that a step computes in."""

TENSOR = TensorType.constr()
INT_TENSOR = TensorType.constr(base(IntegerType))
PREDICATE = TensorType.constr(i1)

TOKENS = TensorType(i64, [1, DYNAMIC_INDEX])
"""The type of a row of token ids."""

TOKEN = TensorType(i64, [1, 1])
"""The type of one token id."""


class View(StrEnum):
    """What a step reads of a bit-shared weight."""

    DRAFT = auto()
    WIDE8 = auto()
    WIDE12 = auto()
    FULL = auto()


@irdl_attr_definition
class ViewAttr(EnumAttribute[View], SpacedOpaqueSyntaxAttribute):
    """Which of the four planes of nibbles are read, and so how near the FP16 weight is.

    `draft`: the first, a level times the group's scale; or the weight's copy. `wide8`, `wide12`:
    two or three, the exact sign and exponent with the two or six leading mantissa bits. `full`:
    all, the exact weight.
    """

    name = "speq.view_kind"


@irdl_attr_definition
class ViewType(ParametrizedAttribute, TypeAttribute):
    """A view of a bit-shared `rows` x `columns` weight (rows: the reduced dimension K)."""

    name = "speq.view"

    rows: IntegerAttr[I64]
    columns: IntegerAttr[I64]
    kind: ViewAttr

    def __init__(self, rows: int, columns: int, kind: View):
        super().__init__(IntegerAttr(rows, i64), IntegerAttr(columns, i64), ViewAttr(kind))

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.rows.value.data, self.columns.value.data

    @property
    def view(self) -> View:
        """Which bits of the weight this value stands for."""
        return self.kind.data

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        """Parse `<KxN, draft>`."""
        with parser.in_angle_brackets():
            rows = parser.parse_shape_dimension(allow_dynamic=False)
            parser.parse_shape_delimiter()
            columns = parser.parse_integer()
            parser.parse_punctuation(",")
            kind = parser.parse_str_enum(View)
        return [IntegerAttr(rows, i64), IntegerAttr(columns, i64), ViewAttr(kind)]

    def print_parameters(self, printer: Printer) -> None:
        """Print `<KxN, draft>`."""
        rows, columns = self.shape
        printer.print_string(f"<{rows}x{columns}, {self.view}>")


@irdl_op_definition
class WeightOp(IRDLOperation):
    """A weight matrix by reference; with a code book once it is split into draft and rest.

    `source` names the tensor in the model file, `transposed` says that the file holds it as
    [N, K]. `part` says which matrix of a tensor of three dimensions it is. `digest` is that of the
    tensor or part, or "none" where nothing but its type is known. `codebook`,
    `group_size` and `shift` (the weight is scaled by 2^-shift before it is encoded) stand on split
    weights, and with the code book `sets` its set of `levels` (`free` unless it is named);
    `kept` gives the reason why a weight stays plain FP16. `copy` stands on a weight that is stored
    as plain FP16 and once more in a 4-bit format, for drafts; with `group_size`, and in `nvfp4` a
    `shift` (the tensor's scale is 2^shift). `stored_bits` stands on the weights of a
    quantised model: a machine reads that many bits a weight, and a 16-bit scale per `group_size`
    weights along K. Such a program is timed, never computed.
    """

    name = "speq.weight"

    sym_name = prop_def(SymbolNameConstraint())
    source = prop_def(StringAttr)
    digest = prop_def(StringAttr)
    type = prop_def(TensorType)
    transposed = opt_prop_def(UnitAttr)
    part = opt_prop_def(IntegerAttr[I64])
    codebook = opt_prop_def(StringAttr)
    levels = opt_prop_def(StringAttr)
    group_size = opt_prop_def(IntegerAttr[I64])
    shift = opt_prop_def(IntegerAttr[I64])
    kept = opt_prop_def(StringAttr)
    stored_bits = opt_prop_def(IntegerAttr[I64])
    copy = opt_prop_def(StringAttr)
    exponents = opt_prop_def(DenseArrayBase.constr(i64))
    zeros = opt_prop_def(IntegerAttr[I64])

    traits = traits_def(SymbolOpInterface())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "$sym_name `from` $source `:` $type attr-dict"

    def __init__(
        self,
        sym_name: str,
        source: str,
        digest: str,
        shape: tuple[int, int],
        *,
        transposed: bool = False,
        exponents: DenseArrayBase[IntegerType] | None = None,
        zeros: int | None = None,
        part: int | None = None,
    ):
        super().__init__(
            properties={
                "sym_name": StringAttr(sym_name),
                "source": StringAttr(source),
                "digest": StringAttr(digest),
                "type": TensorType(Float16Type(), shape),
                "transposed": UnitAttr() if transposed else None,
                "exponents": exponents,
                "zeros": None if zeros is None else IntegerAttr(zeros, i64),
                "part": None if part is None else IntegerAttr(part, i64),
            }
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        rows, columns = self.type.get_shape()
        return rows, columns

    @property
    def is_split(self) -> bool:
        """Whether the weight is stored as draft and rest planes."""
        return self.codebook is not None

    @property
    def has_draft(self) -> bool:
        """Whether drafts may read fewer bits: of the weight itself, or of a copy."""
        return self.is_split or self.copy is not None

    @property
    def level_set(self) -> str | None:
        """The set of draft levels of a weight in the code book `sets`; else None."""
        if self.codebook != StringAttr("sets"):
            return None
        return "free" if self.levels is None else self.levels.data

    def verify_(self) -> None:
        """Check shape, element type and the fields that belong together."""
        error = digest_error(self.digest.data, self.exponents, self.zeros)
        if error is not None:
            raise VerifyException(error)
        if not isinstance(self.type.element_type, Float16Type):
            raise VerifyException(f"a weight holds f16, got {self.type.element_type}")
        if len(self.type.get_shape()) != 2 or not self.type.has_static_shape():
            raise VerifyException(f"a weight is a static KxN matrix, got {self.type}")
        if self.part is not None and self.part.value.data < 0:
            raise VerifyException(f"part must not be negative, got {self.part.value.data}")
        if self.stored_bits is not None:
            self._verify_stored(self.stored_bits.value.data)
            return
        if self.copy is not None:
            self._verify_copy(self.copy.data)
            return
        if self.codebook is None:
            if self.group_size is not None or self.shift is not None or self.levels is not None:
                raise VerifyException("levels, group_size and shift need a codebook")
            return
        if self.codebook.data not in CODEBOOKS:
            raise VerifyException(
                f"unknown codebook {self.codebook}, expected one of {', '.join(CODEBOOKS)}"
            )
        if self.levels is not None:
            self._verify_levels(self.levels.data)
        if self.kept is not None:
            raise VerifyException("a weight kept as FP16 has no codebook")
        if self.group_size is None or self.group_size.value.data < 1:
            raise VerifyException("a split weight needs a positive group_size")

    def _verify_stored(self, bits: int) -> None:
        if not 1 <= bits <= 15:
            raise VerifyException(f"stored_bits must be from 1 to 15, got {bits}")
        others = self.codebook, self.levels, self.shift, self.kept
        if any(field is not None for field in others):
            raise VerifyException(
                "a weight with stored_bits has no codebook, levels, shift or kept"
            )
        if self.copy is not None:
            raise VerifyException("a weight with stored_bits has no copy")
        if self.group_size is None or self.group_size.value.data < 1:
            raise VerifyException("a weight with stored_bits needs a positive group_size")

    def _verify_copy(self, copy: str) -> None:
        if copy not in COPIES:
            raise VerifyException(f'unknown copy "{copy}", expected one of {", ".join(COPIES)}')
        if any(field is not None for field in (self.codebook, self.levels, self.kept)):
            raise VerifyException("a weight with a copy has no codebook, levels or kept")
        if self.shift is not None and copy != "nvfp4":
            raise VerifyException(f'a shift is for nvfp4 copies, not "{copy}"')
        if self.shift is not None and self.shift.value.data not in COPY_SHIFTS:
            raise VerifyException(
                f"the shift of a copy must be from {COPY_SHIFTS.start} to {COPY_SHIFTS[-1]}, "
                f"got {self.shift.value.data}"
            )
        if self.group_size is None or self.group_size.value.data < 1:
            raise VerifyException("a weight with a copy needs a positive group_size")
        fixed, size = COPIES[copy], self.group_size.value.data
        if fixed is not None and size != fixed:
            raise VerifyException(f'copies in "{copy}" have groups of {fixed}, got {size}')

    def _verify_levels(self, levels: str) -> None:
        if self.codebook != StringAttr("sets"):
            raise VerifyException(f"levels are for the codebook sets, not {self.codebook}")
        if levels not in LEVELS:
            raise VerifyException(f'unknown levels "{levels}", expected one of {", ".join(LEVELS)}')


@irdl_op_definition
class CacheOp(IRDLOperation):
    """The keys and values of one attention layer: `heads` heads of `key_dim` / `value_dim`."""

    name = "speq.cache"

    sym_name = prop_def(SymbolNameConstraint())
    heads = prop_def(IntegerAttr[I64])
    key_dim = prop_def(IntegerAttr[I64])
    value_dim = prop_def(IntegerAttr[I64])
    element_type = prop_def(FLOAT)

    traits = traits_def(SymbolOpInterface())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "$sym_name attr-dict"

    def __init__(
        self, sym_name: str, heads: int, key_dim: int, value_dim: int, element_type: AnyFloat
    ):
        super().__init__(
            properties={
                "sym_name": StringAttr(sym_name),
                "heads": IntegerAttr(heads, i64),
                "key_dim": IntegerAttr(key_dim, i64),
                "value_dim": IntegerAttr(value_dim, i64),
                "element_type": element_type,
            }
        )

    def verify_(self) -> None:
        """Check that the sizes are positive."""
        for field in ("heads", "key_dim", "value_dim"):
            value = self.properties[field]
            assert isinstance(value, IntegerAttr)
            if value.value.data < 1:
                raise VerifyException(f"{field} must be positive, got {value.value.data}")


@irdl_op_definition
class HistoryOp(IRDLOperation):
    """The tokens fed so far: the state of a module whose steps recompute their prefix.

    A module with one has no caches. Each call of a step function then runs it over the history and
    the new tokens, from position 0: every dynamic size is their number, T. The call gives the rows
    of logits of the new tokens alone, and extends the history by them; `speq.truncate` cuts it.

    `reason` says what could not be done with caches, for the user.
    """

    name = "speq.history"

    sym_name = prop_def(SymbolNameConstraint())
    reason = prop_def(StringAttr)

    traits = traits_def(SymbolOpInterface())
    assembly_format = "$sym_name `because` $reason attr-dict"

    def __init__(self, sym_name: str, reason: str):
        super().__init__(
            properties={"sym_name": StringAttr(sym_name), "reason": StringAttr(reason)}
        )


@irdl_op_definition
class ViewOp(IRDLOperation):
    """A view of a declared weight: its draft, a wider one, or its exact values."""

    name = "speq.view"

    weight = prop_def(FlatSymbolRefAttrConstr)
    result = result_def(ViewType)

    traits = traits_def(Pure())
    assembly_format = "$weight attr-dict `:` type($result)"

    def __init__(self, weight: str, result_type: ViewType):
        super().__init__(properties={"weight": SymbolRefAttr(weight)}, result_types=[result_type])


@irdl_op_definition
class MatmulOp(IRDLOperation):
    """`input` [1, M, K] times a view of a KxN weight: [1, M, N].

    Products accumulate in FP32 in ascending k; the sum is rounded once to the result's type.

    `when`: a predicate [1, M, 1] says for which rows. The others are not computed, and are zero in
    the result; where no row of a step is computed, the weight is not read. (Rows of rows, as
    [1, M, 2, K] with a predicate [1, M, 2, 1], are rows too.)
    """

    name = "speq.matmul"

    input = operand_def(TENSOR)
    weight = operand_def(ViewType)
    predicate = opt_operand_def(PREDICATE)
    result = result_def(TENSOR)

    traits = traits_def(Pure())
    assembly_format = (
        "$input `,` $weight (`when` $predicate^ `:` type($predicate))? attr-dict `:` "
        "`(` type($input) `,` type($weight) `)` `->` type($result)"
    )

    def __init__(
        self,
        input: SSAValue,
        weight: SSAValue,
        result_type: TensorType,
        predicate: SSAValue | None = None,
    ):
        super().__init__(operands=[input, weight, predicate], result_types=[result_type])

    def verify_(self) -> None:
        """Check that the reduced and produced dimensions agree with the weight."""
        assert isinstance(self.weight.type, ViewType)
        verify_product(self.input.type, self.weight.type.shape, self.result.type)
        if self.predicate is not None:
            verify_predicate(self.predicate.type, self.input.type)


def verify_predicate(predicate: Attribute, rows: Attribute) -> None:
    """Raise unless a predicate has a value for each row of a tensor [..., K]: [..., 1]."""
    assert isinstance(predicate, TensorType) and isinstance(rows, TensorType)
    expected = (*rows.get_shape()[:-1], 1)
    if tuple(predicate.get_shape()) != expected:
        raise VerifyException(
            f"predicate must have shape {_sizes(expected)}, got {_sizes(predicate.get_shape())}"
        )


def verify_product(input: Attribute, shape: tuple[int, int], result: Attribute) -> None:
    """Raise unless [..., K] x `shape` (K, N) gives [..., N]."""
    assert isinstance(input, TensorType) and isinstance(result, TensorType)
    rows, columns = shape
    if input.get_shape()[-1] != rows:
        raise VerifyException(f"input has {input.get_shape()[-1]} columns, the weight {rows} rows")
    expected = (*input.get_shape()[:-1], columns)
    if tuple(result.get_shape()) != expected:
        raise VerifyException(
            f"result must have shape {_sizes(expected)}, got {_sizes(result.get_shape())}"
        )


def _sizes(shape: Sequence[int]) -> str:
    return f"[{', '.join('?' if size == DYNAMIC_INDEX else str(size) for size in shape)}]"


@irdl_op_definition
class EmbeddingOp(IRDLOperation):
    """Columns of a KxN weight picked by token id: tokens [1, M] -> [1, M, K], exact values."""

    name = "speq.embedding"

    weight = prop_def(FlatSymbolRefAttrConstr)
    tokens = operand_def(INT_TENSOR)
    result = result_def(TENSOR)

    traits = traits_def(Pure())
    assembly_format = (
        "$weight `[` $tokens `]` attr-dict `:` `(` type($tokens) `)` `->` type($result)"
    )

    def __init__(self, weight: str, tokens: SSAValue, result_type: TensorType):
        super().__init__(
            operands=[tokens],
            properties={"weight": SymbolRefAttr(weight)},
            result_types=[result_type],
        )


@irdl_op_definition
class PositionsOp(IRDLOperation):
    """The positions of the step's tokens: [1, M], cache length + 0 .. M-1."""

    name = "speq.positions"

    T: ClassVar = VarConstraint("T", INT_TENSOR)

    tokens = operand_def(T)
    result = result_def(T)

    traits = traits_def(Pure())
    assembly_format = "$tokens attr-dict `:` type($tokens)"

    def __init__(self, tokens: SSAValue):
        super().__init__(operands=[tokens], result_types=[tokens.type])


@irdl_op_definition
class RMSNormOp(IRDLOperation):
    """Root-mean-square normalisation over the last dimension.

    `input` is widened to FP32; y = x * (1 / sqrt(mean(x * x) + epsilon)). Without
    `scale_in_f32`, y is rounded to the result's type and then multiplied by `scale`; with it,
    y is multiplied by `scale` in FP32 and then rounded.
    """

    name = "speq.rms_norm"

    input = operand_def(TENSOR)
    scale = operand_def(TENSOR)
    epsilon = prop_def(FloatAttr)
    scale_in_f32 = opt_prop_def(UnitAttr)
    result = result_def(TENSOR)

    traits = traits_def(Pure())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$input `,` $scale attr-dict `:` `(` type($input) `,` type($scale) `)` `->` type($result)"
    )

    def __init__(
        self,
        input: SSAValue,
        scale: SSAValue,
        epsilon: float,
        result_type: TensorType,
        *,
        scale_in_f32: bool = False,
    ):
        super().__init__(
            operands=[input, scale],
            properties={
                "epsilon": FloatAttr(epsilon, Float32Type()),
                "scale_in_f32": UnitAttr() if scale_in_f32 else None,
            },
            result_types=[result_type],
        )

    def verify_(self) -> None:
        """Check that input, scale and result have one channel count."""
        shapes = [value.get_shape() for value in tensor_types(self.input, self.scale, self.result)]
        if len(shapes[1]) != 1:
            raise VerifyException(f"scale must be a vector, got shape {_sizes(shapes[1])}")
        if shapes[0][-1] != shapes[1][0]:
            raise VerifyException(f"input has {shapes[0][-1]} channels, scale has {shapes[1][0]}")
        if self.input.type != self.result.type:
            raise VerifyException("input and result must have one type")


def tensor_types(*values: SSAValue) -> Sequence[TensorType]:
    """The tensor types of values that the operation's constraints say are tensors."""
    types = [value.type for value in values]
    assert all(isinstance(type, TensorType) for type in types)
    return types  # pyright: ignore[reportReturnType]


@irdl_op_definition
class RotaryOp(IRDLOperation):
    """Rotary position embedding of `input` [1, H, M, D] by `cos` and `sin` [1, 1, M, R], R <= D.

    x * cos + rotate(x) * sin over the first R channels, each product and the sum rounded to the
    result's type; the other channels pass. rotate(x) is (-x2, x1) for the halves x1, x2, or with
    `interleaved` (-x1, x0, -x3, x2, ...).
    """

    name = "speq.rotary"

    input = operand_def(TENSOR)
    cos = operand_def(TENSOR)
    sin = operand_def(TENSOR)
    interleaved = opt_prop_def(UnitAttr)
    result = result_def(TENSOR)

    traits = traits_def(Pure())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$input `,` $cos `,` $sin attr-dict `:` "
        "`(` type($input) `,` type($cos) `,` type($sin) `)` `->` type($result)"
    )

    def __init__(
        self,
        input: SSAValue,
        cos: SSAValue,
        sin: SSAValue,
        *,
        interleaved: bool = False,
    ):
        super().__init__(
            operands=[input, cos, sin],
            properties={"interleaved": UnitAttr() if interleaved else None},
            result_types=[input.type],
        )

    def verify_(self) -> None:
        """Check that the tables agree and fit the head."""
        types = tensor_types(self.input, self.cos, self.sin)
        head, cos, sin = (type.get_shape() for type in types)
        if len({type.element_type for type in types}) > 1:
            raise VerifyException("input, cos and sin must have one element type")
        if cos != sin:
            raise VerifyException(
                f"cos and sin must have one shape, got {_sizes(cos)}, {_sizes(sin)}"
            )
        if cos[-1] > head[-1] or cos[-1] % 2:
            raise VerifyException(
                f"the rotated width must be even and at most {head[-1]}, got {cos[-1]}"
            )
        if self.result.type != self.input.type:
            raise VerifyException("input and result must have one type")


class BiasOrigin(StrEnum):
    """Where the positions of a position bias count from."""

    START = auto()
    ROW = auto()


@irdl_attr_definition
class PositionBiasAttr(ParametrizedAttribute):
    """A slope for each query head, times a position: what is added to attention scores.

    Attention with linear biases (Press et al., arXiv 2108.12409). The position of key t is t itself
    (`start`), or t less the position of the row (`row`: 0, -1, ... backwards from the row). It is
    rounded to `position_type`; its product with the slope in FP32 is rounded to `product_type`;
    score + product is rounded to `sum_type`.
    """

    name = "speq.position_bias"

    origin: StringAttr
    slopes: DenseArrayBase
    position_type: AnyFloat
    product_type: AnyFloat
    sum_type: AnyFloat

    def __init__(
        self,
        origin: BiasOrigin,
        slopes: Sequence[float],
        position_type: AnyFloat,
        product_type: AnyFloat,
        sum_type: AnyFloat,
    ):
        super().__init__(
            StringAttr(origin),
            DenseArrayBase.from_list(f32, list(slopes)),
            position_type,
            product_type,
            sum_type,
        )

    @property
    def values(self) -> tuple[float, ...]:
        """The slopes of the query heads."""
        return float_values(self.slopes)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        """Parse `<start, array<f32: 0.5, 0.25>, f32, f16, f16>`."""
        with parser.in_angle_brackets():
            parameters: list[Attribute] = [StringAttr(parser.parse_str_enum(BiasOrigin))]
            for _ in range(4):
                parser.parse_punctuation(",")
                parameters.append(parser.parse_attribute())
        return parameters

    def print_parameters(self, printer: Printer) -> None:
        """Print `<start, array<f32: 0.5, 0.25>, f32, f16, f16>`."""
        types = (self.position_type, self.product_type, self.sum_type)
        printer.print_string(f"<{self.origin.data}")
        for parameter in (self.slopes, *types):
            printer.print_string(", ")
            printer.print_attribute(parameter)
        printer.print_string(">")

    def verify(self) -> None:
        """Check the element type of the slopes and the types that are rounded to."""
        if self.slopes.elt_type != f32:
            raise VerifyException(f"slopes must be f32, got {self.slopes.elt_type}")
        for type in (self.position_type, self.product_type, self.sum_type):
            if not isinstance(type, Float16Type | Float32Type):
                raise VerifyException(f"a position bias is computed in f16 and f32, not in {type}")


def float_values(array: DenseArrayBase) -> tuple[float, ...]:
    """The numbers of an array attribute of floats."""
    return tuple(float(value) for value in array.elt_type.unpack(array.data.data, len(array)))


class AttentionBase(IRDLOperation, ABC):
    """What attention means at every level: its cache, rounding points and window.

    A row's scores, over the positions t that it sees:

    1. q.k in FP32 over ascending d, rounded to `score_type`;
    2. times `score_scale`, or divided by `score_divisor`; `softcap` * tanh(score / `softcap`): each
       operation rounded to the type that its attribute has;
    3. plus `position_bias`, rounded as it says; with `scale_behind_bias` the scale of 2 comes here;
    4. rounded to `softmax_type`, where there is one.

    The softmax is FP32: maximum, exp(score - maximum), their sum over ascending t, quotient. With
    `sinks`, one more score for each query head stands behind the last position; its probability is
    dropped. The difference is rounded to `shifted_type`, where there is one. Probabilities are
    rounded to `probability_type`; p.v is FP32 over ascending t, rounded to the result's type.
    `window`: a row sees only the last `window` positions, itself included.
    """

    cache = prop_def(FlatSymbolRefAttrConstr)
    score_type = prop_def(FLOAT)
    probability_type = prop_def(FLOAT)
    score_scale = opt_prop_def(FloatAttr)
    score_divisor = opt_prop_def(FloatAttr)
    softcap = opt_prop_def(FloatAttr)
    position_bias = opt_prop_def(PositionBiasAttr)
    scale_behind_bias = opt_prop_def(UnitAttr)
    softmax_type = opt_prop_def(FLOAT)
    sinks = opt_prop_def(DenseArrayBase)
    shifted_type = opt_prop_def(FLOAT)
    window = opt_prop_def(IntegerAttr[I64])

    def verify_scores(self, heads: int) -> None:
        """Raise unless the attributes of the scores of `heads` query heads agree."""
        if self.score_scale is not None and self.score_divisor is not None:
            raise VerifyException("scores have either a scale or a divisor, not both")
        scaling = [a for a in (self.score_scale, self.score_divisor, self.softcap) if a is not None]
        if len({a.type for a in scaling}) > 1:
            raise VerifyException("scale and soft cap must have one type")
        if any(not is_widening(self.score_type, a.type) for a in scaling):
            raise VerifyException(f"{self.score_type} scores are scaled in {scaling[0].type}")
        if self.position_bias is not None and len(self.position_bias.values) != heads:
            slopes = len(self.position_bias.values)
            raise VerifyException(f"{heads} query heads need as many slopes, got {slopes}")
        if self.scale_behind_bias is not None and (
            self.position_bias is None or self.softcap is not None or not scaling
        ):
            raise VerifyException("scale_behind_bias needs a bias and a scale, and no soft cap")
        if self.sinks is not None and (len(self.sinks) != heads or self.sinks.elt_type != f32):
            raise VerifyException(f"sinks must be {heads} numbers in f32")


def is_widening(narrow: Attribute, wide: Attribute) -> bool:
    """Whether every number of type `narrow`, f16 or f32, is one of type `wide`."""
    return narrow == wide or (isinstance(narrow, Float16Type) and isinstance(wide, Float32Type))


@irdl_op_definition
class AttentionOp(AttentionBase):
    """Causal attention of M new rows over a cache and the new rows themselves.

    `query` [1, H, M, D], `key` [1, KV, M, D], `value` [1, KV, M, E] -> [1, H, M, E]; query head h
    reads cache head h // (H / KV). Row m sees positions t <= length + m. Rounding points as in the
    source graph; `AttentionBase` has them all.
    """

    name = "speq.attention"

    query = operand_def(TENSOR)
    key = operand_def(TENSOR)
    value = operand_def(TENSOR)
    result = result_def(TENSOR)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$cache `,` $query `,` $key `,` $value attr-dict `:` "
        "`(` type($query) `,` type($key) `,` type($value) `)` `->` type($result)"
    )

    def __init__(
        self,
        cache: str,
        query: SSAValue,
        key: SSAValue,
        value: SSAValue,
        result_type: TensorType,
        *,
        score_type: AnyFloat,
        probability_type: AnyFloat,
        score_scale: FloatAttr | None = None,
        score_divisor: FloatAttr | None = None,
        softcap: FloatAttr | None = None,
        position_bias: PositionBiasAttr | None = None,
        scale_behind_bias: bool = False,
        softmax_type: AnyFloat | None = None,
        sinks: Sequence[float] | None = None,
        shifted_type: AnyFloat | None = None,
        window: int | None = None,
    ):
        super().__init__(
            operands=[query, key, value],
            properties={
                "cache": SymbolRefAttr(cache),
                "score_type": score_type,
                "probability_type": probability_type,
                "score_scale": score_scale,
                "score_divisor": score_divisor,
                "softcap": softcap,
                "position_bias": position_bias,
                "scale_behind_bias": UnitAttr() if scale_behind_bias else None,
                "softmax_type": softmax_type,
                "sinks": None if sinks is None else DenseArrayBase.from_list(f32, list(sinks)),
                "shifted_type": shifted_type,
                "window": None if window is None else IntegerAttr(window, i64),
            },
            result_types=[result_type],
        )

    def verify_(self) -> None:
        """Check heads, head sizes, and what is done to the scores."""
        types = tensor_types(self.query, self.key, self.value, self.result)
        verify_attention(*types)
        self.verify_scores(types[0].get_shape()[1])


def verify_attention(
    query: TensorType, key: TensorType, value: TensorType, result: TensorType
) -> None:
    """Raise unless the shapes are those of grouped-query attention over [1, heads, M, D]."""
    shapes = [type.get_shape() for type in (query, key, value, result)]
    if any(len(shape) != 4 for shape in shapes):
        raise VerifyException("query, key, value and result must have the shape [1, heads, M, D]")
    (_, heads, _, width), (_, kv_heads, _, key_width), (_, v_heads, _, v_width), out = shapes
    if heads % kv_heads:
        raise VerifyException(f"{heads} query heads are no multiple of {kv_heads} key heads")
    if v_heads != kv_heads:
        raise VerifyException(f"{kv_heads} key heads but {v_heads} value heads")
    if width != key_width:
        raise VerifyException(f"query heads of {width} channels, key heads of {key_width}")
    if (out[1], out[3]) != (heads, v_width):
        raise VerifyException(f"result must have {heads} heads of {v_width} channels")


@irdl_op_definition
class CausalSoftmaxOp(IRDLOperation):
    """The softmax of scores [..., T, T], each row over its own and earlier positions.

    Row t is the softmax of columns 0 to t, as ONNX's `Softmax` computes it, and zero behind them,
    whatever stands there.
    """

    name = "speq.causal_softmax"

    T: ClassVar = VarConstraint("T", TENSOR)

    scores = operand_def(T)
    result = result_def(T)

    traits = traits_def(Pure())
    assembly_format = "$scores attr-dict `:` type($scores)"

    def __init__(self, scores: SSAValue):
        super().__init__(operands=[scores], result_types=[scores.type])

    def verify_(self) -> None:
        """Check that the last two sizes are the number of tokens."""
        verify_pairs(self.scores.type)


@irdl_op_definition
class CausalMatmulOp(IRDLOperation):
    """Weights [..., T, T] times rows [..., T, N]: row t sums over its own and earlier rows.

    Products accumulate in FP32 in ascending position, from 0 to t; the sum is rounded once to the
    result's type. What stands behind position t in row t of the weights is not read.
    """

    name = "speq.causal_matmul"

    weights = operand_def(TENSOR)
    rows = operand_def(TENSOR)
    result = result_def(TENSOR)

    traits = traits_def(Pure())
    assembly_format = (
        "$weights `,` $rows attr-dict `:` `(` type($weights) `,` type($rows) `)` `->` type($result)"
    )

    def __init__(self, weights: SSAValue, rows: SSAValue, result_type: TensorType):
        super().__init__(operands=[weights, rows], result_types=[result_type])

    def verify_(self) -> None:
        """Check the sizes that are the number of tokens."""
        verify_pairs(self.weights.type)
        for field, type in (("rows", self.rows.type), ("result", self.result.type)):
            assert isinstance(type, TensorType)
            sizes = type.get_shape()
            if len(sizes) < 2 or sizes[-2] != DYNAMIC_INDEX or sizes[-1] == DYNAMIC_INDEX:
                raise VerifyException(f"{field} must have shape [..., ?, N], got {_sizes(sizes)}")


def verify_pairs(type: Attribute) -> None:
    """Raise unless a tensor has an element for each pair of tokens: [..., T, T]."""
    assert isinstance(type, TensorType)
    sizes = type.get_shape()
    if tuple(sizes[-2:]) != (DYNAMIC_INDEX, DYNAMIC_INDEX):
        raise VerifyException(f"expected pairs of tokens [..., ?, ?], got {_sizes(sizes)}")


@irdl_op_definition
class CacheAppendOp(IRDLOperation):
    """Append the new rows [1, KV, M, D] to a cache; `speq.truncate` may take them back."""

    name = "speq.cache_append"

    cache = prop_def(FlatSymbolRefAttrConstr)
    key = operand_def(TENSOR)
    value = operand_def(TENSOR)

    assembly_format = "$cache `,` $key `,` $value attr-dict `:` `(` type($key) `,` type($value) `)`"

    def __init__(self, cache: str, key: SSAValue, value: SSAValue):
        super().__init__(operands=[key, value], properties={"cache": SymbolRefAttr(cache)})


@irdl_op_definition
class DecodeOp(IRDLOperation):
    """A host program: how text is continued with the step functions, in one mode.

    The block argument is the prompt's tokens [1, M]. `draft_length`, `exit_threshold` and
    `draft_schedule` (one of `SCHEDULES`; constant where absent) are the program's defaults, which a
    run may override.
    """

    name = "speq.decode"

    sym_name = prop_def(SymbolNameConstraint())
    draft_length = opt_prop_def(IntegerAttr[I64])
    exit_threshold = opt_prop_def(FloatAttr)
    draft_schedule = opt_prop_def(StringAttr)
    body = region_def("single_block")

    traits = traits_def(NoTerminator(), SymbolOpInterface())
    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "$sym_name attr-dict-with-keyword $body"

    def __init__(
        self,
        sym_name: str,
        body: Region,
        *,
        draft_length: int | None = None,
        exit_threshold: float | None = None,
        draft_schedule: str | None = None,
    ):
        super().__init__(
            properties={
                "sym_name": StringAttr(sym_name),
                "draft_length": None if draft_length is None else IntegerAttr(draft_length, i64),
                "exit_threshold": None
                if exit_threshold is None
                else FloatAttr(exit_threshold, f64),
                "draft_schedule": None if draft_schedule is None else StringAttr(draft_schedule),
            },
            regions=[body],
        )

    def verify_(self) -> None:
        """Check the draft length, the threshold and the schedule."""
        if self.draft_length is not None and self.draft_length.value.data < 1:
            raise VerifyException("draft_length must be positive")
        if self.exit_threshold is not None and not 0 <= self.exit_threshold.value.data <= 1:
            raise VerifyException("exit_threshold must lie in [0, 1]")
        if self.draft_schedule is not None and self.draft_schedule.data not in SCHEDULES:
            raise VerifyException(f"draft_schedule must be one of {', '.join(SCHEDULES)}")


@irdl_op_definition
class CallOp(IRDLOperation):
    """One pass of a step function over `tokens` [1, M]: logits [1, M, vocabulary].

    Extends the caches or the history by M positions. With `chunk`, more than `chunk` tokens go
    through in several passes; the result is the same bit for bit.
    """

    name = "speq.call"

    callee = prop_def(FlatSymbolRefAttrConstr)
    tokens = operand_def(INT_TENSOR)
    chunk = opt_prop_def(IntegerAttr[I64])
    logits = result_def(TENSOR)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$callee `(` $tokens `)` attr-dict `:` `(` type($tokens) `)` `->` type($logits)"
    )

    def __init__(
        self, callee: str, tokens: SSAValue, result_type: TensorType, *, chunk: int | None = None
    ):
        super().__init__(
            operands=[tokens],
            properties={
                "callee": SymbolRefAttr(callee),
                "chunk": None if chunk is None else IntegerAttr(chunk, i64),
            },
            result_types=[result_type],
        )

    def verify_(self) -> None:
        """Check the chunk."""
        if self.chunk is not None and self.chunk.value.data < 1:
            raise VerifyException(f"chunk must be positive, got {self.chunk.value.data}")


@irdl_op_definition
class SampleOp(IRDLOperation):
    """The next token after the last row of `logits` [1, M, V], and its probability.

    Greedy decoding takes the lowest index of the largest logit.
    """

    name = "speq.sample"

    logits = operand_def(TENSOR)
    token = result_def(TOKEN)
    probability = result_def(Float32Type())

    assembly_format = "$logits attr-dict `:` type($logits)"

    def __init__(self, logits: SSAValue):
        super().__init__(operands=[logits], result_types=[TOKEN, Float32Type()])


@irdl_op_definition
class RepeatOp(IRDLOperation):
    """Run the body until enough tokens are emitted; it takes the last token and yields the next."""

    name = "speq.repeat"

    first = operand_def(INT_TENSOR)
    body = region_def("single_block")

    assembly_format = "`(` $first `:` type($first) `)` $body attr-dict"

    def __init__(self, first: SSAValue, body: Region):
        super().__init__(operands=[first], regions=[body])


@irdl_op_definition
class DraftOp(IRDLOperation):
    """Draft tokens one after another: the draft region.

    The body takes the last token and yields the next one, its probability and the logits that it
    was taken from. It runs at most `draft_length` times, and stops early once a probability lies
    under `exit_threshold` (the token that did is still proposed: its step is already paid). The
    program's `draft_schedule` may move the length from round to round, or stop earlier.
    """

    name = "speq.draft"

    last = operand_def(INT_TENSOR)
    body = region_def("single_block")
    drafted = result_def(TOKENS)
    logits = result_def(TENSOR)

    assembly_format = "`(` $last `:` type($last) `)` $body attr-dict `:` type($logits)"

    def __init__(self, last: SSAValue, body: Region, logits_type: TensorType):
        super().__init__(operands=[last], regions=[body], result_types=[TOKENS, logits_type])


@irdl_op_definition
class VerifyOp(IRDLOperation):
    """The verify region: one full pass over the last token and all drafted ones.

    The caches or the history are first cut back to what they held before drafting, so that the full
    model's keys and values take the place of the draft's. The body's block argument is the tokens
    [1, 1 + drafted]; it yields the logits of every row.
    """

    name = "speq.verify"

    last = operand_def(INT_TENSOR)
    drafted = operand_def(INT_TENSOR)
    body = region_def("single_block")
    logits = result_def(TENSOR)

    assembly_format = (
        "`(` $last `,` $drafted `:` type($last) `,` type($drafted) `)` $body attr-dict "
        "`:` type($logits)"
    )

    def __init__(self, last: SSAValue, drafted: SSAValue, body: Region, logits_type: TensorType):
        super().__init__(operands=[last, drafted], regions=[body], result_types=[logits_type])


@irdl_op_definition
class AcceptOp(IRDLOperation):
    """Accept the longest prefix of the drafted tokens that the full model agrees with.

    Gives the accepted tokens and one more of the full model's own (`next`). Greedy: equality of
    the arg max; sampled: rejection sampling (Leviathan et al., arXiv 2211.17192, algorithm 1).
    """

    name = "speq.accept"

    drafted = operand_def(INT_TENSOR)
    draft_logits = operand_def(TENSOR)
    logits = operand_def(TENSOR)
    accepted = result_def(TOKENS)
    next = result_def(TOKEN)

    assembly_format = (
        "$drafted `,` $draft_logits `,` $logits attr-dict `:` "
        "`(` type($drafted) `,` type($draft_logits) `,` type($logits) `)`"
    )

    def __init__(self, drafted: SSAValue, draft_logits: SSAValue, logits: SSAValue):
        super().__init__(
            operands=[drafted, draft_logits, logits],
            result_types=[TOKENS, TOKEN],
        )


@irdl_op_definition
class TruncateOp(IRDLOperation):
    """Cut the caches or the history back to the last token and the `accepted` ones behind it."""

    name = "speq.truncate"

    accepted = operand_def(INT_TENSOR)

    assembly_format = "$accepted attr-dict `:` type($accepted)"

    def __init__(self, accepted: SSAValue):
        super().__init__(operands=[accepted])


@irdl_op_definition
class EmitOp(IRDLOperation):
    """Hand tokens to the user, in order; stops the program once enough are out."""

    name = "speq.emit"

    tokens = var_operand_def(INT_TENSOR)

    assembly_format = "$tokens attr-dict `:` type($tokens)"

    def __init__(self, *tokens: SSAValue):
        super().__init__(operands=[tokens])


@irdl_op_definition
class YieldOp(IRDLOperation):
    """End of a region of the decode structure."""

    name = "speq.yield"

    values = var_operand_def()

    traits = traits_def(IsTerminator(), HasParent(RepeatOp, DraftOp, VerifyOp))
    assembly_format = "attr-dict ($values^ `:` type($values))?"

    def __init__(self, *values: SSAValue):
        super().__init__(operands=[values])


Speq = Dialect(
    "speq",
    [
        WeightOp,
        CacheOp,
        HistoryOp,
        ViewOp,
        MatmulOp,
        EmbeddingOp,
        PositionsOp,
        RMSNormOp,
        RotaryOp,
        AttentionOp,
        CausalSoftmaxOp,
        CausalMatmulOp,
        CacheAppendOp,
        DecodeOp,
        CallOp,
        SampleOp,
        RepeatOp,
        DraftOp,
        VerifyOp,
        AcceptOp,
        TruncateOp,
        EmitOp,
        YieldOp,
    ],
    [PositionBiasAttr, ViewAttr, ViewType],
)
