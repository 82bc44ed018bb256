"""The `pe` dialect: programs of a processing-element (PE) array with a draft and a full mode.

Step functions stay `func.func`; every dynamic dimension is M, the number of new tokens. Tensors
are activations on chip; a `!pe.stream` is data on its way from DRAM into the banks of the weight
SRAM, started by an asynchronous load and consumed, block by block, by exactly one compute op.
Loads are consumed in the order in which they are issued.

The order of operations is the order of issue: a load may start once the compute op before it has
started, so a load that stands further ahead of its consumer is fetched earlier.
"""

from collections.abc import Sequence
from typing import ClassVar

from xdsl.dialects.builtin import (
    I64,
    AnyDenseElement,
    DenseIntOrFPElementsAttr,
    DictionaryAttr,
    FlatSymbolRefAttrConstr,
    IntegerAttr,
    IntegerType,
    StringAttr,
    SymbolRefAttr,
    TensorType,
    i64,
)
from xdsl.dialects.utils import EnumAttribute
from xdsl.ir import (
    Attribute,
    Dialect,
    ParametrizedAttribute,
    SpacedOpaqueSyntaxAttribute,
    SSAValue,
    TypeAttribute,
)
from xdsl.irdl import (
    AttrSizedOperandSegments,
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
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.str_enum import StrEnum

from speqc.dialects.dense import print_dense
from speqc.dialects.digests import digest_error
from speqc.dialects.speq import (
    PREDICATE,
    AttentionBase,
    View,
    ViewAttr,
    ViewType,
    tensor_types,
    verify_attention,
    verify_predicate,
    verify_product,
)

TENSOR = TensorType.constr()
INT_TENSOR = TensorType.constr(base(IntegerType))


class Unit(StrEnum):
    """Where attention computes its scores and weighted values."""

    ARRAY = "array"
    VECTOR = "vector"


@irdl_attr_definition
class UnitAttr(EnumAttribute[Unit], SpacedOpaqueSyntaxAttribute):
    """The compute unit of an operation that could run on either."""

    name = "pe.unit"


class CacheHalf(StrEnum):
    """Which half of a KV cache a load streams."""

    KEYS = "keys"
    VALUES = "values"


@irdl_attr_definition
class CacheHalfAttr(EnumAttribute[CacheHalf], SpacedOpaqueSyntaxAttribute):
    """`keys` or `values`."""

    name = "pe.cache_half"


@irdl_attr_definition
class TargetAttr(ParametrizedAttribute):
    """The machine a program is for: every field of its target file, so that it describes itself."""

    name = "pe.target"

    fields: DictionaryAttr


@irdl_attr_definition
class TilingAttr(ParametrizedAttribute):
    """How a KxN weight covers the array: a grid of tiles, streamed in blocks of `per_block` tiles.

    `rows` x `columns` weights are one tile; `grid_rows` x `grid_columns` tiles cover the weight,
    padded with zeros; a block fills one SRAM bank.
    """

    name = "pe.tiling"

    rows: IntegerAttr[I64]
    columns: IntegerAttr[I64]
    grid_rows: IntegerAttr[I64]
    grid_columns: IntegerAttr[I64]
    per_block: IntegerAttr[I64]

    def __init__(self, tile: tuple[int, int], grid: tuple[int, int], per_block: int):
        super().__init__(*(IntegerAttr(value, i64) for value in (*tile, *grid, per_block)))

    @property
    def tile(self) -> tuple[int, int]:
        """Weights of one tile: (rows along K, columns along N)."""
        return self.rows.value.data, self.columns.value.data

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along (K, N)."""
        return self.grid_rows.value.data, self.grid_columns.value.data

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self.grid[0] * self.grid[1]

    @property
    def tiles_per_block(self) -> int:
        """Tiles that travel together into one bank."""
        return self.per_block.value.data

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        """Parse `<64x64, grid 9x24, per_block 8>`."""
        with parser.in_angle_brackets():
            numbers = [parser.parse_shape_dimension(allow_dynamic=False)]
            parser.parse_shape_delimiter()
            numbers.append(parser.parse_integer())
            parser.parse_punctuation(",")
            parser.parse_keyword("grid")
            numbers.append(parser.parse_shape_dimension(allow_dynamic=False))
            parser.parse_shape_delimiter()
            numbers.append(parser.parse_integer())
            parser.parse_punctuation(",")
            parser.parse_keyword("per_block")
            numbers.append(parser.parse_integer())
        return [IntegerAttr(value, i64) for value in numbers]

    def print_parameters(self, printer: Printer) -> None:
        """Print `<64x64, grid 9x24, per_block 8>`."""
        tile, grid = self.tile, self.grid
        printer.print_string(
            f"<{tile[0]}x{tile[1]}, grid {grid[0]}x{grid[1]}, per_block {self.tiles_per_block}>"
        )

    def verify(self) -> None:
        """Check that every size is positive."""
        if min(*self.tile, *self.grid, self.tiles_per_block) < 1:
            raise VerifyException("every size of a tiling must be positive")


@irdl_attr_definition
class StreamType(ParametrizedAttribute, TypeAttribute):
    """Data that an asynchronous load brings on chip: a view of a weight, or a tensor."""

    name = "pe.stream"

    content: Attribute

    def __init__(self, content: Attribute):
        super().__init__(content)

    def verify(self) -> None:
        """Check that the content is a weight view or a tensor."""
        if not isinstance(self.content, ViewType | TensorType):
            raise VerifyException(f"a stream carries a weight view or a tensor, got {self.content}")


@irdl_op_definition
class ModeOp(IRDLOperation):
    """Reconfigure the array for the width of the weights that the view of that name reads.

    `draft`: 4 bits, `wide8`: 8, `wide12`: 12, `full`: 16.
    """

    name = "pe.mode"

    mode = prop_def(ViewAttr)

    assembly_format = "$mode attr-dict"

    def __init__(self, mode: View):
        super().__init__(properties={"mode": ViewAttr(mode)})


@irdl_op_definition
class PositionsOp(IRDLOperation):
    """The positions of the step's tokens: [1, M], cache length + 0 .. M-1 (a counter)."""

    name = "pe.positions"

    T: ClassVar = VarConstraint("T", INT_TENSOR)

    tokens = operand_def(T)
    result = result_def(T)

    traits = traits_def(Pure())
    assembly_format = "$tokens attr-dict `:` type($tokens)"

    def __init__(self, tokens: SSAValue):
        super().__init__(operands=[tokens], result_types=[tokens.type])


@irdl_op_definition
class ImmediateOp(IRDLOperation):
    """A small constant that stands in the program itself (at most 64 elements)."""

    name = "pe.immediate"

    value = prop_def(DenseIntOrFPElementsAttr)
    result = result_def(TENSOR)

    traits = traits_def(Pure())

    def __init__(self, value: DenseIntOrFPElementsAttr[AnyDenseElement]):
        super().__init__(properties={"value": value}, result_types=[value.type])

    @classmethod
    def parse(cls, parser: Parser) -> "ImmediateOp":
        """Parse `dense<[1, 2]> : tensor<2xi64>`."""
        value = parser.parse_attribute()
        if not isinstance(value, DenseIntOrFPElementsAttr):
            parser.raise_error("expected a dense tensor")
        return cls(value)

    def print(self, printer: Printer) -> None:
        """Print `dense<[1, 2]> : tensor<2xi64>`."""
        printer.print_string(" ")
        print_dense(printer, self.value)

    def verify_(self) -> None:
        """Check the type and the size."""
        if self.value.type != self.result.type:
            raise VerifyException(f"value has type {self.value.type}, result {self.result.type}")
        count = self.value.type.element_count()
        if count > 64:
            raise VerifyException(f"an immediate has at most 64 elements, got {count}")


@irdl_op_definition
class LoadWeightOp(IRDLOperation):
    """Start streaming a view of a weight into the banks, in the order of its tiles.

    `block_bytes` travel per block, `last_block_bytes` in the last one (0 and all where there is
    only one). In the machine's DRAM tiles lie padded, in this order, column by column, each block
    with its scales in one contiguous piece.

    `when`: the load waits for a predicate, and moves nothing where it holds for no row.
    """

    name = "pe.load_weight"

    weight = prop_def(FlatSymbolRefAttrConstr)
    tiling = prop_def(TilingAttr)
    block_bytes = prop_def(IntegerAttr[I64])
    last_block_bytes = prop_def(IntegerAttr[I64])
    predicate = opt_operand_def(PREDICATE)
    stream = result_def(StreamType)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$weight (`when` $predicate^ `:` type($predicate))? attr-dict `:` type($stream)"
    )

    def __init__(
        self,
        weight: str,
        view: ViewType,
        tiling: TilingAttr,
        block_bytes: int,
        last_block_bytes: int,
        predicate: SSAValue | None = None,
    ):
        super().__init__(
            operands=[predicate],
            properties={
                "weight": SymbolRefAttr(weight),
                "tiling": tiling,
                "block_bytes": IntegerAttr(block_bytes, i64),
                "last_block_bytes": IntegerAttr(last_block_bytes, i64),
            },
            result_types=[StreamType(view)],
        )

    @property
    def blocks(self) -> int:
        """Blocks of the stream."""
        return -(-self.tiling.tiles // self.tiling.tiles_per_block)

    def verify_(self) -> None:
        """Check that the tiles cover the weight, no row or column of tiles too many."""
        stream = self.stream.type
        assert isinstance(stream, StreamType)
        if not isinstance(stream.content, ViewType):
            raise VerifyException(f"a weight streams as a view, got {stream.content}")
        tile, grid = self.tiling.tile, self.tiling.grid
        needed = tuple(
            -(-size // side) for size, side in zip(stream.content.shape, tile, strict=True)
        )
        if grid != needed:
            raise VerifyException(
                f"tiling: a grid of {needed[0]}x{needed[1]} tiles covers the weight, "
                f"got {grid[0]}x{grid[1]}"
            )


@irdl_op_definition
class LoadConstantOp(IRDLOperation):
    """Start streaming a constant tensor of the artifact (one block a bank)."""

    name = "pe.load_constant"

    source = prop_def(StringAttr)
    digest = prop_def(StringAttr)
    stream = result_def(StreamType)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "$source attr-dict `:` type($stream)"

    def __init__(self, source: str, digest: str, type: TensorType):
        super().__init__(
            properties={"source": StringAttr(source), "digest": StringAttr(digest)},
            result_types=[StreamType(type)],
        )

    def verify_(self) -> None:
        """Check that the stream is a static tensor, and the digest's form."""
        error = digest_error(self.digest.data)
        if error is not None:
            raise VerifyException(error)
        stream = self.stream.type
        assert isinstance(stream, StreamType)
        if not isinstance(stream.content, TensorType) or not stream.content.has_static_shape():
            raise VerifyException(f"a constant streams as a static tensor, got {stream.content}")


@irdl_op_definition
class LoadCacheOp(IRDLOperation):
    """Start streaming the keys or values of the positions that a cache holds: [KV, T, D]."""

    name = "pe.load_cache"

    cache = prop_def(FlatSymbolRefAttrConstr)
    half = prop_def(CacheHalfAttr)
    stream = result_def(StreamType)

    assembly_format = "$cache $half attr-dict `:` type($stream)"

    def __init__(self, cache: str, half: CacheHalf, type: TensorType):
        super().__init__(
            properties={"cache": SymbolRefAttr(cache), "half": CacheHalfAttr(half)},
            result_types=[StreamType(type)],
        )


@irdl_op_definition
class GatherOp(IRDLOperation):
    """Read columns of a KxN weight from DRAM by token id, exact: tokens [1, M] -> [1, M, K]."""

    name = "pe.gather"

    weight = prop_def(FlatSymbolRefAttrConstr)
    tokens = operand_def(INT_TENSOR)
    sram_row_offset = opt_prop_def(IntegerAttr[I64])
    result = result_def(TENSOR)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$weight `[` $tokens `]` attr-dict `:` `(` type($tokens) `)` `->` type($result)"
    )

    def __init__(self, weight: str, tokens: SSAValue, result_type: Attribute):
        super().__init__(
            operands=[tokens],
            properties={"weight": SymbolRefAttr(weight)},
            result_types=[result_type],
        )


@irdl_op_definition
class LookupOp(IRDLOperation):
    """Read rows of a constant of the artifact from DRAM, one for each of `indices`.

    `type` is that of the constant. As in ONNX's `Gather` along the first axis, indices from -1
    count from the last row, and the result has the sizes of `indices` and then those of a row.
    """

    name = "pe.lookup"

    source = prop_def(StringAttr)
    digest = prop_def(StringAttr)
    type = prop_def(TensorType)
    indices = operand_def(INT_TENSOR)
    sram_row_offset = opt_prop_def(IntegerAttr[I64])
    result = result_def(TENSOR)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$source `[` $indices `]` attr-dict `:` `(` $type `,` type($indices) `)` `->` type($result)"
    )

    def __init__(
        self, source: str, digest: str, type: TensorType, indices: SSAValue, result_type: Attribute
    ):
        super().__init__(
            operands=[indices],
            properties={"source": StringAttr(source), "digest": StringAttr(digest), "type": type},
            result_types=[result_type],
        )

    def verify_(self) -> None:
        """Check the digest's form, and that the result has a row of the constant for each index."""
        error = digest_error(self.digest.data)
        if error is not None:
            raise VerifyException(error)
        if not self.type.has_static_shape() or self.type.get_num_dims() < 1:
            raise VerifyException(f"rows are looked up in a static tensor, got {self.type}")
        indices = self.indices.type
        assert isinstance(indices, TensorType)
        sizes = *indices.get_shape(), *self.type.get_shape()[1:]
        expected = TensorType(self.type.element_type, sizes)
        if self.result.type != expected:
            raise VerifyException(
                f"rows of {self.type} for {indices} are {expected}, got {self.result.type}"
            )


