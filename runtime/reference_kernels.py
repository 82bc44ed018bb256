"""What each heavy kernel means, in slow and obvious Python; the fast ones match it bit for bit.

Every FP32 operation here is a NumPy operation on float32 and every FP64 one a Python float's, so
each rounds once, in the order in which it is written. Arguments and results are those of the
functions of the same name in `matmul`, `attention`, `norms` and `elementary`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from speqc.runtime.attention import AttentionSpec, PositionBias
from speqc.runtime.elementary import ERF_TERMS

FloatArray = NDArray[np.floating[Any]]
SingleArray = NDArray[np.float32]


def quiet(function: Any) -> Any:
    """Let a function overflow and meet NaN without warnings, as a machine does."""
    return np.errstate(all="ignore")(function)


@quiet
def round_to(x: FloatArray, dtype: DTypeLike) -> SingleArray:
    """Return FP32 numbers rounded to what `dtype` holds, as FP32."""
    return x.astype(dtype).astype(np.float32)


def unpack_panels(panels: NDArray[Any], n: int) -> SingleArray:
    """Return panels [NB, K, 64] as the FP32 matrix [K, n]."""
    numbers = panels.view(np.float16) if panels.dtype == np.uint16 else panels
    columns = np.concatenate(list(numbers), axis=1)
    return columns[:, :n].astype(np.float32)


@quiet
def product(x: SingleArray, w: SingleArray) -> SingleArray:
    """Return x [M, K] @ w [K, N] in FP32: from +0, one product after another in ascending k."""
    total = np.zeros((x.shape[0], w.shape[1]), np.float32)
    for k in range(x.shape[1]):
        total = total + x[:, k : k + 1] * w[k]
    return total


@quiet
def matmul_full(
    x: FloatArray, panels: NDArray[Any], n: int, out_dtype: DTypeLike = np.float16
) -> FloatArray:
    """Return x [M, K] @ w [K, n] for a weight in panels."""
    return product(x.astype(np.float32), unpack_panels(panels, n)).astype(out_dtype)


@quiet
def matmul_draft(
    x: FloatArray,
    panels: NDArray[Any],
    scales: NDArray[np.float16],
    group_size: int,
    n: int,
    out_dtype: DTypeLike = np.float16,
) -> FloatArray:
    """Return the sum over groups along K, in ascending order, of (x @ w) * |scale|."""
    single, w = x.astype(np.float32), unpack_panels(panels, n)
    factors = np.abs(unpack_panels(scales, n))
    total = np.zeros((x.shape[0], n), np.float32)
    for group, factor in enumerate(factors):
        part = slice(group * group_size, (group + 1) * group_size)
        total = total + product(single[:, part], w[part]) * factor
    return total.astype(out_dtype)


@quiet
def matmul_plain(a: FloatArray, b: FloatArray, out_dtype: DTypeLike | None = None) -> FloatArray:
    """Return a @ b for activations [..., M, K] and [..., K, N], batch axes broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left = np.broadcast_to(a, (*batch, *a.shape[-2:])).astype(np.float32)
    right = np.broadcast_to(b, (*batch, *b.shape[-2:])).astype(np.float32)
    out = np.empty((*batch, a.shape[-2], b.shape[-1]), out_dtype or np.result_type(a, b))
    for index in np.ndindex(batch):
        out[index] = product(left[index], right[index])
    return out


