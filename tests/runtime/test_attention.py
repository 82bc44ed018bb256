"""Attention and its cache: the reference's bits, for any split of the rows and any stale data."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speqc.runtime import matmul
from speqc.runtime import reference_kernels as reference
from speqc.runtime.attention import AttentionSpec, KVCache, PositionBias, attention

DTYPES = st.sampled_from([np.float16, np.float32])
BIASES = st.builds(
    PositionBias,
    slopes=st.tuples(*[st.sampled_from([0.5, 0.7071068, 0.1, 2.0**-8])] * 6),
    from_row=st.booleans(),
    position_dtype=DTYPES,
    product_dtype=DTYPES,
    sum_dtype=DTYPES,
)
SINKS = st.lists(st.floats(-3, 3, width=16), min_size=6, max_size=6).map(tuple)
SPECS = st.builds(
    AttentionSpec,
    score_scale=st.sampled_from([None, 0.125, 0.3]),
    score_divisor=st.sampled_from([None, None, 3.3]),
    scale_dtype=st.sampled_from([None, np.float16, np.float32]),
    scale_behind_bias=st.booleans(),
    bias=st.none() | BIASES,
    sinks=st.none() | SINKS,
    score_dtype=DTYPES,
    softmax_dtype=DTYPES,
    shifted_dtype=DTYPES,
    prob_dtype=DTYPES,
    out_dtype=DTYPES,
    window=st.one_of(st.none(), st.integers(1, 80)),
    softcap=st.sampled_from([None, None, 5.0]),
)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays have the same bits, any NaN being like any other."""
    as_bits = f"u{a.itemsize}"
    alike = (a.view(as_bits) == b.view(as_bits)) | (np.isnan(a) & np.isnan(b))
    return a.dtype == b.dtype and a.shape == b.shape and bool(alike.all())