@irdl_op_definition
class GemmOp(IRDLOperation):
    """`input` [1, M, K] times a streamed KxN weight on the array: [1, M, N].

    FP32 accumulation in ascending k. In draft mode each group's partial sum is multiplied by its
    scale and added in ascending group order; in the other modes the weights are FP16 numbers, those
    that the view shows. The sum is rounded once to the result's type.

    `when`: rows for which a predicate [1, M, 1] does not hold are not computed, and are zero.
    """

    name = "pe.gemm"

    input = operand_def(TENSOR)
    weight = operand_def(StreamType)
    predicate = opt_operand_def(PREDICATE)
    sram_row_offset = opt_prop_def(IntegerAttr[I64])
    result = result_def(TENSOR)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$input `,` $weight (`when` $predicate^ `:` type($predicate))? attr-dict `:` "
        "`(` type($input) `,` type($weight) `)` `->` type($result)"
    )

    def __init__(
        self,
        input: SSAValue,
        weight: SSAValue,
        result_type: Attribute,
        predicate: SSAValue | None = None,
    ):
        super().__init__(operands=[input, weight, predicate], result_types=[result_type])

    def verify_(self) -> None:
        """Check that the streamed operand is a weight and the shapes agree."""
        assert isinstance(self.weight.type, StreamType)
        view = self.weight.type.content
        if not isinstance(view, ViewType):
            raise VerifyException(f"weight must be a streamed weight view, got {view}")
        verify_product(self.input.type, view.shape, self.result.type)
        if self.predicate is not None:
            verify_predicate(self.predicate.type, self.input.type)