@quiet
def attention(
    q: FloatArray, keys: FloatArray, values: FloatArray, past: int, spec: AttentionSpec
) -> FloatArray:
    """Return the attention of queries [H, M, D] to keys [KV, T, D] and values [KV, T, DV]."""
    heads, count, _ = q.shape
    group = heads // keys.shape[0]
    out = np.empty((heads, count, values.shape[2]), spec.out_dtype)
    for head in range(heads):
        for m in range(count):
            stop = past + m + 1
            start = 0 if spec.window is None else max(0, stop - spec.window)
            key = keys[head // group, start:stop].astype(np.float32)
            value = values[head // group, start:stop].astype(np.float32)
            query = q[head, m : m + 1].astype(np.float32)
            weights = _probabilities(product(query, key.T), spec, head, start, past + m)
            out[head, m] = product(weights, value)[0]
    return out


def _probabilities(
    sums: SingleArray, spec: AttentionSpec, head: int, start: int, position: int
) -> SingleArray:
    """Return the probabilities [1, T] of a row at `position` for its sums q . k from `start` on."""
    scores = round_to(sums, spec.score_dtype)
    if not spec.scale_behind_bias:
        scores = _scaled(scores, spec)
    if spec.softcap is not None:
        cap, dtype = np.float32(spec.softcap), spec.scale_dtype or spec.score_dtype
        bounded = round_to(each(tanh, round_to(scores / cap, dtype)), dtype)
        scores = round_to(bounded * cap, dtype)
    if spec.bias is not None:
        for i in range(scores.shape[1]):
            biased = scores[:, i] + _position_bias(spec.bias, head, start + i, position)
            scores[:, i] = round_to(biased, spec.bias.sum_dtype)
    if spec.scale_behind_bias:
        scores = _scaled(scores, spec)
    scores = round_to(scores, spec.softmax_dtype)
    positions = scores.shape[1]
    if spec.sinks is not None:
        sink = np.array([[spec.sinks[head]]], np.float32)
        scores = np.concatenate([scores, sink], axis=1)
    scores = round_to(scores - np.fmax.reduce(scores, axis=1, keepdims=True), spec.shifted_dtype)
    return round_to(softmax(scores), spec.prob_dtype)[:, :positions]


def _scaled(scores: SingleArray, spec: AttentionSpec) -> SingleArray:
    """Return scores times their factor, or over their divisor."""
    dtype = spec.scale_dtype or spec.score_dtype
    if spec.score_divisor is not None:
        return round_to(scores / np.float32(spec.score_divisor), dtype)
    if spec.score_scale is not None:
        return round_to(scores * np.float32(spec.score_scale), dtype)
    return scores


def _position_bias(bias: PositionBias, head: int, t: int, position: int) -> SingleArray:
    """Return what is added to a score of the row at `position` for the key at t, as [1]."""
    counted = np.array([t - position if bias.from_row else t], np.float32)
    product = np.float32(bias.slopes[head]) * round_to(counted, bias.position_dtype)
    return round_to(product, bias.product_dtype)


@quiet
def lane_sum(row: SingleArray) -> np.float32:
    """Return the sum of a row in the vector unit's order: 16 partial sums, then a tree."""
    lanes = [np.float32(0.0)] * 16
    for i, number in enumerate(row):
        lanes[i % 16] = lanes[i % 16] + number
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


@quiet
def reduce_sum_lastdim(x: FloatArray, out_dtype: DTypeLike | None = None) -> FloatArray:
    """Return the sums of rows [M, C]."""
    return _sums(x).astype(out_dtype or x.dtype)


@quiet
def reduce_mean_lastdim(x: FloatArray, out_dtype: DTypeLike | None = None) -> FloatArray:
    """Return the means of rows [M, C]."""
    return (_sums(x) / np.float32(x.shape[1])).astype(out_dtype or x.dtype)


def _sums(x: FloatArray) -> SingleArray:
    """Return the FP32 sums of rows [M, C]."""
    return np.array([lane_sum(row) for row in x.astype(np.float32)], np.float32)


@quiet
def rms_norm(
    x: FloatArray,
    weight: FloatArray,
    epsilon: float,
    *,
    weight_in_f32: bool = False,
    divide: bool = False,
) -> FloatArray:
    """Return rows [M, C] over their root mean square, times `weight`."""
    normal = _unit_rows(x.astype(np.float32), epsilon, divide)
    dtype = np.float32 if weight_in_f32 else x.dtype
    return (round_to(normal, dtype) * weight.astype(np.float32)).astype(x.dtype)


@quiet
def layer_norm(
    x: FloatArray,
    scale: FloatArray,
    bias: FloatArray | None,
    epsilon: float,
    *,
    weight_in_f32: bool = False,
    divide: bool = False,
) -> FloatArray:
    """Return rows [M, C] less their mean, over their standard deviation, times scale, plus bias."""
    single = x.astype(np.float32)
    means = _sums(single) / np.float32(x.shape[1])
    centred = single - means.reshape(-1, 1)
    dtype = np.float32 if weight_in_f32 else x.dtype
    normal = round_to(_unit_rows(centred, epsilon, divide), dtype)
    scaled = round_to(normal * scale.astype(np.float32), dtype)
    shifted = scaled if bias is None else scaled + bias.astype(np.float32)
    return shifted.astype(x.dtype)


def _unit_rows(x: FloatArray, epsilon: float, divide: bool) -> FloatArray:
    """Return FP32 rows divided by sqrt(mean(row**2) + epsilon)."""
    mean = _sums(x * x).reshape(-1, 1) / np.float32(x.shape[1])
    root = np.sqrt(mean + np.float32(epsilon))
    return x / root if divide else x * (np.float32(1.0) / root)


@quiet
def softmax(x: FloatArray) -> FloatArray:
    """Return the softmax of rows [M, C]."""
    out = np.empty(x.shape, x.dtype)
    for place, row in zip(out, x.astype(np.float32), strict=True):
        exponentials = _exponentials(row)
        place[:] = exponentials / _ascending_sum(exponentials)
    return out


def _exponentials(row: SingleArray) -> SingleArray:
    """Return exp(row - maximum), where NaN is no maximum."""
    return each(exp, row - np.fmax.reduce(row))


def _ascending_sum(row: SingleArray) -> np.float32:
    """Return the FP32 sum from +0, one number after another."""
    total = np.float32(0.0)
    for number in row:
        total = total + number
    return total


def argmax_rows(logits: FloatArray) -> NDArray[np.int64]:
    """Return the place of each row's largest number: the lowest of a tie, never a NaN."""
    places = []
    for row in logits:
        best = 0
        for i, number in enumerate(row):
            if number > row[best] or (np.isnan(row[best]) and not np.isnan(number)):
                best = i
        places.append(best)
    return np.array(places, np.int64)


@quiet
def top_probability(logits: FloatArray) -> float:
    """Return 1 / sum(exp(l - maximum)) in FP32, added in ascending order."""
    return float(np.float32(1.0) / _ascending_sum(_exponentials(logits.astype(np.float32))))


@quiet
def each(function: Any, x: SingleArray) -> SingleArray:
    """Return a function of Python floats for each element, rounded to FP32."""
    results = [function(float(number)) for number in x.reshape(-1)]
    return np.array(results, np.float64).astype(np.float32).reshape(x.shape)


def polynomial(terms: list[float] | tuple[float, ...], x: float) -> float:
    """Return sum(terms[n] * x**n) by Horner's rule."""
    total = terms[-1]
    for term in reversed(terms[:-1]):
        total = total * x + term
    return total


def split_exponent(x: float) -> tuple[int, float]:
    """Return k and r with x = k log 2 + r, k a whole number and |r| at most about log(2) / 2."""
    log_2 = math.log(2.0)
    k = round(x * (1.0 / log_2))
    return k, x - k * log_2


def exp(x: float) -> float:
    """Return e**x as 2**k times the Taylor series of e**r."""
    if math.isnan(x):
        return x
    k, r = split_exponent(min(max(x, -150.0), 130.0))
    return math.ldexp(polynomial([1.0 / math.factorial(n) for n in range(12)], r), k)


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e**-x)."""
    return 1.0 / (1.0 + exp(-x))


def tanh(x: float) -> float:
    """Return q / (q + 2) for q = e**2x - 1 = 2**k (e**r - 1) + (2**k - 1), with the sign of x."""
    if math.isnan(x):
        return x
    k, r = split_exponent(min(2.0 * abs(x), 20.0))
    series = polynomial([1.0 / math.factorial(n + 1) for n in range(12)], r)
    q = 2.0**k * (r * series) + (2.0**k - 1.0)
    return math.copysign(q / (q + 2.0), x)


def erf(x: float) -> float:
    """Return the error function by its polynomial."""
    if math.isnan(x):
        return x
    clamped = min(max(x, -4.0), 4.0)
    return clamped * polynomial(ERF_TERMS, clamped * clamped * 0.125 - 1.0)


def twice_atanh(s: float) -> float:
    """Return log((1 + s) / (1 - s)) by the Taylor series."""
    return 2.0 * s * polynomial([1.0 / (2 * n + 1) for n in range(13)], s * s)


def log(x: float) -> float:
    """Return the logarithm as k log 2 + log f, with f between the roots of 1/2 and 2."""
    if not x > 0.0:
        return -math.inf if x == 0.0 else math.nan
    if x == math.inf:
        return x
    fraction, k = math.frexp(x)
    if fraction < math.sqrt(0.5):
        fraction, k = 2.0 * fraction, k - 1
    return k * math.log(2.0) + twice_atanh((fraction - 1.0) / (fraction + 1.0))


def softplus(x: float) -> float:
    """Return log(1 + e**x) as max(x, 0) + log(1 + e**-|x|)."""
    if math.isnan(x):
        return x
    small = exp(-abs(x))
    return max(x, 0.0) + twice_atanh(small / (2.0 + small))
