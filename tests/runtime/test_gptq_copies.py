"""Copies chosen for a layer's output: errors by the definition, and never worse than without."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speqc.runtime.copies import copied_values, encode_copy
from speqc.runtime.copy_formats import COPY_FORMATS, tensor_shift
from speqc.runtime.errors import SpeqcError
from speqc.runtime.gptq_copies import choose_copy
from speqc.runtime.moments import Metric, Moments, metric

FORMATS = list(COPY_FORMATS.values())
EVERY = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


def inputs(k: int, seed: int = 0, count: int = 300) -> Metric:
    random = np.random.default_rng(seed)
    mix = np.eye(k) + 2 * random.standard_normal((k, k)) / np.sqrt(k)
    size = np.exp(random.standard_normal(k))
    moments = Moments(k)
    moments.add((random.standard_normal((count, k)) @ mix * size).astype(np.float16))
    found = metric(moments)
    assert found is not None
    return found


def gaussian(rows, columns, seed=0):
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.03
    return values.astype(np.float16).view(np.uint16)


def shift_of(form, bits):
    return tensor_shift(form.name, int((bits >> 10 & 31).max()))


def loss(form, bits, copied, found: Metric):
    """Squared errors of the output by the definition, float64[N]."""
    error = bits.view(np.float16).astype(np.float64) - copied_values(copied, form)
    h = found.moments.astype(np.float64) - found.damping * np.eye(len(bits))
    return np.einsum("kn,kj,jn->n", error, h, error)


@EVERY
def test_calibration_pays(form):
    bits, found = gaussian(128, 70), inputs(128)
    chosen = choose_copy(bits, form, form.group_size, shift_of(form, bits), found)
    assert chosen.after.sum() < 0.5 * chosen.before.sum()
    assert np.all(chosen.after <= chosen.before)


@EVERY
def test_errors_are_those_of_the_definition(form):
    bits, found = gaussian(100, 70, seed=2), inputs(100)
    shift = shift_of(form, bits)
    chosen = choose_copy(bits, form, form.group_size, shift, found)
    plain = encode_copy(bits, form, form.group_size, shift)
    assert np.allclose(chosen.before, loss(form, bits, plain, found), rtol=1e-3)
    assert np.allclose(chosen.after, loss(form, bits, chosen.copied, found), rtol=1e-3)
    weights = bits.view(np.float16).astype(np.float64)
    h = found.moments.astype(np.float64) - found.damping * np.eye(100)
    assert np.allclose(chosen.power, np.einsum("kn,kj,jn->n", weights, h, weights), rtol=1e-3)


@EVERY
def test_more_rounds_are_never_worse(form):
    bits, found = gaussian(128, 64, seed=3), inputs(128)
    shift = shift_of(form, bits)
    sums = [
        choose_copy(bits, form, form.group_size, shift, found, rounds).after.sum()
        for rounds in (0, 1, 3)
    ]
    assert sums[0] > sums[1] >= sums[2]


@EVERY
def test_columns_know_nothing_of_each_other(form):
    bits, found = gaussian(96, 150, seed=4), inputs(96)
    shift = shift_of(form, bits)
    whole = choose_copy(bits, form, form.group_size, shift, found)
    for part in (slice(0, 1), slice(60, 70), slice(128, 150)):
        alone = choose_copy(bits[:, part], form, form.group_size, shift, found)
        for name in ("nibbles", "scales", "zeros"):
            expected = getattr(whole.copied, name)[:, part]
            assert np.array_equal(getattr(alone.copied, name), expected), name


ELEMENT = st.one_of(
    st.floats(-3, 3).map(lambda x: int(np.float16(x * 0.03).view(np.uint16))),
    st.sampled_from([0, 0x8000, 1, 0x03FF, 0x7BFF, 0xFBFF, 0x5640]),
)


@EVERY
@given(data=st.data(), rows=st.integers(1, 40), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_adversarial_columns(form, data, rows, seed):
    column = st.lists(ELEMENT, min_size=rows, max_size=rows)
    bits = np.array(data.draw(st.lists(column, min_size=1, max_size=3)), np.uint16).T
    found, shift = inputs(rows, seed), shift_of(form, bits)
    chosen = choose_copy(bits, form, form.group_size, shift, found)
    assert np.isin(chosen.copied.scales, form.scales(shift)).all()
    assert chosen.copied.nibbles.max() < 16 and chosen.copied.zeros.max() < 16
    plain = encode_copy(bits, form, form.group_size, shift)
    before, after = (loss(form, bits, copied, found) for copied in (plain, chosen.copied))
    # FP32 tells errors apart down to a part of the output's power.
    assert np.all(after <= before + 1e-5 * before + 1e-9 * chosen.power)


def test_infinities_are_refused():
    bits = gaussian(64, 3)
    bits[0, 0] = 0x7C00
    with pytest.raises(SpeqcError, match="cannot hold Inf or NaN"):
        choose_copy(bits, COPY_FORMATS["mxfp4"], 32, 0, inputs(64))
