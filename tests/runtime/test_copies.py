"""The codec of separate 4-bit copies: formats against `ml_dtypes`, and that errors are least."""

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speqc.dialects.speq import COPIES, COPY_SHIFTS
from speqc.runtime.copies import (
    Copied,
    candidates,
    copied_values,
    encode_copy,
    level_differences,
    nearest_levels,
    nearest_place,
    nibble_of,
)
from speqc.runtime.copy_formats import (
    COPY_FORMATS,
    CopyFormat,
    copy_format,
    copy_group_size,
    tensor_shift,
)
from speqc.runtime.errors import SpeqcError

FORMATS = list(COPY_FORMATS.values())
EVERY = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
ALL_FINITE = np.array([b for b in range(65536) if b & 0x7C00 != 0x7C00], np.uint16)


def gaussian(rows, columns, scale=0.02, seed=0):
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * scale
    return values.astype(np.float16).view(np.uint16)


def shift_of(form: CopyFormat, bits) -> int:
    return tensor_shift(form.name, int((bits >> 10 & 31).max()))


def copy(form: CopyFormat, bits, importance=None) -> Copied:
    return encode_copy(bits, form, form.group_size, shift_of(form, bits), importance)


def values(form: CopyFormat, copied: Copied):
    """What a copy stands for by the definition, float64[K, N]."""
    levels = form.levels.astype(np.float64)[copied.nibbles]
    each = copied.group_size
    zeros = copied.zeros.astype(np.float64).repeat(each, axis=0)[: len(levels)]
    return (levels - zeros) * copied.scales.astype(np.float64).repeat(each, axis=0)[: len(levels)]


def test_the_dialect_knows_the_same_names():
    assert list(COPIES) == list(COPY_FORMATS)
    for name, form in COPY_FORMATS.items():
        assert COPIES[name] in (None, form.group_size)


@pytest.mark.parametrize(
    ("name", "bits", "mantissa"), [("int4", 4.3125, 3), ("mxfp4", 4.25, 1), ("nvfp4", 4.5, 1)]
)
def test_bits_of_a_weight(name, bits, mantissa):
    form = copy_format(name)
    assert 4 + form.group_bits / form.group_size == bits
    assert form.mantissa_bits == mantissa
    assert 8 * form.scale_dtype.itemsize == form.scale_bits


def test_levels_are_e2m1_numbers():
    nibbles = np.arange(16, dtype=np.uint8)
    expected = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float16)
    for name in ("mxfp4", "nvfp4"):
        assert np.array_equal(copy_format(name).levels.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(
    ("name", "dtype", "shift"),
    [
        ("mxfp4", ml_dtypes.float8_e8m0fnu, 0),
        *(("nvfp4", ml_dtypes.float8_e4m3fn, shift) for shift in COPY_SHIFTS),
    ],
)
def test_stored_scales_are_numbers_of_their_format(name, dtype, shift):
    """Their values are exact in FP16, whichever scale the tensor has."""
    form = copy_format(name)
    known = form.scales(shift)
    codes = form.scale_codes(known, shift)
    exact = codes.view(dtype).astype(np.float64) * 2.0**shift
    assert np.array_equal(exact, known.astype(np.float64))
    assert np.all(np.diff(exact) > 0) and exact[0] > 0
    assert np.array_equal(form.scale_values(codes, shift), known)


def test_scales_of_int4_are_all_of_fp16():
    form = copy_format("int4")
    known = form.scales()
    assert len(known) == 0x7BFF and np.all(np.isfinite(known)) and np.all(known > 0)
    assert form.scale_values(form.scale_codes(known)) is known


def test_level_differences_are_exact_and_need_the_mantissa_bits_that_are_stated():
    for form in FORMATS:
        zeros = range(16) if form.integers else [0]
        differences = {float(form.levels[q]) - z for q, z in product(range(16), zeros)}
        for number in differences - {0.0}:
            half = abs(np.frexp(number)[0])
            assert half * 2.0 ** (form.mantissa_bits + 1) % 1 == 0
        needed = [abs(np.frexp(d)[0]) * 2.0**form.mantissa_bits % 1 for d in differences - {0.0}]
        assert any(needed), "fewer bits would do"


@EVERY
def test_nearest_levels_are_nearest(form):
    random = np.random.default_rng(1)
    units = random.uniform(-20, 20, (500, 64)).astype(np.float32)
    units[0, :16] = np.arange(16) - 8 + 0.5
    zeros = np.full(64, 5 if form.integers else 0, np.float32)
    chosen, one = np.empty(64, np.float32), np.ones(64, np.float32)
    allowed = form.levels.astype(np.float32) - zeros[0]
    for row in units:
        nearest_levels(row, one, zeros, form.integers, chosen)
        least = np.abs(row[:, None] - allowed).min(axis=1)
        assert np.array_equal(np.abs(row - chosen), least)
        nibbles = [nibble_of(level, zeros[0], form.integers) for level in chosen]
        assert np.array_equal(allowed[nibbles], chosen)


def test_ties_between_levels_are_those_of_the_specification():
    """Round to nearest, ties to even, as OCP's conversion to E2M1 does."""
    units = np.linspace(-6, 6, 64 * 97, dtype=np.float32).reshape(-1, 64)
    units[0, :8] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5]
    chosen, one, none = np.empty(64, np.float32), np.ones(64, np.float32), np.zeros(64, np.float32)
    for row in units:
        nearest_levels(row, one, none, False, chosen)
        expected = row.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
        assert np.array_equal(chosen, expected)


