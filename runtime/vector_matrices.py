"""Matrix products of activations, in the order of `matmul`: one product after another along k."""

from collections.abc import Mapping

import numpy as np

from speqc.runtime.matmul import matmul_plain
from speqc.runtime.vector_logic import converted
from speqc.runtime.vector_op import DOUBLE, HALF, SINGLE, Array, VectorOp, arithmetic


def _product_of_matrices(a: Array, b: Array, dtype: np.dtype) -> Array:
    """Return a @ b [..., M, N]: products added in ascending k, rounded to `dtype` once."""
    if a.dtype in (HALF, SINGLE):
        return matmul_plain(a, b, dtype)
    if a.dtype != DOUBLE:
        return np.matmul(a, b)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    total = np.zeros((*batch, a.shape[-2], b.shape[-1]), DOUBLE)
    for k in range(a.shape[-1]):
        total += a[..., :, k, None] * b[..., k, None, :]
    return total


def matmul(a: Array, b: Array) -> Array:
    """Return the matrix product of activations; a vector is a row on the left, a column right."""
    left = a[None] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    result = _product_of_matrices(left, right, a.dtype)
    if a.ndim == 1:
        result = result[..., 0, :]
    return result[..., 0] if b.ndim == 1 else result


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """Return alpha * a @ b + beta * c; FP16 stays in FP32 until the end."""
    wide = SINGLE if a.dtype == HALF else a.dtype
    result = _product_of_matrices(a.T if transA else a, b.T if transB else b, wide)
    if alpha != 1.0:
        result = result * alpha
    if c is not None:
        addend = converted(c, wide)
        result = result + (addend if beta == 1.0 else addend * beta)
    return converted(result, a.dtype)


MATRICES: Mapping[str, VectorOp] = {
    "Gemm": arithmetic(gemm, 1, "product"),
    "MatMul": arithmetic(matmul, 1, "product"),
}
