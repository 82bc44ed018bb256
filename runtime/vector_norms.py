"""Running sums and products, softmax and norms.

Sums keep the order of `norms`.
"""

import math
from collections.abc import Mapping

import numpy as np

from speqc.runtime import norms
from speqc.runtime.errors import SpeqcError
from speqc.runtime.fp16 import to_single
from speqc.runtime.vector_functions import add, exp, log, multiply
from speqc.runtime.vector_half import through_single
from speqc.runtime.vector_logic import converted
from speqc.runtime.vector_op import DOUBLE, HALF, SINGLE, Array, VectorOp, arithmetic, contiguous
from speqc.runtime.vector_reductions import (
    along,
    largest_of,
    length_of,
    mean_of,
    sum_of,
    sum_of_magnitudes,
)


def softmax(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Return e**x over its sum along `axis`; FP16 is computed in FP32 and rounded once."""
    if x.dtype == DOUBLE:
        return exp(log_softmax(x, axis))
    return along(norms.softmax, x, axis)


def log_softmax(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Return the logarithm of the softmax along `axis`, rounded once."""
    wide = to_single(x) if x.dtype == HALF else x
    return converted(along(_log_softmax, wide, axis), x.dtype)


def _log_softmax(rows: Array) -> Array:
    shifted = rows - largest_of(rows)[..., None]
    return shifted - log(sum_of(exp(shifted)))[..., None]


def _running(
    combine: np.ufunc, x: Array, axis: Array, exclusive: int, reverse: int, start: int
) -> Array:
    """Return x combined with all before it along `axis`, one element after another."""
    number = int(axis.item())
    rows = np.flip(x, number) if reverse else x
    wide = SINGLE if x.dtype == HALF else x.dtype
    results = combine.accumulate(rows, number, dtype=wide)
    if exclusive:
        results = np.roll(results, 1, number)
        results[(slice(None),) * (number % x.ndim) + (0,)] = start
    return contiguous(converted(np.flip(results, number) if reverse else results, x.dtype))


def cum_sum(x: Array, axis: Array, exclusive: int = 0, reverse: int = 0) -> Array:
    """Return the running sums of x along `axis`, each one addition after another."""
    return _running(np.add, x, axis, exclusive, reverse, 0)


def cum_prod(x: Array, axis: Array, exclusive: int = 0, reverse: int = 0) -> Array:
    """Return the running products of x along `axis`, each one product after another."""
    return _running(np.multiply, x, axis, exclusive, reverse, 1)


def hard_max(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """Return 1 at the largest element along `axis` (the first of equal ones) and 0 elsewhere."""
    return along(_first_largest, x, axis)


def _first_largest(rows: Array) -> Array:
    places = np.argmax(to_single(rows) if rows.dtype == HALF else rows, -1, keepdims=True)
    return (np.arange(rows.shape[-1]) == places).astype(rows.dtype)


def normalized(x: Array, axis: int = -1, p: int = 2) -> Array:
    """Return x over the sum of its magnitudes (p = 1) or its length (p = 2) along `axis`.

    Zeros stay zeros. FP16 is computed in FP32 and rounded once.
    """
    norm = sum_of_magnitudes if p == 1 else length_of

    @through_single
    def over_norm(rows: Array) -> Array:
        size = norm(rows)[..., None]
        return np.where(size == 0, rows, rows / size)

    return along(over_norm, x, axis)


def _without_double(x: Array) -> Array:
    """Return x; SpeqcError if it is FP64, in which there are no norms."""
    if x.dtype == DOUBLE:
        raise SpeqcError("the machine has no norms of float64; export the model in float16")
    return x


def _columns(x: Array, sizes: tuple[int, ...]) -> Array:
    """Return x broadcast to `sizes`, as a vector."""
    return (x if x.shape == sizes else np.broadcast_to(x, sizes)).reshape(-1)


def layer_norm(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    num_outputs: int = 1,
) -> Array | list[Array]:
    """Return x normalised over the dimensions from `axis` on, scaled and shifted.

    Rounded as in `norms`. The second and third of `num_outputs` are the FP32 means and inverse
    deviations.
    """
    sizes = x.shape[axis % x.ndim :]
    rows = _without_double(x).reshape(-1, math.prod(sizes))
    shift = None if bias is None else _columns(bias, sizes)
    result = norms.layer_norm(rows, _columns(scale, sizes), shift, epsilon).reshape(x.shape)
    if num_outputs == 1:
        return result
    kept = (*x.shape[: axis % x.ndim], *(1 for _ in sizes))
    return [result, *(part.reshape(kept) for part in _moments(rows, epsilon))][:num_outputs]


def _moments(rows: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the means of rows, and one over the roots of their variances plus `epsilon`."""
    wide = to_single(rows)
    means = mean_of(wide)
    differences = wide - means[:, None]
    return means, 1 / np.sqrt(mean_of(differences * differences) + SINGLE.type(epsilon))


def group_norm(
    x: Array,
    scale: Array,
    bias: Array,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Array:
    """Return x [N, C, ...] normalised over each group of channels, then scaled by channel.

    Rounded as in `norms`: the normalised element, its product with `scale` [C], the sum with
    `bias` [C].
    """
    rows = _without_double(x).reshape(x.shape[0] * num_groups, -1)
    ones = np.ones(rows.shape[1], SINGLE)
    normal = norms.layer_norm(rows, ones, None, epsilon).reshape(x.shape)
    channels = [-1, *(1 for _ in x.shape[2:])]
    return add(multiply(normal, scale.reshape(channels)), bias.reshape(channels))


def instance_norm(x: Array, scale: Array, bias: Array, epsilon: float = 1e-5) -> Array:
    """Return x [N, C, ...] with each channel normalised on its own, scaled and shifted."""
    return group_norm(x, scale, bias, x.shape[1], epsilon)


def rms_norm(
    x: Array, scale: Array, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Array:
    """Return x over its root mean square over the dimensions from `axis` on, times `scale`.

    Divides by the root, as ONNX's definition does; rounded as in `norms`.
    """
    sizes = x.shape[axis % x.ndim :]
    rows = _without_double(x).reshape(-1, math.prod(sizes))
    weight = _columns(scale, sizes)
    return norms.rms_norm(rows, weight, epsilon, divide=True).reshape(x.shape)


NORMS: Mapping[str, VectorOp] = {
    "CumProd": arithmetic(cum_prod, 1),
    "CumSum": arithmetic(cum_sum, 1),
    "GroupNormalization": arithmetic(group_norm, 5),
    "Hardmax": arithmetic(hard_max, 2),
    "InstanceNormalization": arithmetic(instance_norm, 5),
    "LayerNormalization": arithmetic(layer_norm, 5),
    "LogSoftmax": arithmetic(log_softmax, 8),
    "LpNormalization": arithmetic(normalized, 3),
    "RMSNormalization": arithmetic(rms_norm, 3),
    "Softmax": arithmetic(softmax, 9),
}