@EVERY
def test_nearest_place_is_nearest(form):
    known = form.scales().astype(np.float32)
    random = np.random.default_rng(0)
    wanted = np.concatenate([np.exp(random.uniform(-20, 12, 300)), known[:5], [0, -1, 1e9]])
    for number in wanted.astype(np.float32):
        place = nearest_place(known, number)
        assert abs(known[place] - number) == np.abs(known - number).min()


def simple_mxfp4(bits):
    """MXFP4 as the specification's section 6.3 converts: one scale, no search."""
    weights = bits.view(np.float16).astype(np.float64)
    out = np.zeros_like(weights)
    for first in range(0, len(weights), 32):
        group = weights[first : first + 32]
        peak = np.maximum(np.abs(group).max(axis=0), 2.0**-24)
        scale = 2.0 ** np.maximum(np.floor(np.log2(peak)) - 2, -24)
        units = np.clip(group / scale, -6, 6).astype(np.float32)
        out[first : first + 32] = units.astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * scale
    return out


def simple_nvfp4(bits, shift):
    """NVFP4 with the scale of each group that brings its largest weight to 6."""
    weights = bits.view(np.float16).astype(np.float64)
    out = np.zeros_like(weights)
    for first in range(0, len(weights), 16):
        group = weights[first : first + 16]
        wanted = np.abs(group).max(axis=0) / 6 / 2.0**shift
        scale = wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * 2.0**shift
        units = np.clip(group / np.where(scale > 0, scale, 1), -6, 6).astype(np.float32)
        out[first : first + 16] = units.astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * scale
    return out


def simple_int4(bits):
    """INT4 over the whole range of each group."""
    weights = bits.view(np.float16).astype(np.float64)
    out = np.zeros_like(weights)
    for first in range(0, len(weights), 64):
        group = weights[first : first + 64]
        low, high = np.minimum(group.min(axis=0), 0), np.maximum(group.max(axis=0), 0)
        scale = np.maximum((high - low) / 15, 2.0**-24).astype(np.float16).astype(np.float64)
        zero = np.clip(np.rint(-low / scale), 0, 15)
        out[first : first + 64] = (np.clip(np.rint(group / scale) + zero, 0, 15) - zero) * scale
    return out


def simple(form, bits):
    if form.name == "int4":
        return simple_int4(bits)
    return simple_mxfp4(bits) if form.name == "mxfp4" else simple_nvfp4(bits, shift_of(form, bits))


