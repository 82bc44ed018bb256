"""FP16 and FP32 as bits: conversions and bit casts that numba inlines into its kernels.

The conversions are IEEE 754's (round to nearest, ties to even; subnormals, infinities and NaN
included). They exist as emitters of LLVM code, which serve scalars and vectors alike and take the
processor's own instruction where there is one, as numba functions on scalars, and for arrays
(`to_single`, `to_half`: many times faster than NumPy's `astype`).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

_FLOAT = ir.FloatType()
_HALF = ir.HalfType()
_I16 = ir.IntType(16)
_I32 = ir.IntType(32)

_HALF_DTYPE = np.dtype(np.float16)
_SINGLE_DTYPE = np.dtype(np.float32)

_BITS_OF_HALF = 0x3F000000
_BITS_OF_TWO_TO_112 = 0x77800000
_LEAST_NORMAL_HALF = 0x38800000
_PAST_LARGEST_HALF = 0x47800000
_SINGLE_INFINITY = 0x7F800000


def inline_llvm(typing: Any) -> Any:
    """Return numba's `intrinsic` of `typing`, without the typing context in its signature."""
    return intrinsic(typing)


def _like(value: Any, element: ir.Type) -> ir.Type:
    """Return `element`, or a vector of it as long as the vector `value`."""
    if isinstance(value.type, ir.VectorType):
        return ir.VectorType(element, value.type.count)
    return element


def _integer(value: Any, number: int) -> ir.Constant:
    """Return the constant `number` in the type of `value`, repeated if that is a vector."""
    if isinstance(value.type, ir.VectorType):
        return ir.Constant(value.type, [number] * value.type.count)
    return ir.Constant(value.type, number)


def has_half_instructions(context: Any) -> bool:
    """Say whether the processor that `context` compiles for converts FP16 by itself.

    Elsewhere LLVM would call a library function that a just-in-time program does not find.
    """
    triple, _name, features = context.codegen().magic_tuple()
    return "+f16c" in features or triple.startswith(("aarch64", "arm64"))


def emit_extend_portable(builder: Any, bits: Any) -> Any:
    """Emit FP16 bits (i16, scalar or vector) -> FP32 with integer arithmetic only."""
    wide = builder.zext(bits, _like(bits, _I32))
    magnitude = builder.and_(wide, _integer(wide, 0x7FFF))
    sign = builder.shl(builder.xor(wide, magnitude), _integer(wide, 16))
    shifted = builder.shl(magnitude, _integer(wide, 13))
    # Exact for normal and subnormal patterns: only the exponent's bias differs.
    single = _like(bits, _FLOAT)
    factor = builder.bitcast(_integer(wide, _BITS_OF_TWO_TO_112), single)
    finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, single), factor), wide.type)
    special = builder.or_(shifted, _integer(wide, _SINGLE_INFINITY))
    is_finite = builder.icmp_unsigned("<", magnitude, _integer(wide, 0x7C00))
    return builder.bitcast(builder.or_(sign, builder.select(is_finite, finite, special)), single)


def emit_truncate_portable(builder: Any, value: Any) -> Any:
    """Emit FP32 (scalar or vector) -> FP16 bits (i16) with integer arithmetic and one addition."""
    bits = builder.bitcast(value, _like(value, _I32))
    magnitude = builder.and_(bits, _integer(bits, 0x7FFFFFFF))
    sign = builder.lshr(builder.xor(bits, magnitude), _integer(bits, 16))

    rest = builder.and_(builder.lshr(magnitude, _integer(bits, 13)), _integer(bits, 1))
    rounded = builder.add(builder.add(magnitude, rest), _integer(bits, 0xFFF))
    rebiased = builder.sub(rounded, _integer(bits, 112 << 23))
    normal = builder.lshr(rebiased, _integer(bits, 13))

    # One half is 2^24 subnormal steps of FP16, so the addition rounds to just such a step.
    half = _integer(bits, _BITS_OF_HALF)
    total = builder.fadd(builder.bitcast(magnitude, value.type), builder.bitcast(half, value.type))
    subnormal = builder.sub(builder.bitcast(total, bits.type), half)

    is_nan = builder.icmp_unsigned(">", magnitude, _integer(bits, _SINGLE_INFINITY))
    special = builder.select(is_nan, _integer(bits, 0x7E00), _integer(bits, 0x7C00))
    is_small = builder.icmp_unsigned("<", magnitude, _integer(bits, _LEAST_NORMAL_HALF))
    is_large = builder.icmp_unsigned(">=", magnitude, _integer(bits, _PAST_LARGEST_HALF))
    result = builder.select(is_large, special, builder.select(is_small, subnormal, normal))
    return builder.trunc(builder.or_(sign, result), _like(value, _I16))


def emit_extend(context: Any, builder: Any, bits: Any) -> Any:
    """Emit FP16 bits (i16, scalar or vector) -> FP32, exactly, for `context`'s processor."""
    if not has_half_instructions(context):
        return emit_extend_portable(builder, bits)
    return builder.fpext(builder.bitcast(bits, _like(bits, _HALF)), _like(bits, _FLOAT))


def emit_truncate(context: Any, builder: Any, value: Any) -> Any:
    """Emit FP32 (scalar or vector) -> FP16 bits (i16), rounded once, for `context`'s processor."""
    if not has_half_instructions(context):
        return emit_truncate_portable(builder, value)
    return builder.bitcast(builder.fptrunc(value, _like(value, _HALF)), _like(value, _I16))