@irdl_op_definition
class VectorOp(IRDLOperation):
    """An operator on the vector unit: `kernel` names an ONNX operator, or `rms_norm`, `rotary`.

    Operands are tensors on chip or streams of constants; `attributes` are the operator's.

    `when`: rows [..., N] of the results for which a predicate does not hold are not computed, and
    are zero. The predicate has as many values as each result has rows.
    """

    name = "pe.vector"

    kernel = prop_def(StringAttr)
    inputs = var_operand_def(TENSOR | base(StreamType))
    predicate = opt_operand_def(PREDICATE)
    attributes_ = opt_prop_def(DictionaryAttr, prop_name="arguments")
    sram_row_offset = opt_prop_def(IntegerAttr[I64])
    results_ = var_result_def(TENSOR)

    irdl_options = (ParsePropInAttrDict(), AttrSizedOperandSegments(as_property=True))
    assembly_format = (
        "$kernel `(` $inputs `)` (`when` $predicate^ `:` type($predicate))? attr-dict `:` "
        "`(` type($inputs) `)` `->` type($results_)"
    )

    def __init__(
        self,
        kernel: str,
        inputs: Sequence[SSAValue],
        result_types: Sequence[Attribute],
        arguments: DictionaryAttr | None = None,
        predicate: SSAValue | None = None,
    ):
        super().__init__(
            operands=[inputs, predicate],
            properties={"kernel": StringAttr(kernel), "arguments": arguments},
            result_types=[result_types],
        )