def squared_error(form, bits, found):
    """Of each group and column, float64[G, N]."""
    away = (bits.view(np.float16).astype(np.float64) - found) ** 2
    return np.add.reduceat(away, np.arange(0, len(away), form.group_size), axis=0)


@EVERY
@pytest.mark.parametrize("scale", [1e-6, 2e-5, 0.02, 3.0, 900.0])
def test_no_group_is_worse_than_by_the_usual_rule(form, scale):
    bits = gaussian(192, 70, scale)
    found = squared_error(form, bits, values(form, copy(form, bits)))
    usual = squared_error(form, bits, simple(form, bits))
    assert np.all(found <= usual * (1 + 1e-5) + 1e-30)
    if scale > 1e-3:
        assert found.sum() < 0.97 * usual.sum()


def best_scale(form, group, shift):
    """The least squared error of one group [K] over every scale and zero point that there is."""
    weights = group.view(np.float16).astype(np.float64)
    known = form.scales(shift).astype(np.float64)
    if form.name == "int4":
        peak = (weights.max() - weights.min()) / 15
        known = known[(known > 0.4 * peak) & (known < 1.3 * peak)]
    zeros = range(16) if form.integers else [0]
    levels = form.levels.astype(np.float64)
    least = np.inf
    for zero in zeros:
        grid = (levels - zero)[None] * known[:, None]
        away = np.abs(weights[:, None, None] - grid[None]).min(axis=2)
        least = min(least, float((away**2).sum(axis=0).min()))
    return least


@EVERY
def test_the_search_comes_near_the_best_that_there_is(form):
    bits = gaussian(form.group_size, 8, seed=3)
    shift = shift_of(form, bits)
    found = squared_error(form, bits, values(form, copy(form, bits)))[0]
    best = np.array([best_scale(form, bits[:, n], shift) for n in range(bits.shape[1])])
    assert np.all(found >= best * (1 - 1e-5))
    # E8M0 and E4M3 have few scales, and the best is among those that are tried.
    assert found.sum() <= best.sum() * (1.01 if form.integers else 1.0001)


@pytest.mark.parametrize(("name", "least"), [("int4", 21.1), ("mxfp4", 18.9), ("nvfp4", 21.7)])
def test_error_of_gaussian_weights(name, least):
    form = copy_format(name)
    bits = gaussian(2048, 128)
    weights = bits.view(np.float16).astype(np.float64)
    noise = np.sum((weights - values(form, copy(form, bits))) ** 2)
    assert 10 * np.log10(np.sum(weights**2) / noise) > least


ELEMENTS = {
    "any": st.integers(0, len(ALL_FINITE) - 1).map(lambda place: int(ALL_FINITE[place])),
    "subnormal": st.integers(0, 0x03FF),
    "gaussian": st.floats(-3, 3).map(lambda x: int(np.float16(x * 0.03).view(np.uint16))),
    "outlier": st.sampled_from([0x7BFF, 0xFBFF, 0x0001, 0x8001, 0x0000, 0x8000, 0x2666]),
}


@st.composite
def blocks(draw):
    rows = draw(st.integers(1, 40))
    kinds = st.sampled_from(
        [("any",), ("subnormal",), ("gaussian", "outlier"), ("outlier",), ("gaussian",)]
    )
    columns = []
    for _ in range(draw(st.integers(1, 4))):
        element = st.one_of(*(ELEMENTS[name] for name in draw(kinds)))
        same = draw(st.booleans())
        columns.append(
            [draw(element)] * rows
            if same
            else draw(st.lists(element, min_size=rows, max_size=rows))
        )
    return np.array(columns, np.uint16).T