def inlined(source: Any, target: Any, emit: Any) -> Any:
    """Return a numba function source -> target that inlines what `emit` emits."""

    def typing(_context: Any, _value: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return emit(context, builder, arguments[0])

        return target(source), codegen

    return inline_llvm(typing)


def _reading_bits_as(target: Any) -> Any:
    """Return an emitter that reads a scalar's bits as the numba type `target`."""
    return lambda context, builder, value: builder.bitcast(value, context.get_value_type(target))


half_to_single = inlined(types.uint16, types.float32, emit_extend)
single_to_half = inlined(types.float32, types.uint16, emit_truncate)
half_to_single_portable = inlined(
    types.uint16, types.float32, lambda _context, builder, bits: emit_extend_portable(builder, bits)
)
single_to_half_portable = inlined(
    types.float32,
    types.uint16,
    lambda _context, builder, value: emit_truncate_portable(builder, value),
)
bits_of_double = inlined(types.float64, types.int64, _reading_bits_as(types.int64))
double_of_bits = inlined(types.int64, types.float64, _reading_bits_as(types.float64))


@njit(inline="always")
def rounded(value: Any, half: bool) -> Any:
    """Return an FP32 number, rounded to what FP16 holds if `half`."""
    return half_to_single(single_to_half(value)) if half else value


def _emit_place(builder: Any, buffer: Any, index: Any, kind: Any) -> Any:
    """Emit the pointer to element `index`, of LLVM type `kind`, of an array of bytes."""
    return builder.gep(builder.bitcast(buffer, kind.as_pointer()), [index])


@inline_llvm
def number_at(_context: Any, buffer: Any, _index: Any, _half: Any) -> Any:
    """Return number `index` of a byte array as FP32; the array holds FP16 if `half`, else FP32.

    With the dtype known only as it runs, one compiled kernel serves both.
    """

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(buffer)(context, builder, arguments[0]).data
        with builder.if_else(arguments[2]) as (then, otherwise):
            with then:
                bits = builder.load(_emit_place(builder, data, arguments[1], _I16), align=2)
                extended, after_half = emit_extend(context, builder, bits), builder.block
            with otherwise:
                single = builder.load(_emit_place(builder, data, arguments[1], _FLOAT), align=4)
                after_single = builder.block
        number = builder.phi(_FLOAT)
        number.add_incoming(extended, after_half)
        number.add_incoming(single, after_single)
        return number

    return types.float32(buffer, types.int64, types.boolean), codegen


@inline_llvm
def set_number(_context: Any, buffer: Any, _index: Any, _value: Any, _half: Any) -> Any:
    """Put an FP32 `value` into place `index` of a byte array, rounded to FP16 if `half`."""

    def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(buffer)(context, builder, arguments[0]).data
        with builder.if_else(arguments[3]) as (then, otherwise):
            with then:
                bits = emit_truncate(context, builder, arguments[2])
                builder.store(bits, _emit_place(builder, data, arguments[1], _I16), align=2)
            with otherwise:
                place = _emit_place(builder, data, arguments[1], _FLOAT)
                builder.store(arguments[2], place, align=4)
        return context.get_dummy_value()

    return types.void(buffer, types.int64, types.float32, types.boolean), codegen


@njit(cache=True, nogil=True)
def _extend_array(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(bits.size):
        out[i] = half_to_single(bits[i])


@njit(cache=True, nogil=True)
def _truncate_array(values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    for i in range(values.size):
        out[i] = single_to_half(values[i])


def is_half(x: NDArray[np.floating[Any]]) -> bool:
    """Say whether an array is FP16; raises TypeError if it is neither that nor FP32."""
    if x.dtype == _HALF_DTYPE:
        return True
    if x.dtype == _SINGLE_DTYPE:
        return False
    raise TypeError(f"expected float16 or float32, not {x.dtype}")


def _plain(x: NDArray[Any]) -> NDArray[Any]:
    """Return `x`, or a copy if it is read-only or not contiguous.

    For such arrays numba would compile every kernel once more.
    """
    return x if x.flags.c_contiguous and x.flags.writeable else x.copy()


def as_bytes(x: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return an array's numbers as bytes in a row, as `number_at` takes them.

    It is a view of `x` if that is contiguous and writeable, else a copy.
    """
    return _plain(x).reshape(-1).view(np.uint8)


def panel_view(x: NDArray[np.floating[Any]]) -> NDArray[np.uint16] | NDArray[np.float32]:
    """Return an array as kernels take it: FP16 as its bits (uint16), FP32 as it is.

    It is a view of `x` if that is contiguous and writeable, else a copy.
    """
    return _plain(x).view(np.uint16) if is_half(x) else _plain(x)


def to_single(x: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return an FP16 or FP32 array as FP32, contiguous and writeable: `x` itself where it is that.

    Raises TypeError for another dtype.
    """
    if not is_half(x):
        return _plain(x)
    out = np.empty(x.shape, np.float32)
    _extend_array(_plain(x).reshape(-1).view(np.uint16), out.reshape(-1))
    return out


def to_half(x: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    """Return an FP16 or FP32 array as FP16, contiguous and writeable, each number rounded once.

    What is too large becomes infinite, without a warning. Returns `x` itself where it is that
    already; raises TypeError for another dtype.
    """
    if is_half(x):
        return _plain(x)
    out = np.empty(x.shape, np.float16)
    _truncate_array(_plain(x).reshape(-1), out.reshape(-1).view(np.uint16))
    return out


def to_dtype(x: NDArray[np.floating[Any]], dtype: Any) -> NDArray[np.floating[Any]]:
    """Return an FP16 or FP32 array in `dtype`, one of the two."""
    return to_half(x) if dtype == _HALF_DTYPE else to_single(x)