@irdl_op_definition
class AttentionOp(AttentionBase):
    """Causal attention of M new rows over the streamed cache and the new rows themselves.

    Operands and rounding points as in `speq.attention`; `unit` says where scores and weighted
    values are computed (softmax always runs on the vector unit).
    """

    name = "pe.attention"

    query = operand_def(TENSOR)
    key = operand_def(TENSOR)
    value = operand_def(TENSOR)
    cached_keys = operand_def(StreamType)
    cached_values = operand_def(StreamType)
    unit = prop_def(UnitAttr)
    sram_row_offset = opt_prop_def(IntegerAttr[I64])
    result = result_def(TENSOR)

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = (
        "$cache `,` $query `,` $key `,` $value `,` $cached_keys `,` $cached_values `on` $unit "
        "attr-dict `:` `(` type($query) `,` type($key) `,` type($value) `,` type($cached_keys) "
        "`,` type($cached_values) `)` `->` type($result)"
    )

    def __init__(
        self,
        operands: tuple[SSAValue, SSAValue, SSAValue, SSAValue, SSAValue],
        unit: Unit,
        properties: dict[str, Attribute],
        result_type: Attribute,
    ):
        super().__init__(
            operands=operands,
            properties={**properties, "unit": UnitAttr(unit)},
            result_types=[result_type],
        )

    def verify_(self) -> None:
        """Check heads, head sizes, and what is done to the scores."""
        types = tensor_types(self.query, self.key, self.value, self.result)
        verify_attention(*types)
        self.verify_scores(types[0].get_shape()[1])


@irdl_op_definition
class AppendOp(IRDLOperation):
    """Store the step's keys and values [1, KV, M, D] behind those that the cache holds."""

    name = "pe.append"

    cache = prop_def(FlatSymbolRefAttrConstr)
    key = operand_def(TENSOR)
    value = operand_def(TENSOR)

    assembly_format = "$cache `,` $key `,` $value attr-dict `:` `(` type($key) `,` type($value) `)`"

    def __init__(self, cache: str, key: SSAValue, value: SSAValue):
        super().__init__(operands=[key, value], properties={"cache": SymbolRefAttr(cache)})


Pe = Dialect(
    "pe",
    [
        ModeOp,
        PositionsOp,
        ImmediateOp,
        LoadWeightOp,
        LoadConstantOp,
        LoadCacheOp,
        GatherOp,
        LookupOp,
        GemmOp,
        VectorOp,
        AttentionOp,
        AppendOp,
    ],
    [TargetAttr, TilingAttr, StreamType, UnitAttr, CacheHalfAttr],
)