@EVERY
@given(bits=blocks())
@settings(max_examples=60, deadline=None)
def test_adversarial_groups(form, bits):
    copied = copy(form, bits)
    shift = shift_of(form, bits)
    assert copied.nibbles.max() < 16 and copied.zeros.max() < 16
    assert np.isin(copied.scales, form.scales(shift)).all()
    codes = form.scale_codes(copied.scales, shift)
    assert np.array_equal(form.scale_values(codes, shift), copied.scales)
    found = values(form, copied)
    assert np.array_equal(found.astype(np.float32), copied_values(copied, form))
    levels = found / copied.scales.astype(np.float64).repeat(form.group_size, axis=0)[: len(bits)]
    assert np.array_equal(levels, level_differences(copied, form))
    usual = squared_error(form, bits, simple(form, bits))
    worse = squared_error(form, bits, found) > usual * (1 + 1e-4) + 1e-12 * usual.max(initial=0)
    assert not worse.any()
    zero = (bits & 0x7FFF == 0).all(axis=0)
    assert not found[:, zero].any()


@EVERY
@pytest.mark.parametrize("pattern", [0x7C00, 0xFC00, 0x7E00, 0x7C01])
def test_infinities_and_nan_are_refused(form, pattern):
    bits = gaussian(40, 3)
    bits[7, 1] = pattern
    with pytest.raises(SpeqcError, match=f"a copy in {form.name} cannot hold Inf or NaN"):
        encode_copy(bits, form, form.group_size)


@EVERY
def test_columns_know_nothing_of_each_other(form):
    bits = gaussian(100, 150, seed=5)
    shift = shift_of(form, bits)
    whole = encode_copy(bits, form, form.group_size, shift)
    for part in (slice(0, 1), slice(60, 70), slice(128, 150)):
        alone = encode_copy(bits[:, part], form, form.group_size, shift)
        for name in ("nibbles", "scales", "zeros"):
            assert np.array_equal(getattr(alone, name), getattr(whole, name)[:, part])


@EVERY
def test_important_rows_are_nearer(form):
    bits = gaussian(128, 64, seed=6)
    importance = np.ones(128, np.float32)
    importance[::8] = 100
    plain, weighted = (values(form, copy(form, bits, i)) for i in (None, importance))
    weights = bits.view(np.float16).astype(np.float64)
    before, after = (((weights - found)[::8] ** 2).sum() for found in (plain, weighted))
    assert after < before
    assert ((weights - weighted) ** 2).sum() > ((weights - plain) ** 2).sum()


def test_int4_serves_groups_that_lie_on_one_side():
    """A zero point spends all 16 levels on weights from 0 to 1; a symmetric grid half of them."""
    form = copy_format("int4")
    weights = np.random.default_rng(0).uniform(0, 1, (64, 64)).astype(np.float16)
    found = copy(form, weights.view(np.uint16))
    assert (found.zeros <= 1).all()
    assert np.abs(weights - values(form, found)).max() < 1 / 15


def test_the_scale_of_the_specification_is_tried():
    """OCP's 2^(floor(log2(peak)) - 2), as far as FP16 has it."""
    known, tried = copy_format("mxfp4").scales().astype(np.float32), candidates("mxfp4")
    for peak in np.arange(1, 0x7C00, 13, dtype=np.uint16).view(np.float16).astype(np.float32):
        places = nearest_place(known, peak / np.float32(6)) + tried.steps
        usual = 2.0 ** max(np.floor(np.log2(float(peak))) - 2, -24)
        assert usual in known[np.clip(places, 0, len(known) - 1)]


def test_a_tensor_scale_keeps_every_group_scale_in_reach():
    for field in range(31):
        peak = 2.0 ** (field - 14)
        shift = tensor_shift("nvfp4", field)
        assert shift in COPY_SHIFTS
        assert copy_format("nvfp4").scales(shift).max() >= peak / 6
        assert tensor_shift("mxfp4", field) == tensor_shift("int4", field) == 0


def test_unknown_formats_and_groups_are_refused():
    with pytest.raises(SpeqcError, match="unknown format of a copy 'nf4': choose one of int4, mx"):
        copy_format("nf4")
    assert copy_group_size("int4", None) == 64 and copy_group_size("int4", 32) == 32
    assert copy_group_size("nvfp4", 16) == copy_group_size("nvfp4", None) == 16
    with pytest.raises(SpeqcError, match="mxfp4 has groups of 32"):
        copy_group_size("mxfp4", 64)