def numbers(seed: int, shape: tuple[int, ...], dtype: Any = np.float16) -> NDArray[Any]:
    """Random numbers of everyday size."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def filled(keys: NDArray[Any], values: NDArray[Any], chunk: int = 1000) -> KVCache:
    """A cache that was given keys and values `chunk` positions at a time."""
    heads, count, width = keys.shape
    cache = KVCache(heads, width, count + 20, keys.dtype, values.shape[2])
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        cache.append(keys[:, part], values[:, part])
    return cache


def for_heads(spec: AttentionSpec, heads: int) -> AttentionSpec:
    """`spec` with the slopes and sinks of the first `heads` heads."""
    bias = spec.bias and replace(spec.bias, slopes=spec.bias.slopes[:heads])
    return replace(spec, bias=bias, sinks=spec.sinks and spec.sinks[:heads])


@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 1), (3, 1), (2, 2), (6, 3), (5, 1)]),
    st.integers(1, 6),
    st.integers(0, 150),
    st.sampled_from([(8, 8), (64, 64), (20, 70)]),
    DTYPES,
    DTYPES,
    SPECS,
)
@settings(deadline=None, max_examples=60)
def test_attention_has_the_bits_of_the_reference(
    seed: int,
    heads: tuple[int, int],
    count: int,
    past: int,
    widths: tuple[int, int],
    q_dtype: Any,
    kv_dtype: Any,
    spec: AttentionSpec,
) -> None:
    q = numbers(seed, (heads[0], count, widths[0]), q_dtype)
    keys = numbers(seed + 1, (heads[1], past + count, widths[0]), kv_dtype)
    values = numbers(seed + 2, (heads[1], past + count, widths[1]), kv_dtype)
    spec = for_heads(spec, heads[0])
    result = attention(q, filled(keys, values), past, spec)
    assert same_bits(result, reference.attention(q, keys, values, past, spec))


@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("past", [0, 1, 62])
def test_rows_of_a_tile_may_see_no_position_in_common(window: int, past: int) -> None:
    spec = AttentionSpec(window=window)
    q, keys, values = (numbers(seed, (2, past + 6, 16)) for seed in range(3))
    result = attention(q[:, :6], filled(keys, values), past, spec)
    assert same_bits(result, reference.attention(q[:, :6], keys, values, past, spec))


@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.lists(st.integers(0, 20), max_size=4),
    st.integers(1, 90),
    st.one_of(st.none(), st.integers(1, 10)),
    st.none() | BIASES,
    st.none() | SINKS,
)
@settings(deadline=None, max_examples=40)
def test_a_row_depends_neither_on_other_rows_nor_on_later_positions(
    seed: int,
    count: int,
    cuts: list[int],
    past: int,
    window: int | None,
    bias: PositionBias | None,
    sinks: tuple[float, ...] | None,
) -> None:
    spec = AttentionSpec(score_scale=0.25, window=window, bias=bias, sinks=sinks)
    spec = for_heads(spec, 6)
    q = numbers(seed, (6, count, 16))
    keys, values = (
        numbers(seed + 1, (2, past + count, 16)),
        numbers(seed + 2, (2, past + count, 16)),
    )
    together = attention(q, filled(keys, values), past, spec)
    cache = filled(keys[:, :past], values[:, :past], chunk=7)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    for start, stop in pairwise(edges):
        part = slice(past + start, past + stop)
        cache.append(keys[:, part], values[:, part])
        if stop > start:
            result = attention(q[:, start:stop], cache, past + start, spec)
            assert same_bits(result, together[:, start:stop])


@pytest.mark.parametrize("window", [None, 9])
def test_what_a_row_does_not_see_may_be_anything(window: int | None) -> None:
    spec = AttentionSpec(window=window)
    q, keys, values = numbers(1, (3, 4, 16)), numbers(2, (1, 100, 16)), numbers(3, (1, 100, 16))
    expected = reference.attention(q, keys[:, :84], values[:, :84], 80, spec)
    for poison in (np.nan, np.inf, -np.inf):
        keys[:, 84:], values[:, 84:] = poison, poison
        if window:
            keys[:, : 81 - window], values[:, : 81 - window] = poison, poison
        assert same_bits(attention(q, filled(keys, values), 80, spec), expected)
    keys[:, 82], values[:, 82] = np.nan, np.nan
    result = attention(q, filled(keys, values), 80, spec)
    assert same_bits(result[:, :2], expected[:, :2])
    assert np.isnan(result[:, 2:]).all()


def test_a_truncated_cache_forgets() -> None:
    keys, values = numbers(2, (2, 300, 16)), numbers(3, (2, 300, 16))
    cache = filled(keys, values)
    cache.truncate(130)
    other = numbers(4, (2, 20, 16))
    cache.append(other, -other)
    expected_keys = np.concatenate([keys[:, :130], other], axis=1)
    expected_values = np.concatenate([values[:, :130], -other], axis=1)
    q = numbers(5, (4, 20, 16))
    expected = reference.attention(q, expected_keys, expected_values, 130, AttentionSpec())
    assert same_bits(attention(q, cache, 130, AttentionSpec()), expected)


def test_a_copy_is_independent() -> None:
    keys, values = numbers(2, (1, 10, 8)), numbers(3, (1, 10, 8))
    cache = filled(keys, values)
    copy = cache.copy()
    cache.truncate(0)
    cache.append(-keys, -values)
    q = numbers(4, (1, 1, 8))
    expected = reference.attention(q, keys, values, 9, AttentionSpec())
    assert same_bits(attention(q, copy, 9, AttentionSpec()), expected)


@pytest.mark.parametrize("count", [1, 5, 17])
def test_the_number_of_threads_changes_nothing(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_PARALLEL_WORK", 0)
    keys, values = numbers(2, (3, 200, 64)), numbers(3, (3, 200, 64))
    q, cache = numbers(1, (9, count, 64)), filled(keys, values)
    expected = reference.attention(q, keys, values, 200 - count, AttentionSpec())
    before = matmul.thread_count()
    for threads in (1, 2, 5):
        matmul.set_thread_count(threads)
        for _ in range(20):
            assert same_bits(attention(q, cache, 200 - count, AttentionSpec()), expected)
    matmul.set_thread_count(before)


def test_each_rounding_point_shows_in_the_bits() -> None:
    q, keys, values = numbers(1, (4, 3, 32)), numbers(2, (2, 50, 32)), numbers(3, (2, 50, 32))
    cache = filled(keys, values)
    wide = AttentionSpec(0.3, np.float32, np.float32, np.float32, np.float32, softcap=2.0)
    results = [attention(q, cache, 47, wide)]
    for field in ("score_dtype", "softmax_dtype", "shifted_dtype", "prob_dtype"):
        results.append(attention(q, cache, 47, replace(wide, **{field: np.float16})))
    results.append(attention(q, cache, 47, replace(wide, softcap=None)))
    results.append(attention(q, cache, 47, replace(wide, score_scale=None)))
    results.append(attention(q, cache, 47, replace(wide, window=40)))
    results.append(attention(q, cache, 47, replace(wide, scale_dtype=np.float16)))
    results.append(attention(q, cache, 47, replace(wide, score_scale=None, score_divisor=3.3)))
    results.append(attention(q, cache, 47, replace(wide, sinks=(0.5, 1.0, 2.0, 3.0))))
    bias = PositionBias((0.3, 0.1, 0.05, 0.01), False, np.float32, np.float32, np.float32)
    results.append(attention(q, cache, 47, replace(wide, bias=bias)))
    results.append(attention(q, cache, 47, replace(wide, bias=bias, scale_behind_bias=True)))
    for field, value in (("from_row", True), ("product_dtype", np.float16)):
        other = replace(bias, **{field: value})
        results.append(attention(q, cache, 47, replace(wide, bias=other)))
    results.append(attention(q, cache, 47, replace(wide, bias=replace(bias, sum_dtype=np.float16))))
    assert len({result.tobytes() for result in results}) == len(results)


def test_misfits_are_refused() -> None:
    cache = KVCache(2, 16, 100)
    new = numbers(1, (2, 60, 16))
    cache.append(new, new)
    with pytest.raises(ValueError, match="capacity 100"):
        cache.append(new, new)
    with pytest.raises(ValueError, match="keys"):
        cache.append(new[:1], new)
    with pytest.raises(ValueError, match="values"):
        cache.append(new, new[:, :3])
    with pytest.raises(ValueError, match="takes no float32"):
        cache.append(new.astype(np.float32), new)
    with pytest.raises(ValueError, match="truncate"):
        cache.truncate(61)
    with pytest.raises(ValueError, match="do not fit"):
        attention(numbers(1, (3, 1, 16)), cache, 59, AttentionSpec())
    with pytest.raises(ValueError, match="not 61"):
        attention(numbers(1, (2, 1, 16)), cache, 60, AttentionSpec())
    with pytest.raises(ValueError, match="3 slopes do not fit 2"):
        spec = AttentionSpec(bias=PositionBias((1.0, 0.5, 0.25)))
        attention(numbers(1, (2, 1, 16)), cache, 59, spec)
    with pytest.raises(ValueError, match="1 sinks do not fit 2"):
        attention(numbers(1, (2, 1, 16)), cache, 59, AttentionSpec(sinks=(0.0,)))


def test_positions_are_rounded_before_their_product() -> None:
    """Position 2049 is 2048 in FP16."""
    wide = PositionBias((1.0, 3.0), False, np.float32, np.float32, np.float32)
    half = replace(wide, position_dtype=np.float16)
    assert wide.table(2050)[:, 2049].tolist() == [2049.0, 6147.0]
    assert half.table(2050)[:, 2049].tolist() == [2048.0, 6144.0]
    assert replace(wide, from_row=True).table(3)[1].tolist() == [0.0, -3.0, -6.0]
